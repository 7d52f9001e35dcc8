//! A mesh of real processes for one test: its own folder, its own ports, gone when dropped.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft::launch::{ControlPlane, Ground, Workload, WorkloadSpec, metrics, wait_for};

use crate::App;

/// A control plane and the folder that everything lives in.
pub struct Mesh {
    /// The control plane.
    pub control_plane: ControlPlane,
    /// Where processes live.
    pub ground: Ground,
    _folder: TempDir,
}

impl Mesh {
    /// Starts a control plane.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// Starts a control plane with further flags.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_with(flags: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("weft-test-").tempdir()?;
        let logs = std::env::var_os("WEFT_TEST_LOGS")
            .map(|logs| PathBuf::from(logs).join(folder.path().file_name().expect("a temporary folder has a name")));
        let ground = Ground::new(program()?, folder.path(), logs.as_deref())?;
        let control_plane = ControlPlane::start(&ground, flags).await?;
        Ok(Self { control_plane, ground, _folder: folder })
    }

    /// Starts a sidecar and waits until it is ready.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn sidecar(&self, spec: WorkloadSpec) -> Result<Workload> {
        let mut workload = Workload::start(&self.ground, &self.control_plane, spec).await?;
        workload.ready().await?;
        Ok(workload)
    }

    /// A sidecar that only calls.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn caller(&self, name: &str) -> Result<Workload> {
        self.sidecar(WorkloadSpec { name: name.to_owned(), service: name.to_owned(), ..WorkloadSpec::default() }).await
    }

    /// A sidecar in front of `app`, on port 80 of `service` with the protocol named (`http`, `tcp`, `detect`, …).
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn callee(&self, name: &str, service: &str, protocol: &str, app: &App) -> Result<Workload> {
        self.sidecar(WorkloadSpec {
            name: name.to_owned(),
            service: service.to_owned(),
            ports: format!("main=80:{}/{protocol}", app.address.port()),
            ..WorkloadSpec::default()
        })
        .await
    }

    /// Applies resources and waits until every sidecar has acknowledged them.
    ///
    /// # Errors
    /// When they are refused, by the control plane or by a sidecar.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        let applied = self.control_plane.apply(yaml, "", 20).await?;
        let rollout = applied.rollout.clone().unwrap_or_default();
        anyhow::ensure!(rollout.pending.is_empty() && rollout.nacks.is_empty(), "not obeyed by all: {applied:?}");
        Ok(())
    }

    /// Waits until `caller` has so many ready endpoints of port 80 of a service. No application hears of it.
    ///
    /// # Errors
    /// When that does not come about.
    pub async fn known(&self, caller: &Workload, service: &str, count: usize) -> Result<()> {
        let ports = caller.ports()?;
        let destination = format!("default/{service}");
        wait_for(&format!("{count} endpoints of {service} at its caller"), Duration::from_secs(20), async || {
            // The sidecar itself ends such a tunnel, and fetches the service for it.
            let mut asking = tokio::net::TcpStream::connect(ports.outbound).await.ok()?;
            let head = format!("CONNECT {service}:80 HTTP/1.1\r\nHost: {service}:80\r\n\r\n");
            asking.write_all(head.as_bytes()).await.ok()?;
            let read = asking.read(&mut [0; 512]).await.ok()?;
            if read == 0 {
                return None;
            }
            let labels = [("destination", destination.as_str()), ("port", "80"), ("state", "ready")];
            let known = metrics::scrape(ports.metrics).await.ok()?.sum("weft_endpoints", &labels);
            (known == count as f64).then_some(())
        })
        .await
    }

    /// Waits until so many workloads of a service are ready in the registry.
    ///
    /// # Errors
    /// When that does not come about.
    pub async fn registered(&self, service: &str, count: usize) -> Result<()> {
        wait_for(&format!("{count} ready workloads of {service}"), Duration::from_secs(20), async || {
            let status = self.control_plane.status().await.ok()?;
            let ready =
                status.workloads.iter().filter(|workload| workload.service == service && workload.state == "READY");
            (ready.count() == count).then_some(())
        })
        .await
    }
}

/// The program `weft`, which `cargo xtask test` builds beside the tests.
///
/// # Errors
/// When it has not been built.
pub fn program() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("a test lies in target/PROFILE/deps")?;
    let program = folder.join("weft");
    anyhow::ensure!(program.exists(), "{} is not there: run `cargo build --bin weft -p weft` first", program.display());
    Ok(program)
}
