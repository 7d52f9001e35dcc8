//! The floor: HAProxy as a TCP relay, two hops, no TLS.

use std::{net::SocketAddr, path::Path};

use anyhow::Result;

use super::{Doors, Pair, Place, Scene, haproxy};
use crate::backend::Backend;

/// Starts the pair.
///
/// # Errors
/// When HAProxy cannot be had.
pub fn start(scene: Scene, folder: &Path, backend: &Backend) -> Result<Pair> {
    let mut place = Place::new(folder);
    let [entry, between] = [Doors::all(&mut place)?, Doors::all(&mut place)?];
    haproxy::run(&mut place, "caller", &config(scene, entry, between))?;
    haproxy::run(&mut place, "callee", &config(scene, between, Doors::backend(backend)))?;
    Ok(place.pair(entry, scene.path()))
}

fn config(scene: Scene, from: Doors, to: Doors) -> String {
    let mut text = haproxy::global(scene.workers);
    text.push_str(&hop("http1", from.http1, to.http1));
    for (name, from, to) in [("http2", from.http2, to.http2), ("tcp", from.tcp, to.tcp)] {
        if let (Some(from), Some(to)) = (from, to) {
            text.push_str(&hop(name, from, to));
        }
    }
    text
}

fn hop(name: &str, from: SocketAddr, to: SocketAddr) -> String {
    format!("listen {name}\n  mode tcp\n  bind {from}\n  server to {to}\n")
}
