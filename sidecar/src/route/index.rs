//! Which routes of a virtual host a path can be for, without going through all of them.
//!
//! The answer is always that of [`find_route`]: the first route that takes the request. The index leaves out only
//! routes whose path test cannot pass; each that is left is asked in full.

use std::sync::Arc;

use weft_xds::resource::{PathMatch, Route, VirtualHost};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Head,
    matches::{find_route, takes},
};

/// An index of a virtual host's routes by their path tests.
#[derive(Debug, Default)]
pub struct RouteIndex {
    /// Digest of an exact path or of a prefix, and the place of the route; ascending. Digests that collide cost a
    /// question more, no wrong answer.
    by_path: Box<[(u64, u32)]>,
    /// Lengths of prefixes, each once.
    lengths: Box<[usize]>,
    /// Places of routes that may take any path.
    others: Box<[u32]>,
}

/// With fewer routes it is quicker to ask each.
const FEW: usize = 12;

impl RouteIndex {
    /// Nothing is indexed where there are few routes.
    pub fn new(host: &VirtualHost) -> Self {
        if host.routes.len() < FEW {
            return Self::default();
        }
        let (mut by_path, mut lengths, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for (place, route) in (0..).zip(&host.routes) {
            match &route.matches.path {
                PathMatch::Exact(path) => by_path.push((xxh3_64(path.as_bytes()), place)),
                PathMatch::Prefix(prefix) => {
                    by_path.push((xxh3_64(prefix.as_bytes()), place));
                    lengths.push(prefix.len());
                }
                PathMatch::SeparatedPrefix(prefix) => {
                    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                    by_path.push((xxh3_64(prefix.as_bytes()), place));
                    lengths.push(prefix.len());
                }
                PathMatch::Regex(_) => others.push(place),
            }
        }
        by_path.sort_unstable();
        lengths.sort_unstable();
        lengths.dedup();
        Self { by_path: by_path.into(), lengths: lengths.into(), others: others.into() }
    }

    /// The first route of `host`, of which this is the index, that takes the request.
    pub fn find<'h>(&self, host: &'h VirtualHost, head: &Head<'_>) -> Option<&'h Arc<Route>> {
        if host.routes.len() < FEW {
            return find_route(host, head);
        }
        let path = head.path.as_bytes();
        let mut first = usize::MAX;
        let mut ask = |place: u32| {
            let place = place as usize;
            let before = place < first;
            if before && takes(&host.routes[place].matches, head) {
                first = place;
            }
            before
        };
        let prefixes = self.lengths.iter().map_while(|&length| path.get(..length));
        for part in prefixes.chain([path]) {
            let digest = xxh3_64(part);
            let start = self.by_path.partition_point(|&(known, _)| known < digest);
            let same = self.by_path[start..].iter().take_while(|&&(known, _)| known == digest);
            // Ascending: behind one that is later than the best so far are only later ones.
            same.map(|&(_, place)| place).take_while(|&place| ask(place)).for_each(drop);
        }
        self.others.iter().copied().take_while(|&place| ask(place)).for_each(drop);
        host.routes.get(first)
    }
}
