//! `weft check`: what it proves of a mesh, and what it does not let pass.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft::launch::{ControlPlane, WorkloadSpec};
use weft_tests::{App, Mesh, Pair, mesh::program};

/// Exit code and report of `weft check`.
async fn check(control_plane: &ControlPlane, flags: &[&str]) -> Result<(i32, Value)> {
    let output = tokio::process::Command::new(program()?)
        .arg("check")
        .arg("--credential")
        .arg(control_plane.credential())
        .args(["--output", "json"])
        .args(flags)
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).with_context(|| format!("no report: {said}"))?;
    Ok((output.status.code().context("ended by a signal")?, report))
}

/// The findings of a level that speak of something.
fn found<'a>(report: &'a Value, level: &str, what: &str) -> Vec<&'a str> {
    let findings = report["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of = findings.iter().filter(|finding| finding["level"] == level);
    of.filter_map(|finding| finding["what"].as_str()).filter(|text| text.contains(what)).collect()
}

#[tokio::test]
async fn a_strict_mesh_is_proved() -> Result<()> {
    let pair = Pair::start("http", App::named("hello").await?).await?;
    let (code, report) = check(&pair.mesh.control_plane, &[]).await?;
    ensure!(code == 0 && pair.app.count() == 0, "without --to no application hears of it: {report:#}");
    assert_eq!(found(&report, "pass", ", weft-sidecar ").len(), 2, "{report:#}");
    assert_eq!(report["calls"][0]["caller"], "spiffe://weft.local/ns/default/sa/weft-check");

    let (code, report) =
        check(&pair.mesh.control_plane, &["--from", "client", "--to", "echo:80", "--path", "/a"]).await?;
    let call = &report["calls"][0];
    ensure!(code == 0, "{report:#}");
    assert_eq!(call["caller"], "spiffe://weft.local/ns/default/sa/client");
    assert_eq!(call["callee"], "spiffe://weft.local/ns/default/sa/echo");
    assert_eq!((&call["tls"], &call["group"]), (&"TLS 1.3".into(), &"X25519MLKEM768".into()));
    assert_eq!(call["answer"], "200 OK");
    assert_eq!(found(&report, "pass", "is refused (403 Forbidden, plaintext_refused)").len(), 1, "{report:#}");
    assert_eq!(found(&report, "warn", "may call each service").len(), 1, "{report:#}");
    let seen = pair.app.seen.lock().clone();
    assert_eq!(seen.iter().map(|seen| seen.uri.as_str()).collect::<Vec<_>>(), ["/a"]);

    let (code, _) = check(&pair.mesh.control_plane, &["--strict"]).await?;
    ensure!(code == 1, "that anyone may call is a warning, and --strict lets none pass");

    // What it says to do about it, does it.
    let findings = report["findings"].as_array().context("findings")?;
    let next = findings.iter().find_map(|finding| finding["next"].as_str()).context("what to do")?;
    let yaml = next.split("<<'END'\n").nth(1).and_then(|rest| rest.split("\nEND").next()).context("a document")?;
    pair.mesh.apply(yaml).await?;
    let (code, report) = check(&pair.mesh.control_plane, &["--strict"]).await?;
    ensure!(code == 0, "{report:#}");
    let (_, report) = check(&pair.mesh.control_plane, &["--to", "echo"]).await?;
    assert_eq!(found(&report, "warn", "the request was refused: 403").len(), 1, "{report:#}");
    Ok(())
}

#[tokio::test]
async fn what_a_policy_or_an_operator_leaves_is_told() -> Result<()> {
    let pair = Pair::start("http", App::named("hello").await?).await?;
    let only_client = r"
apiVersion: weft.mesh/v1alpha1
kind: AccessPolicy
metadata: { name: echo }
spec:
  targetRefs: [{ kind: Service, name: echo }]
  rules: [{ from: [{ identities: [default/client] }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: endless }
spec:
  parentRefs: [{ group: '', kind: Service, name: echo }]
  rules: [{ backendRefs: [{ name: echo, port: 80 }] }]
";
    pair.mesh.apply(only_client).await?;
    let (code, report) = check(&pair.mesh.control_plane, &["--to", "echo"]).await?;
    ensure!(code == 0, "{report:#}");
    assert_eq!(found(&report, "warn", "the request was refused: 403").len(), 1, "{report:#}");
    assert_eq!(found(&report, "warn", "HTTPRoute default/endless").len(), 1, "{report:#}");

    let permissive = "
apiVersion: weft.mesh/v1alpha1
kind: Mesh
metadata: { name: default }
spec: { mtls: { mode: permissive }, defaultAccess: deny }
";
    pair.mesh.apply(permissive).await?;
    let (code, report) = check(&pair.mesh.control_plane, &["--from", "client", "--to", "echo"]).await?;
    ensure!(code == 1 && found(&report, "fail", "the Mesh is permissive").len() == 1, "{report:#}");
    assert_eq!(report["calls"][0]["answer"], "200 OK", "{report:#}");
    let (code, report) = check(&pair.mesh.control_plane, &["--permissive"]).await?;
    ensure!(code == 0 && found(&report, "warn", "the Mesh is permissive").len() == 1, "{report:#}");
    Ok(())
}

#[tokio::test]
async fn a_callee_without_mutual_tls_does_not_pass() -> Result<()> {
    let mesh = Mesh::start().await?;
    let app = App::named("plain").await?;
    // It says that its sidecar is where its application answers to everyone.
    let workload = WorkloadSpec {
        name: "bare".to_owned(),
        service: "bare".to_owned(),
        ports: format!("main=80:{}/http", app.address.port()),
        env: vec![("WEFT_ADDRESS", app.address.to_string())],
        ..WorkloadSpec::default()
    };
    let _workload = mesh.sidecar(workload).await?;
    mesh.registered("bare", 1).await?;
    let (code, report) = check(&mesh.control_plane, &["--to", "bare"]).await?;
    ensure!(code == 1, "{report:#}");
    assert_eq!(found(&report, "fail", "no mutual TLS").len(), 1, "{report:#}");
    assert_eq!(found(&report, "fail", "takes plain text").len(), 1, "{report:#}");
    ensure!(report["calls"].as_array().is_some_and(Vec::is_empty), "{report:#}");
    Ok(())
}

#[tokio::test]
async fn a_sidecar_that_is_gone_is_told() -> Result<()> {
    let mut pair = Pair::start("http", App::named("hello").await?).await?;
    pair.callee.kill().await;
    let (code, report) = check(&pair.mesh.control_plane, &[]).await?;
    ensure!(code == 1, "{report:#}");
    ensure!(!found(&report, "fail", "default/echo/").is_empty(), "{report:#}");
    Ok(())
}
