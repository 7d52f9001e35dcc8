//! Virtual host by domain, route by request, cluster by weight.

use std::{borrow::Cow, sync::Arc};

use percent_encoding::percent_decode_str;
use weft_xds::resource::{Forward, PathMatch, QueryMatch, Route, RouteMatch, VirtualHost, WeightedCluster};

use super::{Head, headers, text};

/// The virtual host of an authority (lower case): an exact domain, else the longest wildcard, else `*`.
pub fn find_virtual_host<'h>(hosts: &'h [Arc<VirtualHost>], authority: &str) -> Option<&'h Arc<VirtualHost>> {
    let rank = |domain: &str| match domain.strip_prefix('*') {
        None => (domain == authority).then_some(usize::MAX),
        // `*.example` takes at least one more character before the dot; `*` takes all.
        Some(suffix) => {
            (suffix.is_empty() || authority.len() > suffix.len() && authority.ends_with(suffix)).then_some(suffix.len())
        }
    };
    let ranked = hosts
        .iter()
        .filter_map(|host| host.domains.iter().filter_map(|domain| rank(domain)).max().map(|rank| (rank, host)));
    // Of equals the first.
    ranked.reduce(|best, other| if other.0 > best.0 { other } else { best }).map(|(_, host)| host)
}

/// The first route that takes the request.
pub fn find_route<'h>(host: &'h VirtualHost, head: &Head<'_>) -> Option<&'h Arc<Route>> {
    host.routes.iter().find(|route| takes(&route.matches, head))
}

/// Whether a route takes the request.
pub fn takes(matches: &RouteMatch, head: &Head<'_>) -> bool {
    path_passes(&matches.path, head.path)
        && (!matches.grpc || head.is_grpc())
        && matches.headers.iter().all(|rule| headers::route_passes(rule, head))
        && matches.query.iter().all(|rule| query_passes(rule, head.query))
}

/// Whether a normalised path passes.
pub fn path_passes(test: &PathMatch, path: &str) -> bool {
    match test {
        PathMatch::Prefix(prefix) => path.starts_with(&**prefix),
        PathMatch::SeparatedPrefix(prefix) => {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::Exact(exact) => path == &**exact,
        PathMatch::Regex(regex) => text::whole(regex, path),
    }
}

/// Whether a query has the parameter. Of several of one name the first counts.
fn query_passes(test: &QueryMatch, query: Option<&str>) -> bool {
    let found = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name) == *test.name).then_some(value)
    });
    match (found, &test.value) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(value), Some(wanted)) => text::passes(wanted, &decoded(value)),
    }
}

/// Percent-decoded, `+` as a space.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned())
}

/// One of the clusters, by weight. `random` is uniform over all of `u64`.
pub fn pick_cluster(forward: &Forward, random: u64) -> Option<&WeightedCluster> {
    if let [only] = &*forward.clusters {
        return Some(only);
    }
    let sum: u64 = forward.clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
    // Scaled, not the remainder: even for every sum.
    let mut ticket = ((u128::from(random) * u128::from(sum)) >> 64) as u64;
    forward.clusters.iter().find(|cluster| {
        let weight = u64::from(cluster.weight);
        let hit = ticket < weight;
        ticket = ticket.saturating_sub(weight);
        hit
    })
}
