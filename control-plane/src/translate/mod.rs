//! From the world to xDS resources. Pure: no I/O, no clock.
//!
//! In two steps: what a cluster, a route or a listener *is* ([`cluster`], [`routes`], [`endpoints`], [`access`],
//! [`dns`],
//! [`listener`]: the validated types of [`weft_xds::resource`]), and how one kind of client is told ([`encode`], with
//! [`sidecar`], [`envoy`] and [`grpc`] for what only one kind gets). The [`Catalog`] keeps what was encoded.

pub mod access;
mod catalog;
pub mod cluster;
pub mod dns;
pub mod encode;
pub mod endpoints;
pub mod envoy;
mod flavour;
pub mod grpc;
pub mod listener;
pub mod names;
mod render;
pub mod routes;
pub mod sidecar;
pub mod wire;

#[cfg(test)]
pub(crate) mod tests;

pub use self::{
    catalog::{Catalog, Changes, Source, source},
    flavour::{Client, DEFAULT_OUTBOUND, Flavour, LISTENERS, LocalPort, NodeError, OUTBOUND, UPSTREAMS},
    render::fixed_names,
};
