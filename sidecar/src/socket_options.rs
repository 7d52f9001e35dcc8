//! What every connection's socket is set to.

use std::{net::SocketAddr, sync::LazyLock, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Congestion control of connections within the host. Every kernel has it, and everybody may use it.
const WITHIN_HOST: &[u8] = b"reno";

/// Whether the host's congestion control paces what is sent, as BBR does.
static PACES: LazyLock<bool> = LazyLock::new(|| {
    let chosen = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    chosen.is_ok_and(|chosen| chosen.starts_with("bbr"))
});

/// No delay for small writes, probes that notice a peer that vanished, and no pacing where there is no network: towards
/// a peer on the same host it costs a timer for a few segments, which are never dropped, and a third of the throughput.
pub fn prepare(tcp: &TcpStream, peer: SocketAddr) {
    const IDLE: Duration = Duration::from_secs(30);
    let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(Duration::from_secs(10)).with_retries(3);
    let socket = SockRef::from(tcp);
    let mut set = tcp.set_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive));
    if *PACES && set.is_ok() && within_host(tcp, peer) {
        set = socket.set_tcp_congestion(WITHIN_HOST);
    }
    if let Err(error) = set {
        // The connection works without; it was most likely closed already, which its first use will tell.
        tracing::debug!(%error, "socket options");
    }
}

fn within_host(tcp: &TcpStream, peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback() || tcp.local_addr().is_ok_and(|own| own.ip() == peer.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_within_the_host_is_not_paced() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (connected, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), async {
            listener.accept().await.unwrap()
        });
        let connected = connected.unwrap();
        let (accepted, peer) = accepted;
        prepare(&accepted, peer);
        prepare(&connected, listener.local_addr().unwrap());
        for tcp in [&accepted, &connected] {
            assert!(tcp.nodelay().unwrap());
            let socket = SockRef::from(tcp);
            assert!(socket.keepalive().unwrap());
            let control = socket.tcp_congestion().unwrap();
            assert!(!control.starts_with(b"bbr"), "{}", String::from_utf8_lossy(&control));
        }
    }
}
