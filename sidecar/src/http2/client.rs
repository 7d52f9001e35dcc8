//! The client side of a connection: many requests at once, each sent and read by whoever asks.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use http::{Method, Request, Response};
use http_body::Body as _;

use super::{
    CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW,
    bell::Bells,
    incoming::{Finished, Received},
    keepalive::KeepAlive,
    outflow::{Outflow, Stopped},
    prepare, put_length,
    watched::{Seen, Watched},
};
use crate::{
    http::{body::Body, incoming::Incoming},
    io::Io,
};

/// Most bytes of an answer's head.
const MAX_HEAD: u32 = 64 * 1024;
/// Streams until the peer has said how many it takes.
const FIRST_STREAMS: usize = 100;
/// Streams that the peer may make us reset.
const RESETS: usize = 1024;

/// One connection. It ends when this is dropped and the last answer was read.
pub struct Client {
    requests: RefCell<SendRequest<Bytes>>,
    /// Requests without an end.
    streams: Rc<Cell<u32>>,
    seen: Rc<Seen>,
    finished: Rc<Finished>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("streams", &self.streams).finish_non_exhaustive()
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// The stream or the connection ended; whether any byte may have gone out since the request was begun.
    Ended {
        /// At least one byte went out.
        sent: bool,
        /// What ended it.
        error: h2::Error,
    },
    /// The caller's body broke off.
    Caller,
}

/// Begins a connection. What is returned with it must run for as long as it is used.
/// # Errors
/// When the stream ends at once.
pub async fn handshake(io: Io) -> Result<(Client, impl Future<Output = ()> + use<>), h2::Error> {
    let (io, seen) = Watched::new(io);
    let (requests, connection) = Builder::new()
        .enable_push(false)
        .initial_max_send_streams(FIRST_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD)
        .max_send_buffer_size(SEND_BUFFER)
        .max_local_error_reset_streams(Some(RESETS))
        .handshake(io)
        .await?;
    let streams = Rc::new(Cell::new(0));
    let finished = Rc::new(Finished::default());
    let client = Client {
        requests: RefCell::new(requests),
        streams: Rc::clone(&streams),
        seen: Rc::clone(&seen),
        finished: Rc::clone(&finished),
    };
    Ok((client, run(connection, streams, seen, finished)))
}

/// The socket has something, or a request has something for it.
const WIRE: usize = 0;
/// A timer has run out.
const TIMER: usize = 1;

/// Drives a connection until it ends.
async fn run(
    mut connection: Connection<Watched, Bytes>,
    streams: Rc<Cell<u32>>,
    seen: Rc<Seen>,
    finished: Rc<Finished>,
) {
    let mut alive = KeepAlive::new(connection.ping_pong(), seen);
    let bells = Bells::<2>::new();
    let ended = poll_fn(|cx| {
        bells.awake();
        finished.clear();
        if bells.heard(TIMER) && alive.poll(&mut bells.context(TIMER), streams.get() > 0).is_ready() {
            return Poll::Ready(Err(None));
        }
        if bells.heard(WIRE)
            && let Poll::Ready(ended) = Pin::new(&mut connection).poll(&mut bells.context(WIRE))
        {
            return Poll::Ready(ended.map_err(Some));
        }
        if !bells.rest(cx) {
            // Others have their turn first.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    });
    match ended.await {
        Ok(()) => {}
        Err(Some(error)) => tracing::debug!(%error, "upstream connection ended"),
        Err(None) => tracing::debug!("an upstream does not answer PING: its connection is given up"),
    }
}

/// One request of a connection; it counts until it is dropped.
#[derive(Debug)]
pub struct Stream(Rc<Client>);

impl Stream {
    /// Takes a place.
    pub fn new(client: &Rc<Client>) -> Self {
        client.streams.set(client.streams.get() + 1);
        Self(Rc::clone(client))
    }

    /// Sends a request and waits for the head of its answer.
    /// # Errors
    /// [`Unanswered`].
    pub async fn exchange(&self, request: Request<()>, body: Body) -> Result<Response<Incoming>, Unanswered> {
        let before = self.0.seen.written.get();
        let mut wait = self.0.begin(request, body).map_err(|error| Unanswered::Ended { sent: false, error })?;
        poll_fn(|cx| wait.poll(cx)).await.map_err(|stopped| match stopped {
            Some(error) => Unanswered::Ended { sent: self.0.seen.written.get() != before, error },
            None => Unanswered::Caller,
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.finished.close();
    }
}

impl Client {
    /// Requests that run.
    pub fn streams(&self) -> u32 {
        self.streams.get()
    }

    /// Whether one more may run at once: of ours and by the peer's own bound.
    pub fn has_room(&self, most: u32) -> bool {
        let streams = self.streams.get();
        streams < most && (streams as usize) < self.requests.borrow().current_max_send_streams()
    }

    /// No request can be begun any more: the peer has said GOAWAY, or the connection has ended.
    pub fn is_closed(&self) -> bool {
        // This handle has no request that waits, so that there is nothing to be woken for.
        let polled = self.requests.borrow_mut().poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(polled, Poll::Ready(Err(_)))
    }

    fn begin(&self, request: Request<()>, body: Body) -> Result<Wait, h2::Error> {
        let mut request = request;
        let empty = body.is_end_stream();
        prepare(request.headers_mut(), true);
        let length = body.size_hint().exact();
        let expected = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
        put_length(request.headers_mut(), length.filter(|length| *length > 0 || expected));
        // A handle of its own: one whose request waits for its turn takes no other.
        let mut requests = self.requests.borrow().clone();
        let (answer, stream) = requests.send_request(request, empty)?;
        let upload = (!empty).then(|| Box::new(Outflow::new(stream, body)));
        Ok(Wait { answer, upload, finished: Rc::clone(&self.finished) })
    }
}

/// Waits for an answer's head, and sends the request's body meanwhile.
struct Wait {
    answer: ResponseFuture,
    upload: Option<Box<Outflow>>,
    finished: Rc<Finished>,
}

impl Wait {
    /// `None`: the caller's body broke off.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<Incoming>, Option<h2::Error>>> {
        if let Some(upload) = &mut self.upload
            && let Poll::Ready(ended) = upload.poll(cx)
        {
            // A peer that wants no more of it may have answered.
            self.upload = None;
            if ended == Err(Stopped::Source) {
                return Poll::Ready(Err(None));
            }
        }
        let (head, stream) = ready!(Pin::new(&mut self.answer).poll(cx)).map_err(Some)?.into_parts();
        let body = if stream.is_end_stream() {
            if self.upload.is_none() {
                self.finished.keep(stream);
            }
            Incoming::Empty
        } else {
            let finished = Some(Rc::clone(&self.finished));
            Incoming::Http2(Received::new(stream, &head.headers, self.upload.take(), finished))
        };
        Poll::Ready(Ok(Response::from_parts(head, body)))
    }
}
