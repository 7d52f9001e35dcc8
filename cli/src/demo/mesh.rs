//! The demo's mesh: one control plane, three services in five workloads, each a sidecar that wraps its application.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};
use http::Method;
use tempfile::TempDir;

use crate::launch::{self, ControlPlane, Ground, Process, Reserved, Workload, WorkloadSpec, wait_for};

/// The resources that the mesh starts with.
pub const RESOURCES: &str = include_str!("mesh.yaml");

/// How long a process may take to end by itself.
const STOP: Duration = Duration::from_secs(4);

/// The mesh.
pub struct Mesh {
    // Declared before the folder, which must outlive the processes that write to it.
    control_plane: Option<ControlPlane>,
    members: Vec<Member>,
    ground: Ground,
    _folder: TempDir,
}

/// One workload and where its application listens.
struct Member {
    name: &'static str,
    service: &'static str,
    version: &'static str,
    app: Reserved,
    /// Of inventory: its line protocol.
    tcp: Reserved,
    workload: Option<Workload>,
}

/// What the view looks at.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Workload.
    pub name: &'static str,
    /// Its sidecar's metrics port.
    pub metrics: SocketAddr,
}

impl Mesh {
    /// Chooses ports and folders; starts nothing.
    ///
    /// # Errors
    /// When no port or folder can be had.
    pub fn new(logs: Option<&Path>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("weft-demo-").tempdir()?;
        let ground = Ground::new(std::env::current_exe()?, folder.path(), logs)?;
        let member = |name, service, version| -> Result<Member> {
            Ok(Member { name, service, version, app: Reserved::new()?, tcp: Reserved::new()?, workload: None })
        };
        let members = vec![
            member("inventory", "inventory", "v1")?,
            member("orders-1", "orders", "v1")?,
            member("orders-2", "orders", "v1")?,
            member("orders-3", "orders", "v2")?,
            member("frontend", "frontend", "v1")?,
        ];
        Ok(Self { control_plane: None, members, ground, _folder: folder })
    }

    /// Starts everything and waits until a request gets through all of it.
    ///
    /// # Errors
    /// When that takes too long; the logs say why.
    pub async fn start(&mut self) -> Result<()> {
        let control_plane = ControlPlane::start(&self.ground, &[]).await?;
        control_plane.apply(RESOURCES, "the demo's configuration", 0).await?;
        self.control_plane = Some(control_plane);
        for index in 0..self.members.len() {
            let spec = self.spec(&self.members[index])?;
            let workload = Workload::start(&self.ground, self.control_plane()?, spec).await?;
            self.members[index].workload = Some(workload);
        }
        for member in &mut self.members {
            member.workload.as_mut().context("just started")?.ready().await?;
        }
        let frontend = self.frontend();
        wait_for("a request through the whole mesh", Duration::from_secs(20), async || {
            launch::call(frontend, Method::GET, "/").await.ok().filter(|body| body.contains("stock=42"))
        })
        .await?;
        Ok(())
    }

    fn spec(&self, member: &Member) -> Result<WorkloadSpec> {
        let mut command = vec![self.ground.program.display().to_string()];
        let words =
            ["demo-app", member.service, "--version", member.version, "--listen", &member.app.address.to_string()];
        command.extend(words.map(str::to_owned));
        let mut spec = WorkloadSpec {
            name: member.name.to_owned(),
            service: member.service.to_owned(),
            ports: format!("http=80:{}/http", member.app.address.port()),
            version: member.version.to_owned(),
            ..WorkloadSpec::default()
        };
        match member.service {
            "frontend" => spec.upstreams = "127.0.0.1:0=inventory:9100".to_owned(),
            "inventory" => {
                command.extend(["--listen-tcp".to_owned(), member.tcp.address.to_string()]);
                spec.ports = format!(
                    "grpc=9000:{}/grpc,stock=9100:{}/tcp",
                    member.app.address.port(),
                    member.tcp.address.port()
                );
            }
            _ => {}
        }
        spec.command = command;
        Ok(spec)
    }

    /// The control plane.
    ///
    /// # Errors
    /// Before the start.
    pub fn control_plane(&self) -> Result<&ControlPlane> {
        self.control_plane.as_ref().context("the control plane has not started")
    }

    /// The control plane, to be killed and started again.
    ///
    /// # Errors
    /// Before the start.
    pub fn control_plane_mut(&mut self) -> Result<&mut ControlPlane> {
        self.control_plane.as_mut().context("the control plane has not started")
    }

    /// Kills a workload, sidecar and application, as a crash would.
    ///
    /// # Errors
    /// Before the start.
    pub async fn kill_workload(&mut self, name: &str) -> Result<()> {
        self.member_mut(name).workload.as_mut().context("not started")?.kill().await;
        Ok(())
    }

    /// Starts a workload again and waits until it is ready.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart_workload(&mut self, name: &str) -> Result<()> {
        let mut workload = self.member_mut(name).workload.take().context("not started")?;
        let restarted = workload.restart(self.control_plane()?, false).await;
        let ready = match restarted {
            Ok(()) => workload.ready().await.map(|_| ()),
            Err(error) => Err(error),
        };
        self.member_mut(name).workload = Some(workload);
        ready
    }

    /// Where frontend's application listens.
    pub fn frontend(&self) -> SocketAddr {
        self.app("frontend")
    }

    /// Where a workload's application listens.
    pub fn app(&self, name: &str) -> SocketAddr {
        self.member(name).app.address
    }

    /// A workload.
    ///
    /// # Errors
    /// Before the start.
    pub fn workload(&self, name: &str) -> Result<&Workload> {
        self.member(name).workload.as_ref().context("not started")
    }

    /// Metrics port of every sidecar; a restart keeps it.
    pub fn watched(&self) -> Vec<Watched> {
        let watched = |member: &Member| {
            let ports = member.workload.as_ref()?.ports().ok()?;
            Some(Watched { name: member.name, metrics: ports.metrics })
        };
        self.members.iter().filter_map(watched).collect()
    }

    fn member(&self, name: &str) -> &Member {
        self.members.iter().find(|member| member.name == name).expect("the demo names its own workloads")
    }

    fn member_mut(&mut self, name: &str) -> &mut Member {
        self.members.iter_mut().find(|member| member.name == name).expect("the demo names its own workloads")
    }

    /// The commands with which to look for oneself.
    ///
    /// # Errors
    /// Before the start.
    pub fn commands(&self) -> Result<String> {
        let frontend = self.workload("frontend")?.ports()?;
        Ok(format!(
            "look for yourself, from another terminal:\n    export WEFT_CREDENTIAL={}\n    weft status\n    \
             weft history --diff\n    weft get httproute orders -o yaml\n    curl http://{}/\n    \
             curl http://{}/clusters\n    curl http://{}/metrics",
            self.control_plane()?.credential().display(),
            self.frontend(),
            frontend.admin,
            frontend.metrics,
        ))
    }

    /// The ends of all logs.
    pub fn log_tails(&self) -> String {
        let workloads = self.members.iter().filter_map(|member| member.workload.as_ref()?.process());
        let control_plane = self.control_plane.as_ref().and_then(ControlPlane::process);
        control_plane.into_iter().chain(workloads).map(Process::log_tail).collect()
    }

    /// Ends every process: workloads first, as a person would.
    pub async fn stop(&mut self) {
        let workloads = self.members.iter_mut().filter_map(|member| member.workload.as_mut());
        futures_util::future::join_all(workloads.map(|workload| workload.stop(STOP))).await;
        if let Some(control_plane) = &mut self.control_plane {
            control_plane.stop(STOP).await;
        }
    }
}
