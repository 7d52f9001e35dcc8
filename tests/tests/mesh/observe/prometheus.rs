//! A Prometheus beside a mesh.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use tokio::process::Command;
use weft::launch::{Process, Reserved};
use weft_tests::{Mesh, prometheus::Answers};

/// Runs `promtool` in a folder.
pub async fn promtool(folder: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new("promtool").args(args).current_dir(folder).kill_on_drop(true).output().await?;
    let printed = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "promtool {}:\n{}", args.join(" "), String::from_utf8_lossy(&printed));
    Ok(())
}

/// A running Prometheus; it ends when dropped.
pub struct Prometheus {
    pub answers: Answers,
    process: Process,
}

impl Prometheus {
    /// Scrapes a mesh every second, with the rules of `observe`. `sidecars`: address and service.
    pub async fn start(mesh: &Mesh, observe: &Path, sidecars: &[(String, String)]) -> Result<Self> {
        let folder = mesh.ground.data.join("prometheus");
        std::fs::create_dir_all(&folder)?;
        let config = folder.join("prometheus.yml");
        std::fs::write(&config, configuration(mesh, observe, sidecars))?;
        // It takes no port that somebody holds, so that another program may come first.
        for _ in 0..3 {
            let address = Reserved::new()?.address;
            let args = [
                format!("--config.file={}", config.display()),
                format!("--storage.tsdb.path={}", folder.join("data").display()),
                format!("--web.listen-address={address}"),
            ];
            let process = Process::start("prometheus", Path::new("prometheus"), &mesh.ground.logs, &args, &[])?;
            let prometheus = Self { answers: Answers { address }, process };
            match prometheus.answers.ready().await {
                Ok(()) => return Ok(prometheus),
                Err(error) => eprintln!("{error:#}: {}", prometheus.process.log_tail()),
            }
        }
        bail!("Prometheus does not start")
    }
}

/// The jobs and labels of `deploy/observe/prometheus.yml`, with the addresses of this mesh. JSON is YAML.
fn configuration(mesh: &Mesh, observe: &Path, sidecars: &[(String, String)]) -> String {
    let sidecars: Vec<Value> = sidecars
        .iter()
        .map(|(address, service)| serde_json::json!({"targets": [address], "labels": {"service": service}}))
        .collect();
    serde_json::json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [observe.join("rules/*.yml")],
        "scrape_configs": [
            {
                "job_name": "weft-control-plane",
                "scheme": "https",
                "tls_config": {
                    "ca_file": mesh.control_plane.data().join("ca/root.pem"),
                    "server_name": "weft-control-plane",
                },
                "static_configs": [{"targets": [mesh.control_plane.http().to_string()]}],
            },
            {"job_name": "weft-sidecars", "static_configs": sidecars},
        ],
    })
    .to_string()
}
