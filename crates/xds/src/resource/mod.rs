//! xDS resources as validated types.

mod access;
mod cluster;
mod endpoint;
mod listener;
mod matcher;
mod route;

pub use self::{access::*, cluster::*, endpoint::*, listener::*, matcher::*, route::*};
