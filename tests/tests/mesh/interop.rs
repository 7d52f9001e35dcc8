//! Foreign peers: a stock Envoy and a gRPC client of the C core, given nothing but the way to our control plane.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio_stream::wrappers::TcpListenerStream;
use weft::launch::{Process, Reserved, WorkloadSpec, wait_for};
use weft_tests::{App, Mesh, caller, mesh::program};

/// The environment that `cargo xtask test` makes. `None`, with a word about it, where it is not there.
fn environment() -> Result<Option<PathBuf>> {
    match std::env::var("WEFT_INTEROP_VENV") {
        Ok(folder) => Ok(Some(PathBuf::from(folder))),
        Err(_) if std::env::var("WEFT_REQUIRE_INTEROP").is_ok() => anyhow::bail!("WEFT_INTEROP_VENV is not set"),
        Err(_) => {
            eprintln!("left out: no foreign peers here; `cargo xtask test` fetches them");
            Ok(None)
        }
    }
}

/// Gets a certificate for a client that is no Weft sidecar, as an operator would.
async fn certificate(mesh: &Mesh, account: &str, folder: &Path) -> Result<()> {
    let token = mesh.control_plane.token("default", account).await?;
    let output = Command::new(program()?)
        .args(["certificate", "--out"])
        .arg(folder)
        .arg("--control-plane")
        .arg(mesh.control_plane.grpc().to_string())
        .env("WEFT_JOIN_TOKEN", token)
        .output()
        .await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test]
async fn a_stock_envoy_is_driven_incrementally() -> Result<()> {
    envoy("DELTA_GRPC").await
}

#[tokio::test]
async fn a_stock_envoy_is_driven_by_the_state_of_the_world() -> Result<()> {
    envoy("GRPC").await
}

async fn envoy(api_type: &str) -> Result<()> {
    let Some(venv) = environment()? else { return Ok(()) };
    let mesh = Mesh::start().await?;
    let app = App::named("hello").await?;
    let _callee = mesh.callee("echo-1", "echo", "http", &app).await?;
    mesh.registered("echo", 1).await?;

    let folder = mesh.ground.data.join("envoy");
    certificate(&mesh, "edge", &folder).await?;
    let reserved = Reserved::new()?;
    let outbound = reserved.address;
    let bootstrap = folder.join("bootstrap.json");
    std::fs::write(&bootstrap, envoy_bootstrap(api_type, mesh.control_plane.grpc(), outbound, &folder).to_string())?;
    let args = ["--concurrency", "1", "--use-dynamic-base-id", "-c", &bootstrap.display().to_string()];
    let process = Process::start("envoy", &venv.join("bin/envoy"), &mesh.ground.logs, &args, &[])?;

    let answer = wait_for("an answer through Envoy", Duration::from_secs(30), async || {
        caller::get(outbound, "echo", "/").await.ok().filter(|answer| answer.status == 200)
    })
    .await;
    let answer = answer.with_context(|| process.log_tail())?;
    ensure!(answer.text() == "hello", "{answer:?}");
    ensure!(app.seen.lock().last().is_some_and(|seen| seen.headers.contains_key("x-forwarded-client-cert")));

    // What it sees of a change: a second endpoint, and the end of the first.
    let second = App::named("second").await?;
    let _second = mesh.callee("echo-2", "echo", "http", &second).await?;
    wait_for("an answer of the second endpoint", Duration::from_secs(20), async || {
        caller::get(outbound, "echo", "/").await.ok().filter(|answer| answer.text() == "second")
    })
    .await
    .with_context(|| process.log_tail())?;

    let status = mesh.control_plane.status().await?;
    let envoy =
        status.sidecars.iter().find(|sidecar| sidecar.agent.contains("envoy")).context("Envoy is in the status")?;
    ensure!(envoy.nacks.is_empty(), "{:?}", envoy.nacks);
    ensure!(envoy.identity == "spiffe://weft.local/ns/default/sa/edge", "{}", envoy.identity);
    Ok(())
}

fn envoy_bootstrap(api_type: &str, control_plane: SocketAddr, outbound: SocketAddr, folder: &Path) -> Value {
    let file = |name: &str| json!({"filename": folder.join(name)});
    let certificate = json!({"certificate_chain": file("svid.pem"), "private_key": file("svid.key")});
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let address = |address: SocketAddr| json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
    json!({
        "node": {"id": "default/edge/envoy-1", "cluster": "edge", "metadata": {"weft.outbound": outbound.to_string()}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type,
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "weft"}}],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {
            "secrets": [{"name": "weft-identity", "tls_certificate": certificate}],
            "clusters": [{
                "name": "weft",
                "type": "STATIC",
                "load_assignment": {
                    "cluster_name": "weft",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(control_plane)}}]}],
                },
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {}},
                    },
                },
                "transport_socket": {
                    "name": "envoy.transport_sockets.tls",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                        "sni": "weft-control-plane",
                        "common_tls_context": {
                            "tls_params": {
                                "tls_minimum_protocol_version": "TLSv1_3",
                                "tls_maximum_protocol_version": "TLSv1_3",
                            },
                            "alpn_protocols": ["h2"],
                            "tls_certificates": [certificate],
                            "validation_context": {
                                "trusted_ca": file("bundle.pem"),
                                "match_typed_subject_alt_names": [{
                                    "san_type": "URI",
                                    "matcher": {"exact": "spiffe://weft.local/ns/weft-system/sa/control-plane"},
                                }],
                            },
                        },
                    },
                },
            }],
        },
    })
}

/// What the Python program does: one health check, over mutual TLS, to a name of the mesh.
const GRPC_CLIENT: &str = r#"
import grpc, sys
from grpc_health.v1 import health_pb2, health_pb2_grpc
credentials = grpc.xds_channel_credentials(grpc.local_channel_credentials())
with grpc.secure_channel(sys.argv[1], credentials) as channel:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service="widgets"), timeout=20, wait_for_ready=True)
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
"#;

#[tokio::test]
async fn a_proxyless_grpc_client_calls_a_service() -> Result<()> {
    let Some(venv) = environment()? else { return Ok(()) };
    let mesh = Mesh::start().await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("widgets", tonic_health::ServingStatus::Serving).await;
    let server = tokio::spawn(
        tonic::transport::Server::builder().add_service(health).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let _callee = mesh
        .sidecar(WorkloadSpec {
            name: "inventory-1".to_owned(),
            service: "inventory".to_owned(),
            ports: format!("grpc=9000:{}/grpc", address.port()),
            ..WorkloadSpec::default()
        })
        .await?;
    mesh.registered("inventory", 1).await?;

    let folder = mesh.ground.data.join("grpc");
    certificate(&mesh, "batch", &folder).await?;
    let script = folder.join("client.py");
    std::fs::write(&script, GRPC_CLIENT)?;
    let child: Child = Command::new(venv.join("bin/python"))
        .arg(&script)
        .arg("xds:///inventory.default:9000")
        .env("GRPC_XDS_BOOTSTRAP_CONFIG", grpc_bootstrap(mesh.control_plane.grpc(), &folder).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = tokio::time::timeout(Duration::from_secs(40), child.wait_with_output()).await??;
    ensure!(
        output.stdout.starts_with(b"SERVING"),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    server.abort();
    Ok(())
}

fn grpc_bootstrap(control_plane: SocketAddr, folder: &Path) -> Value {
    let files = json!({
        "certificate_file": folder.join("svid.pem"),
        "private_key_file": folder.join("svid.key"),
        "ca_certificate_file": folder.join("bundle.pem"),
        "refresh_interval": "60s",
    });
    json!({
        "xds_servers": [{
            "server_uri": control_plane.to_string(),
            "channel_creds": [{"type": "tls", "config": files}],
            "server_features": ["xds_v3"],
        }],
        "node": {"id": "default/batch/grpc-1", "cluster": "batch"},
        "certificate_providers": {"default": {"plugin_name": "file_watcher", "config": files}},
    })
}
