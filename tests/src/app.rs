//! Applications that live in the test, so that a test decides what they do and sees what reached them.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use parking_lot::Mutex;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// The body of an application's answer.
pub type Body = BoxBody<Bytes, Infallible>;

/// A request that reached an application, head only.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Version.
    pub version: http::Version,
    /// Method.
    pub method: http::Method,
    /// Path and query as they came.
    pub uri: String,
    /// Headers.
    pub headers: http::HeaderMap,
}

/// A running application; it ends when dropped, with all of its connections.
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    /// Requests that reached it (of [`App::http`]).
    pub seen: Arc<Mutex<Vec<Seen>>>,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Drop for App {
    fn drop(&mut self) {
        self.tasks.lock().iter().for_each(JoinHandle::abort);
    }
}

impl App {
    /// HTTP/1.1 and HTTP/2 without TLS, whichever the client begins.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn http<F, R>(handler: F) -> Result<Self>
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::http_on(TcpListener::bind("127.0.0.1:0").await?, handler)
    }

    /// The same on a socket of the test's choice.
    ///
    /// # Errors
    /// When it is no bound socket.
    pub fn http_on<F, R>(listener: TcpListener, handler: F) -> Result<Self>
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = seen.clone();
        let mut app = Self::raw_on(listener, move |stream| {
            let (handler, log) = (handler.clone(), log.clone());
            async move {
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    log.lock().push(Seen {
                        version: request.version(),
                        method: request.method().clone(),
                        uri: request.uri().to_string(),
                        headers: request.headers().clone(),
                    });
                    let answer = handler(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                // How a connection ends is for the caller's side of the test to see.
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await;
            }
        })?;
        app.seen = seen;
        Ok(app)
    }

    /// The same as [`App::http`], for HTTP/1.1 byte by byte: reads the heads of requests, and lets the test write.
    ///
    /// `serve` gets the connection and the head of its next request; it ends the connection by returning `None`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn bytes<F, R>(serve: F) -> Result<Self>
    where
        F: Fn(TcpStream, Seen) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Option<TcpStream>> + Send + 'static,
    {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = seen.clone();
        let mut app = Self::raw(move |stream| {
            let (serve, log) = (serve.clone(), log.clone());
            async move {
                let mut stream = Some(stream);
                while let Some(mut open) = stream {
                    let Some(head) = read_head(&mut open).await else { return };
                    log.lock().push(head.clone());
                    stream = serve(open, head).await;
                }
            }
        })
        .await?;
        app.seen = seen;
        Ok(app)
    }

    /// An application that answers each request with 200 and its own `name`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn named(name: &'static str) -> Result<Self> {
        Self::http(move |_| async move { text(StatusCode::OK, name) }).await
    }

    /// An application that sends back what it gets: body, as it comes, and trailers.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn echo() -> Result<Self> {
        Self::http(|request| async move { echo(request) }).await
    }

    /// Whatever `serve` does with each connection.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn raw<F, R>(serve: F) -> Result<Self>
    where
        F: Fn(TcpStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::raw_at(SocketAddr::from(([127, 0, 0, 1], 0)), serve).await
    }

    /// The same at an address of the test's choice.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub async fn raw_at<F, R>(address: SocketAddr, serve: F) -> Result<Self>
    where
        F: Fn(TcpStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Self::raw_on(socket.listen(1024)?, serve)
    }

    /// The same on a socket of the test's choice.
    ///
    /// # Errors
    /// When it is no bound socket.
    pub fn raw_on<F, R>(listener: TcpListener, serve: F) -> Result<Self>
    where
        F: Fn(TcpStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr()?;
        let tasks: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
        let connections = tasks.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut connections = connections.lock();
                connections.retain(|task| !task.is_finished());
                connections.push(tokio::spawn(serve(stream)));
            }
        });
        tasks.lock().push(accepting);
        Ok(Self { address, seen: Arc::default(), tasks })
    }

    /// How many requests reached it.
    pub fn count(&self) -> usize {
        self.seen.lock().len()
    }
}

/// Reads up to the end of a request's head; its body, if it has one, must have come with it.
async fn read_head(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let method = first.next()?.parse().ok()?;
    let uri = first.next()?.to_owned();
    let headers = lines.map_while(|line| line.split_once(": ")).filter_map(|(name, value)| {
        Some((name.parse::<http::HeaderName>().ok()?, http::HeaderValue::from_str(value).ok()?))
    });
    Some(Seen { method, uri, version: http::Version::HTTP_11, headers: headers.collect() })
}

/// A short answer.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed());
    *response.status_mut() = status;
    response
}

/// Sends back a request's body, as it comes, and its trailers.
pub fn echo(request: Request<Incoming>) -> Response<Body> {
    let declared = request.headers().get(http::header::TRAILER).cloned();
    let (frames, stream) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        let mut body = request.into_body();
        // A body that breaks off ends the answer, too.
        while let Some(Ok(frame)) = body.frame().await {
            if frames.send(Ok(frame)).await.is_err() {
                return;
            }
        }
    });
    let stream = http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(stream));
    let mut response = Response::new(BodyExt::boxed(stream));
    if let Some(declared) = declared {
        response.headers_mut().insert(http::header::TRAILER, declared);
    }
    response
}
