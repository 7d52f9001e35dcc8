//! Serves HTTP on one accepted connection, by [`crate::http1::server`] or [`crate::http2::server`].

use std::rc::Rc;

use tokio::time::Instant;

use crate::{clock, http1, http2, io::Io, upstream::Wire, worker::Conn};

/// Serves HTTP until the connection ends. `head_by`: deadline of the first head, counted from accept.
pub async fn serve(conn: &Rc<Conn>, io: Io, wire: Wire, head_by: Instant) {
    match wire {
        Wire::Http1 => {
            let rest = clock::steady(http1::server::serve(conn, io, head_by.into_std())).await;
            let tunnel = conn.tunnel.take();
            if let (Some(tunnel), Some(rest)) = (tunnel, rest) {
                Box::pin(tunnel.run(conn, rest)).await;
            }
        }
        Wire::Http2 => Box::pin(http2::server::serve(conn, io, head_by)).await,
    }
}
