//! Secrets: trust bundles. Keys never come over xDS.

use weft_identity::{TrustBundle, TrustDomain};
use weft_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};

use super::{
    Bundle, DecodeError, cluster,
    value::{At, Result, err, inline, name, unsupported},
};

/// Most roots in a bundle.
const MOST_ROOTS: usize = 64;

pub(super) fn decode(proto: Secret) -> Result<Bundle> {
    let name = name(&proto.name, "name")?;
    let context = match &proto.r#type {
        Some(secret::Type::ValidationContext(context)) => context,
        Some(secret::Type::TlsCertificate(_)) => {
            return err("tls_certificate", "is not supported: a sidecar's key never leaves it");
        }
        Some(secret::Type::SessionTicketKeys(_)) => return err("session_ticket_keys", "is not supported"),
        Some(secret::Type::GenericSecret(_)) => return err("generic_secret", "is not supported"),
        None => return err("validation_context", "is missing"),
    };
    cluster::check_validation(context).at("validation_context")?;
    unsupported(!context.match_typed_subject_alt_names.is_empty(), "validation_context.match_typed_subject_alt_names")?;
    let pem = inline(context.trusted_ca.as_ref().and_then(|it| it.specifier.as_ref()));
    let roots = pem.and_then(roots).at("validation_context.trusted_ca")?;
    Ok(Bundle { name, roots })
}

/// Root certificates from PEM, each one that can be a trust anchor.
fn roots(pem: &[u8]) -> Result<Vec<Vec<u8>>> {
    let Ok(pem) = std::str::from_utf8(pem) else { return err("", "is not PEM") };
    // A Secret names no trust domain; whose roots these are does not matter for reading them.
    let domain = TrustDomain::parse("unnamed").map_err(|e| DecodeError::new("", e.to_string()))?;
    let bundle = TrustBundle::from_pem(domain, pem).map_err(|e| DecodeError::new("", e.to_string()))?;
    if bundle.roots().len() > MOST_ROOTS {
        return err("", format!("has more than {MOST_ROOTS} certificates"));
    }
    Ok(bundle.roots().iter().map(|root| root.to_vec()).collect())
}
