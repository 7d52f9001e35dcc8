//! Containers for tests: commands of `docker` and `docker compose` that end in time, and things that are gone when
//! dropped.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};

/// Longest that one command may take.
const PATIENCE: &str = "180";

/// Whether there is a Docker engine with Weft's images; says what is left out when there is none.
///
/// # Errors
/// When there must be one (`WEFT_REQUIRE_DOCKER`, which `cargo xtask test` sets when it has found or started one).
pub fn available(what: &str) -> Result<bool> {
    let answer = docker(&["version", "--format", "{{.Server.Version}}"]);
    let missing = match answer {
        Err(error) => format!("{error:#}"),
        Ok(_) if std::env::var("WEFT_IMAGES").is_ok_and(|images| images == "loaded") => return Ok(true),
        Ok(_) => "WEFT_IMAGES is not `loaded`: `cargo xtask images --profile dev --load` loads them".to_owned(),
    };
    ensure!(std::env::var_os("WEFT_REQUIRE_DOCKER").is_none(), "{what} needs a Docker engine: {missing}");
    eprintln!("left out: {what}: {missing}");
    Ok(false)
}

/// An image of Weft's, as in `weft-sidecar:0.1.0`.
pub fn image(name: &str) -> String {
    format!("{name}:{}", env!("CARGO_PKG_VERSION"))
}

/// A name that no other test uses.
pub fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("weft-test-{what}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Runs `docker`; what it printed.
///
/// # Errors
/// When it fails: with what it printed.
pub fn docker(args: &[&str]) -> Result<String> {
    output("docker", args, None)
}

/// Runs a program of at most three minutes; what it printed.
///
/// # Errors
/// When it fails: with what it printed.
pub fn output(program: &str, args: &[&str], folder: Option<&Path>) -> Result<String> {
    let mut command = Command::new("timeout");
    command.args([PATIENCE, program]).args(args).stdin(Stdio::null());
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    let output = command.output().context("timeout (of coreutils) cannot be started")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{program} {} ({}): {printed}{said}", args.join(" "), output.status);
    Ok(printed.into_owned())
}

/// A container; removed with its volumes when dropped.
pub struct Container {
    /// Its name.
    pub name: String,
}

impl Container {
    /// Starts one in the background: flags of `docker run`, the image, arguments.
    ///
    /// # Errors
    /// When it does not start.
    pub fn run(what: &str, args: &[&str]) -> Result<Self> {
        let container = Self { name: unique(what) };
        docker(&[&["run", "--detach", "--name", &container.name], args].concat())?;
        Ok(container)
    }

    /// Makes one that does not run.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(what: &str, args: &[&str]) -> Result<Self> {
        let container = Self { name: unique(what) };
        docker(&[&["create", "--name", &container.name], args].concat())?;
        Ok(container)
    }

    /// One field of `docker inspect`, as in `{{.State.Pid}}`.
    ///
    /// # Errors
    /// When the container is gone.
    pub fn inspect(&self, format: &str) -> Result<String> {
        Ok(docker(&["inspect", "--format", format, &self.name])?.trim().to_owned())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = docker(&["rm", "--force", "--volumes", &self.name]) {
            eprintln!("a container is left: {error:#}");
        }
    }
}

/// A network of containers; removed when dropped, which must be after them.
pub struct Network {
    /// Its name.
    pub name: String,
}

impl Network {
    /// Makes one.
    ///
    /// # Errors
    /// When the engine has no bridges.
    pub fn create(what: &str) -> Result<Self> {
        let network = Self { name: unique(what) };
        docker(&["network", "create", &network.name])?;
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = docker(&["network", "rm", &self.name]) {
            eprintln!("a network is left: {error:#}");
        }
    }
}

/// A compose project under a name of its own; taken down with its volumes when dropped.
pub struct Project {
    /// Its name.
    pub name: String,
    folder: PathBuf,
    files: Vec<String>,
}

impl Project {
    /// Names a project; nothing is started. `files` are in `folder`.
    pub fn new(what: &str, folder: &Path, files: &[&str]) -> Self {
        let files = files.iter().map(|&file| file.to_owned()).collect();
        Self { name: unique(what), folder: folder.to_owned(), files }
    }

    /// Runs `docker compose` with these words; what it printed.
    ///
    /// # Errors
    /// When it fails: with what it printed.
    pub fn compose(&self, args: &[&str]) -> Result<String> {
        let mut words = vec!["compose", "--ansi", "never", "--project-name", &self.name];
        words.extend(self.files.iter().flat_map(|file| ["--file", file.as_str()]));
        words.extend(args);
        output("docker", &words, Some(&self.folder))
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.compose(&["logs", "--tail", "40"]).unwrap_or_default());
        }
        if let Err(error) = self.compose(&["down", "--volumes", "--remove-orphans", "--timeout", "2"]) {
            eprintln!("a project is left: {error:#}");
        }
    }
}
