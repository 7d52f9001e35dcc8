//! The systemd units of `deploy/host`: their command lines and settings start a mesh, and systemd finds no fault in them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use http::Method;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::Command;
use weft::launch::{Process, call, wait_for};
use weft_tests::{App, mesh::program};

/// Longer than a start takes.
const START: Duration = Duration::from_secs(20);

fn host() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").join("deploy/host")
}

/// A unit's setting.
fn setting<'a>(unit: &'a str, name: &str) -> Result<&'a str> {
    let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.with_context(|| format!("the unit has no {name}"))
}

/// The words after the program of a unit's command line, with systemd's variables filled in.
fn words(unit: &str, values: &[(&str, &str)]) -> Result<Vec<String>> {
    let mut line = setting(unit, "ExecStart")?.to_owned();
    for (name, value) in values {
        line = line.replace(name, value);
    }
    ensure!(!line.contains(['%', '$']), "not filled in: {line}");
    let mut words = line.split(' ').map(str::to_owned);
    ensure!(words.next().as_deref() == Some("/usr/local/bin/weft"), "{line}");
    Ok(words.collect())
}

/// Settings of an environment file, those in comments too.
fn settings(file: &str) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(host().join(file))?;
    let pair = |line: &str| line.trim_start_matches('#').split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    Ok(text.lines().filter_map(pair).filter(|(name, _)| name.starts_with("WEFT_")).collect())
}

/// Starts what a unit starts, on free ports of loopback.
fn start(name: &str, words: &[String], folder: &Path, env: &[(&'static str, String)]) -> Result<Process> {
    Process::start(name, &program()?, folder, words, env)
}

async fn addresses(folder: &Path) -> Result<Value> {
    let file = folder.join("addresses.json");
    wait_for("its addresses", START, async || serde_json::from_slice(&std::fs::read(&file).ok()?).ok()).await
}

#[tokio::test]
async fn the_units_start_a_mesh() -> Result<()> {
    let ground = tempfile::tempdir()?;
    let folder = |name: &str| -> Result<PathBuf> {
        let folder = ground.path().join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    };
    let (state, orders, secrets) = (folder("control-plane")?, folder("orders")?, folder("credentials")?);
    let any = || "127.0.0.1:0".to_owned();

    let unit = std::fs::read_to_string(host().join("weft-control-plane.service"))?;
    let line = words(&unit, &[("${STATE_DIRECTORY}", &state.display().to_string())])?;
    let env = [("WEFT_GRPC", any()), ("WEFT_HTTP", any()), ("WEFT_ADVERTISE", "127.0.0.1".to_owned())];
    let mut control_plane = start("control-plane", &line, ground.path(), &env)?;
    let grpc = addresses(&state).await?["grpc"].as_str().context("an address")?.to_owned();

    let credential = state.join("operator.json");
    let weft = async |args: &[&str]| -> Result<String> {
        let output = Command::new(program()?).args(args).env("WEFT_CREDENTIAL", &credential).output().await?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    wait_for("the control plane", START, async || weft(&["status"]).await.ok()).await?;
    let token = secrets.join("join-token");
    std::fs::write(&token, weft(&["token", "create", "--service", "orders"]).await?)?;

    let app = App::named("hello").await?;
    let unit = std::fs::read_to_string(host().join("weft-sidecar@.service"))?;
    let line = words(
        &unit,
        &[
            ("%i", "orders"),
            ("${STATE_DIRECTORY}", &orders.display().to_string()),
            ("${CREDENTIALS_DIRECTORY}", &secrets.display().to_string()),
        ],
    )?;
    let env = [
        ("WEFT_CONTROL_PLANE", grpc),
        ("WEFT_PORTS", format!("80:{}/http", app.address.port())),
        ("WEFT_OUTBOUND", any()),
        ("WEFT_INBOUND", any()),
        ("WEFT_ADMIN", any()),
        ("WEFT_METRICS", any()),
    ];
    let patience = setting(&unit, "TimeoutStopSec")?.trim_end_matches('s').parse().map(Duration::from_secs)?;
    // The second time without a token, as after the file has gone: what SetCredential= gives instead.
    for given in [None, Some(" ")] {
        if let Some(text) = given {
            std::fs::write(&token, text)?;
            std::fs::remove_file(orders.join("addresses.json"))?;
        }
        let mut sidecar = start("orders", &line, ground.path(), &env)?;
        let metrics = addresses(&orders).await?["metrics"].as_str().context("an address")?.parse()?;
        wait_for("the sidecar to be ready", START, async || call(metrics, Method::GET, "/ready").await.ok())
            .await
            .with_context(|| sidecar.log_tail())?;
        wait_for("its workload", START, async || {
            weft(&["status"]).await.ok().filter(|status| status.contains("READY"))
        })
        .await?;
        sidecar.signal(Signal::SIGTERM);
        ensure!(sidecar.ended(patience).await?.success(), "{}", sidecar.log_tail());
    }
    control_plane.signal(Signal::SIGTERM);
    ensure!(control_plane.ended(patience).await?.success(), "{}", control_plane.log_tail());
    Ok(())
}

#[tokio::test]
async fn every_setting_of_the_environment_files_is_one() -> Result<()> {
    for (file, command) in [("control-plane.env", "control-plane"), ("sidecar.env", "sidecar")] {
        let help = Command::new(program()?).args([command, "--help"]).output().await?;
        let help = String::from_utf8(help.stdout)?;
        let settings = settings(file)?;
        ensure!(settings.len() >= 3, "{file} has lost its settings");
        for name in settings.keys() {
            ensure!(help.contains(&format!("[env: {name}=")), "{file}: {command} does not know {name}");
        }
    }
    Ok(())
}

/// Exposure that a unit may have, of 100 (systemd writes it as 2.0).
const EXPOSURE: &str = "--threshold=20";

#[tokio::test]
async fn systemd_finds_no_fault_in_the_units() -> Result<()> {
    let version = Command::new("systemd-analyze").arg("--version").output().await;
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    // `systemd 252 (252.38-1)`; --offline came with 250.
    let number: u32 = version.split(' ').nth(1).and_then(|number| number.parse().ok()).unwrap_or_default();
    if number < 250 {
        eprintln!("left out: no systemd-analyze of version 250 or later here");
        return Ok(());
    }
    // They name a program that is installed nowhere here.
    let folder = tempfile::tempdir()?;
    for (file, name) in [
        ("weft-control-plane.service", "weft-control-plane.service"),
        ("weft-sidecar@.service", "weft-sidecar@orders.service"),
    ] {
        let unit = std::fs::read_to_string(host().join(file))?;
        let unit = unit.replace("/usr/local/bin/weft", &program()?.display().to_string());
        let path = folder.path().join(name).display().to_string();
        std::fs::write(&path, unit)?;
        for args in [&["verify", "--man=no"][..], &["security", "--offline=true", "--no-pager", EXPOSURE]] {
            let output = Command::new("systemd-analyze").args(args).arg(&path).output().await?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{args:?} {name}: {said}\n{}", String::from_utf8_lossy(&output.stdout));
            // What it ignores it only warns of.
            ensure!(!said.contains(name), "{name}: {said}");
        }
    }
    Ok(())
}
