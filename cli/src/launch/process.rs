//! A child process with its log, in a process group of its own.

use std::{
    ffi::OsStr,
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::process::{Child, ChildStdin, Command};

/// A running child.
pub struct Process {
    name: String,
    child: Child,
    group: Pid,
    log: PathBuf,
    // Held open: its end tells the applications that whoever started them is gone.
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts `program` with `args`; its output goes to `NAME.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        name: &str,
        program: &Path,
        logs: &Path,
        args: &[A],
        env: &[(&str, String)],
    ) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log).with_context(|| log.display().to_string())?;
        let mut command = std::process::Command::new(program);
        command
            .args(args)
            .envs(env.iter().map(|(key, value)| (*key, value)))
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            // A group of its own: Ctrl-C reaches the demo alone, which then ends the others in order.
            .process_group(0);
        let mut child =
            Command::from(command).kill_on_drop(true).spawn().with_context(|| format!("starting {name}"))?;
        let pid = child.id().context("it ended at once")?;
        let stdin = child.stdin.take();
        let group = Pid::from_raw(i32::try_from(pid).context("a process id fits")?);
        Ok(Self { name: name.to_owned(), child, group, log, _stdin: stdin })
    }

    /// Kills it and its children at once, as a crash would.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        // It has been sent SIGKILL: waiting only collects it.
        let _ = self.child.wait().await;
    }

    /// Asks it to end, and kills it after `patience`.
    pub async fn stop(&mut self, patience: Duration) {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(patience, self.child.wait()).await.is_err() {
            self.kill().await;
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.group.as_raw().unsigned_abs()
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it has not after `patience`.
    pub async fn ended(&mut self, patience: Duration) -> Result<std::process::ExitStatus> {
        let waited = tokio::time::timeout(patience, self.child.wait()).await;
        Ok(waited.with_context(|| format!("{} did not end in {} s", self.name, patience.as_secs()))??)
    }

    /// Its whole log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(8)..].join("\n    ");
        format!("{}:\n    {tail}\n", self.name)
    }

    /// Sends a signal to it and its children.
    pub fn signal(&self, signal: Signal) {
        // Fails only when the group is gone, which is what the signal was for.
        let _ = killpg(self.group, signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}
