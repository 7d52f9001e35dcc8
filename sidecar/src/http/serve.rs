//! Serves HTTP on one accepted connection: hyper's server, the guard of HTTP/1, limits of HTTP/2, idle time, drain.

use std::{cell::Cell, convert::Infallible, future::Future, pin::pin, rc::Rc, sync::Arc, time::Duration};

use hyper::{
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;

use super::{
    guard::Guard,
    request::proxy,
    strict::{MAX_FIELDS, MAX_HEAD},
};
use crate::{io::Io, upstream::Wire, worker::Conn};

/// Streams that one connection may have open.
const STREAMS: u32 = 256;
/// Windows towards callers.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams that a peer may reset before they were looked at, and that it may make us reset.
const RESETS: usize = 64;

/// Serves HTTP until the connection ends. `head_by`: deadline of the first head, counted from accept.
pub async fn serve(conn: &Rc<Conn>, io: Io, wire: Wire, head_by: Instant) {
    match wire {
        Wire::Http1 => http1(conn, io, head_by).await,
        Wire::Http2 => http2(conn, io).await,
    }
    let tunnel = conn.tunnel.take();
    if let Some(tunnel) = tunnel {
        tunnel.run(conn).await;
    }
}

async fn http1(conn: &Rc<Conn>, io: Io, head_by: Instant) {
    let guard = Guard::new(io, Arc::clone(&conn.signals), conn.read_times(), head_by);
    let service = service_fn(|request| async move { Ok::<_, Infallible>(proxy(conn, request).await) });
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_headers(MAX_FIELDS + 4)
        .max_buf_size(MAX_HEAD + 4096)
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(guard), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let side = conn.worker.path.side(conn.direction());
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = side.draining() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    note(conn, ended);
}

async fn http2(conn: &Rc<Conn>, io: Io) {
    let service = service_fn(|request| {
        let conn = Rc::clone(conn);
        async move { Ok::<_, Infallible>(proxy(&conn, request).await) }
    });
    let connection = http2::Builder::new(LocalExec)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).expect("64 KiB is a small number"))
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let side = conn.worker.path.side(conn.direction());
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = side.draining() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = unused(conn) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    note(conn, ended);
}

/// Ends when the connection has had no request for the keep-alive time.
async fn unused(conn: &Conn) {
    let keep_alive = conn.worker.path.bounds.keep_alive;
    let seen = Cell::new(u64::MAX);
    loop {
        let requests = conn.requests.get();
        if seen.replace(requests) == requests && !conn.signals.is_busy() {
            return;
        }
        tokio::time::sleep(keep_alive).await;
    }
}

fn note(conn: &Conn, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        // Requests have told their own failures; this is about the connection.
        tracing::debug!(peer = %conn.peer, %error, "connection ended");
    }
}

/// Runs hyper's tasks on the worker's own thread.
#[derive(Debug, Clone, Copy)]
pub struct LocalExec;

impl<F: Future + 'static> Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}
