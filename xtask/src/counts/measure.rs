//! A pair of sidecars under callgrind, driven by one connection at a time: figures for one request.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    profile::Profile,
    talk::{self, Exchange},
};

/// Requests counted, and those before that are not.
const REQUESTS: u32 = 2000;
const WARM: u32 = 300;
/// For everything that has to come up: valgrind is some fifty times slower than the processor.
const PATIENCE: Duration = Duration::from_secs(120);

/// A way to use the mesh: its name, its application's port, and its client.
type Case = (&'static str, Port, fn(SocketAddr) -> Result<Exchange>);
type Port = (&'static str, fn(TcpStream) -> io::Result<()>);

/// gRPC and HTTP/1.1 go to the client's outbound listener, which routes by name; TCP has one of its own.
const CASES: &[Case] = &[
    ("http1", ("http=80:{}/http", talk::http1_application), talk::http1),
    ("grpc", ("grpc=81:{}/grpc", talk::grpc_application), talk::grpc),
    ("tcp", ("raw=82:{}/tcp", talk::tcp_application), talk::tcp),
];

/// Profiles by benchmark: `http1, outbound` and the like.
pub type Profiles = BTreeMap<String, Profile>;

/// Measures `sidecar`; `weft` is the control plane and the operator's command. Everything lies in `place`.
///
/// # Errors
/// When the mesh does not come up or a request fails, with the end of the sidecars' logs.
pub fn measure(weft: &Path, sidecar: &Path, place: &Path) -> Result<Profiles> {
    let _ = std::fs::remove_dir_all(place); // There is none at the first time.
    std::fs::create_dir_all(place)?;
    let mut mesh = Mesh { place: place.to_path_buf(), children: Vec::new() };
    let measured = mesh.start_all(weft, sidecar).and_then(|(outbound, upstream)| mesh.count(outbound, upstream));
    measured.with_context(|| mesh.logs())
}

struct Mesh {
    place: PathBuf,
    children: Vec<(&'static str, Child)>,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            // One that has already ended cannot be killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Mesh {
    /// The control plane and both sidecars; the addresses of the client's outbound listener and of its TCP upstream.
    fn start_all(&mut self, weft: &Path, sidecar: &Path) -> Result<(SocketAddr, SocketAddr)> {
        let mut control_plane = Command::new(weft);
        control_plane.args(["control-plane", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"]);
        control_plane.arg(self.place.join("control-plane"));
        self.start("control-plane", control_plane)?;
        let grpc = self.addresses("control-plane")?["grpc"].as_str().context("no grpc address")?.to_owned();
        let mut ports = Vec::new();
        for (_, (port, application), _) in CASES {
            ports.extend(["--port".to_owned(), port.replace("{}", &talk::serve(*application)?.port().to_string())]);
        }
        self.sidecar("echo", weft, sidecar, &grpc, &ports)?;
        self.addresses("echo")?;
        // Once the service it names has registered.
        self.weft(weft, &["apply", "-f", &self.access()?])?;
        self.sidecar("client", weft, sidecar, &grpc, &["--upstream".to_owned(), "127.0.0.1:0=echo:82".to_owned()])?;
        let ports = self.addresses("client")?;
        let outbound = ports["outbound"].as_str().context("no outbound address")?;
        let upstream = ports["upstreams"].as_object().and_then(|all| all.values().next()).and_then(Value::as_str);
        Ok((outbound.parse()?, upstream.context("no address of the upstream")?.parse()?))
    }

    fn count(&self, outbound: SocketAddr, upstream: SocketAddr) -> Result<Profiles> {
        let mut profiles = Profiles::new();
        for (dump, (name, _, client)) in CASES.iter().enumerate() {
            let to = if *name == "tcp" { upstream } else { outbound };
            // The mesh may still be learning of its endpoints.
            let mut exchange = wait(&format!("the first answer of {name}"), || {
                let mut exchange = client(to)?;
                exchange()?;
                Ok(exchange)
            })?;
            for _ in 0..WARM {
                exchange().with_context(|| format!("a request of {name}"))?;
            }
            self.tell("zero")?;
            for _ in 0..REQUESTS {
                exchange().with_context(|| format!("a request of {name}"))?;
            }
            self.tell("dump")?;
            for (direction, whose) in [("outbound", "client"), ("inbound", "echo")] {
                let file = self.place.join(format!("{whose}.callgrind.{}", dump + 1));
                profiles.insert(format!("{name}, {direction}"), Profile::read(&file, REQUESTS)?);
            }
        }
        Ok(profiles)
    }

    fn sidecar(&mut self, name: &'static str, weft: &Path, program: &Path, grpc: &str, more: &[String]) -> Result<()> {
        let token = self.weft(weft, &["token", "create", "--service", name])?;
        let mut command = Command::new("valgrind");
        command.args(["--quiet", "--tool=callgrind", "--compress-pos=no"]);
        command.arg(format!("--callgrind-out-file={}", self.place.join(format!("{name}.callgrind")).display()));
        command.arg(program).args(["--control-plane", grpc, "--service", name, "--workers", "1"]);
        // It would have a line for each request that valgrind makes a slow one.
        command.args(["--access-log", "off"]);
        command.arg("--data-dir").arg(self.place.join(name)).args(more).env("WEFT_JOIN_TOKEN", token.trim());
        for port in ["--outbound", "--inbound", "--admin", "--metrics"] {
            command.args([port, "127.0.0.1:0"]);
        }
        self.start(name, command)
    }

    fn start(&mut self, name: &'static str, mut command: Command) -> Result<()> {
        let log = std::fs::File::create(self.place.join(format!("{name}.log")))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.children.push((name, child.with_context(|| format!("starting {name}"))?));
        Ok(())
    }

    /// Runs the operator's command.
    fn weft(&self, weft: &Path, args: &[&str]) -> Result<String> {
        let credential = self.place.join("control-plane/operator.json");
        wait("the control plane", || {
            let output = Command::new(weft).args(args).env("WEFT_CREDENTIAL", &credential).output()?;
            ensure!(output.status.success(), "weft {}: {}", args[0], String::from_utf8_lossy(&output.stderr));
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    fn addresses(&self, name: &str) -> Result<Value> {
        let file = self.place.join(name).join("addresses.json");
        wait(name, || Ok(serde_json::from_slice(&std::fs::read(&file)?)?))
    }

    /// Tells callgrind in both sidecars to begin at zero, or to write what it counted.
    fn tell(&self, what: &str) -> Result<()> {
        for (_, child) in self.children.iter().filter(|(name, _)| *name != "control-plane") {
            let output = Command::new("vgdb").arg(format!("--pid={}", child.id())).arg(what).output()?;
            ensure!(output.status.success(), "vgdb {what}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Ten rules, of which the last one matches.
    fn access(&self) -> Result<String> {
        let other =
            |index| format!("    - {{ name: other-{index}, from: [{{ identities: [default/other-{index}] }}] }}\n");
        let rules: String = (1..10).map(other).collect();
        let file = self.place.join("access.yaml");
        let text = format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: AccessPolicy\nmetadata: {{ name: echo }}\nspec:\n  \
             targetRefs: [{{ kind: Service, name: echo }}]\n  action: ALLOW\n  rules:\n{rules}    \
             - {{ name: client, from: [{{ identities: [default/client] }}] }}\n"
        );
        std::fs::write(&file, text)?;
        Ok(file.display().to_string())
    }

    fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = std::fs::read_to_string(self.place.join(format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("{name}: {}", lines[lines.len().saturating_sub(4)..].join("\n  "))
        };
        self.children.iter().map(|(name, _)| tail(name)).collect::<Vec<_>>().join("\n")
    }
}

fn wait<T>(what: &str, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= end => bail!("waited in vain for {what}: {error:#}"),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
