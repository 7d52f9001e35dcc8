//! nginx: HTTP/1.1 by `proxy_pass`, HTTP/2 and gRPC by `grpc_pass`, raw bytes by its stream module.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context, Result};

use super::{Doors, Pair, Place, Scene, certificates};
use crate::backend::Backend;

/// Starts the pair.
///
/// # Errors
/// When nginx cannot be had.
pub fn start(scene: Scene, folder: &Path, backend: &Backend) -> Result<Pair> {
    let files = certificates::write(folder)?;
    let mut place = Place::new(folder);
    let [mut entry, mut between] = [Doors::all(&mut place)?, Doors::all(&mut place)?];
    if !Path::new(STREAM).exists() {
        (entry.tcp, between.tcp) = (None, None);
    }
    let [ca, chain, key] = [files.ca.display(), files.chain.display(), files.key.display()];
    let server = format!(
        "ssl_certificate {chain}; ssl_certificate_key {key}; ssl_client_certificate {ca}; ssl_verify_client on; \
         ssl_verify_depth 3; ssl_protocols TLSv1.3; ssl_session_tickets off; ssl_session_cache off;"
    );
    // PREFIX is `proxy` or `grpc`.
    let client = format!(
        "PREFIX_ssl_certificate {chain}; PREFIX_ssl_certificate_key {key}; PREFIX_ssl_trusted_certificate {ca}; \
         PREFIX_ssl_verify on; PREFIX_ssl_verify_depth 3; PREFIX_ssl_name bench; PREFIX_ssl_server_name on; \
         PREFIX_ssl_protocols TLSv1.3; PREFIX_ssl_session_reuse off;"
    );
    for (name, from, to, bind, server) in [
        ("caller", entry, between, "", client.as_str()),
        ("callee", between, Doors::backend(backend), server.as_str(), ""),
    ] {
        let own = folder.join(name);
        std::fs::create_dir_all(&own)?;
        let file = place.write(&format!("{name}.conf"), &config(scene, &own, (from, bind), (to, server)))?;
        let file = file.to_str().context("a path in UTF-8")?;
        place.run(name, Path::new("nginx"), &["-e", "stderr", "-c", file])?;
    }
    Ok(place.pair(entry, scene.path()))
}

/// Debian's stream module.
const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

fn config(scene: Scene, own: &Path, from: (Doors, &str), to: (Doors, &str)) -> String {
    let (from, bind) = from;
    let (to, server) = to;
    let module = if from.tcp.is_some() { format!("load_module {STREAM};\n") } else { String::new() };
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {}/{kind};\n", own.display()))
        .concat();
    let mut text = format!(
        "{module}daemon off;\nuser root;\nworker_processes {};\nworker_rlimit_nofile 20000;\npid {}/pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 9000; }}\n\
         http {{\n{temp}  access_log off;\n  keepalive_timeout 300s;\n  keepalive_requests 1000000000;\n  \
         client_max_body_size 0;\n  client_body_timeout 300s;\n",
        scene.workers,
        own.display(),
    );
    text.push_str(&http1((from.http1, bind), (to.http1, server)));
    if let (Some(from), Some(to)) = (from.http2, to.http2) {
        text.push_str(&http2((from, bind), (to, server)));
    }
    text.push_str("}\n");
    if let (Some(from), Some(to)) = (from.tcp, to.tcp) {
        text.push_str(&stream((from, bind), (to, server)));
    }
    text
}

/// Connections kept towards the next proxy: more than there are callers.
const POOL: &str = "keepalive 256; keepalive_requests 1000000000; keepalive_timeout 300s;";

fn http1(from: (SocketAddr, &str), to: (SocketAddr, &str)) -> String {
    let [listen, scheme] =
        [if from.1.is_empty() { "" } else { " ssl" }, if to.1.is_empty() { "http" } else { "https" }];
    format!(
        "  upstream http1 {{ server {}; {POOL} }}\n  \
         server {{ listen {}{listen} reuseport; {}\n    location / {{ proxy_pass {scheme}://http1; proxy_http_version 1.1; \
         proxy_set_header connection \"\"; proxy_set_header host $host; proxy_request_buffering off; proxy_buffering on; \
         proxy_max_temp_file_size 0; {} }} }}\n",
        to.0,
        from.0,
        from.1,
        to.1.replace("PREFIX", "proxy"),
    )
}

fn http2(from: (SocketAddr, &str), to: (SocketAddr, &str)) -> String {
    let [listen, scheme] =
        [if from.1.is_empty() { "" } else { " ssl" }, if to.1.is_empty() { "grpc" } else { "grpcs" }];
    format!(
        "  upstream http2 {{ server {}; {POOL} }}\n  \
         server {{ listen {}{listen} http2 reuseport; {} http2_max_concurrent_streams 1000;\n    \
         location / {{ grpc_pass {scheme}://http2; grpc_read_timeout 300s; {} }} }}\n",
        to.0,
        from.0,
        from.1,
        to.1.replace("PREFIX", "grpc"),
    )
}

fn stream(from: (SocketAddr, &str), to: (SocketAddr, &str)) -> String {
    let listen = if from.1.is_empty() { "" } else { " ssl" };
    let client =
        if to.1.is_empty() { String::new() } else { format!("proxy_ssl on; {}", to.1.replace("PREFIX", "proxy")) };
    format!(
        "stream {{\n  upstream tcp {{ server {}; }}\n  \
         server {{ listen {}{listen} reuseport; {} proxy_pass tcp; proxy_timeout 300s; {client} }}\n}}\n",
        to.0, from.0, from.1,
    )
}
