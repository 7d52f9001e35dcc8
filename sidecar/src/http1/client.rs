//! The client side of one HTTP/1 connection: a request out, its answer in, and whether it may serve again.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, uri::PathAndQuery};
use http_body::{Body as _, Frame};

use super::{
    channel::Channel,
    chunk::Extensions,
    decode::{Decoder, Piece},
    head,
    strict::{Flaw, Length, MAX_HEAD},
};
use crate::{
    http::{
        body::{Body, BoxError},
        incoming::Incoming,
        marks::Marks,
    },
    io::Io,
};

/// Answers like `100 Continue` and `103 Early Hints` that may come before the one.
const INFORMATIONAL: u8 = 32;

/// One connection.
#[derive(Debug)]
pub struct Client {
    channel: RefCell<Channel>,
    answer: RefCell<Decoder>,
    upload: RefCell<Option<Upload>>,
    /// Another request may follow this one.
    reusable: Cell<bool>,
}

/// A request's body that is not sent whole yet.
#[derive(Debug)]
struct Upload {
    body: Body,
    chunked: bool,
    /// The head has announced trailers.
    trailers: bool,
}

/// Head of a request as it goes out.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'r> {
    /// Method.
    pub method: &'r Method,
    /// What the request line says.
    pub path: &'r PathAndQuery,
    /// Fields, Host among them.
    pub fields: &'r HeaderMap,
    /// Fields of this try alone; they take the place of others of their name.
    pub own: &'r HeaderMap,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// The connection broke off; whether any byte of the request had gone out.
    Broke {
        /// At least one byte went out.
        sent: bool,
        /// The stream's error; `None`: the peer has ended it.
        error: Option<io::Error>,
    },
    /// What came is no answer.
    Bad(&'static str),
    /// The caller's body broke off.
    Caller,
}

/// Why sending stopped.
enum Stopped {
    Caller,
    Stream(io::Error),
}

impl Client {
    /// A new connection.
    pub fn new(io: Io) -> Rc<Self> {
        Rc::new(Self {
            channel: RefCell::new(Channel::new(io)),
            answer: RefCell::new(Decoder::done()),
            upload: RefCell::default(),
            reusable: Cell::new(true),
        })
    }

    /// Whether the connection is between two requests, and may serve the next.
    pub fn is_reusable(&self) -> bool {
        let channel = self.channel.borrow();
        self.reusable.get()
            && self.answer.borrow().is_done()
            && self.upload.borrow().is_none()
            && channel.is_flushed()
            && channel.read.is_empty()
    }

    /// Whether some of the request has still to go out: its last piece may have been taken and not yet written.
    fn is_sending(&self) -> bool {
        self.upload.borrow().is_some() || !self.channel.borrow().is_flushed()
    }

    /// Whether the peer has closed the connection, or said something unasked.
    pub fn is_stale(&self) -> bool {
        self.channel.borrow_mut().is_stale()
    }

    /// The stream, after an answer that has switched protocols. `None`: it is still in use.
    pub fn into_io(self: Rc<Self>) -> Option<Io> {
        Rc::into_inner(self).map(|client| client.channel.into_inner().into_io())
    }

    /// Sends a request and waits for the head of its answer.
    /// # Errors
    /// [`Unanswered`].
    pub async fn exchange(
        self: &Rc<Self>,
        request: Outgoing<'_>,
        body: Body,
    ) -> Result<Response<Incoming>, Unanswered> {
        let before = self.channel.borrow().written;
        self.begin(request, body);
        let mut wait = Wait { client: self, method: request.method, before, informational: 0, broken: None };
        poll_fn(|cx| wait.poll(cx)).await
    }

    fn begin(&self, request: Outgoing<'_>, body: Body) {
        let mut channel = self.channel.borrow_mut();
        let out = channel.out();
        head::put_request_line(out, request.method, request.path);
        let own = (!request.own.is_empty()).then_some(request.own);
        let put = head::put_fields(out, request.fields, own);
        if let Some(own) = own {
            head::put_fields(out, own, None);
        }
        let empty = body.is_end_stream();
        let length = body.size_hint().exact();
        match length {
            _ if empty => {
                let expected = matches!(*request.method, Method::POST | Method::PUT | Method::PATCH);
                if expected || put.length {
                    head::put_length(out, 0);
                }
            }
            Some(length) => head::put_length(out, length),
            None => head::put_field(out, "transfer-encoding", b"chunked"),
        }
        out.extend_from_slice(b"\r\n");
        let upload = Upload { body, chunked: length.is_none(), trailers: put.trailer };
        *self.upload.borrow_mut() = (!empty).then_some(upload);
    }

    /// Sends on what there is, until it is sent or either side must be waited for.
    fn poll_send(&self, cx: &mut Context<'_>) -> Result<(), Stopped> {
        let mut channel = self.channel.borrow_mut();
        let mut upload = self.upload.borrow_mut();
        loop {
            let mut waits = upload.is_none();
            while !waits && channel.has_room() {
                let Some(sending) = upload.as_mut() else { break };
                match sending.poll_piece(&mut channel, cx) {
                    Poll::Ready(Ok(true)) => {}
                    Poll::Ready(Ok(false)) => *upload = None,
                    Poll::Ready(Err(Broken)) => {
                        *upload = None;
                        self.reusable.set(false);
                        return Err(Stopped::Caller);
                    }
                    Poll::Pending => waits = true,
                }
                waits |= upload.is_none();
            }
            if channel.is_flushed() {
                return Ok(());
            }
            match channel.poll_flush(cx) {
                Poll::Ready(Ok(())) if waits => return Ok(()),
                Poll::Ready(Ok(())) => {}
                Poll::Pending => return Ok(()),
                Poll::Ready(Err(error)) => {
                    *upload = None;
                    self.reusable.set(false);
                    return Err(Stopped::Stream(error));
                }
            }
        }
    }
}

struct Broken;

impl Upload {
    /// Moves one piece to the channel; false: it was the last.
    fn poll_piece(&mut self, channel: &mut Channel, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Err(_told_by_the_source)) => return Poll::Ready(Err(Broken)),
            Some(Ok(frame)) => Some(frame),
            None => None,
        };
        let last = frame.is_none() || self.body.is_end_stream();
        put_frame(channel, frame, last, self.chunked, self.trailers);
        Poll::Ready(Ok(!last))
    }
}

/// Puts a piece of a body, and its end, in the form that the head has announced.
pub(super) fn put_frame(channel: &mut Channel, frame: Option<Frame<Bytes>>, last: bool, chunked: bool, trailers: bool) {
    let mut fields = None;
    match frame.map(Frame::into_data) {
        None => {}
        Some(Ok(data)) if data.is_empty() => {}
        Some(Ok(data)) if chunked => {
            head::put_chunk_size(channel.out(), data.len());
            channel.put(data);
            channel.out().extend_from_slice(b"\r\n");
        }
        Some(Ok(data)) => channel.put(data),
        Some(Err(frame)) => fields = frame.into_trailers().ok(),
    }
    if chunked && (last || fields.is_some()) {
        channel.out().extend_from_slice(b"0\r\n");
        if let Some(fields) = fields.filter(|_| trailers) {
            head::put_fields(channel.out(), &fields, None);
        }
        channel.out().extend_from_slice(b"\r\n");
    }
}

/// Waits for an answer's head.
struct Wait<'w> {
    client: &'w Rc<Client>,
    method: &'w Method,
    /// Bytes that had gone out before this request.
    before: u64,
    informational: u8,
    /// Writing failed; an answer may have come all the same.
    broken: Option<io::Error>,
}

impl Wait<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<Incoming>, Unanswered>> {
        match self.client.poll_send(cx) {
            Ok(()) => {}
            Err(Stopped::Caller) => return Poll::Ready(Err(Unanswered::Caller)),
            Err(Stopped::Stream(error)) => self.broken = Some(error),
        }
        let mut channel = self.client.channel.borrow_mut();
        loop {
            if !channel.read.is_empty() {
                match head::answer(&mut channel.read) {
                    Err(flaw) => return Poll::Ready(Err(self.bad(flaw.rule))),
                    Ok(Some(answered)) if is_interim(answered.status) => {
                        self.informational += 1;
                        if self.informational > INFORMATIONAL {
                            return Poll::Ready(Err(self.bad("too many informational answers")));
                        }
                        continue;
                    }
                    Ok(Some(answered)) => {
                        drop(channel);
                        return Poll::Ready(
                            self.client.answered(self.method, answered).map_err(|flaw| self.bad(flaw.rule)),
                        );
                    }
                    Ok(None) if channel.read.len() > MAX_HEAD => {
                        return Poll::Ready(Err(self.bad("a head over 64 KiB")));
                    }
                    Ok(None) => {}
                }
            }
            let error = match ready!(channel.poll_fill(cx)) {
                Ok(0) => self.broken.take(),
                Ok(_more) => continue,
                Err(error) => Some(self.broken.take().unwrap_or(error)),
            };
            self.client.reusable.set(false);
            return Poll::Ready(Err(Unanswered::Broke { sent: channel.written > self.before, error }));
        }
    }

    fn bad(&self, rule: &'static str) -> Unanswered {
        self.client.reusable.set(false);
        Unanswered::Bad(rule)
    }
}

/// Another answer follows.
fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

impl Client {
    fn answered(self: &Rc<Self>, method: &Method, mut answered: head::Answered) -> Result<Response<Incoming>, Flaw> {
        let has = Marks::of(&answered.fields);
        let (length, clear) = head::answer_length(method, &mut answered, has)?;
        let switched = answered.status == StatusCode::SWITCHING_PROTOCOLS;
        let persists = head::persists(answered.version, &answered.fields, has.has(Marks::CONNECTION));
        if !clear || switched || length == Length::Close || !persists {
            self.reusable.set(false);
        }
        let decoder = Decoder::new(length, Extensions::Skipped { bytes: 0 });
        let empty = decoder.is_done();
        *self.answer.borrow_mut() = decoder;
        let body = if empty { Incoming::Empty } else { Incoming::Answer(AnswerBody(Rc::clone(self))) };
        let mut response = Response::new(body);
        *response.status_mut() = answered.status;
        *response.version_mut() = answered.version;
        *response.headers_mut() = answered.fields;
        Ok(response)
    }
}

/// Body of an answer. Taking it also sends what is left of the request.
#[derive(Debug)]
pub struct AnswerBody(Rc<Client>);

impl AnswerBody {
    /// Goes on sending the request's body.
    pub fn poll_upload(&self, cx: &mut Context<'_>) {
        if self.0.is_sending() {
            // Who reads the answer's end, or its break, learns all that is to be known.
            let _ = self.0.poll_send(cx);
        }
    }

    pub(crate) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let client = &self.0;
        if client.is_sending()
            && let Err(Stopped::Caller) = client.poll_send(cx)
        {
            return Poll::Ready(Some(Err("the caller's body broke off".into())));
        }
        let mut channel = client.channel.borrow_mut();
        let mut decoder = client.answer.borrow_mut();
        loop {
            match decoder.decode(&mut channel.read) {
                Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Piece::Trailers(fields)) => return Poll::Ready(Some(Ok(Frame::trailers(fields)))),
                Ok(Piece::End) => return Poll::Ready(None),
                Ok(Piece::More) => {}
                Err(flaw) => return Poll::Ready(Some(Err(client.lost(flaw.rule.into())))),
            }
            match ready!(channel.poll_fill(cx)) {
                Ok(0) if decoder.closed() => return Poll::Ready(None),
                Ok(0) => return Poll::Ready(Some(Err(client.lost("the connection ended within the answer".into())))),
                Ok(_more) => {}
                Err(error) => return Poll::Ready(Some(Err(client.lost(error.into())))),
            }
        }
    }

    pub(crate) fn is_end(&self) -> bool {
        self.0.answer.borrow().is_done()
    }

    pub(crate) fn left(&self) -> Option<u64> {
        self.0.answer.borrow().left()
    }
}

impl Client {
    fn lost(&self, error: BoxError) -> BoxError {
        self.reusable.set(false);
        error
    }

    /// Lets the buffers go while the connection waits for its next request.
    pub fn rest(&self) {
        self.channel.borrow_mut().rest();
    }
}
