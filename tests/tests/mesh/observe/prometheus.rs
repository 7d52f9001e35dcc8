//! A Prometheus beside a mesh, and what it answers.

use std::{collections::BTreeSet, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use http::Method;
use serde_json::Value;
use tokio::{process::Command, time::Instant};
use weft::launch::{Process, Reserved, call, wait_for};
use weft_tests::Mesh;

/// How long it may take to come up.
const START: Duration = Duration::from_secs(20);

/// Runs `promtool` in a folder.
pub async fn promtool(folder: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new("promtool").args(args).current_dir(folder).kill_on_drop(true).output().await?;
    let printed = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "promtool {}:\n{}", args.join(" "), String::from_utf8_lossy(&printed));
    Ok(())
}

/// A rule, as Prometheus has it.
pub struct Rule {
    /// Its expression.
    pub query: String,
    /// The series that it records; an alert records none.
    pub records: Option<String>,
}

/// A running Prometheus; it ends when dropped.
pub struct Prometheus {
    address: SocketAddr,
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
            let prometheus = Self { address, process };
            let ready =
                wait_for("Prometheus", START, async || call(address, Method::GET, "/-/ready").await.ok().map(|_| ()));
            match ready.await {
                Ok(()) => return Ok(prometheus),
                Err(error) => eprintln!("{error:#}: {}", prometheus.process.log_tail()),
            }
        }
        bail!("Prometheus does not start")
    }

    async fn ask(&self, path: &str) -> Result<Value> {
        let answer = call(self.address, Method::GET, path).await?;
        let mut answer: Value = serde_json::from_str(&answer)?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].take())
    }

    /// The values that an expression has now.
    pub async fn query(&self, expression: &str) -> Result<Vec<f64>> {
        let answer = self.ask(&format!("/api/v1/query?query={}", encode(expression))).await;
        let answer = answer.with_context(|| expression.to_owned())?;
        let value = |sample: &Value| sample["value"][1].as_str().and_then(|text| text.parse().ok());
        Ok(list(&answer["result"]).iter().filter_map(value).collect())
    }

    /// Waits until so many targets have answered.
    pub async fn has_scraped(&self, targets: usize) -> Result<()> {
        let scraped = wait_for("the first scrapes", START, async || {
            let up = self.query("sum(up)").await.ok()?;
            (up.first().copied() == Some(targets as f64)).then_some(())
        });
        if let Err(error) = scraped.await {
            let seen = self.ask("/api/v1/targets").await?;
            let said =
                |target: &Value| format!("{}: {} {}", target["scrapeUrl"], target["health"], target["lastError"]);
            let said: Vec<String> = list(&seen["activeTargets"]).iter().map(said).collect();
            bail!("{error:#}: {said:#?}");
        }
        Ok(())
    }

    /// All rules, once each has been evaluated; a rule that fails is an error.
    pub async fn rules(&self, patience: Duration) -> Result<Vec<Rule>> {
        let deadline = Instant::now() + patience;
        loop {
            let groups = self.ask("/api/v1/rules").await?;
            let rules: Vec<&Value> = list(&groups["groups"]).iter().flat_map(|group| list(&group["rules"])).collect();
            if let Some(bad) = rules.iter().find(|rule| rule["health"] == "err") {
                bail!("{}: {}", bad["name"], bad["lastError"]);
            }
            if !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok") {
                let rule = |rule: &&Value| {
                    let text = |key: &str| rule[key].as_str().map(str::to_owned);
                    let records = if rule["type"] == "recording" { text("name") } else { None };
                    Some(Rule { query: text("query")?, records })
                };
                return Ok(rules.iter().filter_map(rule).collect());
            }
            ensure!(Instant::now() < deadline, "not every rule was evaluated: {groups}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Names of all series that it has.
    pub async fn names(&self) -> Result<BTreeSet<String>> {
        let names = self.ask("/api/v1/label/__name__/values").await?;
        Ok(list(&names).iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
    }

    /// What the alerts say that are active now.
    pub async fn alert_texts(&self) -> Result<Vec<String>> {
        let alerts = self.ask("/api/v1/alerts").await?;
        let texts = list(&alerts["alerts"]).iter().filter_map(|alert| alert["annotations"].as_object());
        Ok(texts.flat_map(|texts| texts.values()).filter_map(|text| text.as_str().map(str::to_owned)).collect())
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn encode(text: &str) -> String {
    let encoded = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encoded).collect()
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
