//! The control plane under test: a real process with a data directory of its own, which may be killed and started again
//! on the same port.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    sys::signal::{Signal, kill},
    time::ClockId,
    unistd::Pid,
};
use weft_identity::{TrustDomain, ca::Authority};

/// How long a start may take: ten thousand services are read first.
const START: Duration = Duration::from_secs(120);
/// How long an end in good order may take.
const END: Duration = Duration::from_secs(20);

/// A control plane and its data. Killed when dropped.
#[derive(Debug)]
pub struct Plane {
    child: Child,
    program: PathBuf,
    data: PathBuf,
    /// Where it serves gRPC.
    pub grpc: SocketAddr,
}

impl Plane {
    /// Starts one with a first configuration.
    ///
    /// # Errors
    /// When it does not come up; the log is named.
    pub fn start(program: &Path, folder: &Path, config: &Path) -> Result<Self> {
        let data = folder.join("data");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let child = spawn(program, &data, any, Some(config))?;
        let mut plane = Self { child, program: program.to_owned(), data, grpc: any };
        plane.grpc = plane.wait()?;
        Ok(plane)
    }

    /// Kills it, without a word, and starts another on the same data and port. Returns when that one serves, with the
    /// time of its start.
    ///
    /// # Errors
    /// When the new one does not come up.
    pub fn restart(&mut self) -> Result<Instant> {
        self.child.kill()?;
        self.child.wait()?;
        std::fs::remove_file(self.data.join("addresses.json"))?;
        let started = Instant::now();
        self.child = spawn(&self.program, &self.data, self.grpc, None)?;
        self.wait()?;
        Ok(started)
    }

    /// Waits for `addresses.json`, which is written when the ports are open.
    fn wait(&mut self) -> Result<SocketAddr> {
        let deadline = Instant::now() + START;
        let file = self.data.join("addresses.json");
        while Instant::now() < deadline {
            if let Ok(text) = std::fs::read_to_string(&file) {
                let addresses: serde_json::Value = serde_json::from_str(&text)?;
                return Ok(addresses["grpc"].as_str().context("addresses.json has no `grpc`")?.parse()?);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the control plane ended ({status}):\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("the control plane did not come up within {START:?}:\n{}", self.log())
    }

    /// The last lines of its log.
    fn log(&self) -> String {
        let text = std::fs::read_to_string(log_file(&self.data)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Its certificate authority: the simulation signs the sidecars' certificates itself, for signing is not what is
    /// measured.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn authority(&self) -> Result<Authority> {
        let found = Authority::load(TrustDomain::default(), &self.data.join("ca"), SystemTime::now())?;
        found.ok_or_else(|| anyhow!("{} holds no certificate authority", self.data.join("ca").display()))
    }

    /// Its processor time so far, threads that ended included.
    ///
    /// # Errors
    /// When it is gone.
    pub fn cpu(&self) -> Result<Duration> {
        let clock = ClockId::pid_cpu_clock_id(self.pid())?;
        Ok(Duration::from(clock.now()?))
    }

    /// Its proportional set size, in bytes.
    ///
    /// # Errors
    /// When it is gone.
    pub fn memory(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let line = text.lines().find(|line| line.starts_with("Pss:")).context("a Pss line")?;
        Ok(line.split_whitespace().nth(1).context("a figure")?.parse::<u64>()? * 1024)
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process ids are small"))
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        if let Err(error) = kill(self.pid(), Signal::SIGTERM) {
            eprintln!("fleet: the control plane was gone already: {error}");
        }
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("fleet: the control plane did not end and is killed");
        if self.child.kill().is_ok()
            && let Err(error) = self.child.wait()
        {
            eprintln!("fleet: {error}");
        }
    }
}

fn spawn(program: &Path, data: &Path, grpc: SocketAddr, config: Option<&Path>) -> Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(log_file(data))?;
    let mut command = Command::new(program);
    if program.file_stem().is_none_or(|name| name != "weft-control-plane") {
        command.arg("control-plane");
    }
    command.arg("--data-dir").arg(data);
    command.arg("--grpc").arg(grpc.to_string()).args(["--http", "127.0.0.1:0", "--log", "warn"]);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().with_context(|| format!("{} cannot be started", program.display()))
}

/// Beside the data directory, which belongs to the control plane.
fn log_file(data: &Path) -> PathBuf {
    data.with_extension("log")
}
