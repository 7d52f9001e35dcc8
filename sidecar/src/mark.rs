//! The mark on the sidecar's own connections, by which rules let them pass.
//!
//! Whether this process may set it is found out once, at start. Without the right to, and in explicit mode, connections are
//! made without one; rules then tell the sidecar by its user.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::atomic::{AtomicU32, Ordering},
};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::settings::Transparent;

/// What is set; 0: nothing. Of the process, as the right to set it is.
static MARK: AtomicU32 = AtomicU32::new(0);

/// Finds out whether connections are marked. To be called before the first one.
pub fn init(transparent: &Transparent) {
    let Some(mark) = transparent.mark.filter(|_| transparent.on) else { return };
    match Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|socket| socket.set_mark(mark)) {
        Ok(()) => MARK.store(mark, Ordering::Relaxed),
        Err(error) => tracing::info!(
            %error,
            uid = nix::unistd::geteuid().as_raw(),
            "own packets have no mark, which needs CAP_NET_ADMIN: rules must let this user's pass"
        ),
    }
}

/// Marks a socket that is about to connect.
///
/// # Errors
/// Of the kernel.
pub fn prepare(socket: &impl AsFd) -> io::Result<()> {
    match MARK.load(Ordering::Relaxed) {
        0 => Ok(()),
        mark => SockRef::from(socket).set_mark(mark),
    }
}

/// Connects, with the mark if there is one.
///
/// # Errors
/// Of the kernel.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    if MARK.load(Ordering::Relaxed) == 0 {
        return TcpStream::connect(address).await;
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    prepare(&socket)?;
    socket.connect(address).await
}
