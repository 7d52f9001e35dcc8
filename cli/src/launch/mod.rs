//! Starts real meshes on loopback: processes, their folders, their ports. For the demo, the tests and the benchmarks.

mod control_plane;
mod http;
pub mod metrics;
mod port;
mod process;
mod workload;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

pub use self::{
    control_plane::ControlPlane,
    http::call,
    port::{Reserved, listen},
    process::Process,
    workload::{SidecarPorts, Workload, WorkloadSpec},
};

/// Where a mesh of child processes lives.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The program `weft`.
    pub program: PathBuf,
    /// Data directories, one for each process.
    pub data: PathBuf,
    /// Log files, one for each process.
    pub logs: PathBuf,
}

impl Ground {
    /// Everything below `folder`.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn new(program: PathBuf, folder: &Path, logs: Option<&Path>) -> Result<Self> {
        let logs = logs.map_or_else(|| folder.join("logs"), Path::to_path_buf);
        std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
        Ok(Self { program, data: folder.to_path_buf(), logs })
    }
}

/// Asks again and again until there is an answer.
///
/// # Errors
/// When there is none in `patience`, naming what was waited for.
pub async fn wait_for<T>(what: &str, patience: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}
