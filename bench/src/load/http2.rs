//! HTTP/2 with prior knowledge, and gRPC on it.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderValue, Method, Request, StatusCode, Version};
use tokio::{net::TcpStream, task::AbortHandle};

use super::{Caller, http1::Target};

/// Window of streams and connections, bytes: never what holds up a small message.
pub const WINDOW: u32 = 1 << 20;

/// A gRPC message of 64 bytes: not compressed, its length, its bytes.
const MESSAGE: &[u8] = b"\0\0\0\0\x40................................................................";

/// A connection that several callers share; its driver ends with the last of them.
struct Shared {
    sender: SendRequest<Bytes>,
    driver: std::sync::Arc<Driver>,
}

struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Clone for Shared {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), driver: std::sync::Arc::clone(&self.driver) }
    }
}

impl Shared {
    async fn open(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(target.address).await.context("connect")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .enable_push(false)
            .handshake(stream)
            .await?;
        // What ends the connection fails the calls on it.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, driver: std::sync::Arc::new(Driver(driver.abort_handle())) })
    }

    async fn send(&mut self, request: &Request<()>, end: bool) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        let mut ready = self.sender.clone().ready().await.context("the connection")?;
        Ok(ready.send_request(request.clone(), end)?)
    }
}

fn request(target: &Target, method: Method, path: &str) -> Result<Request<()>> {
    let uri = format!("http://{}{path}", target.authority);
    Ok(Request::builder().method(method).uri(uri).version(Version::HTTP_2).header("user-agent", "bench").body(())?)
}

fn grpc(target: &Target, path: &str) -> Result<Request<()>> {
    let mut request = request(target, Method::POST, path)?;
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    Ok(request)
}

/// What a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A GET.
    Get,
    /// A gRPC call with one small message each way.
    Unary,
    /// One gRPC call, and on it message after message, each answered before the next.
    Stream,
}

/// Callers on `connections` connections, `streams` on each.
///
/// # Errors
/// When a connection or a call cannot be had.
pub async fn callers(target: &Target, kind: Kind, connections: usize, streams: usize) -> Result<Vec<Stream>> {
    let request = match kind {
        Kind::Get => request(target, Method::GET, &target.path)?,
        Kind::Unary => grpc(target, "/bench.Echo/Unary")?,
        Kind::Stream => grpc(target, "/bench.Echo/Stream")?,
    };
    let mut callers = Vec::with_capacity(connections * streams);
    for _ in 0..connections {
        let shared = Shared::open(target).await?;
        for _ in 0..streams {
            callers.push(Stream { shared: shared.clone(), request: request.clone(), kind, open: None });
        }
    }
    Ok(callers)
}

/// One caller.
pub struct Stream {
    shared: Shared,
    request: Request<()>,
    kind: Kind,
    open: Option<(SendStream<Bytes>, RecvStream)>,
}

impl Caller for Stream {
    async fn call(&mut self) -> Result<()> {
        match self.kind {
            Kind::Get => self.get().await,
            Kind::Unary => self.unary().await,
            Kind::Stream => self.message().await,
        }
    }
}

impl Stream {
    async fn get(&mut self) -> Result<()> {
        let (response, _) = self.shared.send(&self.request, true).await?;
        let response = response.await?;
        ensure!(response.status() == StatusCode::OK, "answered {}", response.status());
        let length = drain(&mut response.into_body()).await?;
        ensure!(length == crate::backend::SMALL.len(), "the answer has {length} bytes");
        Ok(())
    }

    async fn unary(&mut self) -> Result<()> {
        let (response, mut send) = self.shared.send(&self.request, false).await?;
        send.send_data(Bytes::from_static(MESSAGE), true)?;
        let response = response.await?;
        ensure!(response.status() == StatusCode::OK, "answered {}", response.status());
        let mut body = response.into_body();
        let length = drain(&mut body).await?;
        let trailers = body.trailers().await?.context("no trailers")?;
        let status = trailers.get("grpc-status").context("no grpc-status")?;
        ensure!(status == "0", "grpc-status {status:?}");
        ensure!(length == MESSAGE.len(), "the answer has {length} bytes");
        Ok(())
    }

    /// One message there and back; the first one begins the call.
    async fn message(&mut self) -> Result<()> {
        let body = match &mut self.open {
            Some((send, body)) => {
                send.send_data(Bytes::from_static(MESSAGE), false)?;
                body
            }
            None => {
                let (response, mut send) = self.shared.send(&self.request, false).await?;
                send.send_data(Bytes::from_static(MESSAGE), false)?;
                let response = response.await?;
                ensure!(response.status() == StatusCode::OK, "answered {}", response.status());
                &mut self.open.insert((send, response.into_body())).1
            }
        };
        let mut left = MESSAGE.len();
        while left > 0 {
            let chunk = body.data().await.context("the call ended")??;
            body.flow_control().release_capacity(chunk.len())?;
            left = left.checked_sub(chunk.len()).context("more came back than was sent")?;
        }
        Ok(())
    }
}

async fn drain(body: &mut RecvStream) -> Result<usize> {
    let mut length = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        length += chunk.len();
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_has_the_length_that_it_says() {
        assert_eq!(MESSAGE.len(), 5 + usize::from(MESSAGE[4]));
    }
}
