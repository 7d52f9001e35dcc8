//! A control plane as a child process.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use serde::Deserialize;
use weft_proto::weft::v1::{
    ApplyRequest, ApplyResponse, CreateTokenRequest, RollbackRequest, Source, StatusRequest, StatusResponse,
};

use super::{Ground, Process, Reserved, read_json, wait_for};
use crate::credential::{Client, Connection};

/// How long it may take to come up.
const START: Duration = Duration::from_secs(20);

/// `addresses.json`.
#[derive(Deserialize, Clone, Copy)]
struct Ports {
    grpc: SocketAddr,
    http: SocketAddr,
}

/// A control plane, running or killed.
pub struct ControlPlane {
    ground: Ground,
    flags: Vec<String>,
    ports: Option<Ports>,
    process: Option<Process>,
    /// Its ports while it does not run, so that nobody is given them by chance.
    held: Vec<Reserved>,
}

impl ControlPlane {
    /// Starts one with further flags, and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(ground: &Ground, flags: &[&str]) -> Result<Self> {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut control_plane = Self { ground: ground.clone(), flags, ports: None, process: None, held: Vec::new() };
        control_plane.restart().await?;
        Ok(control_plane)
    }

    /// Starts it again with other flags, on the ports that it had before.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart_with(&mut self, flags: &[&str]) -> Result<()> {
        self.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self.restart().await
    }

    /// Starts it again, on the ports that it had before.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self) -> Result<()> {
        let address = |port: Option<SocketAddr>| port.map_or_else(|| "127.0.0.1:0".to_owned(), |port| port.to_string());
        let file = self.data().join("addresses.json");
        // A process that was killed leaves the addresses of its last life behind.
        let _ = std::fs::remove_file(&file);
        let mut args = vec![
            "control-plane".to_owned(),
            "--data-dir".to_owned(),
            self.data().display().to_string(),
            "--grpc".to_owned(),
            address(self.ports.map(|ports| ports.grpc)),
            "--http".to_owned(),
            address(self.ports.map(|ports| ports.http)),
        ];
        args.extend(self.flags.iter().cloned());
        self.held.clear();
        self.process = Some(Process::start("control-plane", &self.ground.program, &self.ground.logs, &args, &[])?);
        self.ports = Some(wait_for("the control plane's addresses", START, async || read_json(&file)).await?);
        wait_for("the control plane's answer", START, async || self.status().await.ok()).await?;
        Ok(())
    }

    /// Kills it as a crash would.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await;
            self.hold();
        }
    }

    /// Asks it to end, and kills it after `patience`.
    pub async fn stop(&mut self, patience: Duration) {
        if let Some(mut process) = self.process.take() {
            process.stop(patience).await;
            self.hold();
        }
    }

    fn hold(&mut self) {
        let ports = self.ports.iter().flat_map(|ports| [ports.grpc, ports.http]);
        // One that somebody has already taken shows itself at the restart.
        self.held = ports.filter_map(|port| Reserved::at(port).ok()).collect();
    }

    /// Its process, when it runs.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.ground.data.join("control-plane")
    }

    /// Where the operator's credential lies.
    pub fn credential(&self) -> PathBuf {
        self.data().join("operator.json")
    }

    /// Where sidecars reach it.
    ///
    /// # Panics
    /// When it never started.
    pub fn grpc(&self) -> SocketAddr {
        self.ports.expect("start() found the ports").grpc
    }

    /// Where its HTTP API is.
    ///
    /// # Panics
    /// When it never started.
    pub fn http(&self) -> SocketAddr {
        self.ports.expect("start() found the ports").http
    }

    /// A client with the operator's credential.
    ///
    /// # Errors
    /// When there is no credential yet.
    pub fn client(&self) -> Result<Client> {
        let connection = Connection { credential: Some(self.credential()), control_plane: None };
        connection.open().map_err(|failure| anyhow::anyhow!("{failure}"))
    }

    /// A join token for a service account of a namespace.
    ///
    /// # Errors
    /// When the control plane does not give one.
    pub async fn token(&self, namespace: &str, account: &str) -> Result<String> {
        let request = CreateTokenRequest {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            uses: 1,
            ttl_seconds: 300,
        };
        Ok(self.client()?.create_token(request).await?.into_inner().token)
    }

    /// Applies resources; with `wait` seconds for every sidecar to acknowledge.
    ///
    /// # Errors
    /// When they are refused.
    pub async fn apply(&self, yaml: &str, message: &str, wait: u32) -> Result<ApplyResponse> {
        let request = ApplyRequest {
            sources: vec![Source { file: "applied.yaml".to_owned(), content: yaml.as_bytes().to_vec() }],
            namespace: "default".to_owned(),
            message: message.to_owned(),
            wait_seconds: wait,
            ..ApplyRequest::default()
        };
        self.client()?.apply(request).await.map(tonic::Response::into_inner).context("apply")
    }

    /// Rolls back, and waits likewise.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn rollback(&self, revision: u64, message: &str, wait: u32) -> Result<ApplyResponse> {
        let request = RollbackRequest {
            to_revision: revision,
            message: message.to_owned(),
            wait_seconds: wait,
            ..RollbackRequest::default()
        };
        self.client()?.rollback(request).await.map(tonic::Response::into_inner).context("rollback")
    }

    /// What it knows of the mesh.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status(&self) -> Result<StatusResponse> {
        Ok(self.client()?.status(StatusRequest {}).await?.into_inner())
    }
}
