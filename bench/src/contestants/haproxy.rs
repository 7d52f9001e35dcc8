//! HAProxy: HTTP/1.1, HTTP/2 all the way, and raw bytes, over mutual TLS 1.3.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Doors, Pair, Place, Scene, certificates};
use crate::backend::Backend;

/// Starts the pair.
///
/// # Errors
/// When HAProxy cannot be had.
pub fn start(scene: Scene, folder: &Path, backend: &Backend) -> Result<Pair> {
    let files = certificates::write(folder)?;
    let mut place = Place::new(folder);
    let [entry, between] = [Doors::all(&mut place)?, Doors::all(&mut place)?];
    let tls = format!("crt {} ca-file {} verify required", files.both.display(), files.ca.display());
    // It checks DNS names of the peer, which the certificates have beside the SPIFFE ID.
    let server = format!("ssl {tls} verifyhost bench sni str(bench) ssl-min-ver TLSv1.3");
    let bind = format!("ssl {tls} ssl-min-ver TLSv1.3");
    run(&mut place, "caller", &config(scene, (entry, ""), (between, &server)))?;
    run(&mut place, "callee", &config(scene, (between, &bind), (Doors::backend(backend), "")))?;
    Ok(place.pair(entry, scene.path()))
}

/// Starts a process with this configuration.
///
/// # Errors
/// When it cannot be had.
pub fn run(place: &mut Place<'_>, name: &str, text: &str) -> Result<()> {
    let file = place.write(&format!("{name}.cfg"), text)?;
    let file = file.to_str().context("a path in UTF-8")?;
    place.run(name, Path::new("haproxy"), &["-db", "-f", file])
}

/// What every configuration begins with.
pub fn global(workers: u32) -> String {
    format!(
        "global\n  nbthread {workers}\n  maxconn 9000\n  tune.ssl.cachesize 0\n\
         defaults\n  timeout connect 5s\n  timeout client 300s\n  timeout server 300s\n  http-reuse always\n"
    )
}

fn config(scene: Scene, from: (Doors, &str), to: (Doors, &str)) -> String {
    let (from, bind) = from;
    let (to, server) = to;
    let mut text = global(scene.workers);
    let mut hop = |name: &str, mode: &str, from, to, speaks: &str, clear: &str, fresh: (&str, &str)| {
        let words = |tls: &str, fresh: &str| match tls {
            "" => clear.to_owned(),
            tls => format!("{tls} {speaks} {fresh}"),
        };
        let (bind, server) = (words(bind, fresh.0), words(server, fresh.1));
        text.push_str(&format!("listen {name}\n  mode {mode}\n  bind {from} {bind}\n  server to {to} {server}\n"));
    };
    hop("http1", "http", from.http1, to.http1, "alpn http/1.1", "", ("", ""));
    if let (Some(from), Some(to)) = (from.http2, to.http2) {
        hop("http2", "http", from, to, "alpn h2", "proto h2", ("", ""));
    }
    if let (Some(from), Some(to)) = (from.tcp, to.tcp) {
        // Every handshake in full.
        hop("tcp", "tcp", from, to, "", "", ("no-tls-tickets", "no-ssl-reuse"));
    }
    text
}
