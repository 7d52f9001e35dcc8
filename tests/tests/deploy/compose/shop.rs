//! deploy/compose: three services in images without a shell, not root, read-only.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use weft::launch::wait_for;
use weft_tests::docker::{available, docker};

use super::{PATIENCE, Team, answered, files, free_port, get, wire::Capture};

/// What flows between the services, of each protocol.
const SECRETS: &[&str] = &["STOCK widgets", "GET /order", "order=", "grpc.health.v1"];

/// deploy/compose/compose.yaml.
pub fn example() -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/compose/compose.yaml");
    std::fs::read_to_string(&file).with_context(|| file.display().to_string())
}

async fn calls(port: u16, count: usize) -> Result<()> {
    for call in 0..count {
        let answer = get(port, "/").await.with_context(|| format!("call {call}"))?;
        ensure!(answer.starts_with("order=") && answer.ends_with("stock=42"), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn without_the_overlay_all_is_in_plain_text() -> Result<()> {
    if !available("a compose project without a mesh")? {
        return Ok(());
    }
    let port = free_port()?;
    let team = Team::new("plain", &[("compose.yaml", &example()?), (".env", &format!("FRONTEND_PORT={port}\n"))])?;
    // An overlay that changes nothing.
    std::fs::write(team.path("compose.weft.yaml"), "services: { frontend: {} }\n")?;
    team.project.compose(&["up", "--wait"])?;
    answered(port, "/").await?;
    let capture = Capture::start(&team.network())?;
    calls(port, 3).await?;
    let wire = capture.finish()?;
    for secret in SECRETS.iter().filter(|secret| !secret.starts_with("grpc")) {
        ensure!(wire.count(secret.as_bytes()) > 0, "`{secret}` is not there: then its absence proves nothing");
    }
    team.down()
}

#[tokio::test]
async fn a_shop_in_a_mesh() -> Result<()> {
    if !available("a compose project in a mesh")? {
        return Ok(());
    }
    let port = free_port()?;
    let (file, env) = (example()?, format!("FRONTEND_PORT={port}\n"));
    let team = Team::new("shop", &[("compose.yaml", &file), (".env", &env)])?;

    let said = team.inject(&["--dry-run"])?;
    ensure!(said.contains("9000/grpc 9100/tcp") && said.contains("prometheus: its label"), "{said}");
    assert_eq!(files(team.folder.path())?.len(), 2, "a dry run writes nothing");
    team.inject(&[])?;
    let before = files(team.folder.path())?;
    team.inject(&[])?;
    let without_state = |mut files: std::collections::BTreeMap<std::path::PathBuf, Vec<u8>>| {
        files.retain(|path, _| !path.ends_with("store.redb"));
        files
    };
    assert_eq!(without_state(files(team.folder.path())?), without_state(before), "a second run changes nothing");
    assert_eq!(std::fs::read_to_string(team.path("compose.yaml"))?, file, "the team's file is untouched");

    team.project.compose(&["up", "--wait", "--scale", "orders=3"])?;
    team.workloads_ready(5).await?;
    calls(port, 10).await?;
    let capture = Capture::start(&team.network())?;
    calls(port, 30).await?;
    capture.finish()?.is_private(SECRETS)?;

    // One of three is killed: no call fails that begins after it.
    let victims = team.containers("orders")?;
    assert_eq!(victims.len(), 3);
    docker(&["kill", &victims[0]])?;
    calls(port, 30).await?;

    // The control plane is gone, and back: nobody minds.
    team.project.compose(&["stop", "weft-control-plane"])?;
    calls(port, 20).await?;
    team.project.compose(&["start", "weft-control-plane"])?;
    wait_for("the control plane", PATIENCE, async || team.status().ok()).await?;
    calls(port, 20).await?;

    // A container that is started again joins anew: what it had was in memory.
    docker(&["restart", "--time", "10", &victims[1]])?;
    team.workloads_ready(4).await?;
    assert_eq!(team.containers("orders")?.len(), 2);
    calls(port, 20).await?;

    // It runs: a token for a new service comes by its API.
    let more = file.replacen("\n  prometheus:", "\n  late:\n    <<: *app\n    command: [demo-app]\n\n  prometheus:", 1);
    std::fs::write(team.path("compose.yaml"), more)?;
    let kept = std::fs::read(team.path(".weft/tokens/orders"))?;
    team.inject(&[])?;
    ensure!(std::fs::read(team.path(".weft/tokens/late"))?.starts_with(b"weft1."), "no token");
    assert_eq!(std::fs::read(team.path(".weft/tokens/orders"))?, kept, "a token that is good stays");
    let refused = team.inject(&["--remove"]).unwrap_err().to_string();
    ensure!(refused.contains("still runs"), "{refused}");

    team.down()?;
    team.inject(&["--remove"])?;
    assert_eq!(files(team.folder.path())?.len(), 2, "nothing is left");
    Ok(())
}
