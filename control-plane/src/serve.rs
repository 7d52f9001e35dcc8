//! A TLS port: accepts, shakes hands, and hands requests to a router with the [`Peer`] among their extensions.
//!
//! Everything is bounded: connections, the time of a handshake, of a request's head, of the ending.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::{Request, Response};
use hyper::body::Incoming;
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

use crate::{certificates::Certificates, metrics::Metrics, peer::Peer};

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
                        if let Some(stream) = Box::pin(port.handshake(stream, address, &turns)).await {
                            Box::pin(port.connection(stream, address, stop)).await;
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

    async fn connection(&self, stream: TlsStream<TcpStream>, address: SocketAddr, stop: CancellationToken) {
        let _connected = self.metrics.connection(self.name);
        let peer = Peer::new(address, stream.get_ref().1.peer_certificates());
        let router = self.router.clone();
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            answer(router.clone(), request)
        });
        let builder = builder();
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(port = self.name, %address, %error, "a connection broke");
        }
    }
}

async fn answer(router: Router, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    router.oneshot(request.map(Body::new)).await
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(64 * 1024)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_ANSWER)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_header_list_size(64 * 1024)
        .max_pending_accept_reset_streams(32);
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
