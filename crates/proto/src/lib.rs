//! Generated protobuf of Weft's own services and of the subset of xDS that it uses.
//!
//! `generated/` is written by `cargo xtask proto` and committed; nothing in it is edited by hand. The modules follow the
//! protobuf packages: `weft_proto::weft::v1`, `weft_proto::envoy::config::cluster::v3`.

#![allow(missing_docs, clippy::all, clippy::large_futures, rustdoc::all)]

include!("generated/mod.rs");

pub mod codec;
pub mod connect;

/// The descriptors of the services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");
