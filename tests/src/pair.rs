//! The smallest mesh: one caller, one workload of the service `echo`.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use weft::launch::{Workload, WorkloadSpec, metrics};

use crate::{App, Mesh};

/// A caller's sidecar and a callee's, in front of one application.
pub struct Pair {
    /// The mesh.
    pub mesh: Mesh,
    /// The application.
    pub app: App,
    /// The sidecar of `default/client`.
    pub caller: Workload,
    /// The sidecar of `default/echo`.
    pub callee: Workload,
}

impl Pair {
    /// Port 80 of `echo` has the protocol named (`http`, `tcp`, `detect`, …). Both sidecars log every request.
    ///
    /// # Errors
    /// When a part does not come up.
    pub async fn start(protocol: &str, app: App) -> Result<Self> {
        Self::start_with(protocol, app, &[]).await
    }

    /// The same with further variables for the caller's sidecar.
    ///
    /// # Errors
    /// When a part does not come up.
    pub async fn start_with(protocol: &str, app: App, env: &[(&'static str, &str)]) -> Result<Self> {
        let mesh = Mesh::start().await?;
        let log = ("WEFT_ACCESS_LOG", "all".to_owned());
        let callee = WorkloadSpec {
            name: "echo-1".to_owned(),
            service: "echo".to_owned(),
            ports: format!("main=80:{}/{protocol}", app.address.port()),
            env: vec![log.clone()],
            ..WorkloadSpec::default()
        };
        let mut more: Vec<_> = env.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        more.push(log);
        let caller = WorkloadSpec {
            name: "client".to_owned(),
            service: "client".to_owned(),
            upstreams: "127.0.0.1:0=echo:80".to_owned(),
            env: more,
            ..WorkloadSpec::default()
        };
        let (callee, caller) = tokio::try_join!(mesh.sidecar(callee), mesh.sidecar(caller))?;
        mesh.registered("echo", 1).await?;
        Ok(Self { mesh, app, caller, callee })
    }

    /// Where the caller's application calls.
    ///
    /// # Errors
    /// Never, since both sidecars have started.
    pub fn outbound(&self) -> Result<SocketAddr> {
        Ok(self.caller.ports()?.outbound)
    }

    /// The caller's local port for `echo:80`.
    ///
    /// # Errors
    /// Never, since both sidecars have started.
    pub fn upstream(&self) -> Result<SocketAddr> {
        self.caller.ports()?.upstreams.values().next().copied().context("the caller has a local port")
    }
}

/// Requests that a sidecar has counted under these labels.
///
/// # Errors
/// When its metrics port does not answer.
pub async fn requests(sidecar: &Workload, labels: &[(&str, &str)]) -> Result<f64> {
    Ok(metrics::scrape(sidecar.ports()?.metrics).await?.sum("weft_requests_total", labels))
}

/// Lines of a sidecar's access log that hold all of `parts`.
pub fn logged(sidecar: &Workload, parts: &[&str]) -> usize {
    let log = sidecar.process().map(weft::launch::Process::log).unwrap_or_default();
    log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}
