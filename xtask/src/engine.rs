//! A Docker engine for the tests: the machine's own where it answers, else one with its own data, sockets and network
//! namespace, of which nothing is left behind. And compose, where the machine has none.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{build, debian, run, system};

/// How long an engine may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine that answers.
pub struct Engine {
    /// What a program needs to find it.
    pub env: Vec<(&'static str, String)>,
    /// The one that was started for the tests.
    own: Option<Own>,
}

impl Engine {
    /// Finds or starts one, with compose.
    ///
    /// # Errors
    /// When there is none and none can be started: says what is missing.
    pub fn start(root: &Path) -> Result<Self> {
        system::packages(&["docker.io"])?;
        let mut env = Vec::new();
        let own = if answers(&env) { None } else { Some(Own::start(root)?) };
        if let Some(own) = &own {
            env.push(("DOCKER_HOST", own.host()));
        }
        env.extend(compose(root, &env)?.map(|config| ("DOCKER_CONFIG", config)));
        Ok(Self { env, own })
    }

    /// Runs a program where the engine's networks are, shows what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, root: &Path, name: &str, args: &[&str], env: &[(&str, String)]) -> Result<()> {
        let env: Vec<(&str, String)> = env.iter().cloned().chain(self.env.iter().cloned()).collect();
        match &self.own {
            None => run::program(root, name, args, &env),
            Some(own) => {
                let enter = own.enter();
                let words: Vec<&str> = [enter.as_str(), name].into_iter().chain(args.iter().copied()).collect();
                run::program(root, "nsenter", &words, &env)
            }
        }
    }
}

fn answers(env: &[(&'static str, String)]) -> bool {
    let envs = env.iter().map(|(name, value)| (*name, value));
    let version = ["version", "--format", "{{.Server.Version}}"];
    Command::new("docker").args(version).envs(envs).output().is_ok_and(|output| output.status.success())
}

/// A client's configuration that knows compose, where the machine's own does not.
fn compose(root: &Path, env: &[(&'static str, String)]) -> Result<Option<String>> {
    let envs = env.iter().map(|(name, value)| (*name, value));
    let asked = Command::new("docker").args(["compose", "version"]).envs(envs).output();
    if asked.is_ok_and(|output| output.status.success()) {
        return Ok(None);
    }
    let plugin = debian::unpacked(root, "docker-compose")?.join("usr/libexec/docker/cli-plugins/docker-compose");
    ensure!(plugin.exists(), "Debian's docker-compose has no {}", plugin.display());
    let config = build::target(root)?.join("debian/docker-config");
    let link = config.join("cli-plugins/docker-compose");
    fs::create_dir_all(config.join("cli-plugins"))?;
    if !link.exists() {
        std::os::unix::fs::symlink(&plugin, &link)?;
    }
    Ok(Some(config.display().to_string()))
}

/// `kustomize build`: of kubectl, or the program of its own.
///
/// # Errors
/// When there is neither, and none can be fetched.
pub fn kustomize(root: &Path) -> Result<String> {
    let has = |name: &str, args: &[&str]| Command::new(name).args(args).output().is_ok_and(|o| o.status.success());
    if has("kubectl", &["kustomize", "--help"]) {
        return Ok("kubectl kustomize".to_owned());
    }
    if has("kustomize", &["version"]) {
        return Ok("kustomize build".to_owned());
    }
    let program = debian::unpacked(root, "kustomize")?.join("usr/bin/kustomize");
    Ok(format!("{} build", program.display()))
}

/// An engine with nothing of the machine's.
struct Own {
    /// Sockets and process IDs: a path of a socket must be short, and `target/` may not be.
    run: TempDir,
    /// Images and containers.
    data: PathBuf,
    namespace: String,
    child: Option<Child>,
}

impl Own {
    fn start(root: &Path) -> Result<Self> {
        let place = build::target(root)?.join("engine");
        fs::create_dir_all(&place)?;
        sweep(&place)?;
        let run = tempfile::Builder::new().prefix("weft-engine-").tempdir()?;
        let namespace = format!("weft-engine-{}", std::process::id());
        let data = place.join(format!("data-{}", std::process::id()));
        let mut own = Self { run, data, namespace, child: None };
        for args in [&["netns", "add", &own.namespace][..], &["-n", &own.namespace, "link", "set", "lo", "up"]] {
            run::quietly(root, "ip", args).context("an engine of its own gets a network namespace of its own")?;
        }
        let log = place.join("dockerd.log");
        let at = |name: &str| own.run.path().join(name).display().to_string();
        let child = Command::new("nsenter")
            // Without the tests it ends, however they end.
            .args([own.enter().as_str(), "setpriv", "--pdeathsig", "TERM", "dockerd", "--host", &own.host()])
            .args(["--data-root", &own.data.display().to_string(), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .spawn()
            .context("nsenter")?;
        own.child = Some(child);
        let (env, began) = ([("DOCKER_HOST", own.host())], Instant::now());
        while !answers(&env) {
            let ended = own.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if ended.is_some() || began.elapsed() > PATIENCE {
                let log = fs::read_to_string(&log).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(8).collect();
                let end: Vec<&str> = end.into_iter().rev().collect();
                bail!("dockerd does not start (it needs root, cgroups and overlayfs):\n{}", end.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(own)
    }

    fn host(&self) -> String {
        format!("unix://{}", self.run.path().join("sock").display())
    }

    fn enter(&self) -> String {
        format!("--net=/run/netns/{}", self.namespace)
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            // It ends its containers and its containerd before itself.
            run::quietly(Path::new("/"), "kill", &["-TERM", &child.id().to_string()])?;
            let began = Instant::now();
            while child.try_wait()?.is_none() {
                if began.elapsed() > PATIENCE {
                    child.kill()?;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        run::quietly(Path::new("/"), "ip", &["netns", "delete", &self.namespace])?;
        if self.data.exists() {
            fs::remove_dir_all(&self.data).with_context(|| self.data.display().to_string())?;
        }
        Ok(())
    }
}

/// Removes what an earlier engine has left that was ended without warning.
fn sweep(place: &Path) -> Result<()> {
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let gone = |process: &str| !Path::new("/proc").join(process).exists();
        if name.strip_prefix("data-").is_some_and(gone) {
            fs::remove_dir_all(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("xtask: something of the engine is left: {error:#}");
        }
    }
}
