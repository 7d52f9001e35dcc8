//! SPIFFE IDs, keys, CSRs, trust bundles, rustls configurations and verifiers.

/// A SPIFFE ID, `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(std::sync::Arc<str>);
