//! The certificates manager: a CSR and a proof of identity in, a short-lived certificate out.
//!
//! Owns the authority, the control plane's own certificate and the join tokens' rules. The key of a workload is never
//! here; the SAN comes from the proof, never from the request.

mod grpc;
mod issue;
mod limit;
mod metrics;
#[cfg(test)]
mod tests;
mod tokens;

use std::sync::Arc;

use rustls_pki_types::CertificateDer;

pub use self::grpc::CertificatesGrpc;
pub use self::issue::{Certificates, CertificatesError, Settings};
pub use self::tokens::{Grant, GrantError, TokenError, TokenRecord, Tokens};

/// The verified certificate chain of the client of a connection, leaf first; `None`: it sent none. The accept loop puts it
/// into the extensions of every request.
#[derive(Debug, Clone, Default)]
pub struct PeerCertificates(pub Option<Arc<Vec<CertificateDer<'static>>>>);
