//! What is on the wire between containers, seen from the bridge that joins them.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use weft_tests::docker::docker;

/// A capture that runs.
pub struct Capture {
    child: Child,
    folder: TempDir,
}

/// What was captured.
pub struct Wire(Vec<u8>);

impl Capture {
    /// Begins to capture what containers of a network send each other; not what the host sends to published ports.
    pub fn start(network: &str) -> Result<Self> {
        let of = |format: &str| docker(&["network", "inspect", "--format", format, network]);
        let id = of("{{.Id}}")?;
        let bridge = format!("br-{}", id.get(..12).context("an ID is longer")?);
        let filter = format!("tcp and not host {}", of("{{(index .IPAM.Config 0).Gateway}}")?.trim());
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("wire").display().to_string();
        let mut child = Command::new("tcpdump")
            .args(["-i", &bridge, "-s", "0", "-U", "--immediate-mode", "-Z", "root", "-w", &file, &filter])
            .stderr(Stdio::piped())
            .spawn()
            .context("tcpdump")?;
        let mut said = BufReader::new(child.stderr.take().context("it has been asked for")?);
        let mut all = String::new();
        // Its first lines say on what it listens; then it is silent until it ends.
        while !all.contains("listening on") {
            if said.read_line(&mut all)? == 0 {
                bail!("tcpdump: {all}");
            }
        }
        Ok(Self { child, folder })
    }

    /// Ends it.
    pub fn finish(mut self) -> Result<Wire> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        self.child.wait()?;
        let bytes = std::fs::read(self.folder.path().join("wire"))?;
        ensure!(bytes.len() > 24, "nothing was captured");
        Ok(Wire(bytes))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Wire {
    /// How often these bytes were sent.
    pub fn count(&self, bytes: &[u8]) -> usize {
        self.0.windows(bytes.len()).filter(|window| *window == bytes).count()
    }

    /// None of these texts was sent in plain, and records of TLS application data were.
    pub fn is_private(&self, secrets: &[&str]) -> Result<()> {
        for secret in secrets {
            ensure!(self.count(secret.as_bytes()) == 0, "`{secret}` is on the wire in plain text");
        }
        let records = self.count(&[0x17, 0x03, 0x03]);
        ensure!(records >= 10, "there are only {records} TLS records on the wire");
        Ok(())
    }
}
