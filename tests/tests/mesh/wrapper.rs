//! `run -- COMMAND`: the application as a child of its sidecar.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use weft::launch::{Workload, WorkloadSpec, wait_for};
use weft_tests::{App, Mesh};

const PATIENCE: Duration = Duration::from_secs(20);

async fn run(mesh: &Mesh, name: &str, script: &str) -> Result<Workload> {
    let spec = WorkloadSpec {
        name: name.to_owned(),
        service: "job".to_owned(),
        command: ["bash", "-c", script].map(str::to_owned).into(),
        ..WorkloadSpec::default()
    };
    Workload::start(&mesh.ground, &mesh.control_plane, spec).await
}

async fn ended(workload: &mut Workload) -> Result<Option<i32>> {
    let process = workload.process_mut().context("it was started")?;
    let status = process.ended(PATIENCE).await.with_context(|| process.log_tail())?;
    Ok(status.code())
}

/// To the sidecar alone, not to the group.
fn signal(workload: &Workload, signal: Signal) -> Result<()> {
    let pid = workload.process().context("it was started")?.id();
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
}

#[tokio::test]
async fn the_exit_status_is_the_applications() -> Result<()> {
    let mesh = Mesh::start().await?;
    for (index, (script, status)) in [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)].into_iter().enumerate() {
        let mut workload = run(&mesh, &format!("job-{index}"), script).await?;
        assert_eq!(ended(&mut workload).await?, Some(status), "{script}");
    }
    let mut workload = run(&mesh, "job-missing", "exec /nonexistent/program").await?;
    assert_eq!(ended(&mut workload).await?, Some(127));
    Ok(())
}

#[tokio::test]
async fn signals_are_passed_on() -> Result<()> {
    let mesh = Mesh::start().await?;
    for (name, sent, status) in
        [("usr1", Signal::SIGUSR1, 42), ("hup", Signal::SIGHUP, 43), ("term", Signal::SIGTERM, 44)]
    {
        let ready = mesh.ground.data.join(format!("{name}-ready"));
        let script = format!(
            "trap 'exit 42' USR1; trap 'exit 43' HUP; trap 'exit 44' TERM; touch {}; while :; do sleep 0.02; done",
            ready.display()
        );
        let mut workload = run(&mesh, name, &script).await?;
        wait_for("the application to start", PATIENCE, async || ready.exists().then_some(())).await?;
        signal(&workload, sent)?;
        assert_eq!(ended(&mut workload).await?, Some(status), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn a_job_calls_the_mesh_in_its_first_moment() -> Result<()> {
    let mesh = Mesh::start().await?;
    let app = App::named("hello").await?;
    let _callee = mesh.callee("echo-1", "echo", "http", &app).await?;
    mesh.registered("echo", 1).await?;
    let out = mesh.ground.data.join("answer");
    let script = format!(
        r#"set -eu
        test -z "${{WEFT_JOIN_TOKEN:-}}"
        test "$HTTP_PROXY" = "http://$WEFT_OUTBOUND" && test "$http_proxy" = "$HTTP_PROXY"
        proxy="${{HTTP_PROXY#http://}}"
        exec 3<>"/dev/tcp/${{proxy%:*}}/${{proxy##*:}}"
        printf 'GET http://echo/job HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n' >&3
        cat <&3 >{out}"#,
        out = out.display()
    );
    for index in 0..3 {
        let mut job = run(&mesh, &format!("job-{index}"), &script).await?;
        assert_eq!(ended(&mut job).await?, Some(0));
        let answer = read(&out)?;
        ensure!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
        std::fs::remove_file(&out)?;
    }
    assert_eq!(app.count(), 3);
    Ok(())
}

#[tokio::test]
async fn the_application_does_not_start_before_the_mesh_is_there() -> Result<()> {
    let mut mesh = Mesh::start().await?;
    let token = mesh.control_plane.token("default", "job").await?;
    mesh.control_plane.kill().await;
    let started = mesh.ground.data.join("started");
    let data = mesh.ground.data.join("job");
    let env = [
        ("WEFT_CONTROL_PLANE", mesh.control_plane.grpc().to_string()),
        ("WEFT_SERVICE", "job".to_owned()),
        ("WEFT_JOIN_TOKEN", token),
        ("WEFT_DATA_DIR", data.display().to_string()),
        ("WEFT_OUTBOUND", "127.0.0.1:0".to_owned()),
        ("WEFT_INBOUND", "127.0.0.1:0".to_owned()),
        ("WEFT_ADMIN", "127.0.0.1:0".to_owned()),
        ("WEFT_METRICS", "127.0.0.1:0".to_owned()),
    ];
    let script = format!("touch {}", started.display());
    let args = ["sidecar", "run", "--", "bash", "-c", &script];
    let mut job = weft::launch::Process::start("job", &mesh.ground.program, &mesh.ground.logs, &args, &env)?;
    wait_for("the sidecar to look for its control plane", PATIENCE, async || {
        data.join("addresses.json").exists().then_some(())
    })
    .await?;
    // Time in which it would have started by far.
    ensure!(job.ended(Duration::from_secs(1)).await.is_err() && !started.exists(), "{}", job.log_tail());
    mesh.control_plane.restart().await?;
    let status = job.ended(PATIENCE).await.with_context(|| job.log_tail())?;
    ensure!(status.success() && started.exists(), "{status}: {}", job.log_tail());
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}
