//! The pairs: a caller's proxy and a callee's, mutual TLS between them. One runs at a time.

mod certificates;
mod envoy;
mod haproxy;
mod nginx;
mod relay;
mod weft;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ::weft::launch::{ControlPlane, Process, Reserved, Workload, wait_for};
use anyhow::{Context, Result};
use clap::ValueEnum;

pub use self::weft::Cold;
use crate::{
    backend::Backend,
    load::http1::{Connection, Target},
};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Two Weft sidecars and their control plane, with every policy on.
    Weft,
    /// Two Envoys.
    Envoy,
    /// Two HAProxies.
    Haproxy,
    /// Two nginxes.
    Nginx,
    /// Two HAProxies that only pass bytes on, without TLS: the floor for two hops in user space.
    Relay,
}

impl Kind {
    /// Everyone.
    pub const ALL: [Self; 5] = [Self::Weft, Self::Envoy, Self::Haproxy, Self::Nginx, Self::Relay];

    /// As in samples.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Relay => "relay",
        }
    }
}

/// What the foreign programs say of themselves, by contestant.
pub fn versions(kinds: &[Kind]) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    for kind in kinds {
        let (program, arg) = match kind {
            Kind::Weft => continue,
            Kind::Envoy => (envoy::program().unwrap_or_default(), "--version"),
            Kind::Haproxy | Kind::Relay => (PathBuf::from("haproxy"), "-v"),
            Kind::Nginx => (PathBuf::from("nginx"), "-v"),
        };
        // Who is missing has been named already.
        let Ok(output) = std::process::Command::new(program).arg(arg).output() else { continue };
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        versions.extend(version(&text).map(|version| (kind.name().to_owned(), version)));
    }
    versions
}

/// The first number with a point in it.
fn version(text: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || c == '/');
    let is_version = |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    let word = words.into_iter().find(is_version)?;
    Some(word.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect())
}

/// What is put between caller and application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A pair, as it comes.
    Pair,
    /// A pair that has so many routes; requests take the last one.
    Routes(u32),
    /// The caller's proxy alone, in front of so many endpoints in plain text.
    Endpoints(u32),
}

/// What a contestant is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scene {
    /// What there is.
    pub shape: Shape,
    /// Threads of each proxy that carry traffic.
    pub workers: u32,
}

impl Scene {
    /// Path of small requests.
    fn path(self) -> String {
        match self.shape {
            Shape::Pair | Shape::Endpoints(_) => "/".to_owned(),
            Shape::Routes(count) => route(count.saturating_sub(1)),
        }
    }
}

/// Path of a route: all of one length.
fn route(index: u32) -> String {
    format!("/route-{index:05}")
}

/// An endpoint's address: loopback is a whole network.
fn endpoint(index: u32) -> String {
    format!("127.1.{}.{}", index / 250, index % 250 + 1)
}

/// A running pair: where the load goes in, and the processes.
pub struct Pair {
    /// HTTP/1.1.
    pub http1: Target,
    /// HTTP/2 with prior knowledge, gRPC included; `None`: it cannot.
    pub http2: Option<Target>,
    /// Raw bytes, a connection between the proxies for each; `None`: it cannot.
    pub tcp: Option<SocketAddr>,
    running: Running,
}

enum Running {
    Weft { control_plane: Box<ControlPlane>, workloads: Vec<Workload>, ground: ::weft::launch::Ground },
    Foreign { processes: Vec<Process>, _ports: Vec<Reserved> },
}

impl Pair {
    /// The proxies, the caller's first: each with the processes that it started itself.
    ///
    /// # Errors
    /// When one has ended.
    pub fn proxies(&self) -> Result<Vec<Vec<u32>>> {
        self.processes().iter().map(|process| crate::proc::tree(process.id())).collect()
    }

    fn processes(&self) -> Vec<&Process> {
        match &self.running {
            Running::Weft { workloads, .. } => workloads.iter().filter_map(Workload::process).collect(),
            Running::Foreign { processes, .. } => processes.iter().collect(),
        }
    }

    /// The last line that each proxy has logged.
    fn last_words(&self) -> String {
        let words = self.processes().into_iter().filter_map(|process| {
            let log = process.log();
            let line = log.lines().rev().find(|line| !line.trim().is_empty())?;
            Some(line.trim().chars().take(300).collect::<String>())
        });
        words.collect::<Vec<_>>().join(" / ")
    }

    /// Starts one more Weft sidecar beside the pair; `None` for the others.
    pub fn cold(&self) -> Option<Cold<'_>> {
        match &self.running {
            Running::Weft { control_plane, ground, .. } => Some(Cold::new(control_plane, ground)),
            Running::Foreign { .. } => None,
        }
    }

    /// Says what the proxies said last, of whatever went wrong.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| match self.last_words() {
            words if words.is_empty() => "it logged nothing".to_owned(),
            words => format!("it logged last: {words}"),
        })
    }

    /// Ends them.
    pub async fn stop(&mut self) {
        match &mut self.running {
            Running::Weft { workloads, control_plane, .. } => {
                for workload in workloads {
                    workload.kill().await;
                }
                control_plane.kill().await;
            }
            Running::Foreign { processes, .. } => {
                for process in processes {
                    process.kill().await;
                }
            }
        }
    }
}

/// Starts a pair in front of `backend`, and waits until a request gets through; `None`: the product cannot do this.
///
/// # Errors
/// When the program cannot be had or does not come up.
pub async fn start(kind: Kind, scene: Scene, place: &Path, backend: &Backend) -> Result<Option<Pair>> {
    std::fs::create_dir_all(place)?;
    let plain = scene.shape == Shape::Pair;
    let mut pair = match kind {
        Kind::Weft => weft::start(scene, place, backend).await?,
        Kind::Envoy => envoy::start(scene, place, backend)?,
        Kind::Haproxy if plain => haproxy::start(scene, place, backend)?,
        Kind::Nginx if plain => nginx::start(scene, place, backend)?,
        Kind::Relay if plain => relay::start(scene, place, backend)?,
        Kind::Haproxy | Kind::Nginx | Kind::Relay => return Ok(None),
    };
    let target = pair.http1.clone();
    let through =
        wait_for("a request through the pair", START, async || Connection::open(&target).await.ok()?.get().await.ok());
    let through = pair.explain(through.await);
    if let Err(error) = through {
        pair.stop().await;
        return Err(error);
    }
    Ok(Some(pair))
}

const START: Duration = Duration::from_secs(15);

/// Files and ports of a foreign pair.
struct Place<'a> {
    folder: &'a Path,
    ports: Vec<Reserved>,
    processes: Vec<Process>,
}

impl<'a> Place<'a> {
    fn new(folder: &'a Path) -> Self {
        Self { folder, ports: Vec::new(), processes: Vec::new() }
    }

    /// A port for a proxy to listen on: all of them set SO_REUSEPORT.
    fn port(&mut self) -> Result<SocketAddr> {
        let reserved = Reserved::new()?;
        let address = reserved.address;
        self.ports.push(reserved);
        Ok(address)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.folder.join(name);
        std::fs::write(&file, text).with_context(|| file.display().to_string())?;
        Ok(file)
    }

    /// Starts a proxy; the caller's first.
    fn run(&mut self, name: &str, program: &Path, args: &[&str]) -> Result<()> {
        let started = Process::start(name, program, self.folder, args, &[]);
        self.processes.push(started.with_context(|| format!("{} cannot be started", program.display()))?);
        Ok(())
    }

    fn pair(self, doors: Doors, path: String) -> Pair {
        let target = |address| Target { address, authority: "echo".to_owned(), path: path.clone() };
        Pair {
            http1: target(doors.http1),
            http2: doors.http2.map(target),
            tcp: doors.tcp,
            running: Running::Foreign { processes: self.processes, _ports: self.ports },
        }
    }
}

/// Where a proxy listens, by what it speaks there.
#[derive(Clone, Copy)]
struct Doors {
    http1: SocketAddr,
    http2: Option<SocketAddr>,
    tcp: Option<SocketAddr>,
}

impl Doors {
    fn all(place: &mut Place<'_>) -> Result<Self> {
        Ok(Self { http1: place.port()?, http2: Some(place.port()?), tcp: Some(place.port()?) })
    }

    fn backend(backend: &Backend) -> Self {
        Self { http1: backend.http1, http2: Some(backend.http2), tcp: Some(backend.tcp) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        let said = [
            ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", "2.6.12"),
            ("nginx version: nginx/1.22.1", "1.22.1"),
            ("\n/a/b/envoy  version: 0a1b2c/1.40.0/Clean/RELEASE/BoringSSL\n", "1.40.0"),
        ];
        for (text, wanted) in said {
            assert_eq!(version(text).as_deref(), Some(wanted));
        }
        assert_eq!(version("no number"), None);
    }

    #[test]
    fn endpoints_are_distinct_loopback_addresses() {
        let addresses: std::collections::BTreeSet<String> = (0..10_000).map(endpoint).collect();
        assert_eq!(addresses.len(), 10_000);
        assert!(addresses.iter().all(|it| it.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())));
    }
}
