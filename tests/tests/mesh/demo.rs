//! The demo, as the README's main command plays it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;
use weft_tests::mesh::program;

#[tokio::test]
async fn the_demo_observes_every_claim() -> Result<()> {
    let demo = Command::new(program()?).args(["demo", "--for", "150", "--json"]).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(170), demo).await.context("--for bounds it")??;
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone().into_owned())?;
    ensure!(output.status.success(), "{report:#}\n{}", String::from_utf8_lossy(&output.stderr));
    ensure!(report["observed"] == report["expected"] && report["ok"] == true, "{report:#}");
    Ok(())
}

#[tokio::test]
async fn a_demo_cut_short_says_so_and_leaves_nothing_running() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let demo = Command::new(program()?)
        .args(["demo", "--for", "2", "--json"])
        .env("TMPDIR", folder.path())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(30), demo).await.context("it ends")??;
    ensure!(output.status.code() == Some(1), "a claim that was not observed is a failure: {:?}", output.status);
    ensure!(std::fs::read_dir(folder.path())?.next().is_none(), "it left its folder behind");
    Ok(())
}
