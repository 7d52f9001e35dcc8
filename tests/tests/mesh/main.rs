//! Meshes of real processes on loopback.
#![allow(clippy::unwrap_used, missing_docs)]

mod documents;
mod interop;
mod protocols;
