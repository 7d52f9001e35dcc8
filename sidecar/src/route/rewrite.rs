//! Rewritten paths and redirects.

use std::borrow::Cow;

use http::{HeaderValue, StatusCode};
use weft_xds::resource::{PathMatch, PathRewrite, Redirect};

use super::{
    Head,
    normalise::{Authority, clean, with_query},
};

/// Path and query to send on. `matched`: the path test of the route.
pub fn rewrite(rewrite: &PathRewrite, matched: &PathMatch, path: &str, query: Option<&str>) -> String {
    with_query(&rewritten(rewrite, matched, path), query).into_owned()
}

/// The new path. Joining leaves no double slash and no dot segment behind that the request brought.
fn rewritten<'a>(rewrite: &'a PathRewrite, matched: &PathMatch, path: &str) -> Cow<'a, str> {
    let replacement = match rewrite {
        PathRewrite::Full(full) => return rooted(full),
        PathRewrite::Prefix(replacement) => replacement,
    };
    let prefix = match matched {
        PathMatch::Prefix(prefix) => &**prefix,
        PathMatch::SeparatedPrefix(prefix) => prefix.strip_suffix('/').unwrap_or(prefix),
        // What matched is the whole path.
        PathMatch::Exact(_) | PathMatch::Regex(_) => path,
    };
    let rest = path.strip_prefix(prefix).unwrap_or_default();
    let slash = prefix.ends_with('/') && !rest.is_empty() && !replacement.ends_with('/');
    let joined = [&*rooted(replacement), if slash { "/" } else { "" }, rest].concat();
    Cow::Owned(clean(&joined).into_owned())
}

fn rooted(path: &str) -> Cow<'_, str> {
    if path.starts_with('/') { Cow::Borrowed(path) } else { Cow::Owned(["/", path].concat()) }
}

/// Status and `location` of a redirect. `authority`: the one asked for. `None`: the configuration's words do not make a
/// header value.
pub fn redirect(
    redirect: &Redirect,
    matched: &PathMatch,
    head: &Head<'_>,
    authority: &Authority<'_>,
) -> Option<(StatusCode, HeaderValue)> {
    let scheme = redirect.scheme.as_deref().unwrap_or(head.scheme);
    let host = redirect.host.as_deref().unwrap_or(authority.host());
    let asked = if redirect.scheme.is_none() { authority.port() } else { None };
    let port = redirect.port.or(asked).filter(|&port| !matches!((scheme, port), ("http", 80) | ("https", 443)));
    let path = match &redirect.path {
        Some(path) => rewritten(path, matched, head.path),
        None => Cow::Borrowed(head.path),
    };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let location = format!("{scheme}://{host}{port}{}", with_query(&path, head.query));
    Some((redirect.status, HeaderValue::try_from(location).ok()?))
}
