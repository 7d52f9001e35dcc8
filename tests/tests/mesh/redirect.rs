//! `weft-sidecar init`: rules in network namespaces, told by who answers a connection.
//!
//! Nothing of Weft listens here: at the ports of the sidecar are servers that say which port they are.

mod rules;
mod traffic;
mod wrapper;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};
use weft_tests::{
    mesh::program,
    netns::{Host, Net},
};

/// Far longer than an answer within a machine takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// The mark unless `--mark` says otherwise.
const MARK: u32 = 0x1577;
const BACKENDS: [&str; 2] = ["nft", "iptables"];

/// `weft sidecar init` on a host.
fn init(host: &Host, flags: &[&str]) -> Result<String> {
    let program = program()?;
    let program = program.to_str().context("a path in UTF-8")?;
    host.exec(&[&[program, "sidecar", "init"], flags].concat())
}

/// Servers that send a text and close; gone when dropped.
#[derive(Default)]
struct Servers(JoinSet<()>);

impl Servers {
    /// Listens on a host. `name`: what it says.
    async fn tcp(&mut self, host: &Host, address: SocketAddr, name: &'static str) -> Result<()> {
        let listener = host.within(async move || Ok(TcpListener::bind(address).await?.into_std()?)).await?;
        let listener = TcpListener::from_std(listener)?;
        self.0.spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                // A caller that is gone has failed its test already.
                let _ = tcp.write_all(name.as_bytes()).await;
            }
        });
        Ok(())
    }

    /// The same for datagrams.
    async fn udp(&mut self, host: &Host, address: SocketAddr, name: &'static str) -> Result<()> {
        let socket = host.within(async move || Ok(UdpSocket::bind(address).await?.into_std()?)).await?;
        let socket = UdpSocket::from_std(socket)?;
        self.0.spawn(async move {
            let mut query = [0; 512];
            while let Ok((_, peer)) = socket.recv_from(&mut query).await {
                let _ = socket.send_to(name.as_bytes(), peer).await;
            }
        });
        Ok(())
    }
}

/// Who answers a connection that a host makes.
async fn tcp(host: &Host, to: SocketAddr, mark: Option<u32>) -> Result<String> {
    host.within(async move || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(mark) = mark {
            socket.set_mark(mark)?;
        }
        socket.connect_timeout(&to.into(), PATIENCE)?;
        socket.set_nonblocking(true)?;
        let mut tcp = TcpStream::from_std(socket.into())?;
        let mut text = String::new();
        tokio::time::timeout(PATIENCE, tcp.read_to_string(&mut text)).await??;
        Ok(text)
    })
    .await
    .with_context(|| format!("{} to {to}", host.name()))
}

/// Who answers a datagram that a host sends.
async fn udp(host: &Host, to: SocketAddr, mark: Option<u32>) -> Result<String> {
    host.within(async move || {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
        let socket = UdpSocket::bind(any).await?;
        if let Some(mark) = mark {
            socket2::SockRef::from(&socket).set_mark(mark)?;
        }
        socket.connect(to).await?;
        socket.send(b"?").await?;
        let mut text = [0; 64];
        let length = tokio::time::timeout(PATIENCE, socket.recv(&mut text)).await??;
        Ok(String::from_utf8_lossy(&text[..length]).into_owned())
    })
    .await
    .with_context(|| format!("{} to {to}", host.name()))
}

/// Who answers a connection of a user's process.
async fn as_user(host: &Host, uid: &str, to: SocketAddr) -> Result<String> {
    let script = format!("exec cat </dev/tcp/{}/{}", to.ip(), to.port());
    let mut command = host.command("setpriv");
    command.args(["--reuid", uid, "--clear-groups", "timeout", "5", "bash", "-c", &script]);
    // The servers are on this thread: it must not wait.
    let output = tokio::process::Command::from(command).output().await?;
    ensure!(output.status.success(), "{uid} to {to}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// All rules of a host, without what changes by itself.
fn ruleset(host: &Host) -> Result<String> {
    let mut all = host.exec(&["nft", "--stateless", "list", "ruleset"])?;
    for program in ["iptables-save", "ip6tables-save"] {
        let saved = host.exec(&[program])?;
        all.extend(saved.lines().filter(|line| line.starts_with("-A")).map(|line| format!("{program} {line}\n")));
    }
    Ok(all)
}

#[tokio::test]
async fn hosts_of_a_test_reach_each_other() -> Result<()> {
    let Some(net) = Net::new("hosts in network namespaces")? else { return Ok(()) };
    let (caller, callee) = (net.host("caller")?, net.host("callee")?);
    let mut servers = Servers::default();
    servers.tcp(&callee, "[::]:80".parse()?, "here").await?;
    for address in callee.addresses() {
        assert_eq!(tcp(&caller, at(address, 80), None).await?, "here");
    }
    caller.resolv_conf("nameserver 10.77.0.254\n")?;
    assert_eq!(caller.exec(&["cat", "/etc/resolv.conf"])?, "nameserver 10.77.0.254\n");
    let names = [caller.name().to_owned(), callee.name().to_owned()];
    drop((servers, caller, callee, net));
    ensure!(names.iter().all(|name| !Path::new("/run/netns").join(name).exists()), "gone");
    Ok(())
}
