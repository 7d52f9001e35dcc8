//! Where a redirected connection was meant to go, as the kernel remembers it.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::socket::{
        getsockopt,
        sockopt::{Ip6tOriginalDst, OriginalDst},
    },
};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::mark;

/// The destination before the redirect. `None`: nothing was redirected, the caller meant the address that it reached.
pub(super) fn destination(tcp: &TcpStream) -> Option<SocketAddr> {
    let reached = match tcp.local_addr() {
        Ok(reached) => canonical(reached),
        Err(error) => {
            tracing::debug!(%error, "a connection without an address");
            return None;
        }
    };
    let meant = match reached.ip() {
        IpAddr::V4(_) => getsockopt(tcp, OriginalDst).map(|meant| {
            let ip = Ipv4Addr::from(u32::from_be(meant.sin_addr.s_addr));
            SocketAddr::new(ip.into(), u16::from_be(meant.sin_port))
        }),
        IpAddr::V6(_) => getsockopt(tcp, Ip6tOriginalDst).map(|meant| {
            let ip = Ipv6Addr::from(meant.sin6_addr.s6_addr);
            SocketAddr::new(ip.into(), u16::from_be(meant.sin6_port))
        }),
    };
    match meant {
        Ok(meant) => Some(canonical(meant)).filter(|meant| *meant != reached),
        // The kernel does not follow connections here, or not this one: no rule can have redirected it.
        Err(Errno::ENOENT | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => None,
        Err(error) => {
            tracing::warn!(%error, %reached, "the original destination cannot be read; taken as a call to the sidecar");
            None
        }
    }
}

/// IPv4 as IPv4, also on a socket that takes both, and without what belongs to one interface only.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Connections that this process passes on to their original destination: one of them that comes back in means that the
/// rules do not let the sidecar's own traffic out.
#[derive(Debug, Clone, Default)]
pub struct Passing(Arc<Mutex<HashSet<SocketAddr>>>);

/// One connection that is being passed on.
#[derive(Debug)]
pub(super) struct Passed {
    own: SocketAddr,
    all: Passing,
}

impl Passing {
    /// Whether a connection that came in from this address is one of our own.
    pub(super) fn is_own(&self, peer: SocketAddr) -> bool {
        self.0.lock().contains(&canonical(peer))
    }

    /// Takes note of our end of a connection.
    pub(super) fn note(&self, own: SocketAddr) -> Passed {
        let own = canonical(own);
        self.0.lock().insert(own);
        Passed { own, all: self.clone() }
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.own);
    }
}

/// Closes a connection the hard way, as a destination that refuses it does.
pub(super) fn reset(tcp: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(tcp).set_linger(Some(std::time::Duration::ZERO)) {
        tracing::debug!(%error, "closed the soft way");
    }
}

/// Dials so that our end is known before the other side may have taken the connection: see [`Passing`].
/// # Errors
/// When there is no connection.
pub(super) async fn dial(passing: &Passing, to: SocketAddr) -> io::Result<(TcpStream, Passed)> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    mark::prepare(&socket)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let own = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let passed = passing.note(own);
    let tcp = TcpStream::from_std(socket.into())?;
    tcp.writable().await?;
    match tcp.take_error()? {
        Some(error) => Err(error),
        None => Ok((tcp, passed)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_nobody_redirected_means_what_it_reached() {
        for ip in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(ip).await else { continue };
            let _caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            assert_eq!(destination(&accepted), None);
        }
    }

    #[tokio::test]
    async fn our_own_end_is_known_while_the_connection_lives() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let passing = Passing::default();
        let (tcp, passed) = dial(&passing, listener.local_addr().unwrap()).await.unwrap();
        let (_accepted, peer) = listener.accept().await.unwrap();
        assert!(passing.is_own(peer));
        assert_eq!(tcp.local_addr().unwrap(), peer);
        drop(passed);
        assert!(!passing.is_own(peer));
    }

    #[tokio::test]
    async fn a_refused_connection_is_none() {
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let passing = Passing::default();
        let error = dial(&passing, nobody).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(passing.0.lock().is_empty());
    }
}
