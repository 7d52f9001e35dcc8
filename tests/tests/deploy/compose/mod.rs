//! Compose projects that `weft inject compose` has put into a mesh, in a real engine.

mod foreign;
mod observe;
mod pack;
mod readme;
mod separate;
mod shop;
mod transparent;
mod wire;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use weft::launch::wait_for;
use weft_tests::{
    docker::{Project, docker, output},
    mesh::program,
};

/// Longest for what a container has to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A team's project in a folder of its own.
struct Team {
    /// With the overlay.
    project: Project,
    folder: TempDir,
    /// The control plane's ports.
    ports: [String; 2],
}

impl Team {
    /// Puts files into a folder. Nothing is injected or started.
    fn new(what: &str, files: &[(&str, &str)]) -> Result<Self> {
        Self::within(&std::env::temp_dir(), what, files)
    }

    /// The same below a folder in which the project finds what its file names by `..`.
    fn within(parent: &Path, what: &str, files: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("weft-test-").tempdir_in(parent)?;
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content)?;
        }
        let project = Project::new(what, folder.path(), &["compose.yaml", "compose.weft.yaml"]);
        Ok(Self { project, folder, ports: [free_port()?.to_string(), free_port()?.to_string()] })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `weft inject compose` with these words; what it printed.
    fn inject(&self, words: &[&str]) -> Result<String> {
        let [grpc, http] = &self.ports;
        let all = [&["inject", "compose", "--grpc-port", grpc, "--http-port", http], words].concat();
        self.weft(&all)
    }

    /// `weft` in the project's folder.
    fn weft(&self, words: &[&str]) -> Result<String> {
        output(&program()?.display().to_string(), words, Some(self.folder.path()))
    }

    fn status(&self) -> Result<String> {
        self.weft(&["--credential", ".weft/control-plane/operator.json", "status"])
    }

    /// Waits until so many workloads take calls.
    async fn workloads_ready(&self, count: usize) -> Result<()> {
        wait_for("every workload", PATIENCE, async || {
            (self.status().ok()?.matches(" READY ").count() == count).then_some(())
        })
        .await
        .with_context(|| self.status().unwrap_or_default())
    }

    /// Names of the containers of a service that run.
    fn containers(&self, service: &str) -> Result<Vec<String>> {
        let project = format!("label=com.docker.compose.project={}", self.project.name);
        let service = format!("label=com.docker.compose.service={service}");
        let names = docker(&["ps", "--filter", &project, "--filter", &service, "--format", "{{.Names}}"])?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// The network that compose made.
    fn network(&self) -> String {
        format!("{}_default", self.project.name)
    }

    /// Takes the project down, as the overlay says it is done; nothing of it may be left.
    fn down(&self) -> Result<()> {
        let overlay = std::fs::read_to_string(self.folder.path().join("compose.weft.yaml"))?;
        let words = ["down", "--volumes", "--timeout", "5"];
        match overlay.contains("--profile '*' down") {
            true => self.project.compose(&[&["--profile", "*"], &words[..]].concat())?,
            false => self.project.compose(&words)?,
        };
        let label = format!("label=com.docker.compose.project={}", self.project.name);
        for list in [&["ps", "--all"][..], &["network", "ls"], &["volume", "ls"]] {
            let left = docker(&[list, &["--quiet", "--filter", &label]].concat())?;
            ensure!(left.trim().is_empty(), "docker {} has {left}", list.join(" "));
        }
        Ok(())
    }
}

/// Every file below a folder.
fn files(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.clone(), std::fs::read(&path)?);
            }
        }
    }
    Ok(found)
}

/// A port of loopback that nobody has now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// `GET`s a page of a published port.
async fn get(port: u16, path: &str) -> Result<String> {
    weft::launch::call(SocketAddr::from(([127, 0, 0, 1], port)), http::Method::GET, path).await
}

/// `GET`s it until there is an answer.
async fn answered(port: u16, path: &str) -> Result<String> {
    wait_for("an answer", PATIENCE, async || get(port, path).await.ok()).await
}
