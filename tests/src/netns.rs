//! Hosts of a network that a test makes for itself: network namespaces on a bridge, gone when dropped.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use weft_tests::netns::Net;
//!
//! let Some(net) = Net::new("calls between hosts")? else { return Ok(()) };
//! let (orders, stock) = (net.host("orders")?, net.host("stock")?);
//! orders.exec(&["ping", "-c1", &stock.v4.to_string()])?;
//! orders.within(async move || Ok(tokio::net::TcpListener::bind("127.0.0.1:80").await?.local_addr()?)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The bridge is in a namespace, too: the machine's own network sees nothing of it. Each host has IPv4 and IPv6 and a
//! default route, which leads to the bridge and no further.

use std::{
    cell::Cell,
    ffi::OsStr,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;
use weft::launch::Process;

/// Set where such tests must run, and not be left out.
pub const REQUIRED: &str = "WEFT_REQUIRE_NETNS";
/// What the names of all namespaces begin with; then comes the process id of the test.
const PREFIX: &str = "weft-t";
/// Where `ip netns` has its namespaces.
const NAMESPACES: &str = "/run/netns";
/// The bridge itself.
const GATEWAY: u8 = 254;

/// A network of its own. All of it goes when it is dropped, with every process that runs in it.
pub struct Net {
    hub: Namespace,
    hosts: Cell<u8>,
}

impl Net {
    /// Makes an empty network. `None` on a machine that does not let this test do so; what is left out is printed.
    ///
    /// # Errors
    /// The same with [`REQUIRED`] set.
    pub fn new(what: &str) -> Result<Option<Self>> {
        match Self::make() {
            Ok(net) => Ok(Some(net)),
            Err(error) if std::env::var_os(REQUIRED).is_some() => Err(error.context(what.to_owned())),
            Err(error) => {
                println!("left out: {what}: {error:#}");
                Ok(None)
            }
        }
    }

    fn make() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
        sweep();
        let hub = Namespace::new("hub")?;
        hub.ip(&["link", "add", "bridge", "type", "bridge"])?;
        address(&hub, "bridge", GATEWAY)?;
        hub.ip(&["link", "set", "bridge", "up"])?;
        Ok(Self { hub, hosts: Cell::new(0) })
    }

    /// Adds a host. `name`: for its namespace; need not be unique.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn host(&self, name: &str) -> Result<Host> {
        let number = self.hosts.get() + 1;
        ensure!(number < GATEWAY, "the network is full");
        self.hosts.set(number);
        let namespace = Namespace::new(name)?;
        let port = format!("port{number}");
        self.hub.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace.name])?;
        self.hub.ip(&["link", "set", &port, "master", "bridge", "up"])?;
        address(&namespace, "eth0", number)?;
        namespace.ip(&["link", "set", "eth0", "up"])?;
        namespace.ip(&["route", "add", "default", "via", &v4(GATEWAY).to_string()])?;
        namespace.ip(&["-6", "route", "add", "default", "via", &v6(GATEWAY).to_string()])?;
        Ok(Host { namespace, v4: v4(number), v6: v6(number) })
    }
}

/// A host: a network namespace with `lo` and `eth0`.
pub struct Host {
    namespace: Namespace,
    /// Its address on the bridge.
    pub v4: Ipv4Addr,
    /// Its address on the bridge.
    pub v6: Ipv6Addr,
}

impl Host {
    /// Name of the namespace, for `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.namespace.name
    }

    /// Both addresses.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// A command that will run there. `/etc/resolv.conf` is the host's own where [`Self::resolv_conf`] has set one.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name()]).arg(program);
        command
    }

    /// Runs a command there to its end: its standard output.
    ///
    /// # Errors
    /// When it cannot be run, or its status is not 0; with what it said.
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        self.exec_with(words, "")
    }

    /// The same with something at its standard input.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub fn exec_with(&self, words: &[&str], input: &str) -> Result<String> {
        let (program, args) = words.split_first().context("no command")?;
        let mut command = self.command(program);
        output(command.args(args), input).with_context(|| format!("{words:?} on {}", self.name()))
    }

    /// Starts a process there that lives until it is stopped or dropped; its log is `LOGS/NAME.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        &self,
        name: &str,
        program: &Path,
        logs: &Path,
        args: &[&str],
        env: &[(&str, String)],
    ) -> Result<Process> {
        let program = program.to_str().context("a path in UTF-8")?;
        let words = [&["netns", "exec", self.name(), program], args].concat();
        Process::start(name, Path::new("ip"), logs, &words, env)
    }

    /// Does work there: on a thread with a runtime of its own. Sockets that it opens and processes that it starts belong to
    /// the host; files, and `/etc/resolv.conf` among them, are the machine's.
    ///
    /// # Errors
    /// Those of the work, and when there is no such thread.
    pub async fn within<T, F>(&self, work: F) -> Result<T>
    where
        F: AsyncFnOnce() -> Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let namespace = std::fs::File::open(Path::new(NAMESPACES).join(self.name()))?;
        let (done, result) = oneshot::channel();
        std::thread::Builder::new().name(self.name().to_owned()).spawn(move || {
            let run = || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
                tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work())
            };
            // Nobody waits when the test has ended.
            drop(done.send(run()));
        })?;
        result.await.context("the thread in the namespace panicked")?
    }

    /// What [`Self::command`], [`Self::exec`] and [`Self::start`] see as `/etc/resolv.conf`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn resolv_conf(&self, text: &str) -> Result<()> {
        let folder = self.namespace.etc();
        std::fs::create_dir_all(&folder)?;
        Ok(std::fs::write(folder.join("resolv.conf"), text)?)
    }
}

struct Namespace {
    name: String,
}

impl Namespace {
    fn new(purpose: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self { name: format!("{PREFIX}{}-{count}-{purpose}", std::process::id()) };
        ip(&["netns", "add", &namespace.name])?;
        // New namespaces of a machine without IPv6 routing have it switched off.
        let on =
            "echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 0 >/proc/sys/net/ipv6/conf/default/disable_ipv6";
        ip(&["netns", "exec", &namespace.name, "sh", "-c", on])?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    fn ip(&self, args: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.name], args].concat())
    }

    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Ends what runs in a namespace and removes it. Nothing can be done about a failure: the next test sweeps.
fn remove(name: &str) {
    if let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() {
        let own = std::process::id().to_string();
        // This test itself may have a thread there.
        for pid in String::from_utf8_lossy(&output.stdout).lines().filter(|pid| *pid != own) {
            drop(Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status());
        }
    }
    drop(Command::new("ip").args(["netns", "delete", name]).stderr(Stdio::null()).status());
    drop(std::fs::remove_dir_all(Path::new("/etc/netns").join(name)));
}

/// Removes what tests left behind that were killed.
fn sweep() {
    let Ok(entries) = std::fs::read_dir(NAMESPACES) else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove(&name);
        }
    }
}

fn v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

fn v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into())
}

fn address(namespace: &Namespace, device: &str, number: u8) -> Result<()> {
    namespace.ip(&["address", "add", &format!("{}/24", v4(number)), "dev", device])?;
    // Nobody else has it: no time for finding out.
    namespace.ip(&["address", "add", &format!("{}/64", v6(number)), "dev", device, "nodad"])
}

fn ip(args: &[&str]) -> Result<()> {
    output(Command::new("ip").args(args), "").with_context(|| format!("ip {}", args.join(" "))).map(drop)
}

/// Runs a command to its end. Input is short: a pipe holds it.
fn output(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // A command that does not read it has ended with a status of its own.
    drop(child.stdin.take().context("a pipe")?.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}
