//! The application behind every contestant: small answers, and one large one.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

/// Bytes of the answer to `/bulk`.
pub const BULK: usize = 64 << 20;

/// Answer to everything else.
pub const SMALL: &str = "The quick brown fox jumps over the lazy dog, and then it does it again.";

/// Starts it on a thread of its own; it lives as long as the process.
///
/// # Errors
/// When no port can be had.
pub fn start() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("backend".to_owned()).spawn(move || {
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
            let bulk = Bytes::from(vec![b'x'; BULK]);
            while let Ok((stream, _)) = listener.accept().await {
                // A socket that is already gone shows itself in the next call.
                let _ = stream.set_nodelay(true);
                let bulk = bulk.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let body = if request.uri().path() == "/bulk" {
                            bulk.clone()
                        } else {
                            Bytes::from_static(SMALL.as_bytes())
                        };
                        async move { Ok::<_, Infallible>(Response::new(Full::new(body))) }
                    });
                    // How a connection ends is the contestant's choice.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    })?;
    Ok(address)
}
