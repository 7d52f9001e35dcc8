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

pub use self::grpc::CertificatesGrpc;
pub use self::issue::{Certificates, CertificatesError, Settings};
pub use self::tokens::{Grant, GrantError, TokenError, TokenRecord, Tokens};
