//! The application behind every contestant: lean servers on one thread of their own, so that what is measured is the
//! proxies.

mod http1;
mod http2;
mod tcp;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};

/// Bytes of a large transfer.
pub const BULK: usize = 64 << 20;

/// What is answered to everything that asks for nothing else.
pub const SMALL: &str = "The quick brown fox jumps over the lazy dog, and then it does it again.";

/// First byte to the raw port for everything back, itself included.
pub const ECHO: u8 = b'E';

/// First byte to the raw port for [`BULK`] bytes and the end of the connection.
pub const SEND: u8 = b'B';

/// Bytes handed to the kernel at a time in large transfers: they stay in the processor's cache.
pub const STRIDE: usize = 256 << 10;

/// Ports of the application.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// HTTP/1.1: `GET /bulk` has a large answer, `POST` takes a body, all else a small answer. On every loopback address.
    pub http1: SocketAddr,
    /// HTTP/2 without TLS, gRPC included: `/bench.Echo/Unary`, `/bench.Echo/Stream`, all else a small answer.
    pub http2: SocketAddr,
    /// Raw bytes: see [`ECHO`] and [`SEND`].
    pub tcp: SocketAddr,
}

/// Starts it on a thread of its own; it lives as long as the process.
///
/// # Errors
/// When no port can be had.
pub fn start() -> Result<Backend> {
    let open = |ip: Ipv4Addr| -> Result<(std::net::TcpListener, SocketAddr)> {
        // Listening with tokio's backlog, which many connections at once need.
        let listener = std::net::TcpListener::bind((ip, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        Ok((listener, SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
    };
    let (http1, http1_at) = open(Ipv4Addr::UNSPECIFIED)?;
    let (http2, http2_at) = open(Ipv4Addr::LOCALHOST)?;
    let (tcp, tcp_at) = open(Ipv4Addr::LOCALHOST)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("backend".to_owned()).spawn(move || {
        let stride: Arc<[u8]> = vec![b'x'; STRIDE].into();
        runtime.block_on(async move {
            let for_tcp = Arc::clone(&stride);
            tokio::join!(
                accept(http1, move |stream| http1::serve(stream, Arc::clone(&stride))),
                accept(http2, http2::serve),
                accept(tcp, move |stream| tcp::serve(stream, Arc::clone(&for_tcp))),
            )
        });
    })?;
    Ok(Backend { http1: http1_at, http2: http2_at, tcp: tcp_at })
}

async fn accept<F>(listener: std::net::TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let listener = TcpListener::from_std(listener).expect("a listening socket, inside a runtime");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A socket that is already gone shows itself in the next call.
                let _ = stream.set_nodelay(true);
                let connection = serve(stream);
                // How a connection ends is the contestant's choice.
                tokio::spawn(async move { drop(connection.await) });
            }
            // Out of files: wait for some to be closed.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}
