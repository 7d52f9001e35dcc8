//! Serves HTTP on one accepted connection: HTTP/1 by [`crate::http1::server`], HTTP/2 by hyper with its limits, idle time
//! and drain.

use std::{cell::Cell, convert::Infallible, future::Future, pin::pin, rc::Rc, time::Duration};

use hyper::{rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;

use super::{incoming::Incoming, request::proxy};
use crate::{
    http1::{self, strict::MAX_HEAD},
    io::Io,
    upstream::Wire,
    worker::Conn,
};

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
        Wire::Http1 => {
            let rest = http1::server::serve(conn, io, head_by.into_std()).await;
            let tunnel = conn.tunnel.take();
            if let (Some(tunnel), Some(rest)) = (tunnel, rest) {
                Box::pin(tunnel.run(conn, rest)).await;
            }
        }
        Wire::Http2 => Box::pin(http2(conn, io)).await,
    }
}

async fn http2(conn: &Rc<Conn>, io: Io) {
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let conn = Rc::clone(conn);
        async move { Ok::<_, Infallible>(proxy(&conn, request.map(Incoming::Http2)).await) }
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
        if seen.replace(requests) == requests && conn.busy.get() == 0 {
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
