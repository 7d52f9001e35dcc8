//! A TLS port: accepts, shakes hands, and hands requests to a router with the [`Peer`] among their extensions.
//!
//! Everything is bounded: connections, the time of a handshake, of a request's head, of the ending.

use std::{convert::Infallible, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::Service};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use weft_identity::tls::HandshakeFault;

use crate::{body::Lent, certificates::Certificates, metrics::Metrics, peer::Peer};

/// What is the same for HTTP/2 whichever way it was found to be that.
macro_rules! bound_http2 {
    ($builder:expr) => {
        $builder
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_ANSWER)
            .max_concurrent_streams(MAX_STREAMS)
            .max_send_buf_size(MAX_SEND_BUFFER)
            .max_header_list_size(64 * 1024)
            .max_pending_accept_reset_streams(32)
    };
}

/// A port and what answers on it.
#[derive(Debug, Clone)]
pub struct Port {
    /// In logs and metrics: `grpc`, `http`.
    pub name: &'static str,
    /// Most connections at a time; more wait in the listen queue.
    pub max_connections: usize,
    /// What answers.
    pub router: Router,
    /// Whose certificate is shown, as it is at the time of each handshake.
    pub certificates: Arc<Certificates>,
    /// Handshakes and connections are counted.
    pub metrics: Metrics,
}

impl Port {
    /// Serves until `stop`; then says goodbye (GOAWAY), lets requests end, and after [`GOODBYE`] ends all connections.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let port = Arc::new(self);
        let slots = Arc::new(Semaphore::new(port.max_connections));
        let turns = Arc::new(Semaphore::new(HANDSHAKES));
        let mut connections = JoinSet::new();
        loop {
            let slot = tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    reap(ended);
                    continue;
                }
                slot = slots.clone().acquire_owned() => slot.expect("the semaphore is never closed"),
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    let (port, stop, turns) = (port.clone(), stop.clone(), turns.clone());
                    connections.spawn(async move {
                        let _slot = slot;
                        // Boxed at once: what an await gives or takes by value has room in the task as long as it lives.
                        let stream = Box::pin(port.handshake(stream, address, &turns)).await;
                        if let Some(connection) = stream.map(|stream| port.connection(stream, address)) {
                            port.drive(connection, address, stop).await;
                        }
                    });
                }
                // Out of file descriptors, most likely: others must end first.
                Err(error) => {
                    tracing::warn!(port = port.name, %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let all = async {
            while let Some(ended) = connections.join_next().await {
                reap(ended);
            }
        };
        if timeout(GOODBYE, all).await.is_err() {
            tracing::info!(port = port.name, open = connections.len(), "connections that did not end were cut");
            connections.abort_all();
        }
    }

    /// The TLS handshake, when it is this connection's turn. All that a fleet begins at once would be done so late that
    /// its clients have given up, and begin again; in turn, the first are served while the last still wait.
    async fn handshake(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        turns: &Semaphore,
    ) -> Option<TlsStream<TcpStream>> {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%address, %error, "TCP_NODELAY was refused");
        }
        // Only for who has said something: silence costs nothing, and takes up no turn.
        let hello = timeout(HANDSHAKE, stream.readable()).await;
        if !matches!(hello, Ok(Ok(()))) {
            tracing::debug!(port = self.name, %address, "a connection said nothing");
            self.metrics.handshake(self.name, "timeout");
            return None;
        }
        let mut turn = Some(turns.acquire().await.expect("the semaphore is never closed"));
        let acceptor = TlsAcceptor::from(self.certificates.server_config());
        let mut accept = std::pin::pin!(timeout(HANDSHAKE, acceptor.accept(stream)));
        let ended = loop {
            tokio::select! {
                ended = accept.as_mut() => break ended,
                // Who dawdles goes on out of turn.
                () = tokio::time::sleep(TURN), if turn.is_some() => turn = None,
            }
        };
        match ended {
            Ok(Ok(stream)) => {
                self.metrics.handshake(self.name, "ok");
                Some(stream)
            }
            Ok(Err(error)) => {
                let fault = HandshakeFault::from_io(&error);
                tracing::debug!(port = self.name, %address, %error, fault = fault.as_str(), "a TLS handshake failed");
                self.metrics.handshake(self.name, "failed");
                None
            }
            Err(_late) => {
                tracing::debug!(port = self.name, %address, "a TLS handshake took too long");
                self.metrics.handshake(self.name, "timeout");
                None
            }
        }
    }

    /// HTTP over a stream whose handshake is done.
    fn connection(&self, stream: TlsStream<TcpStream>, address: SocketAddr) -> Connection {
        let (_, tls) = stream.get_ref();
        let http2 = tls.alpn_protocol() == Some(b"h2");
        let answers = Answers { router: self.router.clone(), peer: Peer::new(address, tls.peer_certificates()) };
        let io = TokioIo::new(stream);
        if http2 {
            // Not by way of the other: room for every version would be kept.
            let mut builder = http2::Builder::new(TokioExecutor::new());
            Connection::Http2(Box::pin(bound_http2!(builder).serve_connection(io, answers)))
        } else {
            Connection::Any(Box::pin(builder().serve_connection(io, answers).into_owned()))
        }
    }

    async fn drive(&self, connection: Connection, address: SocketAddr, stop: CancellationToken) {
        let _connected = self.metrics.connection(self.name);
        let ended = match connection {
            Connection::Http2(connection) => drive(connection, http2::Connection::graceful_shutdown, stop).await,
            Connection::Any(connection) => drive(connection, auto::Connection::graceful_shutdown, stop).await,
        };
        if let Err(error) = ended {
            tracing::debug!(port = self.name, %address, %error, "a connection broke");
        }
    }
}

type Io = TokioIo<TlsStream<TcpStream>>;

/// A connection, by what the client said in its handshake that it speaks.
enum Connection {
    Http2(Pin<Box<http2::Connection<Io, Answers, TokioExecutor>>>),
    /// It did not say, or HTTP/1.1.
    Any(Pin<Box<auto::Connection<'static, Io, Answers, TokioExecutor>>>),
}

/// Until the connection ends, or has been asked to when `stop` came.
async fn drive<C, E>(
    mut connection: Pin<Box<C>>,
    goodbye: fn(Pin<&mut C>),
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    C: Future<Output = Result<(), E>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            goodbye(connection.as_mut());
            connection.await
        }
    };
    ended.map_err(Into::into)
}

/// The router behind one connection.
struct Answers {
    router: Router,
    peer: Peer,
}

impl Service<Request<Incoming>> for Answers {
    type Response = Response<Body>;
    type Error = Infallible;
    /// Boxed, so that it is gone when the answer is there: streams are answered at once and live on for long.
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer.clone());
        let answer = self.router.clone().oneshot(request.map(Body::new));
        Box::pin(async move { Ok(answer.await?.map(|body| Body::new(Lent::new(body)))) })
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(64 * 1024);
    bound_http2!(builder.http2());
    builder
}

fn reap(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task panicked; the others live");
    }
}

/// For the TLS handshake, from accept.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For the head of an HTTP/1 request.
const HEAD: Duration = Duration::from_secs(10);
/// A silent HTTP/2 connection is probed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// And given up when the probe is not answered.
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(10);
/// Of a stream, waiting for the client to take it.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Handshakes at a time. Each is a few milliseconds of a processor and a round trip or two.
const HANDSHAKES: usize = 64;
/// How long one of them may hold up others.
const TURN: Duration = Duration::from_millis(250);
/// Streams of one connection. A sidecar uses four.
const MAX_STREAMS: u32 = 128;
/// For open requests when the process ends.
pub const GOODBYE: Duration = Duration::from_secs(5);
/// After an error of accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
