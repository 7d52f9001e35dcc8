//! The first certificate: a join token or a Kubernetes service-account token as proof, over a connection that is pinned.

use weft_identity::{JoinToken, PrivateKey, SpiffeId, TrustBundle, tls};
use weft_proto::weft::v1::{IssueRequest, IssueResponse};

use super::{CertsError, issue};
use crate::{
    mark,
    settings::{Settings, TokenSource},
};

/// Asks for a certificate with whatever `source` holds by now.
pub(super) async fn join(
    settings: &Settings,
    key: &PrivateKey,
    source: &TokenSource,
) -> Result<IssueResponse, CertsError> {
    let text = source.read()?;
    let tls = match Proof::of(&text)? {
        Proof::JoinToken(token) => {
            tls::client_config_pinned(token.ca_sha256(), Some(settings.trust_domain.clone()), &[b"h2"])?
        }
        // Read anew like the token: a cluster replaces both files while the sidecar runs.
        Proof::ServiceAccount => {
            let file = settings.ca_file.as_deref().ok_or(CertsError::NoCa)?;
            let roots = TrustBundle::load(settings.trust_domain.clone(), file).map_err(CertsError::CaFile)?;
            let expected = SpiffeId::control_plane(&settings.trust_domain);
            tls::client_config_expecting(None, &roots, expected, &[b"h2"])?
        }
    };
    let channel = weft_proto::connect::channel_prepared(&settings.control_plane, tls, mark::prepare)?;
    issue(channel, IssueRequest { csr: key.csr()?, join_token: text }).await
}

#[derive(Debug)]
enum Proof {
    JoinToken(JoinToken),
    /// A JSON Web Token; the cluster checks it, not we.
    ServiceAccount,
}

impl Proof {
    fn of(text: &str) -> Result<Self, CertsError> {
        // The head of every JSON Web Token is a JSON object in base64.
        if text.starts_with("eyJ") && text.split('.').count() == 3 {
            return Ok(Self::ServiceAccount);
        }
        let token = JoinToken::parse(text).map_err(|error| CertsError::TokenText(error.to_string()))?;
        Ok(Self::JoinToken(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_account_token_is_told_from_a_join_token() {
        assert!(matches!(Proof::of("eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOlsid2VmdCJdfQ.c2ln"), Ok(Proof::ServiceAccount)));
        let token = JoinToken::new([7; 32]).unwrap().to_string();
        assert!(matches!(Proof::of(&token), Ok(Proof::JoinToken(_))));
        for neither in ["", "eyJhbGciOiJSUzI1NiJ9", "eyJ.a", "weft1.a.b.c", "secret"] {
            assert!(matches!(Proof::of(neither), Err(CertsError::TokenText(_))), "{neither}");
        }
    }
}
