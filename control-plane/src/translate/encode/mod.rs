//! From validated types ([`weft_xds::resource`]) to Envoy's protobuf: the inverse of that crate's decoder.
//!
//! Owns the shape of what is sent to each kind of client, and decides nothing: what a cluster or a route *is* was
//! decided before. What Envoy has a field for goes into that field; the rest travels as a Weft extension besides.

pub mod access;
pub mod cluster;
pub mod endpoints;
pub mod listener;
pub mod matcher;
pub mod routes;
