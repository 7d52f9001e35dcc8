//! The server side of one HTTP/1 connection: heads in, answers out, deadlines of reading, idle time, drain.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, Version, header, request::Parts};
use http_body::{Body as _, Frame};

use super::{
    channel::Channel,
    chunk::Extensions,
    client::put_frame,
    decode::{Decoder, Piece},
    head,
    strict::{Flaw, Follows, Scan, Scanned},
};
use crate::{
    alarm::Borrowed,
    clock,
    http::{
        body::{Body, BoxError},
        date,
        incoming::Incoming,
        request::{proxy, refuse},
    },
    io::Io,
    reason::Reason,
    worker::Conn,
};

/// Bytes of later requests that are taken while one is being answered.
const AHEAD: usize = 16 * 1024;
/// What is left of a body that nobody wants is read up to this, so that the answer is not lost with the connection.
const UNWANTED: usize = 256 * 1024;
/// And for this long.
const UNWANTED_TIME: Duration = Duration::from_secs(1);

/// Serves requests until the connection ends. What remains of it is given back when it was switched to another
/// protocol. `head_by`: deadline of the first head, counted from accept.
pub async fn serve(conn: &Rc<Conn>, io: Io, head_by: Instant) -> Option<Io> {
    let line = Rc::new(Downstream::new(conn, io));
    let mut first = Some(head_by);
    let draining = conn.worker.path.side(conn.direction()).draining();
    let mut draining = pin!(draining);
    loop {
        let next = line.head(first.take(), draining.as_mut()).await;
        let ended = match next {
            Next::Request(parts, follows) => Box::pin(one(&line, *parts, follows)).await,
            Next::Refused(reason) => {
                let request = Asked { method: Method::GET, version: Version::HTTP_11, persists: false };
                Box::pin(line.answer(request, refuse(conn, reason))).await;
                Ended::Unread
            }
            Next::Over => Ended::Close,
        };
        match ended {
            Ended::Next => line.channel.borrow_mut().rest(),
            Ended::Switched => return Rc::into_inner(line).map(|line| line.channel.into_inner().into_io()),
            Ended::Cut => return None,
            Ended::Close | Ended::Unread => {
                line.close(matches!(ended, Ended::Unread)).await;
                return None;
            }
        }
    }
}

/// What comes next on a connection.
enum Next {
    Request(Box<Parts>, Follows),
    Refused(Reason),
    Over,
}

/// What becomes of the connection.
enum Ended {
    /// Another request may follow.
    Next,
    /// It is another protocol's now.
    Switched,
    /// It ends in order.
    Close,
    /// It ends in order, with bytes on the way that nobody wants.
    Unread,
    /// It is of no more use.
    Cut,
}

/// What the answer's form depends on.
struct Asked {
    method: Method,
    version: Version,
    /// The caller would send another request.
    persists: bool,
}

/// The caller's side of a connection.
#[derive(Debug)]
struct Downstream {
    conn: Rc<Conn>,
    channel: RefCell<Channel>,
    body: RefCell<Decoder>,
    alarm: RefCell<Borrowed>,
    /// The caller waits for leave to send its body.
    expects: Cell<bool>,
    /// It was given leave, which may still have to be written.
    leave: Cell<bool>,
    /// When a piece of the body last came.
    came: Cell<Instant>,
    /// When a piece of the answer last went out, and how many bytes had gone out then.
    went: Cell<(Instant, u64)>,
    broken: Cell<bool>,
}

/// How an answer is put on the wire.
struct Form {
    persists: bool,
    chunked: bool,
    /// Nothing follows the head, whatever it says.
    bodyless: bool,
    /// The head has announced trailers.
    trailers: bool,
    /// The body broke off: what came of it is still sent, and then only the connection's end tells.
    broke: bool,
}

/// The caller has gone, or the answer cannot be sent whole.
struct Gone;

/// One request and its answer.
async fn one(line: &Rc<Downstream>, parts: Parts, follows: Follows) -> Ended {
    let conn = &line.conn;
    let asked = Asked {
        method: parts.method.clone(),
        version: parts.version,
        persists: head::persists(parts.version, &parts.headers, follows.connection),
    };
    let body = line.begin(&parts, follows);
    let answer = {
        let mut answering = pin!(proxy(conn, Request::from_parts(parts, body)));
        poll_fn(|cx| {
            if let Poll::Ready(answer) = answering.as_mut().poll(cx) {
                return Poll::Ready(Some(answer));
            }
            ready!(line.poll_gone(cx));
            Poll::Ready(None)
        })
        .await
    };
    match answer {
        None => Ended::Cut,
        Some(answer) => line.answer(asked, answer).await,
    }
}

impl Downstream {
    fn new(conn: &Rc<Conn>, io: Io) -> Self {
        Self {
            conn: Rc::clone(conn),
            channel: RefCell::new(Channel::new(io)),
            body: RefCell::new(Decoder::done()),
            alarm: RefCell::new(conn.worker.alarms.take()),
            expects: Cell::new(false),
            leave: Cell::new(false),
            came: Cell::new(Instant::now()),
            went: Cell::new((Instant::now(), 0)),
            broken: Cell::new(false),
        }
    }

    /// Waits for the next head.
    async fn head(&self, first: Option<Instant>, mut draining: Pin<&mut impl Future<Output = ()>>) -> Next {
        let bounds = &self.conn.worker.path.bounds;
        let mut scan = Scan::default();
        let mut waits: Option<(bool, Instant)> = None;
        poll_fn(|cx| {
            let mut channel = self.channel.borrow_mut();
            loop {
                match scan.step(&channel.read) {
                    Err(flaw) => return Poll::Ready(refused(flaw)),
                    Ok(Scanned::Head { len, lines }) => {
                        let head = channel.read.split_to(len).freeze();
                        return Poll::Ready(parsed(&head, lines));
                    }
                    Ok(Scanned::Drop(len)) => channel.read.advance(len),
                    Ok(Scanned::More) => match channel.poll_fill(cx) {
                        Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::Over),
                        Poll::Ready(Ok(_more)) => {}
                        Poll::Pending => break,
                    },
                }
            }
            let begun = !channel.read.is_empty();
            if !begun && first.is_none() && draining.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Next::Over);
            }
            let deadline = match (first, waits) {
                (Some(by), _) => by,
                (None, Some((same, by))) if same == begun => by,
                (None, _) => clock::now() + if begun { bounds.head } else { bounds.keep_alive },
            };
            waits = Some((begun, deadline));
            ready!(self.alarm.borrow_mut().poll(cx, deadline));
            Poll::Ready(if begun || first.is_some() { Next::Refused(Reason::HeaderTimeout) } else { Next::Over })
        })
        .await
    }

    /// Makes ready for a request's body.
    fn begin(self: &Rc<Self>, parts: &Parts, follows: Follows) -> Incoming {
        *self.body.borrow_mut() = Decoder::new(follows.body, Extensions::Refused);
        if self.body.borrow().is_done() {
            return Incoming::Empty;
        }
        let expects = follows.expect
            && parts.version == Version::HTTP_11
            && parts.headers.get(header::EXPECT).is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        self.expects.set(expects);
        self.came.set(clock::now());
        self.broken.set(false);
        Incoming::Request(RequestBody(Rc::clone(self)))
    }

    /// Ready when the caller has gone away. What it sends ahead is kept, up to a bound.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.body.borrow().is_done() || self.channel.borrow().read.len() >= AHEAD {
            // Who takes the body notices.
            return Poll::Pending;
        }
        loop {
            let ahead = self.channel.borrow_mut().poll_fill(cx);
            match ready!(ahead) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_more) if self.channel.borrow().read.len() >= AHEAD => return Poll::Pending,
                Ok(_more) => {}
            }
        }
    }

    /// Sends an answer, and says what becomes of the connection.
    async fn answer(&self, asked: Asked, answer: Response<Body>) -> Ended {
        let (head, mut body) = answer.into_parts();
        let status = head.status;
        let switched =
            status == StatusCode::SWITCHING_PROTOCOLS || asked.method == Method::CONNECT && status.is_success();
        let draining = self.conn.worker.path.side(self.conn.direction()).is_draining();
        let mut form = Form {
            persists: asked.persists && !draining,
            chunked: false,
            bodyless: asked.method == Method::HEAD
                || switched
                || status.is_informational()
                || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED),
            trailers: false,
            broke: false,
        };
        self.put_head(&asked, &head, &body, switched, &mut form);
        let sent = poll_fn(|cx| self.poll_answer(cx, &mut body, &mut form)).await;
        drop(body);
        match sent {
            Err(Gone) => Ended::Cut,
            Ok(()) if switched => Ended::Switched,
            Ok(()) if self.body.borrow().is_done() => {
                if form.persists {
                    Ended::Next
                } else {
                    Ended::Close
                }
            }
            Ok(()) if form.persists && self.body_ends().await => Ended::Next,
            Ok(()) => Ended::Unread,
        }
    }

    fn put_head(&self, asked: &Asked, head: &http::response::Parts, body: &Body, switched: bool, form: &mut Form) {
        let mut channel = self.channel.borrow_mut();
        // What is still to be written goes with the answer.
        self.leave.set(false);
        let out = channel.out();
        head::put_status_line(out, asked.version, head.status);
        let put = head::put_fields(out, &head.headers, None);
        form.persists = form.persists && head::persists(Version::HTTP_11, &head.headers, put.connection);
        form.trailers = put.trailer;
        let length = body.size_hint().exact();
        if form.bodyless {
            put_silent_length(out, asked, head, length);
        } else if let Some(length) = length {
            head::put_length(out, length);
        } else if asked.version == Version::HTTP_11 {
            form.chunked = true;
            head::put_field(out, "transfer-encoding", b"chunked");
        } else {
            form.persists = false;
        }
        if !put.date && !head.status.is_informational() {
            date::with_now(|now| head::put_field(out, "date", now.as_bytes()));
        }
        if !switched && !put.connection {
            match (form.persists, asked.version) {
                (false, _) => head::put_field(out, "connection", b"close"),
                (true, Version::HTTP_10) => head::put_field(out, "connection", b"keep-alive"),
                (true, _) => {}
            }
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Sends what there is of an answer; ready at its end.
    fn poll_answer(&self, cx: &mut Context<'_>, body: &mut Body, form: &mut Form) -> Poll<Result<(), Gone>> {
        let mut ended = form.broke || form.bodyless || body.is_end_stream() && !form.chunked;
        loop {
            let mut waits = false;
            while !ended && !waits && self.channel.borrow().has_room() {
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Pending => waits = true,
                    Poll::Ready(Some(Err(_told))) => (ended, form.broke) = (true, true),
                    Poll::Ready(frame) => {
                        let frame = frame.and_then(Result::ok);
                        ended = frame.as_ref().is_none_or(|frame: &Frame<Bytes>| frame.is_trailers())
                            || body.is_end_stream();
                        put_frame(&mut self.channel.borrow_mut(), frame, ended, form.chunked, form.trailers);
                    }
                }
            }
            let flushed = self.channel.borrow_mut().poll_flush(cx);
            match flushed {
                Poll::Ready(Err(_gone)) => return Poll::Ready(Err(Gone)),
                Poll::Ready(Ok(())) if form.broke => return Poll::Ready(Err(Gone)),
                Poll::Ready(Ok(())) if ended => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if !waits => continue,
                Poll::Ready(Ok(())) => {}
                Poll::Pending => {
                    // The caller is slow. What it still sends goes on all the same.
                    body.poll_upload(cx);
                    if self.poll_stalled(cx).is_ready() {
                        return Poll::Ready(Err(Gone));
                    }
                }
            }
            if self.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Gone));
            }
            return Poll::Pending;
        }
    }

    /// Ready when the caller has taken nothing for too long.
    fn poll_stalled(&self, cx: &mut Context<'_>) -> Poll<()> {
        let written = self.channel.borrow().written;
        let (mut since, before) = self.went.get();
        if before != written {
            since = clock::now();
            self.went.set((since, written));
        }
        self.alarm.borrow_mut().poll(cx, since + self.conn.worker.path.bounds.stream_idle)
    }

    /// Reads what is left of a request's body, within bounds; false: it does not end.
    async fn body_ends(&self) -> bool {
        // Who was never told to go on may wait for ever.
        if self.broken.get() || self.expects.get() {
            return false;
        }
        let by = Instant::now() + UNWANTED_TIME;
        let mut taken = 0;
        poll_fn(|cx| {
            let (mut channel, mut body) = (self.channel.borrow_mut(), self.body.borrow_mut());
            while taken < UNWANTED {
                match body.decode(&mut channel.read) {
                    Ok(Piece::Data(data)) => taken += data.len(),
                    Ok(Piece::Trailers(_) | Piece::End) => return Poll::Ready(true),
                    Ok(Piece::More) => match channel.poll_fill(cx) {
                        Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(false),
                        Poll::Ready(Ok(_more)) => {}
                        Poll::Pending => return self.alarm.borrow_mut().poll(cx, by).map(|()| false),
                    },
                    Err(_flaw) => return Poll::Ready(false),
                }
            }
            Poll::Ready(false)
        })
        .await
    }

    /// Ends our side. `unread`: takes what still comes for a moment, lest the kernel throws the answer away with it.
    async fn close(&self, unread: bool) {
        let by = Instant::now() + UNWANTED_TIME;
        let mut taken = 0;
        poll_fn(|cx| {
            let mut channel = self.channel.borrow_mut();
            match channel.poll_shutdown(cx) {
                Poll::Ready(Ok(())) if unread => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.alarm.borrow_mut().poll(cx, by),
            }
            loop {
                taken += channel.read.len();
                channel.read.clear();
                match channel.poll_fill(cx) {
                    Poll::Ready(Ok(more)) if more > 0 && taken < UNWANTED => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return self.alarm.borrow_mut().poll(cx, by),
                }
            }
        })
        .await;
    }
}

fn refused(flaw: Flaw) -> Next {
    tracing::debug!(rule = flaw.rule, "request refused");
    Next::Refused(flaw.reason)
}

fn parsed(head: &Bytes, lines: usize) -> Next {
    match head::request(head, lines) {
        Ok((parts, follows)) => Next::Request(Box::new(parts), follows),
        Err(flaw) => refused(flaw),
    }
}

/// The length of a body that is not sent: what an answer to GET would have.
fn put_silent_length(out: &mut BytesMut, asked: &Asked, head: &http::response::Parts, length: Option<u64>) {
    if asked.method != Method::HEAD && head.status != StatusCode::NOT_MODIFIED {
        return;
    }
    match (head.headers.get(header::CONTENT_LENGTH), length) {
        (Some(said), _) => head::put_field(out, "content-length", said.as_bytes()),
        (None, Some(length)) if length > 0 => head::put_length(out, length),
        (None, _) => {}
    }
}

/// Body of a request.
#[derive(Debug)]
pub struct RequestBody(Rc<Downstream>);

impl RequestBody {
    pub(crate) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let line = &*self.0;
        let (mut channel, mut body) = (line.channel.borrow_mut(), line.body.borrow_mut());
        loop {
            match body.decode(&mut channel.read) {
                Ok(Piece::Data(data)) => {
                    line.came.set(clock::now());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Piece::Trailers(fields)) => return Poll::Ready(Some(Ok(Frame::trailers(fields)))),
                Ok(Piece::End) => return Poll::Ready(None),
                Ok(Piece::More) => {}
                Err(flaw) => {
                    tracing::debug!(rule = flaw.rule, "request refused");
                    return Poll::Ready(Some(Err(line.breaks(Some(flaw.reason)))));
                }
            }
            if line.expects.take() {
                channel.out().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                line.leave.set(true);
            }
            // Nothing else is written here: whoever waits to write the answer must be the one whom the socket wakes.
            if line.leave.get() {
                match channel.poll_flush(cx) {
                    Poll::Ready(Ok(())) => line.leave.set(false),
                    Poll::Ready(Err(_gone)) => return Poll::Ready(Some(Err(line.breaks(None)))),
                    Poll::Pending => {}
                }
            }
            match channel.poll_fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Some(Err(line.breaks(None)))),
                Poll::Ready(Ok(_more)) => {}
                Poll::Pending => {
                    let by = line.came.get() + line.conn.worker.path.bounds.stream_idle;
                    ready!(line.alarm.borrow_mut().poll(cx, by));
                    return Poll::Ready(Some(Err(line.breaks(Some(Reason::BodyTimeout)))));
                }
            }
        }
    }

    pub(crate) fn is_end(&self) -> bool {
        self.0.body.borrow().is_done()
    }

    pub(crate) fn left(&self) -> Option<u64> {
        self.0.body.borrow().left()
    }
}

impl Downstream {
    /// The body ends before its end. `reason`: it was refused; `None`: the caller has gone.
    fn breaks(&self, reason: Option<Reason>) -> BoxError {
        self.broken.set(true);
        if reason.is_some() {
            self.conn.refused.set(reason);
        }
        reason.map_or("the caller's connection ended within its body", Reason::code).into()
    }
}
