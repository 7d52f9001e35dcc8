//! Consistent hashing: a ring with a number of virtual nodes for each unit of weight.
//!
//! Nodes are hashed as Envoy does, `xxh64("ADDRESS_INDEX")`. Removing one of N endpoints moves the keys it had, about
//! 1/N; an endpoint that cannot be used is passed over for the next on the ring, so that its keys alone move.

use std::{fmt::Write, net::SocketAddr};

use super::hash::hash_bytes;

/// Virtual nodes of all endpoints at most (16 bytes each). Beyond it all endpoints have proportionally fewer.
pub const MAX_NODES: u64 = 1 << 18;

/// Virtual nodes by default, for each unit of weight.
pub const VIRTUAL_NODES: u32 = 150;

/// The ring.
#[derive(Debug)]
pub struct Ring {
    /// By hash.
    nodes: Box<[(u64, u32)]>,
}

impl Ring {
    /// `endpoints`: address and weight.
    pub fn new(endpoints: &[(SocketAddr, u32)], virtual_nodes: u32) -> Self {
        let each = u64::from(virtual_nodes.max(1));
        let wanted = endpoints.iter().map(|&(_, weight)| u64::from(weight.max(1)) * each).sum::<u64>();
        let mut nodes = Vec::with_capacity(wanted.min(MAX_NODES) as usize);
        let mut key = String::new();
        for (index, &(address, weight)) in (0u32..).zip(endpoints) {
            let own = u64::from(weight.max(1)) * each;
            let own = if wanted > MAX_NODES {
                (u128::from(own) * u128::from(MAX_NODES) / u128::from(wanted)) as u64
            } else {
                own
            };
            for node in 0..own.max(1) {
                key.clear();
                write!(key, "{address}_{node}").expect("a String takes everything");
                nodes.push((hash_bytes(key.as_bytes()), index));
            }
        }
        nodes.sort_unstable();
        Self { nodes: nodes.into() }
    }

    /// Virtual nodes.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The first endpoint at or after `hash` that `usable` takes.
    pub fn pick(&self, hash: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let start = self.nodes.partition_point(|&(node, _)| node < hash);
        let (before, after) = self.nodes.split_at(start);
        let mut refused = None;
        for &(_, index) in after.iter().chain(before) {
            // Neighbours often belong to the same endpoint: do not ask twice in a row.
            if refused == Some(index) {
                continue;
            }
            if usable(index as usize) {
                return Some(index as usize);
            }
            refused = Some(index);
        }
        None
    }
}
