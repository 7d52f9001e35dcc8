//! SPIFFE IDs, keys, CSRs, trust bundles, the certificate authority, rustls configurations and verifiers.
//!
//! Knows nothing of the mesh's services or of its protocols; does no I/O but reading and writing its own files.

pub mod spiffe;

pub use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
