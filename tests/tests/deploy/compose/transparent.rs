//! `weft inject compose --transparent`: programs that know no proxy, and two services on the same port.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use weft::launch::wait_for;
use weft_tests::docker::{available, docker};

use super::{
    PATIENCE, Team, answered, free_port, get,
    pack::{Packed, python, redis},
    wire::Capture,
};

/// As a team would write it: everyone is someone else, and may do as little as can be.
fn file(redis: &Packed, python: &Packed, port: u16) -> String {
    format!(
        "
services:
  cache:
    image: {redis}
    user: nobody
    command: redis-server --save '' --protected-mode no --dir /tmp
  sessions:
    image: {redis}
    user: '65534:65534'
    read_only: true
    cap_drop: [ALL]
    security_opt: ['no-new-privileges:true']
    command: redis-server --save '' --protected-mode no --dir /tmp
  web:
    image: {python}
    ports: ['127.0.0.1:{port}:8000']
    command: ['8000', --directory, /etc]
  client:
    image: {redis}
    profiles: [tools]
    entrypoint: [redis-cli, -h]
  job:
    image: {redis}
    user: '65534'
    profiles: [tools]
    entrypoint: [sh, -c]
  stranger:
    image: {redis}
    profiles: [tools]
    labels: {{ weft.mesh/inject: 'false' }}
    entrypoint: [redis-cli, -h]
",
        redis = redis.name,
        python = python.name
    )
}

#[tokio::test]
async fn without_proxy_variables() -> Result<()> {
    if !available("redirect rules in a compose project")? {
        return Ok(());
    }
    let (redis, python, port) = (redis()?, python()?, free_port()?);
    let team = Team::new("transparent", &[("compose.yaml", &file(&redis, &python, port))])?;
    let said = team.inject(&["--transparent"])?;
    ensure!(said.contains("web: port 8000 is published") && said.contains("not in the mesh: stranger"), "{said}");
    team.project.compose(&["up", "--wait"])?;
    team.workloads_ready(3).await?;

    // Raw TCP to two services on one port stays apart, also for who listens on that port itself.
    let run = |words: &[&str]| team.project.compose(&[&["run", "--rm", "--no-TTY"], words].concat());
    let capture = Capture::start(&team.network())?;
    ensure!(run(&["client", "cache", "set", "secret-key", "secret-of-cache"])?.trim() == "OK");
    ensure!(run(&["client", "sessions.default", "set", "secret-key", "secret-of-sessions"])?.trim() == "OK");
    let from = |container: &str, host: &str| {
        // Root is the wrapper, whose connections are not redirected.
        let words = ["exec", "--no-TTY", "--user", "nobody", container, "redis-cli", "-h", host, "get", "secret-key"];
        Ok::<_, anyhow::Error>(team.project.compose(&words)?.trim().to_owned())
    };
    ensure!(from("cache", "sessions")? == "secret-of-sessions");
    ensure!(from("sessions", "cache")? == "secret-of-cache");
    ensure!(from("cache", "cache")? == "secret-of-cache", "it calls itself");
    capture.finish()?.is_private(&["secret-key", "secret-of-cache", "secret-of-sessions"])?;

    // What is published is as open as it was, and nothing else is.
    ensure!(answered(port, "/passwd").await?.contains("nobody"));
    let refused = run(&["stranger", "cache", "get", "secret-key"]).unwrap_err().to_string();
    ensure!(refused.contains("Server closed the connection") || refused.contains("reset by peer"), "{refused}");

    for (service, groups) in [("cache", "65534 107"), ("sessions", "65534")] {
        application_is_as_it_was(&team, service, groups)?;
    }
    let failed = run(&["job", "test \"$HOME\" = /tmp && exit 3"]).unwrap_err().to_string();
    ensure!(failed.contains("exit status: 3"), "{failed}");

    // The control plane is gone: who is known is called.
    team.project.compose(&["stop", "weft-control-plane"])?;
    ensure!(from("cache", "sessions")? == "secret-of-sessions");
    team.project.compose(&["start", "weft-control-plane"])?;
    wait_for("the control plane", PATIENCE, async || team.status().ok()).await?;

    // A container that is started again has a network without rules, until its wrapper sets them.
    docker(&["restart", "--time", "10", team.containers("cache")?.first().context("one runs")?])?;
    team.workloads_ready(3).await?;
    ensure!(from("cache", "sessions")? == "secret-of-sessions");
    ensure!(run(&["client", "cache", "set", "secret-key", "again"])?.trim() == "OK");
    ensure!(run(&["stranger", "cache", "get", "secret-key"]).is_err());
    ensure!(get(port, "/passwd").await?.contains("nobody"));
    team.down()
}

/// The application runs as the user that its service has, with that user's groups, and can do nothing about the network.
fn application_is_as_it_was(team: &Team, service: &str, groups: &str) -> Result<()> {
    let container = team.containers(service)?.pop().context("one runs")?;
    let processes = docker(&["top", &container, "-eo", "pid,comm"])?;
    let line = processes.lines().find(|line| line.contains("redis-server")).context("it runs")?;
    let pid = line.split_whitespace().next().context("a process has a number")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let fields: BTreeMap<&str, &str> =
        status.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key, value.trim())).collect();
    ensure!(fields["Uid"].split_whitespace().all(|uid| uid == "65534"), "{service}: {status}");
    ensure!(fields["Gid"].split_whitespace().all(|gid| gid == "65534"), "{service}: {status}");
    let mut expected: Vec<&str> = groups.split_whitespace().skip(1).collect();
    expected.sort_unstable();
    let mut given: Vec<&str> = fields["Groups"].split_whitespace().collect();
    given.sort_unstable();
    ensure!(given == expected, "{service}: {status}");
    ensure!(u64::from_str_radix(fields["CapEff"], 16)? == 0, "{service}: {status}");
    let bounds = u64::from_str_radix(fields["CapBnd"], 16)?;
    ensure!(bounds & 1 << NET_ADMIN == 0, "{service}: {status}");
    // What the file took away from it stays away.
    ensure!(service != "sessions" || bounds == 0, "{service}: {status}");
    Ok(())
}

/// Number of the capability.
const NET_ADMIN: u32 = 12;
