//! Puts sidecars into what teams deploy. Documents in, documents out; no I/O.
//!
//! - [`compose`]: an overlay beside a compose file. - [`kubernetes`]: manifests with sidecars in their pods.

pub mod compose;
pub mod kubernetes;
