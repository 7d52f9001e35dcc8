//! rustls configurations: TLS 1.3 only, X25519MLKEM768 first, peers verified by SPIFFE ID.
//!
//! Unless [`resuming`] and [`ClientSessions`] say otherwise, sessions are not taken up again: every connection proves
//! both identities anew, against the trust bundle and the clock of its own time. Early data is never taken.

mod fault;
mod resume;
#[cfg(test)]
mod tests;
pub mod verify;

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, CommonState, HandshakeKind, ServerConfig};
use rustls_pki_types::CertificateDer;

pub use self::fault::HandshakeFault;
pub use self::resume::{ClientSessions, LIFE as SESSION_LIFE, resuming};
use self::verify::{Anchor, Expected, Verifier};
use crate::bundle::TrustBundle;
use crate::cert;
pub use crate::cert::PeerError;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::Svid;

/// The cryptography of every TLS connection of the mesh. Passed explicitly: nothing is installed process-wide.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        Arc::new(CryptoProvider {
            // AES-128 first: as strong as the rest of the handshake and the fastest where the processor has AES.
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            ..aws_lc_rs::default_provider()
        })
    };
    PROVIDER.get_or_init(make).clone()
}

/// Whether a server insists on a client certificate. One that is sent is verified in both cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate, no connection.
    Required,
    /// A client without a certificate is let in; what it may do is for the caller to decide.
    Optional,
}

/// A server's configuration. `alpn`: protocols in order of preference.
///
/// # Errors
/// [`TlsError`] when the SVID's key cannot be used.
pub fn server_config(
    svid: &Svid,
    bundle: &TrustBundle,
    client: ClientAuth,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let expected = Expected::TrustDomain(bundle.trust_domain().clone());
    let verifier = Verifier::new(Anchor::roots(bundle), expected).requiring(client == ClientAuth::Required);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(svid.chain.clone(), svid.key().der())?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// A client's configuration that accepts any identity of the trust domain. Which one it is must be checked with
/// [`peer_id`] after the handshake, before a byte is sent.
///
/// # Errors
/// [`TlsError`] when the SVID's key cannot be used.
pub fn client_config(svid: Option<&Svid>, bundle: &TrustBundle, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    let expected = Expected::TrustDomain(bundle.trust_domain().clone());
    client(svid, Verifier::new(Anchor::roots(bundle), expected), alpn)
}

/// A client's configuration that accepts one identity.
///
/// # Errors
/// [`TlsError`] when the SVID's key cannot be used.
pub fn client_config_expecting(
    svid: Option<&Svid>,
    bundle: &TrustBundle,
    expected: SpiffeId,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    client(svid, Verifier::new(Anchor::roots(bundle), Expected::Identity(expected)), alpn)
}

/// The configuration of a first contact: no bundle yet, only the hash of the root from a join token. The server's chain
/// must hold that root and lead to it, and the identity must be a control plane's; of `trust_domain`, if that is known.
///
/// # Errors
/// [`TlsError`] when rustls refuses the configuration.
pub fn client_config_pinned(
    ca_sha256: [u8; 32],
    trust_domain: Option<TrustDomain>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    client(None, Verifier::new(Anchor::Pinned(ca_sha256), Expected::ControlPlane(trust_domain)), alpn)
}

/// The identity of a peer whose handshake has succeeded, from its certificates as rustls keeps them.
///
/// # Errors
/// [`PeerError`] when the peer sent no certificate, or one without a SPIFFE ID.
pub fn peer_id(certs: Option<&[CertificateDer<'_>]>) -> Result<SpiffeId, PeerError> {
    let leaf = certs.and_then(<[_]>::first).ok_or(PeerError::Missing)?;
    cert::spiffe_id(leaf)
}

/// Who the peer of a connection proved to be, whose handshake has succeeded; and whether that was in an earlier one, of
/// which this connection took up the session. A certificate that has expired since proves nothing any more.
///
/// # Errors
/// The fault that a full handshake would have found.
pub fn proved(connection: &CommonState, now: SystemTime) -> Result<(SpiffeId, bool), HandshakeFault> {
    let certs = connection.peer_certificates();
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    if resumed {
        for cert in certs.unwrap_or_default() {
            let (_, not_after) = cert::validity(cert)?;
            if now > not_after {
                return Err(HandshakeFault::Expired);
            }
        }
    }
    Ok((peer_id(certs)?, resumed))
}

fn client(svid: Option<&Svid>, verifier: Verifier, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match svid {
        Some(svid) => builder.with_client_auth_cert(svid.chain.clone(), svid.key().der())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// Why rustls refused a configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the TLS configuration is refused: {0}")]
pub struct TlsError(#[from] rustls::Error);
