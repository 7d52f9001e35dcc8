//! A connection's first bytes: waited for, looked at, put back.

use std::{rc::Rc, time::Instant as Clock};

use bytes::BytesMut;
use futures_util::future::MaybeDone;
use tokio::{
    io::AsyncReadExt,
    time::{Instant, timeout_at},
};

use crate::{
    detect::{Detected, detect},
    http::serve::serve,
    io::Io,
    reason::Reason,
    record::Record,
    upstream::Wire,
    worker::Conn,
};

/// A stream and what its first bytes say.
pub(super) struct Sniffed {
    pub(super) io: Io,
    pub(super) found: Detected,
    /// The caller has ended the stream already.
    pub(super) closed: bool,
    /// Not one byte came.
    pub(super) empty: bool,
    /// Nor will it for now: the time is over.
    silent: bool,
}

impl Sniffed {
    /// It speaks HTTP.
    pub(super) fn is_http(&self) -> bool {
        matches!(self.found, Detected::Http1 | Detected::Http2)
    }
}

/// Reads until the first bytes tell what they are, or the time is over. What was read is put back.
pub(super) async fn sniff(mut io: Io, by: Instant) -> Sniffed {
    /// More than detection ever needs.
    const MOST: usize = 4096;
    let mut read = BytesMut::with_capacity(1024);
    let (mut found, mut closed) = (Detected::More, false);
    while found == Detected::More && read.len() < MOST && !closed {
        match timeout_at(by, io.read_buf(&mut read)).await {
            Err(_elapsed) => break,
            Ok(Ok(more)) if more > 0 => found = detect(&read),
            Ok(Ok(_) | Err(_)) => closed = true,
        }
    }
    let empty = read.is_empty();
    let silent = empty && !closed;
    Sniffed { io: io.rewound(read.freeze()), found, closed, empty, silent }
}

/// HTTP of the version that its first bytes tell.
pub(super) async fn http(conn: &Rc<Conn>, io: Io, head_by: Instant) {
    let sniffed = sniff(io, head_by).await;
    http_or_refuse(conn, sniffed, head_by).await;
}

pub(super) async fn http_or_refuse(conn: &Rc<Conn>, sniffed: Sniffed, head_by: Instant) {
    let reason = match sniffed.found {
        Detected::Http1 => return serve(conn, sniffed.io, Wire::Http1, head_by).await,
        Detected::Http2 => return serve(conn, sniffed.io, Wire::Http2, head_by).await,
        // Nothing or half a request line came; closing is all that is due.
        Detected::More if sniffed.closed => return,
        Detected::More => Reason::HeaderTimeout,
        // An odd method or version is refused in HTTP.
        Detected::Opaque => return serve(conn, sniffed.io, Wire::Http1, head_by).await,
        Detected::Tls => Reason::ClientProtocolError,
    };
    let record = Record::tcp(conn);
    record.fail(reason, Some("not HTTP"));
    record.finish();
}

/// Refuses a connection; a caller that speaks HTTP is told so in HTTP. `by`: how long its first bytes are waited for.
pub(super) async fn refuse(conn: &Rc<Conn>, io: Io, reason: Reason, detail: Option<&str>, by: Instant) {
    conn.refuse.set(Some(reason));
    let sniffed = sniff(io, by).await;
    if sniffed.is_http() {
        return http_or_refuse(conn, sniffed, by).await;
    }
    let record = Record::tcp(conn);
    record.fail(reason, detail);
    record.finish();
}

/// Waits for the caller's first bytes while the other side is being dialed. Who speaks first decides; a caller that is
/// silent waits for the server to speak.
pub(super) async fn first_bytes<T, D: Future<Output = T>>(
    conn: &Conn,
    io: Io,
    port: u16,
    dialing: D,
) -> (Sniffed, impl Future<Output = T>) {
    let began = Clock::now();
    let mut dialing = Box::pin(futures_util::future::maybe_done(dialing));
    let sniffing = sniff(io, Instant::now() + conn.worker.path.bounds.detection);
    let mut sniffing = Box::pin(sniffing);
    let sniffed = loop {
        tokio::select! {
            biased;
            sniffed = &mut sniffing => break sniffed,
            () = &mut dialing, if matches!(*dialing, MaybeDone::Future(_)) => {}
        }
    };
    drop(sniffing);
    conn.worker.path.metrics.detected(port, began.elapsed(), sniffed.silent);
    let dialed = async move {
        dialing.as_mut().await;
        dialing.as_mut().take_output().expect("what was awaited is done")
    };
    (sniffed, dialed)
}
