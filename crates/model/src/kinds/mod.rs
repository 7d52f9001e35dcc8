//! The kinds: what a resource of each holds.

mod access_policy;
mod endpoint_slice;
mod grpc_route;
mod http_route;
mod mesh;
mod metadata;
mod route;
mod service;
mod traffic_policy;

pub(crate) use metadata::SERVER_SET;

pub use self::{
    access_policy::*, endpoint_slice::*, grpc_route::*, http_route::*, mesh::*, metadata::Metadata, route::*,
    service::*, traffic_policy::*,
};
