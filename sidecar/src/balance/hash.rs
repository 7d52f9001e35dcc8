//! What is hashed for source-IP and ring balancing, and how: xxHash64 with seed 0, as Envoy does.

use std::net::IpAddr;

use http::HeaderMap;
use weft_xds::resource::{Balancer, HashOn};
use xxhash_rust::xxh64::xxh64;

/// Hash of a request, or of a TCP connection with empty `headers` and `on`. The route's list goes before the cluster's
/// own setting; the first that yields a value wins. `None`: the balancer needs none, or nothing yielded a value (the
/// pick is then random).
pub fn request_hash(balancer: &Balancer, on: &[HashOn], headers: &HeaderMap, source: IpAddr) -> Option<u64> {
    let Balancer::ConsistentHash { header, .. } = balancer else {
        return matches!(balancer, Balancer::SourceIp).then(|| hash_source(source));
    };
    let listed = on.iter().find_map(|on| match on {
        HashOn::Header(name) => headers.get(name).map(|value| hash_bytes(value.as_bytes())),
        HashOn::SourceIp => Some(hash_source(source)),
    });
    match header {
        _ if listed.is_some() => listed,
        Some(name) => headers.get(name).map(|value| hash_bytes(value.as_bytes())),
        None if on.is_empty() => Some(hash_source(source)),
        None => None,
    }
}

/// Hash of an address, without port.
pub fn hash_source(source: IpAddr) -> u64 {
    hash_bytes(source.to_canonical().to_string().as_bytes())
}

/// Hash of a value.
pub fn hash_bytes(value: &[u8]) -> u64 {
    xxh64(value, 0)
}
