//! Request → cluster: one normalisation, virtual hosts, routes, rewrites, edits of headers.
//!
//! A request's path and host are normalised once, by [`normalise`], before anything is decided; routes and access rules
//! see the same [`Head`], and what they saw is what is sent on. Pure: no I/O, no clock, no chance of its own.

pub mod headers;
pub mod host;
pub mod index;
pub mod matches;
pub mod normalise;
pub mod rewrite;
pub mod text;

#[cfg(test)]
pub(crate) mod tests;

use http::{HeaderMap, Method};

pub use self::{
    index::RouteIndex,
    matches::{find_route, find_virtual_host, pick_cluster},
    normalise::{Authority, Host, HostError, Target, TargetError},
};

/// What routes and access rules see of a request.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Method.
    pub method: &'a Method,
    /// Normalised, without query.
    pub path: &'a str,
    /// As it came, without the `?`.
    pub query: Option<&'a str>,
    /// Normalised host without port; see [`Authority::host`].
    pub authority: &'a str,
    /// `http` or `https`, as the application sees it.
    pub scheme: &'a str,
    /// Fields.
    pub headers: &'a HeaderMap,
}

impl Head<'_> {
    /// By its content type, the request is gRPC (not gRPC-Web).
    pub fn is_grpc(&self) -> bool {
        let kind = self.headers.get(http::header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
        let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
        matches!(rest, Some([] | [b'+' | b';' | b' ', ..]))
    }
}
