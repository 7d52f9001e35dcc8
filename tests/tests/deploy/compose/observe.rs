//! deploy/compose with its profile `observe`: Prometheus watches the shop's mesh with what deploy/observe has, as the
//! files say it. Debian has no Grafana: where the compose file has it, Python reads what Grafana reads.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::{
    dashboards::{Dashboard, dashboards, files, observe},
    docker::{available, output},
    prometheus::Answers,
};

use super::{
    PATIENCE, Team, answered, free_port, get,
    pack::{prometheus, python},
    shop::example,
};

/// How many sidecars each service has.
const SIDECARS: &[(&str, usize)] = &[("frontend", 1), ("orders", 2), ("inventory", 1)];

/// What Grafana's own image runs as.
const GRAFANA: &str = "472";

/// Reads the provisioning and the dashboards where Grafana does, and asks the data source.
const LIKE_GRAFANA: &str = r#"
import json, os, sys, urllib.request
provider, source = sys.argv[1:]
found = {"provisioning": [], "dashboards": []}
for kind in "dashboards", "datasources":
    folder = "/etc/grafana/provisioning/" + kind
    for name in os.listdir(folder):
        open(folder + "/" + name).read()
        found["provisioning"].append(kind + "/" + name)
for name in os.listdir(provider):
    found["dashboards"].append(json.load(open(provider + "/" + name))["uid"])
answer = urllib.request.urlopen(source + "/api/v1/query", data=b"query=sum(up)")
found["answer"] = json.load(answer)
print(json.dumps(found))
"#;

#[tokio::test]
async fn prometheus_watches_the_shop() -> Result<()> {
    if !available("profile `observe` of deploy/compose")? {
        return Ok(());
    }
    let place = tempfile::Builder::new().prefix("weft-test-").tempdir()?;
    let file = example()?;
    let _prometheus = prometheus(default(&file, "PROMETHEUS_IMAGE")?)?;
    let python = python()?;
    let [frontend, port, grafana] = [free_port()?, free_port()?, free_port()?];
    let env = format!(
        "COMPOSE_PROFILES=observe\nFRONTEND_PORT={frontend}\nPROMETHEUS_PORT={port}\nGRAFANA_PORT={grafana}\n\
         GRAFANA_IMAGE={}\n",
        python.name
    );
    let team = Team::within(place.path(), "observe", &[("compose.yaml", &file), (".env", &env)])?;
    copy(place.path(), &team.ports[1])?;
    team.inject(&[])?;
    // It waits for what the file says of health. Services are named: the one called grafana would not stay.
    team.project.compose(&["up", "--wait", "--scale", "orders=2", "frontend", "prometheus"])?;
    let sidecars = SIDECARS.iter().map(|(_, count)| count).sum::<usize>();
    team.workloads_ready(sidecars).await?;
    answered(frontend, "/").await?;
    let callers = tokio::spawn(async move {
        loop {
            // What is answered is for Prometheus to say.
            let _ = get(frontend, "/").await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });

    let prometheus = Answers { address: SocketAddr::from(([127, 0, 0, 1], port)) };
    prometheus.has_scraped(sidecars + 1).await?;
    ensure!(prometheus.query(r#"up{job="weft-control-plane"}"#).await? == [1.0]);
    for (service, count) in SIDECARS {
        let up = prometheus.query(&format!(r#"up{{job="weft-sidecars", service="default/{service}"}}"#)).await?;
        ensure!(up == vec![1.0; *count], "{service}: {up:?}");
    }
    like_grafana(&team, sidecars + 1)?;

    let rules = prometheus.rules(PATIENCE).await?;
    let written: usize = files(&observe().join("rules"), "yml")?.iter().map(|(_, text)| rules_in(text)).sum();
    assert_eq!(rules.len(), written, "every rule is loaded");
    let services: Vec<String> = SIDECARS.iter().map(|(service, _)| format!("default/{service}")).collect();
    let workloads = prometheus.labels(r#"up{job="weft-sidecars"}"#, "instance").await?;
    assert_eq!(workloads.len(), sidecars);
    // What a dashboard shows at its top, all is well or not. The mesh's tests try everything else.
    let wanted: Vec<_> = (dashboards(&observe().join("dashboards"))?.iter())
        .flat_map(|dashboard| dashboard.expressions(Some("stat"), &services, &workloads))
        .collect();
    ensure!(wanted.len() > 20, "only {} expressions were found", wanted.len());
    prometheus.data(wanted, PATIENCE).await?;
    // Who calls whom, by the names that the file gives.
    for (source, destination) in [("frontend", "orders"), ("frontend", "inventory"), ("orders", "inventory")] {
        let edge = format!(
            r#"edge:weft_requests:rate1m{{source="default/{source}", destination="default/{destination}", outcome="ok"}} > 0"#
        );
        prometheus.data(vec![vec![edge]], PATIENCE).await?;
    }
    ensure!(prometheus.query("mesh:weft_success:ratio1m").await? == [1.0], "no call failed");
    ensure!(prometheus.query("mesh:weft_mutual_tls:ratio1m").await? == [1.0], "no sidecar was called in plain text");
    callers.abort();
    team.down()
}

/// deploy/observe beside the project, asked once a second: rates need two scrapes, and rules that read rules some rounds.
/// The control plane has not its usual port, which another test may have: that is changed as the file says.
fn copy(to: &Path, http_port: &str) -> Result<()> {
    output("cp", &["--recursive", &observe().display().to_string(), &to.display().to_string()], None)?;
    let path = to.join("observe/prometheus.yml");
    let text = std::fs::read_to_string(&path)?;
    let quick = ["scrape_interval: ", "evaluation_interval: ", "refresh_interval: "]
        .iter()
        .fold(text, |text, key| text.replace(&format!("{key}15s"), &format!("{key}1s")));
    ensure!(quick.matches("_interval: 1s").count() == 4 && quick.matches("port: 15080,").count() == 1, "{quick}");
    Ok(std::fs::write(path, quick.replace("port: 15080,", &format!("port: {http_port},")))?)
}

/// What the file says where a variable is not set.
fn default<'a>(file: &'a str, variable: &str) -> Result<&'a str> {
    let value = file.split_once(&format!("${{{variable}:-")).and_then(|(_, rest)| rest.split_once('}'));
    Ok(value.with_context(|| format!("the file does not name {variable}"))?.0)
}

fn rules_in(text: &str) -> usize {
    let rule = |line: &&str| ["- record: ", "- alert: "].iter().any(|key| line.trim_start().starts_with(key));
    text.lines().filter(rule).count()
}

/// What Grafana would do in its container, as its user.
fn like_grafana(team: &Team, targets: usize) -> Result<()> {
    let (provider, source) = provisioned()?;
    let (path, url) = (text(&provider, "/options/path")?, text(&source, "/url")?);
    let run = ["run", "--rm", "--no-TTY", "--no-deps", "--user", GRAFANA, "--entrypoint", "/usr/bin/python3"];
    let said = team.project.compose(&[&run[..], &["grafana", "-c", LIKE_GRAFANA, path, url]].concat())?;
    let mut said: BTreeMap<String, Value> = serde_json::from_str(&said).context(said.clone())?;
    let mut names = |key: &str| -> Result<Vec<String>> {
        let mut names: Vec<String> = serde_json::from_value(said.remove(key).context("it was said")?)?;
        names.sort();
        Ok(names)
    };
    assert_eq!(names("provisioning")?, ["dashboards/weft.yml", "datasources/weft.yml"]);
    let dashboards = dashboards(&observe().join("dashboards"))?;
    let mut uids: Vec<&str> = dashboards.iter().map(Dashboard::uid).collect();
    uids.sort_unstable();
    assert_eq!(names("dashboards")?, uids, "all dashboards are where the provider looks");
    let (answer, expected) = (&said["answer"], targets.to_string());
    ensure!(answer["data"]["result"][0]["value"][1] == expected, "the data source answers {answer}");
    Ok(())
}

/// The provider of the dashboards and the data source, as provisioned.
fn provisioned() -> Result<(Value, Value)> {
    let only = |file: &str, key: &str| -> Result<Value> {
        let path = observe().join("grafana").join(file);
        let file: Value = serde_yaml::from_str(&std::fs::read_to_string(&path)?).context(path.display().to_string())?;
        ensure!(file["apiVersion"] == 1 && file[key].as_array().is_some_and(|all| all.len() == 1), "{file}");
        Ok(file[key][0].clone())
    };
    Ok((only("dashboards/weft.yml", "providers")?, only("datasources/weft.yml", "datasources")?))
}

fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer} in {value}"))
}

/// Without an engine: what Grafana is given fits together.
#[test]
fn the_provisioning_of_grafana_fits_the_dashboards_and_the_project() -> Result<()> {
    let (provider, source) = provisioned()?;
    let project: Value = serde_yaml::from_str(&example()?)?;
    let volumes = project["services"]["grafana"]["volumes"].as_array().context("grafana has volumes")?;
    let mounted = |what: &str| -> Result<&str> {
        let found = volumes.iter().filter_map(Value::as_str).find_map(|line| line.strip_prefix(&format!("{what}:")));
        Ok(found.with_context(|| format!("{what} is not mounted"))?.trim_end_matches(":ro"))
    };
    assert_eq!(text(&provider, "/type")?, "file");
    assert_eq!(mounted("../observe/dashboards")?, text(&provider, "/options/path")?);
    assert_eq!(mounted("../observe/grafana")?, "/etc/grafana/provisioning");
    let url = text(&source, "/url")?;
    let (service, port) = url.trim_start_matches("http://").split_once(':').with_context(|| url.to_owned())?;
    let ports = text(&project, &format!("/services/{service}/ports/0"))?;
    ensure!(ports.ends_with(&format!(":{port}")), "{url} is not where {service} listens: {ports}");
    ensure!(source["isDefault"] == true, "the dashboards' variable takes the default");

    let (kind, uid) = (text(&source, "/type")?, text(&source, "/uid")?);
    for dashboard in dashboards(&observe().join("dashboards"))? {
        let variables = dashboard.json()["templating"]["list"].as_array().cloned().unwrap_or_default();
        let picks = |name: &str| {
            variables.iter().any(|one| one["name"] == name && one["type"] == "datasource" && one["query"] == kind)
        };
        let mut sources = Vec::new();
        data_sources(dashboard.json(), &mut sources);
        ensure!(sources.len() > 5, "{} names only {} data sources", dashboard.uid(), sources.len());
        for named in sources {
            let (its_kind, its_uid) = (text(&named, "/type")?, text(&named, "/uid")?);
            let variable = its_uid.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
            ensure!(its_kind == kind && variable.map_or(its_uid == uid, picks), "{}: {named}", dashboard.uid());
        }
    }
    Ok(())
}

/// Every `datasource` in a dashboard.
fn data_sources(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if key == "datasource" { found.push(value.clone()) } else { data_sources(value, found) }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| data_sources(value, found)),
        _ => {}
    }
}
