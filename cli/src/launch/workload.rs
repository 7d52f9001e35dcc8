//! A workload as child processes: a sidecar, alone or wrapped around its application.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use http::Method;
use serde::Deserialize;

use super::{ControlPlane, Ground, Process, Reserved, call, read_json, wait_for};

/// How long a sidecar may take to come up.
const START: Duration = Duration::from_secs(20);

/// What a workload is.
#[derive(Clone, Debug, Default)]
pub struct WorkloadSpec {
    /// Name of its folder and log.
    pub name: String,
    /// Namespace; empty: `default`.
    pub namespace: String,
    /// Service.
    pub service: String,
    /// As in `WEFT_PORTS`: `http=80:8080/http`. Empty: it only calls.
    pub ports: String,
    /// As in `WEFT_UPSTREAMS`.
    pub upstreams: String,
    /// As in `WEFT_APP_VERSION`.
    pub version: String,
    /// The application's command, wrapped. Empty: the sidecar runs alone.
    pub command: Vec<String>,
    /// Further `WEFT_*` variables.
    pub env: Vec<(&'static str, String)>,
}

/// `addresses.json` of a sidecar.
#[derive(Deserialize, Clone, Debug)]
pub struct SidecarPorts {
    /// Where the application calls.
    pub outbound: SocketAddr,
    /// Where the mesh calls.
    pub inbound: SocketAddr,
    /// Admin.
    pub admin: SocketAddr,
    /// Prometheus.
    pub metrics: SocketAddr,
    /// Names.
    #[serde(default)]
    pub dns: Option<SocketAddr>,
    /// Local ports, by their setting.
    #[serde(default)]
    pub upstreams: BTreeMap<String, SocketAddr>,
}

/// A workload, running or killed.
pub struct Workload {
    /// What it is.
    pub spec: WorkloadSpec,
    ground: Ground,
    ports: Option<SidecarPorts>,
    process: Option<Process>,
    /// Its ports while it does not run, so that nobody is given them by chance.
    held: Vec<Reserved>,
}

impl Workload {
    /// Starts it with a join token of its own. Not yet ready: see [`Workload::ready`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(ground: &Ground, control_plane: &ControlPlane, spec: WorkloadSpec) -> Result<Self> {
        let mut workload = Self { spec, ground: ground.clone(), ports: None, process: None, held: Vec::new() };
        workload.restart(control_plane, true).await?;
        Ok(workload)
    }

    /// The port that it had before, or any.
    fn port(&self, which: impl Fn(&SidecarPorts) -> SocketAddr) -> String {
        self.ports.as_ref().map_or_else(|| "127.0.0.1:0".to_owned(), |ports| which(ports).to_string())
    }

    /// Starts it again, on the ports that it had before; `join`: with a new token, otherwise with what its data directory holds.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn restart(&mut self, control_plane: &ControlPlane, join: bool) -> Result<()> {
        let namespace = if self.spec.namespace.is_empty() { "default" } else { &self.spec.namespace };
        let mut env = vec![
            ("WEFT_CONTROL_PLANE", control_plane.grpc().to_string()),
            ("WEFT_NAMESPACE", namespace.to_owned()),
            ("WEFT_SERVICE", self.spec.service.clone()),
            ("WEFT_DATA_DIR", self.data().display().to_string()),
            ("WEFT_INBOUND", self.port(|ports| ports.inbound)),
            ("WEFT_OUTBOUND", self.port(|ports| ports.outbound)),
            ("WEFT_ADMIN", self.port(|ports| ports.admin)),
            ("WEFT_METRICS", self.port(|ports| ports.metrics)),
            ("WEFT_ADDRESS", "127.0.0.1".to_owned()),
            ("WEFT_WORKERS", "1".to_owned()),
        ];
        if join {
            env.push(("WEFT_JOIN_TOKEN", control_plane.token(namespace, &self.spec.service).await?));
        }
        let optional = [
            ("WEFT_PORTS", &self.spec.ports),
            ("WEFT_UPSTREAMS", &self.spec.upstreams),
            ("WEFT_APP_VERSION", &self.spec.version),
        ];
        env.extend(
            optional.into_iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key, value.clone())),
        );
        env.extend(self.spec.env.iter().cloned());
        let mut args = vec!["sidecar".to_owned()];
        if !self.spec.command.is_empty() {
            args.extend(["run".to_owned(), "--".to_owned()]);
            args.extend(self.spec.command.iter().cloned());
        }
        // A process that was killed leaves the addresses of its last life behind.
        let _ = std::fs::remove_file(self.data().join("addresses.json"));
        self.held.clear();
        self.process = Some(Process::start(&self.spec.name, &self.ground.program, &self.ground.logs, &args, &env)?);
        Ok(())
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn ready(&mut self) -> Result<&SidecarPorts> {
        let ports = self.bound().await?;
        let name = &self.spec.name;
        wait_for(&format!("{name} to be ready"), START, async || call(ports.admin, Method::GET, "/ready").await.ok())
            .await?;
        Ok(self.ports.as_ref().expect("set by bound()"))
    }

    /// Waits until its ports are bound, ready or not.
    ///
    /// # Errors
    /// When it does not come so far.
    pub async fn bound(&mut self) -> Result<SidecarPorts> {
        let file = self.data().join("addresses.json");
        let name = &self.spec.name;
        let ports: SidecarPorts = wait_for(&format!("{name}'s addresses"), START, async || read_json(&file)).await?;
        self.ports = Some(ports.clone());
        Ok(ports)
    }

    /// Its ports.
    ///
    /// # Errors
    /// Before it is bound.
    pub fn ports(&self) -> Result<&SidecarPorts> {
        self.ports.as_ref().with_context(|| format!("{} has not started", self.spec.name))
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.ground.data.join(&self.spec.name)
    }

    /// Its process, when it runs.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Its process, when it runs.
    pub fn process_mut(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Kills sidecar and application, as a crash would.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await;
            self.hold();
        }
    }

    /// Asks it to end (SIGTERM), and kills it after `patience`.
    pub async fn stop(&mut self, patience: Duration) {
        if let Some(mut process) = self.process.take() {
            process.stop(patience).await;
            self.hold();
        }
    }

    fn hold(&mut self) {
        let ports = self.ports.iter().flat_map(|ports| [ports.outbound, ports.inbound, ports.admin, ports.metrics]);
        // One that somebody has already taken shows itself at the restart.
        self.held = ports.filter_map(|port| Reserved::at(port).ok()).collect();
    }
}
