//! Envoy: HTTP/1.1, HTTP/2 all the way, and raw bytes, over mutual TLS 1.3 with the peer's SPIFFE ID checked.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Doors, Pair, Place, Scene, Shape, certificates, certificates::Files, endpoint, route};
use crate::backend::Backend;

const TYPE: &str = "type.googleapis.com/envoy.extensions";

/// Starts the pair, or the caller's proxy alone.
///
/// # Errors
/// When Envoy cannot be had.
pub fn start(scene: Scene, folder: &Path, backend: &Backend) -> Result<Pair> {
    let program = program()?;
    let files = certificates::write(folder)?;
    let mut place = Place::new(folder);
    let mut entry = Doors::all(&mut place)?;
    let backend = Doors::backend(backend);
    if matches!(scene.shape, Shape::Endpoints(_)) {
        (entry.http2, entry.tcp) = (None, None);
        run(&mut place, &program, "caller", scene, &config(scene, (entry, None), (backend, None)))?;
    } else {
        let between = Doors::all(&mut place)?;
        let plain = Scene { shape: Shape::Pair, ..scene };
        run(&mut place, &program, "caller", scene, &config(scene, (entry, None), (between, Some(&files))))?;
        run(&mut place, &program, "callee", scene, &config(plain, (between, Some(&files)), (backend, None)))?;
    }
    Ok(place.pair(entry, scene.path()))
}

/// Where it is.
///
/// # Errors
/// When nobody has said.
pub fn program() -> Result<PathBuf> {
    let venv = std::env::var("WEFT_INTEROP_VENV").context("run it by `cargo xtask bench`, which fetches Envoy")?;
    Ok(PathBuf::from(venv).join("bin/envoy"))
}

fn run(place: &mut Place<'_>, program: &Path, name: &str, scene: Scene, config: &Value) -> Result<()> {
    let file = place.write(&format!("{name}.json"), &config.to_string())?;
    let file = file.to_str().context("a path in UTF-8")?;
    let workers = scene.workers.to_string();
    // Two Envoys on one machine need base ids of their own.
    let args = ["--concurrency", &workers, "--log-level", "error", "--use-dynamic-base-id", "-c", file];
    place.run(name, program, &args)
}

/// One of the protocols.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
    Tcp,
}

impl Speaks {
    fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
        }
    }
}

fn config(scene: Scene, from: (Doors, Option<&Files>), to: (Doors, Option<&Files>)) -> Value {
    let hops = [
        (Speaks::Http1, Some(from.0.http1), Some(to.0.http1)),
        (Speaks::Http2, from.0.http2, to.0.http2),
        (Speaks::Tcp, from.0.tcp, to.0.tcp),
    ];
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for (speaks, listen, target) in hops {
        let (Some(listen), Some(target)) = (listen, target) else { continue };
        listeners.push(listener(scene, speaks, listen, from.1));
        clusters.push(cluster(scene, speaks, target, to.1));
    }
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
}

fn listener(scene: Scene, speaks: Speaks, address: SocketAddr, files: Option<&Files>) -> Value {
    let filter = if speaks == Speaks::Tcp {
        json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": {
            "@type": format!("{TYPE}.filters.network.tcp_proxy.v3.TcpProxy"), "stat_prefix": "tcp", "cluster": "tcp"}})
    } else {
        json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": {
            "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": speaks.name(),
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes(scene, speaks)}]},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                "@type": format!("{TYPE}.filters.http.router.v3.Router")}}]}})
    };
    let mut chain = json!({"filters": [filter]});
    if let Some(files) = files {
        chain["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": format!("{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": true,
            "disable_stateless_session_resumption": true,
            "disable_stateful_session_resumption": true,
            "common_tls_context": tls(files, speaks)}});
    }
    json!({"name": speaks.name(), "address": socket(&address.ip().to_string(), address.port()), "filter_chains": [chain]})
}

fn routes(scene: Scene, speaks: Speaks) -> Vec<Value> {
    let to = |path: &str| json!({"match": {"prefix": path}, "route": {"cluster": speaks.name(), "timeout": "0s"}});
    match scene.shape {
        Shape::Routes(count) => (0..count).map(|index| to(&route(index))).collect(),
        Shape::Pair | Shape::Endpoints(_) => vec![to("/")],
    }
}

fn cluster(scene: Scene, speaks: Speaks, target: SocketAddr, files: Option<&Files>) -> Value {
    let one = |ip: &str| json!({"endpoint": {"address": socket(ip, target.port())}});
    let endpoints: Vec<Value> = match scene.shape {
        Shape::Endpoints(count) => (0..count).map(|index| one(&endpoint(index))).collect(),
        Shape::Pair | Shape::Routes(_) => vec![one(&target.ip().to_string())],
    };
    let mut cluster = json!({
        "name": speaks.name(),
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {"cluster_name": speaks.name(), "endpoints": [{"lb_endpoints": endpoints}]}});
    if speaks == Speaks::Http2 {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{TYPE}.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {"http2_protocol_options": {}}}});
    }
    if let Some(files) = files {
        let mut context = json!({
            "@type": format!("{TYPE}.transport_sockets.tls.v3.UpstreamTlsContext"),
            "sni": "bench",
            "common_tls_context": tls(files, speaks)});
        if speaks == Speaks::Tcp {
            // Every handshake in full.
            context["max_session_keys"] = json!(0);
        }
        cluster["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": context});
    }
    cluster
}

fn tls(files: &Files, speaks: Speaks) -> Value {
    let alpn = match speaks {
        Speaks::Http1 => json!(["http/1.1"]),
        Speaks::Http2 => json!(["h2"]),
        Speaks::Tcp => json!([]),
    };
    json!({
        "alpn_protocols": alpn,
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            // The order that Weft has.
            "ecdh_curves": ["X25519MLKEM768", "X25519"]},
        "tls_certificates": [{
            "certificate_chain": {"filename": files.chain}, "private_key": {"filename": files.key}}],
        "validation_context": {
            "trusted_ca": {"filename": files.ca},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": certificates::ID}}]}})
}

fn socket(ip: &str, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}
