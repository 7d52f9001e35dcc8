//! Ports of loopback for programs that must be told theirs beforehand.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

/// A port that is held until dropped: nobody is given it by chance, and a program that sets SO_REUSEPORT can have it.
#[derive(Debug)]
pub struct Reserved {
    /// The port's address.
    pub address: SocketAddr,
    // Bound and never listening, so that no connection comes here.
    _socket: Socket,
}

impl Reserved {
    /// Reserves a port.
    ///
    /// # Errors
    /// When there is none.
    pub fn new() -> io::Result<Self> {
        // Without SO_REUSEADDR: with it on both sides, whoever asks for this very port would get it.
        Self::of(bound(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false)?)
    }

    /// Reserves this port: for a process that has ended and will come back to it.
    ///
    /// # Errors
    /// When somebody has it.
    pub fn at(address: SocketAddr) -> io::Result<Self> {
        // Connections of the process that has ended may linger.
        Self::of(bound(address, true)?)
    }

    fn of(socket: Socket) -> io::Result<Self> {
        let address = socket.local_addr()?.as_socket().expect("a TCP socket has an IP address");
        Ok(Self { address, _socket: socket })
    }
}

/// Listens on a port, reserved or not.
///
/// # Errors
/// When somebody has it.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bound(address, true)?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn bound(address: SocketAddr, reuse_address: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(reuse_address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_serves_whoever_was_meant_and_nobody_by_chance() {
        let reserved = Reserved::new().expect("a port");
        assert!(TcpListener::bind(reserved.address).is_err(), "a program that does not ask to share it");
        let listener = listen(reserved.address).expect("the one that was meant");
        listener.set_nonblocking(false).expect("a flag");
        let client = std::thread::spawn(move || std::net::TcpStream::connect(reserved.address));
        assert!(listener.accept().is_ok());
        assert!(client.join().expect("no panic").is_ok());
    }
}
