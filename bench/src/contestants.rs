//! The pairs: a caller's proxy and a callee's, mutual TLS between them, one worker each.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use weft::launch::{self, ControlPlane, Ground, Reserved, Workload, WorkloadSpec, wait_for};

use crate::load::Connection;

mod certificates;
mod config;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Two Weft sidecars, every default policy on.
    Weft,
    /// Two Envoys.
    Envoy,
    /// Two HAProxies.
    Haproxy,
}

impl Kind {
    /// Everyone.
    pub const ALL: [Self; 3] = [Self::Weft, Self::Envoy, Self::Haproxy];
}

/// A running pair.
pub struct Pair {
    /// Where the load goes in.
    pub entry: SocketAddr,
    children: Children,
}

enum Children {
    Weft { _control_plane: Box<ControlPlane>, workloads: Vec<Workload> },
    Foreign { children: Vec<Child>, _ports: [Reserved; 2] },
}

impl Pair {
    /// The two proxies.
    pub fn processes(&self) -> impl Iterator<Item = u32> + '_ {
        let (weft, foreign) = match &self.children {
            Children::Weft { workloads, .. } => (workloads.as_slice(), [].as_slice()),
            Children::Foreign { children, .. } => ([].as_slice(), children.as_slice()),
        };
        let weft = weft.iter().filter_map(|workload| workload.process().map(launch::Process::id));
        weft.chain(foreign.iter().map(Child::id))
    }

    /// Ends them.
    pub async fn stop(&mut self) {
        match &mut self.children {
            Children::Weft { workloads, .. } => {
                for workload in workloads {
                    workload.kill().await;
                }
            }
            Children::Foreign { children, .. } => {
                for child in children {
                    // Both fail only when it has ended already.
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        }
    }
}

/// Starts a pair in front of `backend`, and waits until a request gets through.
///
/// # Errors
/// When the program cannot be had or does not come up.
pub async fn start(kind: Kind, place: &Path, backend: SocketAddr) -> Result<Pair> {
    let pair = match kind {
        Kind::Weft => weft(place, backend).await?,
        Kind::Envoy => envoy(place, backend)?,
        Kind::Haproxy => haproxy(place, backend)?,
    };
    let entry = pair.entry;
    wait_for("a request through the pair", Duration::from_secs(15), async || {
        Connection::open(entry).await.ok()?.get("/").await.ok()
    })
    .await?;
    Ok(pair)
}

async fn weft(place: &Path, backend: SocketAddr) -> Result<Pair> {
    let program = std::env::current_exe()?.with_file_name("weft");
    let ground = Ground::new(program, place, None)?;
    let control_plane = ControlPlane::start(&ground, &[]).await?;
    let spec = |name: &str, ports: String| WorkloadSpec {
        name: name.to_owned(),
        service: name.to_owned(),
        ports,
        ..WorkloadSpec::default()
    };
    let callee_spec = spec("echo", format!("http=80:{}/http", backend.port()));
    let mut callee = Workload::start(&ground, &control_plane, callee_spec).await?;
    callee.ready().await?;
    let mut caller = Workload::start(&ground, &control_plane, spec("client", String::new())).await?;
    let entry = caller.ready().await?.outbound;
    let workloads = vec![caller, callee];
    Ok(Pair { entry, children: Children::Weft { _control_plane: Box::new(control_plane), workloads } })
}

fn envoy(place: &Path, backend: SocketAddr) -> Result<Pair> {
    let venv = std::env::var("WEFT_INTEROP_VENV").context("run it by `cargo xtask bench`, which fetches Envoy")?;
    let program = PathBuf::from(venv).join("bin/envoy");
    let files = certificates::write(place)?;
    let ports = [Reserved::new()?, Reserved::new()?];
    let [entry, between] = [ports[0].address, ports[1].address];
    let run = |name: &str, text: String| -> Result<Child> {
        let file = place.join(format!("{name}.yaml"));
        std::fs::write(&file, text)?;
        // Two Envoys on one machine need base ids of their own.
        let args = ["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c"];
        spawn(Command::new(&program).args(args).arg(&file))
    };
    let children = vec![
        run("callee", config::envoy_callee(between, backend, &files))?,
        run("caller", config::envoy_caller(entry, between, &files))?,
    ];
    Ok(Pair { entry, children: Children::Foreign { children, _ports: ports } })
}

fn haproxy(place: &Path, backend: SocketAddr) -> Result<Pair> {
    let files = certificates::write(place)?;
    let ports = [Reserved::new()?, Reserved::new()?];
    let [entry, between] = [ports[0].address, ports[1].address];
    let run = |name: &str, text: String| -> Result<Child> {
        let file = place.join(format!("{name}.cfg"));
        std::fs::write(&file, text)?;
        spawn(Command::new("haproxy").arg("-db").arg("-f").arg(&file))
    };
    let children = vec![
        run("callee", config::haproxy_callee(between, backend, &files))?,
        run("caller", config::haproxy_caller(entry, between, &files))?,
    ];
    Ok(Pair { entry, children: Children::Foreign { children, _ports: ports } })
}

fn spawn(command: &mut Command) -> Result<Child> {
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("{program} cannot be started"))
}
