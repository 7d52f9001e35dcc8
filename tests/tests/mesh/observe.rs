//! What `deploy/observe` ships, against a real mesh: rules, alerts and the expressions of the dashboards.

mod prometheus;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use http::{Request, StatusCode, header};
use http_body_util::Full;
use tokio::net::TcpStream;
use weft::launch::{SidecarPorts, Workload, WorkloadSpec, wait_for};
use weft_tests::{
    ApiServer, App, Mesh,
    app::text,
    caller,
    dashboards::{Dashboard, dashboards, files, observe},
};

use self::prometheus::{Prometheus, promtool};

/// What is empty in a mesh in which nobody is out of step: the whole expression, or the recorded series.
const EMPTY: &[&str] = &[
    // Nobody refuses what our control plane sends.
    "control_plane:weft_cp_nacks:increase10m",
    "sum by (instance, service) (workload:weft_xds_rejected:increase10m) > 0",
    // Nobody is cut off.
    "max by (instance, service) (workload:weft_config_age:seconds) > 60",
];

/// Series that there are only once somebody refused something, or in transparent mode (`transparent/captured.rs`).
const ABSENT: &[&str] =
    &["weft_cp_nacks_total", "control_plane:weft_cp_nacks:increase10m", "weft_redirect_rules_present"];

/// What only a control plane with `--kubernetes` has; asked of one that has.
const KUBERNETES: &str = "weft_cp_kubernetes_";

/// Long enough for every series to appear: rates need two scrapes, rules that read rules some rounds more.
const PATIENCE: Duration = Duration::from_secs(120);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// Whether Prometheus is there; says so where it is not.
fn there() -> Result<bool> {
    let there = std::process::Command::new("promtool").arg("--version").output().is_ok();
    if !there {
        ensure!(std::env::var("WEFT_REQUIRE_PROMETHEUS").is_err(), "promtool is not there");
        eprintln!("left out: no Prometheus here (Debian's package `prometheus`), so no rule and no dashboard is tried");
    }
    Ok(there)
}

#[tokio::test]
async fn the_rules_pass_their_own_tests() -> Result<()> {
    if !there()? {
        return Ok(());
    }
    let folder = observe();
    promtool(&folder, &["check", "config", "--syntax-only", "prometheus.yml"]).await?;
    // Debian's promtool does not know how to ask an API server; all else it does.
    let text = std::fs::read_to_string(folder.join("kubernetes.yml"))?;
    let found = "    kubernetes_sd_configs:\n      - role: pod\n";
    ensure!(text.matches(found).count() == 2, "kubernetes.yml has another form");
    let text = text.replace("        namespaces: { names: [weft-system] }\n", "");
    let text = text.replace(found, "    static_configs: [{ targets: [\"10.0.0.1:1\"] }]\n");
    let known = tempfile::NamedTempFile::new()?;
    std::fs::write(known.path(), text)?;
    promtool(&folder, &["check", "config", "--syntax-only", &known.path().display().to_string()]).await?;
    promtool(&folder, &["check", "rules", "rules/recording.yml", "rules/alerts.yml"]).await?;
    let tests: Vec<String> = files(&folder.join("rules/tests"), "yml")?.into_iter().map(|(path, _)| path).collect();
    let mut args = vec!["test", "rules"];
    args.extend(tests.iter().map(String::as_str));
    promtool(&folder, &args).await
}

const CONFIGURATION: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: orders }
spec: { ports: [{ name: main, port: 80, appProtocol: http }] }
---
apiVersion: v1
kind: Service
metadata: { name: payments }
spec: { ports: [{ name: main, port: 80, appProtocol: http }] }
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: { name: payments }
spec:
  targetRefs: [{ kind: Service, name: payments }]
  circuitBreaker: { consecutiveFailures: 5 }
---
apiVersion: weft.mesh/v1alpha1
kind: AccessPolicy
metadata: { name: payments }
spec:
  targetRefs: [{ kind: Service, name: payments }]
  action: DENY
  rules: [{ name: no-admin, to: [{ paths: ["/admin"] }] }]
"#;

/// A route, so that something changes while Prometheus looks.
const CHANGE: &str = r"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders }
spec:
  parentRefs: [{ kind: Service, name: orders }]
  rules:
    - name: all
      backendRefs: [{ name: orders, port: 80 }]
";

/// Fails as the path asks for.
async fn shop() -> Result<App> {
    App::http(|request| async move {
        match request.uri().path() {
            "/broken" => text(StatusCode::INTERNAL_SERVER_ERROR, "broken"),
            "/busy" => text(StatusCode::SERVICE_UNAVAILABLE, "busy"),
            _ => text(StatusCode::OK, "here you are"),
        }
    })
    .await
}

#[tokio::test]
async fn every_expression_has_data_in_a_real_mesh() -> Result<()> {
    if !there()? {
        return Ok(());
    }
    let mesh = Mesh::start().await?;
    mesh.apply(CONFIGURATION).await?;
    let (first, second, third) = (shop().await?, shop().await?, shop().await?);
    let ledger = App::raw(|stream| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await?;
    let sidecars = [
        mesh.callee("orders-1", "orders", "http", &first).await?,
        mesh.callee("orders-2", "orders", "http", &second).await?,
        mesh.callee("payments-1", "payments", "http", &third).await?,
        mesh.callee("ledger-1", "ledger", "detect", &ledger).await?,
        mesh.sidecar(WorkloadSpec {
            name: "web-1".to_owned(),
            service: "web".to_owned(),
            upstreams: "127.0.0.1:0=ledger:80".to_owned(),
            ..WorkloadSpec::default()
        })
        .await?,
    ];
    let prometheus = Prometheus::start(&mesh, &observe(), &targets(&sidecars)?).await?;
    let traffic = tokio::spawn(traffic(
        sidecars[4].ports()?.clone(),
        sidecars[0].ports()?.outbound,
        sidecars[2].ports()?.clone(),
    ));
    prometheus.answers.has_scraped(sidecars.len() + 1).await?;
    mesh.apply(CHANGE).await?;

    let rules = prometheus.answers.rules(PATIENCE).await?;
    let recorded: Vec<String> = rules.iter().filter_map(|rule| rule.records.clone()).collect();
    let services = ["orders", "payments", "ledger", "web"].map(|name| format!("default/{name}"));
    let workloads: Vec<String> = targets(&sidecars)?.into_iter().map(|(address, _)| address).collect();
    let mut wanted: Vec<Vec<String>> = recorded.iter().map(|name| vec![name.clone()]).collect();
    for dashboard in dashboards(&observe().join("dashboards"))? {
        wanted.extend(dashboard.expressions(None, &services, &workloads));
    }
    for allowed in EMPTY {
        ensure!(wanted.iter().any(|one| one.iter().any(|form| form == allowed)), "{allowed} is not asked any more");
    }
    wanted.retain(|one| !one.iter().any(|form| EMPTY.contains(&form.as_str()) || form.contains(KUBERNETES)));
    prometheus.answers.data(wanted, PATIENCE).await?;

    // Alerts have no data while all is well; what they read must be there.
    let known = prometheus.answers.names().await?;
    let missing: BTreeSet<String> = rules
        .iter()
        .flat_map(|rule| series(&rule.query))
        .filter(|name| !known.contains(name) && !ABSENT.contains(&name.as_str()) && !name.starts_with(KUBERNETES))
        .collect();
    ensure!(missing.is_empty(), "rules read series that no process has: {missing:?}");
    for text in prometheus.answers.alert_texts().await? {
        ensure!(!text.contains("<error") && !text.contains("<no value>"), "an alert says: {text}");
    }
    traffic.abort();
    Ok(())
}

#[tokio::test]
async fn every_expression_about_kubernetes_has_data_where_there_is_an_api_server() -> Result<()> {
    if !there()? {
        return Ok(());
    }
    let api = ApiServer::start("shop.json", &[("LEGACY_PORT", "1".to_owned())]).await?;
    let folder = tempfile::tempdir()?;
    let kubeconfig = api.kubeconfig(folder.path())?;
    let flags = ["--kubernetes", "--kubeconfig", kubeconfig.to_str().context("a path of UTF-8")?];
    let mesh = Mesh::start_with(&flags).await?;
    let prometheus = Prometheus::start(&mesh, &observe(), &[]).await?;
    let mut wanted = Vec::new();
    for dashboard in dashboards(&observe().join("dashboards"))? {
        wanted.extend(dashboard.expressions(None, &[], &[]));
    }
    wanted.retain(|one| one.iter().any(|form| form.contains(KUBERNETES)));
    let rules = prometheus.answers.rules(PATIENCE).await?;
    let read = rules.iter().flat_map(|rule| series(&rule.query)).filter(|name| name.starts_with(KUBERNETES));
    wanted.extend(read.map(|name| vec![name]));
    ensure!(wanted.len() > 3, "only {wanted:?} are about Kubernetes");
    prometheus.answers.data(wanted, PATIENCE).await?;
    // A kind of the Gateway API that this cluster does not have rings no bell.
    wait_for("every kind to be watched", PATIENCE, async || {
        let kinds = prometheus.answers.query("count(weft_cp_kubernetes_watch_up)").await.ok()?;
        let down = prometheus.answers.query("weft_cp_kubernetes_watch_up == 0").await.ok()?;
        (kinds == [7.0] && down.is_empty()).then_some(())
    })
    .await
}

/// Where the sidecars' metrics are, and whose they are.
fn targets(sidecars: &[Workload]) -> Result<Vec<(String, String)>> {
    let target = |one: &Workload| Ok((one.ports()?.metrics.to_string(), format!("default/{}", one.spec.service)));
    sidecars.iter().map(target).collect()
}

/// Requests of all kinds until aborted. What is answered is for Prometheus to count.
async fn traffic(web: SidecarPorts, orders: std::net::SocketAddr, payments: SidecarPorts) {
    let get = |proxy, host: &'static str, path: &'static str| async move {
        let _ = caller::get(proxy, host, path).await;
    };
    // In a row: an endpoint is taken out.
    for _ in 0..30 {
        get(web.outbound, "orders", "/broken").await;
    }
    loop {
        for _ in 0..5 {
            get(web.outbound, "orders", "/").await;
        }
        get(web.outbound, "orders", "/broken").await;
        // Tried again; a POST is not.
        get(web.outbound, "orders", "/busy").await;
        let post = Request::post("/busy").header(header::HOST, "orders").body(Full::default());
        let _ = caller::send(web.outbound, post.expect("a request")).await;
        get(web.outbound, "payments", "/").await;
        get(web.outbound, "payments", "/admin").await;
        get(orders, "payments", "/").await;
        get(web.outbound, "nobody", "/").await;
        // Past the mesh.
        get(payments.inbound, "payments", "/").await;
        // A silent client of a port without protocol.
        if let Some(&ledger) = web.upstreams.values().next() {
            let silent = TcpStream::connect(ledger).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            drop(silent);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Names of our series in an expression.
fn series(expression: &str) -> Vec<String> {
    let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let ours = |word: &&str| word.starts_with("weft_") || word.contains(":weft_") || word.starts_with("weft:");
    expression.split(|c| !name(c)).filter(ours).map(str::to_owned).collect()
}

#[test]
fn series_are_found_in_an_expression() {
    let found = series(r#"sum(rate(weft_a_total{x="weft-b"}[1m])) / on (y) edge:weft_c:rate1m > weft:d"#);
    assert_eq!(found, ["weft_a_total", "edge:weft_c:rate1m", "weft:d"]);
}

#[test]
fn every_alert_and_every_recorded_series_is_tested_and_every_alert_explained() -> Result<()> {
    let rules = observe().join("rules");
    let tests: String = files(&rules.join("tests"), "yml")?.into_iter().map(|(_, text)| text).collect();
    let alerts = std::fs::read_to_string(rules.join("alerts.yml"))?;
    let page = std::fs::read_to_string(root().join("docs/alerts.md"))?;
    let named = |line: &str, key: &str| line.trim().strip_prefix(key).map(str::to_owned);
    let names: Vec<String> = alerts.lines().filter_map(|line| named(line, "- alert: ")).collect();
    let explained: Vec<String> = page.lines().filter_map(|line| named(line, "### ")).collect();
    assert_eq!(names, explained, "docs/alerts.md has a paragraph for each, in the order of the rules");
    for (name, block) in names.iter().zip(alerts.split("- alert: ").skip(1)) {
        let runbook = format!("runbook: docs/alerts.md#{}", name.to_ascii_lowercase());
        for part in ["summary: ", "description: ", &runbook] {
            ensure!(block.contains(part), "{name} lacks {part}");
        }
        let severity = ["critical", "warning", "info"].map(|one| format!("severity: {one}"));
        ensure!(severity.iter().any(|one| block.contains(one)), "{name} has no severity");
        ensure!(tests.contains(&format!("alertname=\"{name}\"")), "no test in which {name} fires");
    }
    let recording = std::fs::read_to_string(rules.join("recording.yml"))?;
    for name in recording.lines().filter_map(|line| named(line, "- record: ")) {
        ensure!(tests.contains(&name), "no test of {name}");
    }
    Ok(())
}

#[test]
fn every_reason_has_its_side() -> Result<()> {
    let tests = std::fs::read_to_string(observe().join("rules/tests/recording.yml"))?;
    let page = std::fs::read_to_string(root().join("docs/reasons.md"))?;
    let mut reasons = 0;
    for line in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let mut cells = line.split('|').map(|cell| cell.trim().trim_end_matches('`'));
        let (Some(reason), Some(side)) = (cells.next(), cells.next()) else { continue };
        let expected = format!("reason=\"{reason}\", side=\"{side}\"");
        ensure!(tests.contains(&expected), "rules/tests/recording.yml does not expect {expected}");
        reasons += 1;
    }
    ensure!(reasons > 40, "only {reasons} reasons were found in docs/reasons.md");
    Ok(())
}

#[test]
fn the_dashboards_are_whole() -> Result<()> {
    let all = dashboards(&observe().join("dashboards"))?;
    let uids: BTreeSet<&str> = all.iter().map(Dashboard::uid).collect();
    assert_eq!(uids.len(), all.len(), "each has a uid of its own");
    all.iter().try_for_each(Dashboard::check)
}
