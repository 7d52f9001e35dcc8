//! Callers: what an application does with its sidecar.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Longer than anything that a test expects to succeed takes.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Trailers, empty when there were none.
    pub trailers: HeaderMap,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The code in `weft-reason`, empty when the answer is the application's own.
    pub fn reason(&self) -> String {
        let value = self.headers.get("weft-reason").or_else(|| self.trailers.get("weft-reason"));
        let text = value.and_then(|value| value.to_str().ok()).unwrap_or_default();
        text.split(';').next().unwrap_or_default().trim().to_owned()
    }
}

/// `GET path` of `host` through the sidecar at `proxy`, on a connection of its own.
///
/// # Errors
/// When no answer comes.
pub async fn get(proxy: SocketAddr, host: &str, path: &str) -> Result<Answer> {
    send(proxy, Request::get(path).header(header::HOST, host).body(Full::default())?).await
}

/// One HTTP/1.1 request on a connection of its own.
///
/// # Errors
/// When no answer comes.
pub async fn send(proxy: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer> {
    Http1::connect(proxy).await?.send(request).await
}

/// A kept-alive HTTP/1.1 connection.
pub struct Http1(http1::SendRequest<Full<Bytes>>);

impl Http1 {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(proxy: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(proxy).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        Ok(Self(sender))
    }

    /// Sends a request and reads the answer to its end.
    ///
    /// # Errors
    /// When no answer comes in [`PATIENCE`].
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let exchange = async {
            self.0.ready().await?;
            read(self.0.send_request(request).await?).await
        };
        tokio::time::timeout(PATIENCE, exchange).await.context("no answer in time")?
    }

    /// `GET path` of `host`.
    ///
    /// # Errors
    /// As [`Http1::send`].
    pub async fn get(&mut self, host: &str, path: &str) -> Result<Answer> {
        self.send(Request::get(path).header(header::HOST, host).body(Full::default())?).await
    }
}

/// An HTTP/2 connection with prior knowledge.
#[derive(Clone)]
pub struct Http2(pub http2::SendRequest<Full<Bytes>>);

impl Http2 {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(proxy: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(proxy).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// Sends a request (absolute URI) and reads the answer to its end.
    ///
    /// # Errors
    /// When no answer comes in [`PATIENCE`].
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let exchange = async {
            self.0.ready().await?;
            read(self.0.send_request(request).await?).await
        };
        tokio::time::timeout(PATIENCE, exchange).await.context("no answer in time")?
    }
}

async fn read(response: http::Response<hyper::body::Incoming>) -> Result<Answer> {
    let (parts, body) = response.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    Ok(Answer { status: parts.status, headers: parts.headers, body: collected.to_bytes(), trailers })
}

/// Writes raw bytes and reads until the other side closes: for what no HTTP client would send.
///
/// # Errors
/// When the other side neither answers nor closes in [`PATIENCE`].
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(bytes).await?;
        let mut answer = Vec::new();
        // A reset after the answer is an end too.
        let _ = stream.read_to_end(&mut answer).await;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(PATIENCE, exchange).await.context("neither answer nor end in time")?
}
