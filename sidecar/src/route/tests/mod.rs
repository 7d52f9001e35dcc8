//! Tests of normalisation, matching and rewriting.

mod matches;
mod normalise;
mod rewrite;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::Head;

/// A GET of `path` over plain HTTP with the given fields.
pub(crate) fn head<'a>(path: &'a str, query: Option<&'a str>, headers: &'a HeaderMap) -> Head<'a> {
    Head { method: &Method::GET, path, query, authority: "orders.default", scheme: "http", headers }
}

pub(crate) fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let field = |&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let mut map = HeaderMap::new();
    for (name, value) in fields.iter().map(field) {
        map.append(name, value);
    }
    map
}
