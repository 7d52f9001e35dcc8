//! SPIFFE IDs, keys, CSRs, trust bundles, the certificate authority, rustls configurations and verifiers.
//!
//! Knows nothing of the mesh's services or of its protocols; does no I/O but reading and writing its own files.

pub mod bundle;
pub mod ca;
pub mod cert;
pub mod files;
pub mod key;
pub mod rotation;
pub mod spiffe;
pub mod svid;
pub mod tls;
pub mod token;

pub use bundle::{BundleError, TrustBundle};
pub use key::{KeyError, PrivateKey};
pub use rotation::Renewal;
pub use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
pub use svid::{Svid, SvidError};
pub use token::JoinToken;

pub use rustls_pki_types::CertificateDer;
