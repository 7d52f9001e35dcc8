//! Programs that know nothing of Weft, from Debian's packages, with the configuration that they would have anyway: nginx
//! before Python's web server, and redis with its own client; and jobs.

use anyhow::{Result, ensure};
use weft_tests::docker::available;

use super::{
    PATIENCE, Team, answered, free_port, get,
    pack::{Packed, USERS, python, redis},
    wire::Capture,
};

const NGINX: &str = "
error_log /dev/stderr;
pid /tmp/nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    server {
        listen 80;
        location / { proxy_pass http://web:8000; }
    }
}
";
/// As a team would write it. `flush` is a job that another service waits for.
fn file(nginx: &Packed, python: &Packed, redis: &Packed, port: u16) -> String {
    format!(
        "
services:
  proxy:
    image: {nginx}
    ports: ['127.0.0.1:{port}:80']
    depends_on: [web]
  web:
    image: {python}
    user: '65534:65534'
    read_only: true
    volumes: ['./pages:/pages:ro']
    command: ['8000', --directory, /pages]
    expose: ['8000']
  cache:
    image: {redis}
    command: redis-server --save '' --protected-mode no --dir /tmp
    depends_on:
      flush: {{ condition: service_completed_successfully }}
  flush:
    image: {redis}
    entrypoint: [sh, -c, 'exit 0']
  client:
    image: {redis}
    profiles: [tools]
    entrypoint: [redis-cli, -h, cache]
  job:
    image: {redis}
    profiles: [tools]
    entrypoint: [sh, -c]
    command: ['exit 3']
",
        nginx = nginx.name,
        python = python.name,
        redis = redis.name
    )
}

#[tokio::test]
async fn programs_of_others_and_jobs() -> Result<()> {
    if !available("nginx, Python and redis in a mesh")? {
        return Ok(());
    }
    let nginx = Packed::new(
        "nginx",
        &["/usr/sbin/nginx"],
        &[],
        &[USERS, &[("/etc/nginx/nginx.conf", NGINX), ("/var/log/nginx/.keep", "")]].concat(),
        &[
            r#"ENTRYPOINT ["/usr/sbin/nginx"]"#,
            r#"CMD ["-c", "/etc/nginx/nginx.conf", "-g", "daemon off;"]"#,
            "EXPOSE 80",
        ],
    )?;
    let (python, redis) = (python()?, redis()?);
    let port = free_port()?;
    let team = Team::new("foreign", &[("compose.yaml", &file(&nginx, &python, &redis, port))])?;
    std::fs::create_dir(team.path("pages"))?;
    std::fs::write(team.path("pages/page.txt"), "words-that-nobody-may-read\n")?;

    team.inject(&[])?;
    team.project.compose(&["up", "--wait"])?;
    team.workloads_ready(3).await?;
    ensure!(answered(port, "/page.txt").await? == "words-that-nobody-may-read\n");
    let client = |words: &[&str]| team.project.compose(&[&["run", "--rm", "--no-TTY", "client"], words].concat());
    let capture = Capture::start(&team.network())?;
    for _ in 0..10 {
        get(port, "/page.txt").await?;
    }
    ensure!(client(&["set", "secret-key", "secret-value"])?.trim() == "OK");
    ensure!(client(&["get", "secret-key"])?.trim() == "secret-value");
    capture.finish()?.is_private(&["words-that-nobody-may-read", "GET /page", "secret-key", "secret-value"])?;

    // A job's exit code is the application's, whatever else it is asked to do.
    let failed = team.project.compose(&["run", "--rm", "--no-TTY", "job"]).unwrap_err().to_string();
    ensure!(failed.contains("exit status: 3"), "{failed}");
    let failed = team.project.compose(&["run", "--rm", "--no-TTY", "job", "exit 7"]).unwrap_err().to_string();
    ensure!(failed.contains("exit status: 7"), "{failed}");

    // nginx ends with its own status at its own signal, long before the grace period is over.
    let began = std::time::Instant::now();
    team.project.compose(&["stop", "--timeout", "50", "proxy"])?;
    ensure!(began.elapsed() < PATIENCE / 2, "stopping took {:?}", began.elapsed());
    team.down()
}
