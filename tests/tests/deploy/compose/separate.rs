//! `weft inject compose --separate`: containers that nobody has changed, each with its sidecar beside it.

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use weft::launch::wait_for;
use weft_tests::docker::{available, docker};

use super::{
    PATIENCE, Team, answered, free_port, get,
    pack::{Packed, python, redis},
    wire::Capture,
};

/// As a team would write it, with all that is said of a network.
fn file(redis: &Packed, python: &Packed, port: u16) -> String {
    format!(
        "
services:
  web:
    image: {python}
    user: nobody
    hostname: web-host
    ports: ['127.0.0.1:{port}:8000']
    command: ['8000', --directory, /etc]
    extra_hosts: ['elsewhere.example=10.9.9.9']
    sysctls: {{ net.core.somaxconn: '512', kernel.shmmax: '1048576' }}
    depends_on:
      flush: {{ condition: service_completed_successfully }}
  cache:
    image: {redis}
    container_name: {name}
    networks: {{ default: {{ aliases: [store] }} }}
    expose: ['6379']
    command: redis-server --save '' --protected-mode no --dir /tmp
  flush:
    image: {redis}
    entrypoint: [redis-cli, -h, cache, set, secret-key, secret-value]
    depends_on: [cache]
  client:
    image: {redis}
    profiles: [tools]
    links: ['cache:linked']
    entrypoint: [redis-cli, -h]
",
        redis = redis.name,
        python = python.name,
        name = weft_tests::docker::unique("store"),
    )
}

#[tokio::test]
async fn beside_containers_that_nobody_has_changed() -> Result<()> {
    beside(&["--separate"], &["cache", "store", "linked"]).await
}

#[tokio::test]
async fn beside_containers_with_redirect_rules() -> Result<()> {
    beside(&["--separate", "--transparent"], &["cache", "cache.default", "store", "linked"]).await
}

async fn beside(flags: &[&str], names: &[&str]) -> Result<()> {
    if !available("sidecars in containers of their own")? {
        return Ok(());
    }
    let (redis, python, port) = (redis()?, python()?, free_port()?);
    let team = Team::new("separate", &[("compose.yaml", &file(&redis, &python, port))])?;
    let said = team.inject(flags)?;
    ensure!(said.contains("its sidecar is cache-weft") && said.contains("redis-cli -h cache set"), "{said}");
    team.project.compose(&["up", "--wait"])?;
    team.workloads_ready(2).await?;
    for service in ["web", "cache"] {
        is_as_the_file_has_it(&team, service)?;
    }

    // Every name leads through the mesh, whatever the client thinks of proxies.
    let capture = Capture::start(&team.network())?;
    for name in names {
        let got = team.project.compose(&["run", "--rm", "--no-TTY", "client", name, "get", "secret-key"])?;
        ensure!(got.trim() == "secret-value", "{name}: {got}");
    }
    capture.finish()?.is_private(&["secret-key", "secret-value"])?;
    ensure!(answered(port, "/passwd").await?.contains("nobody"));
    let inside = |path: &str| {
        let script = format!("print(open('{path}').read())");
        team.project.compose(&["exec", "--no-TTY", "web", "/usr/bin/python3", "-c", &script])
    };
    ensure!(inside("/etc/hosts")?.contains("elsewhere.example") && inside("/etc/hostname")?.trim() == "web-host");
    ensure!(inside("/proc/sys/net/core/somaxconn")?.trim() == "512", "the network's");
    ensure!(inside("/proc/sys/kernel/shmmax")?.trim() == "1048576", "the application's own");

    // A sidecar that dies comes back with the certificate that it had; network and application stay.
    team.project.compose(&["stop", "weft-control-plane"])?;
    docker(&["exec", &sidecar(&team, "cache")?, "/weft-sidecar", "wait", "--timeout", "30s"])?;
    die(&sidecar(&team, "cache")?)?;
    wait_for("the sidecar", PATIENCE, async || {
        docker(&["exec", &sidecar(&team, "cache").ok()?, "/weft-sidecar", "wait", "--timeout", "10s"]).ok()
    })
    .await?;
    team.project.compose(&["start", "weft-control-plane"])?;
    wait_for("the control plane", PATIENCE, async || team.status().ok()).await?;
    team.workloads_ready(2).await?;
    let got = team.project.compose(&["run", "--rm", "--no-TTY", "client", "cache", "get", "secret-key"])?;
    ensure!(got.trim() == "secret-value", "{got}");

    // `up` and `inject` once more change nothing.
    let began = |service: &str| {
        let container = team.containers(service)?.pop().context("one runs")?;
        docker(&["inspect", "--format", "{{.Id}} {{.State.StartedAt}}", &container])
    };
    let all = || ["web", "cache", "cache-weft", "cache-weft-net"].map(began).into_iter().collect::<Result<Vec<_>>>();
    let before = all()?;
    team.inject(flags)?;
    team.project.compose(&["up", "--wait"])?;
    ensure!(all()? == before);

    // An application that is started again finds its network as it was.
    docker(&["restart", "--time", "10", team.containers("web")?.first().context("one runs")?])?;
    answered(port, "/passwd").await?;
    get(port, "/passwd").await?;
    team.down()
}

fn sidecar(team: &Team, service: &str) -> Result<String> {
    team.containers(&format!("{service}-weft"))?.pop().context("one runs")
}

/// Ends its program as the kernel would: `docker kill` would be taken for a wish to have it ended.
fn die(container: &str) -> Result<()> {
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", container])?.trim().parse()?;
    Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
}

/// Its command, user and privileges are the image's and the file's.
fn is_as_the_file_has_it(team: &Team, service: &str) -> Result<()> {
    let container = team.containers(service)?.pop().context("one runs")?;
    let of =
        |format: &str| Ok::<_, anyhow::Error>(docker(&["inspect", "--format", format, &container])?.trim().to_owned());
    let image = of("{{.Image}}")?;
    for field in ["Entrypoint", "Healthcheck"] {
        let format = format!("{{{{json .Config.{field}}}}}");
        let images = docker(&["image", "inspect", "--format", &format, &image])?;
        let (own, images) = (of(&format)?, images.trim().to_owned());
        ensure!(own == images, "{service}: {field} is {own}, and {images} in its image");
    }
    ensure!(of("{{.HostConfig.CapAdd}}")? == "[]", "{service} has a privilege");
    ensure!(of("{{json .Mounts}}")? == "[]", "{service} has a volume");
    ensure!(of("{{.Config.User}}")? == if service == "web" { "nobody" } else { "" });
    Ok(())
}
