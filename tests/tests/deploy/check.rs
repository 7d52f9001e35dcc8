//! `weft check` of a mesh in containers: from the host of the engine, and from a container among them.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft::launch::wait_for;
use weft_tests::{
    docker::{Container, Network, available, docker, image, output},
    mesh::program,
};

/// A control plane and one service, each in its container.
struct Mesh {
    control_plane: Container,
    _orders: Container,
    network: Network,
    at: SocketAddr,
    folder: tempfile::TempDir,
}

impl Mesh {
    async fn start() -> Result<Self> {
        let network = Network::create("check")?;
        let folder = tempfile::tempdir()?;
        let flags = ["--network", &network.name, "--network-alias", "weft-control-plane"];
        let named = image("weft-control-plane");
        let command = [&named, "--advertise", "weft-control-plane"];
        let control_plane = Container::run("control-plane", &[&flags[..], &command].concat())?;
        let credential = folder.path().join("operator.json").display().to_string();
        let from = format!("{}:/data/operator.json", control_plane.name);
        wait_for("the operator's credential", Duration::from_secs(30), async || {
            docker(&["cp", &from, &credential]).ok()
        })
        .await?;
        let ip = control_plane.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")?;
        let at = SocketAddr::new(ip.parse().context("the control plane's address")?, 15010);
        let inside = |words: &[&str]| -> Result<String> {
            let run = ["run", "--rm", "--network", &network.name, "--volumes-from", &control_plane.name];
            docker(&[&run[..], &[&image("weft"), "--credential", "/data/operator.json"], words].concat())
        };
        let token = wait_for("a join token", Duration::from_secs(30), async || {
            inside(&["token", "create", "--service", "orders"]).ok()
        })
        .await?;
        let token = format!("WEFT_JOIN_TOKEN={}", token.trim());
        let named = image("weft");
        // The demo's applications end with their standard input.
        let run = ["--interactive", "--network", &network.name, "--env", &token];
        let flags = [&run[..], &[&named, "sidecar", "--service", "orders"]].concat();
        let sidecar = ["--control-plane", "weft-control-plane:15010", "--port", "80:8080/http", "run", "--"];
        let app = ["/weft", "demo-app", "orders", "--listen", "127.0.0.1:8080"];
        let orders = Container::run("orders", &[&flags[..], &sidecar, &app].concat())?;
        wait_for("orders in the mesh", Duration::from_secs(60), async || {
            inside(&["status"]).ok().filter(|status| status.contains("READY"))
        })
        .await?;
        Ok(Self { control_plane, _orders: orders, network, at, folder })
    }
}

#[tokio::test]
async fn a_mesh_in_containers_is_proved_from_inside_and_from_the_host() -> Result<()> {
    if !available("weft check of a mesh in containers")? {
        return Ok(());
    }
    let mesh = Mesh::start().await?;
    let check = ["check", "--to", "orders", "--output", "json"];
    let run = ["run", "--rm", "--network", &mesh.network.name, "--volumes-from", &mesh.control_plane.name];
    let inside = docker(&[&run[..], &[&image("weft"), "--credential", "/data/operator.json"], &check].concat())?;
    proved(&inside)?;
    // The host of an engine elsewhere, or in a machine of its own, does not reach the containers.
    if TcpStream::connect_timeout(&mesh.at, Duration::from_secs(3)).is_err() {
        eprintln!("left out: weft check from the host: {} is not reached from here", mesh.at);
        return Ok(());
    }
    let (program, credential) = (program()?, mesh.folder.path().join("operator.json"));
    let (credential, at) = (credential.display().to_string(), mesh.at.to_string());
    let connection = ["--credential", &credential, "--control-plane", &at];
    proved(&output(&program.display().to_string(), &[&connection[..], &check].concat(), None)?)
}

fn proved(report: &str) -> Result<()> {
    let report: Value = serde_json::from_str(report).with_context(|| report.to_owned())?;
    let call = &report["calls"][0];
    assert_eq!(call["caller"], "spiffe://weft.local/ns/default/sa/weft-check", "{report:#}");
    assert_eq!(call["callee"], "spiffe://weft.local/ns/default/sa/orders");
    assert_eq!((&call["tls"], &call["group"]), (&"TLS 1.3".into(), &"X25519MLKEM768".into()));
    ensure!(call["answer"].as_str().is_some_and(|answer| !answer.is_empty()), "{report:#}");
    let passed: Vec<&str> = (report["findings"].as_array().context("findings")?.iter())
        .filter(|finding| finding["level"] == "pass")
        .filter_map(|finding| finding["what"].as_str())
        .collect();
    ensure!(passed.iter().any(|what| what.contains("15006 is refused")), "{report:#}");
    ensure!(passed.iter().any(|what| what.contains(":8080 takes no connection")), "{report:#}");
    Ok(())
}
