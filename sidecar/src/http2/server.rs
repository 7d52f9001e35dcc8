//! The server side of a connection: its requests, all in the task of the connection.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use h2::{
    RecvStream,
    server::{Builder, Connection, SendResponse},
};
use http::{Method, Request, Response, header};
use http_body::Body as _;
use tokio::time::Instant;

use super::{
    CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW, bell::Bells, incoming::Received, keepalive::KeepAlive,
    outflow::Outflow, prepare, put_length, watched::Watched,
};
use crate::{
    alarm::Borrowed,
    clock::{self, Steady},
    http::{body::Body, date, incoming::Incoming, request::proxy},
    http1::strict::MAX_HEAD,
    io::Io,
    worker::Conn,
};

/// Streams that one connection may have open.
const STREAMS: u32 = 256;
/// Streams that a peer may reset before they were looked at, and that it may make us reset.
const RESETS: usize = 64;
/// So often a connection and its requests take turns before others have theirs.
const TURNS: u32 = 8;
/// So often requests that can go on do so before what they have said goes out.
const PASSES: u32 = 8;

/// Serves requests until the connection ends. `preface_by`: deadline of the caller's first bytes.
pub async fn serve(conn: &Rc<Conn>, io: Io, preface_by: Instant) {
    let (io, seen) = Watched::new(io);
    let handshake = Builder::new()
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).expect("64 KiB is a small number"))
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(Some(RESETS))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(io);
    let mut h2 = match tokio::time::timeout_at(preface_by, handshake).await {
        Ok(Ok(h2)) => h2,
        Ok(Err(error)) => return tracing::debug!(peer = %conn.peer, %error, "no HTTP/2"),
        Err(_elapsed) => return tracing::debug!(peer = %conn.peer, "no HTTP/2 in time"),
    };
    let alive = KeepAlive::new(h2.ping_pong(), seen);
    let leaving = pin!(leaving(conn));
    let mut line =
        Line { conn, h2, requests: FuturesUnordered::new(), alive, leaving: Some(leaving), bells: Bells::new() };
    if let Err(error) = poll_fn(|cx| line.poll(cx)).await {
        // Requests have told their own failures; this is about the connection.
        tracing::debug!(peer = %conn.peer, %error, "connection ended");
    }
}

/// The socket has something, or a request has something for it.
const WIRE: usize = 0;
/// A request can go on.
const WORK: usize = 1;
/// A timer has run out, or this side drains.
const TIMER: usize = 2;

/// A connection with its requests.
struct Line<'l, L> {
    conn: &'l Rc<Conn>,
    h2: Connection<Watched, Bytes>,
    /// In boxes: what is large is moved once, not with everything that is made around it.
    requests: FuturesUnordered<Steady<Pin<Box<dyn Future<Output = ()>>>>>,
    alive: KeepAlive,
    /// Ends when no more requests are to come; `None`: the caller was told so.
    leaving: Option<Pin<&'l mut L>>,
    bells: Bells<3>,
}

impl<L: Future<Output = ()>> Line<'_, L> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.bells.awake();
        for _ in 0..TURNS {
            if self.bells.heard(TIMER) && self.poll_timer().is_ready() {
                tracing::debug!("a caller does not answer PING: its connection is given up");
                return Poll::Ready(Ok(()));
            }
            if self.bells.heard(WIRE) {
                // First all that has come, so that what it is answered goes out together.
                while let Poll::Ready(next) = self.h2.poll_accept(&mut self.bells.context(WIRE)) {
                    match next {
                        Some(Ok((request, respond))) => {
                            let request = one(Rc::clone(self.conn), request, respond);
                            self.requests.push(Steady(Box::pin(request)));
                            self.bells.ring(WORK);
                        }
                        Some(Err(error)) => return Poll::Ready(Err(error)),
                        None => return Poll::Ready(Ok(())),
                    }
                }
            }
            // Then all that can go on with it.
            let mut passes = 0;
            while passes < PASSES && self.bells.heard(WORK) {
                while let Poll::Ready(Some(())) = self.requests.poll_next_unpin(&mut self.bells.context(WORK)) {}
                passes += 1;
            }
            if self.bells.rest(cx) {
                return Poll::Pending;
            }
            if !tokio::task::coop::has_budget_remaining() {
                break;
            }
        }
        // Others have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready when the caller is dead.
    fn poll_timer(&mut self) -> Poll<()> {
        let cx = &mut self.bells.context(TIMER);
        if let Some(leaving) = &mut self.leaving
            && leaving.as_mut().poll(cx).is_ready()
        {
            self.leaving = None;
            self.h2.graceful_shutdown();
            self.bells.ring(WIRE);
        }
        self.alive.poll(cx, true)
    }
}

/// Ends when this side drains, or the connection has had no request for the keep-alive time.
async fn leaving(conn: &Conn) {
    tokio::select! {
        biased;
        () = conn.worker.path.side(conn.direction()).draining() => {}
        () = unused(conn) => {}
    }
}

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

/// One request, to the last byte of its answer. Dropped, it resets its stream.
async fn one(conn: Rc<Conn>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let head = *request.method() == Method::HEAD;
    let (parts, stream) = request.into_parts();
    let body = if stream.is_end_stream() {
        Incoming::Empty
    } else {
        Incoming::Http2(Received::new(stream, &parts.headers, None, None))
    };
    let answer = {
        let mut answering = pin!(proxy(&conn, Request::from_parts(parts, body)));
        poll_fn(|cx| {
            if let Poll::Ready(answer) = answering.as_mut().poll(cx) {
                return Poll::Ready(Some(answer));
            }
            // A caller that wants no answer any more must be noticed.
            respond.poll_reset(cx).map(|_reason| None)
        })
        .await
    };
    let Some(answer) = answer else { return };
    let (answer, body) = http2(answer);
    let empty = head || body.is_end_stream();
    match respond.send_response(answer, empty) {
        // Where it went to is gone, or it cannot be said in HTTP/2.
        Err(error) => {
            tracing::debug!(%error, "an answer cannot be sent");
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
        }
        Ok(_) if empty => {}
        Ok(stream) => send_body(&conn, Outflow::new(stream, body)).await,
    }
}

/// An answer as it is said in HTTP/2.
fn http2(answer: Response<Body>) -> (Response<()>, Body) {
    let (mut head, body) = answer.into_parts();
    if !head.headers.contains_key(header::DATE) {
        date::with_now(|now| drop(head.headers.insert(header::DATE, now.clone())));
    }
    prepare(&mut head.headers, false);
    if !body.is_end_stream() {
        put_length(&mut head.headers, body.size_hint().exact());
    }
    (Response::from_parts(head, ()), body)
}

/// Sends a body. A caller that takes nothing for too long gets no more of it.
async fn send_body(conn: &Conn, mut body: Outflow) {
    let idle = conn.worker.path.bounds.stream_idle;
    let mut alarm = None;
    let mut blocked: Option<(u64, std::time::Instant)> = None;
    poll_fn(|cx| {
        // However it ended: the answer's record knows, and what has to be reset was.
        if body.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !body.is_blocked() {
            blocked = None;
            return Poll::Pending;
        }
        let since = match blocked {
            Some((pieces, since)) if pieces == body.pieces => since,
            _ => blocked.insert((body.pieces, clock::now())).1,
        };
        let alarm: &mut Borrowed = alarm.get_or_insert_with(|| conn.worker.alarms.take());
        alarm.poll(cx, since + idle)
    })
    .await;
}
