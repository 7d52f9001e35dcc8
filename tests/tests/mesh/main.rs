//! Meshes of real processes on loopback.
#![allow(clippy::unwrap_used, missing_docs)]

mod access;
mod balancing;
mod breakers;
mod certificates;
mod check;
mod control_plane;
mod demo;
mod dns;
mod documents;
mod failures;
mod hosts;
mod identities;
mod interop;
mod kubernetes;
mod observe;
mod on_demand;
mod protocols;
mod redirect;
mod refused_configuration;
mod retries;
mod rolling;
mod scale;
mod strict;
mod transparent;
mod wrapper;
