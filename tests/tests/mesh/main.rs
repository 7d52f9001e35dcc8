//! Meshes of real processes on loopback.
#![allow(clippy::unwrap_used, missing_docs)]

mod breakers;
mod demo;
mod documents;
mod failures;
mod identities;
mod interop;
mod protocols;
mod refused_configuration;
mod retries;
