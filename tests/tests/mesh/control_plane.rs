//! A control plane that dies, comes back, and is told what to do.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use anyhow::{Context, Result};
use http::StatusCode;
use weft::launch::wait_for;
use weft_tests::{App, Load, Mesh, caller, caller::PATIENCE};

#[tokio::test]
async fn it_is_killed_and_comes_back_under_load_and_no_request_fails() -> Result<()> {
    let mut mesh = Mesh::start_with(&["--lease", "2s"]).await?;
    let (one, two) = (App::named("one").await?, App::named("two").await?);
    let _one = mesh.callee("orders-1", "orders", "http", &one).await?;
    let _two = mesh.callee("orders-2", "orders", "http", &two).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 2).await?;
    let load = Load::start(caller.ports()?.outbound, "orders", 4, Duration::from_millis(2));
    for _ in 0..2 {
        load.answer(100).await?;
        mesh.control_plane.kill().await;
        load.answer(500).await?;
        mesh.control_plane.restart().await?;
        load.answer(100).await?;
        wait_for("the sidecars' return", Duration::from_secs(40), async || {
            (mesh.control_plane.status().await.ok()?.sidecars.len() == 3).then_some(())
        })
        .await?;
        // Past the leases of before: whoever has not come back would be gone by now, and nobody must be.
        load.answer(500).await?;
        mesh.registered("orders", 2).await?;
        mesh.known(&caller, "orders", 2).await?;
    }
    load.stop().await.assert_whole();
    Ok(())
}

#[tokio::test]
async fn a_sidecar_starts_without_it_from_what_it_kept() -> Result<()> {
    let mut mesh = Mesh::start().await?;
    let app = App::named("kept").await?;
    let mut callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let mut caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    assert_eq!(caller::get(caller.ports()?.outbound, "orders", "/").await?.text(), "kept");
    // What was asked for is written down in a moment, not at the end alone: these are crashes.
    let cache = caller.data().join("cache.bin");
    wait_for("the cache", PATIENCE, async || {
        let bytes = std::fs::read(&cache).ok()?;
        bytes.windows(14).any(|window| window == b"orders.default").then_some(())
    })
    .await?;
    for (folder, secrets) in [
        (caller.data(), ["svid.key", "cache.bin"].as_slice()),
        (callee.data(), &["svid.key", "cache.bin"]),
        (mesh.control_plane.data(), &["ca/root.key", "ca/issuer.key", "operator.json"]),
    ] {
        for secret in secrets {
            let mode =
                std::fs::metadata(folder.join(secret)).with_context(|| (*secret).to_owned())?.permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{secret} in {}", folder.display());
        }
    }
    mesh.control_plane.kill().await;
    caller.kill().await;
    callee.kill().await;
    callee.restart(&mesh.control_plane, false).await?;
    callee.ready().await?;
    caller.restart(&mesh.control_plane, false).await?;
    let proxy = caller.ready().await?.outbound;
    // The very first call.
    let answer = caller::get(proxy, "orders", "/").await?;
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "kept"), "{answer:?}");
    let answer = caller::get(proxy, "never-called", "/").await?;
    assert_eq!(answer.reason(), "control_plane_unreachable", "{answer:?}");
    // And it is found when it returns.
    mesh.control_plane.restart().await?;
    wait_for("the sidecars' return", Duration::from_secs(40), async || {
        (mesh.control_plane.status().await.ok()?.sidecars.len() == 2).then_some(())
    })
    .await?;
    mesh.registered("orders", 1).await
}

/// Everything of `orders` answered by the route itself.
fn answered_by(version: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{ name: orders }}
spec: {{ ports: [{{ port: 80, appProtocol: http }}] }}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: orders }}
spec:
  parentRefs: [{{ kind: Service, name: orders }}]
  rules:
    - filters:
        - type: ResponseHeaderModifier
          responseHeaderModifier: {{ set: [{{ name: x-version, value: {version} }}] }}
      backendRefs: [{{ name: orders, port: 80 }}]
"
    )
}

#[tokio::test]
async fn what_was_applied_is_obeyed_when_the_answer_comes_and_survives_a_crash() -> Result<()> {
    let mut mesh = Mesh::start().await?;
    let app = App::named("one").await?;
    let _callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    mesh.apply(&answered_by("v1")).await?;
    mesh.known(&caller, "orders", 1).await?;
    let proxy = caller.ports()?.outbound;
    let version = async || {
        let answer = caller::get(proxy, "orders", "/").await?;
        anyhow::Ok(answer.headers.get("x-version").context("no version")?.to_str()?.to_owned())
    };
    assert_eq!(version().await?, "v1");
    let first = mesh.control_plane.status().await?.revision;
    // With the wait for the sidecars, the next request is already under the new configuration.
    for number in 2..6 {
        mesh.apply(&answered_by(&format!("v{number}"))).await?;
        assert_eq!(version().await?, format!("v{number}"));
    }
    let applied = mesh.control_plane.status().await?.revision;
    mesh.control_plane.kill().await;
    assert_eq!(version().await?, "v5");
    mesh.control_plane.restart().await?;
    assert_eq!(mesh.control_plane.status().await?.revision, applied, "what was acknowledged is there after a crash");
    wait_for("the sidecars' return", Duration::from_secs(40), async || {
        (mesh.control_plane.status().await.ok()?.sidecars.len() == 2).then_some(())
    })
    .await?;
    assert_eq!(version().await?, "v5");
    let rolled = mesh.control_plane.rollback(first, "", 20).await?;
    assert!(rolled.revision > applied, "{rolled:?}");
    assert_eq!(version().await?, "v1");
    Ok(())
}

#[tokio::test]
async fn a_workload_that_died_is_forgotten_and_the_status_shows_the_living() -> Result<()> {
    let mesh = Mesh::start_with(&["--lease", "1s"]).await?;
    let (one, two) = (App::named("one").await?, App::named("two").await?);
    let _one = mesh.callee("orders-1", "orders", "http", &one).await?;
    let mut two = mesh.callee("orders-2", "orders", "http", &two).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 2).await?;
    let status = mesh.control_plane.status().await?;
    assert_eq!(status.sidecars.len(), 3, "{status:?}");
    for sidecar in &status.sidecars {
        let service = sidecar.id.split('/').nth(1).context("an id is NAMESPACE/SERVICE/INSTANCE")?;
        assert_eq!(sidecar.identity, format!("spiffe://weft.local/ns/default/sa/{service}"));
        assert!(sidecar.agent.starts_with("weft-sidecar") && sidecar.nacks.is_empty(), "{sidecar:?}");
        assert!(sidecar.certificate_expiry.starts_with("20"), "{sidecar:?}");
        assert!(sidecar.types.iter().any(|one| one.acked > 0 && one.nacked == 0), "{sidecar:?}");
    }
    two.kill().await;
    mesh.known(&caller, "orders", 1).await?;
    wait_for("the end of its lease", PATIENCE, async || {
        let status = mesh.control_plane.status().await.ok()?;
        (status.sidecars.len() == 2 && status.workloads.iter().filter(|one| one.service == "orders").count() == 1)
            .then_some(())
    })
    .await
}
