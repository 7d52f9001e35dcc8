//! One record for each request: metric and access log are written from it, once, at the last byte of the answer.
//!
//! A record dropped before that is a caller that went away.

mod line;
mod log;
mod slowest;

pub use self::{log::AccessLog, slowest::Slowest};

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version, header};
use weft_xds::resource::{Cluster, Route};

use crate::{
    clock,
    http::{headers, marks::Marks},
    metrics::{AttemptKind, Flow, RequestKey, Speaks},
    reason::Reason,
    worker::Conn,
};

/// What is known of a request, filled in as it goes on.
#[derive(Debug)]
pub struct Entry {
    conn: Rc<Conn>,
    started: Instant,
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    speaks: Cell<Speaks>,
    trace: RefCell<Option<HeaderValue>>,
    flow: RefCell<Option<Rc<Flow>>>,
    route: RefCell<Option<Arc<Route>>>,
    cluster: RefCell<Option<Arc<Cluster>>>,
    /// The last, and those before it.
    tried: Cell<Option<Try>>,
    before: RefCell<Vec<Try>>,
    received: Cell<u64>,
    sent: Cell<u64>,
    progressed: Cell<Instant>,
    /// Time spent waiting for upstreams, connecting included.
    waited: Cell<Duration>,
    connecting: Cell<Duration>,
    queued: Cell<Duration>,
    first_byte: Cell<Option<Duration>>,
    code: Cell<u16>,
    grpc: Cell<Option<u8>>,
    reason: Cell<Option<Reason>>,
    detail: RefCell<Option<Box<str>>>,
    mutual: Cell<bool>,
    finished: Cell<bool>,
}

/// One try, as the access log shows it.
#[derive(Debug, Clone, Copy)]
pub struct Try {
    /// Where.
    pub endpoint: SocketAddr,
    /// Why.
    pub kind: AttemptKind,
    /// `ok`, or the code of a reason.
    pub result: &'static str,
    /// Until the answer's head, or the failure.
    pub took: Duration,
}

/// The owner of an [`Entry`]: writes it when dropped, at the latest.
#[derive(Debug)]
pub struct Record(Rc<Entry>);

impl Record {
    /// A request's head has come.
    pub fn start<B>(conn: &Rc<Conn>, request: &Request<B>, has: Marks) -> Self {
        let speaks = match request.version() {
            _ if has.has(Marks::CONTENT_TYPE) && headers::is_grpc(request.headers()) => Speaks::Grpc,
            Version::HTTP_2 => Speaks::Http2,
            _ => Speaks::Http1,
        };
        conn.requests.set(conn.requests.get() + 1);
        Self::new(
            conn,
            speaks,
            request.method().clone(),
            request.uri().clone(),
            request.headers().get(header::HOST).cloned(),
        )
    }

    /// A raw connection has begun.
    pub fn tcp(conn: &Rc<Conn>) -> Self {
        Self::new(conn, Speaks::Tcp, Method::CONNECT, Uri::default(), None)
    }

    fn new(conn: &Rc<Conn>, speaks: Speaks, method: Method, uri: Uri, host: Option<HeaderValue>) -> Self {
        let now = clock::now();
        conn.busy.set(conn.busy.get() + 1);
        Self(Rc::new(Entry {
            conn: Rc::clone(conn),
            started: now,
            method,
            uri,
            host,
            speaks: Cell::new(speaks),
            trace: RefCell::default(),
            flow: RefCell::default(),
            route: RefCell::default(),
            cluster: RefCell::default(),
            tried: Cell::default(),
            before: RefCell::default(),
            received: Cell::new(0),
            sent: Cell::new(0),
            progressed: Cell::new(now),
            waited: Cell::default(),
            connecting: Cell::default(),
            queued: Cell::default(),
            first_byte: Cell::default(),
            code: Cell::new(0),
            grpc: Cell::default(),
            reason: Cell::default(),
            detail: RefCell::default(),
            mutual: Cell::new(conn.identity.is_some()),
            finished: Cell::new(false),
        }))
    }

    /// The shared part, for bodies that count.
    pub fn entry(&self) -> &Rc<Entry> {
        &self.0
    }

    /// The answer has come to its end.
    pub fn finish(&self) {
        self.finish_at(clock::now());
    }

    /// The same by a clock that was just read.
    pub fn finish_at(&self, now: Instant) {
        self.0.write(now);
    }

    /// It turned out to be something else, which has records of its own.
    pub fn forget(&self) {
        self.0.end();
    }
}

impl std::ops::Deref for Record {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.0
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.0.finished.get() {
            self.0.fail(Reason::ClientCancelled, None);
            if self.0.code.get() == 0 {
                self.0.code.set(Reason::ClientCancelled.status().as_u16());
            }
            self.0.write(clock::now());
        }
    }
}

impl Entry {
    /// The connection it came on.
    pub fn conn(&self) -> &Rc<Conn> {
        &self.conn
    }

    /// When the request's head had come.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// What the caller speaks.
    pub fn speaks(&self) -> Speaks {
        self.speaks.get()
    }

    /// The request's method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The trace context that goes with the request.
    pub fn trace(&self, context: HeaderValue) {
        *self.trace.borrow_mut() = Some(context);
    }

    /// It is known where the request goes.
    pub fn goes(&self, destination: &str, route: Option<&Arc<Route>>) {
        let name = route.map_or("", |route| &route.name);
        let flow = self.conn.flow(destination, name);
        flow.used.set(self.started);
        *self.flow.borrow_mut() = Some(flow);
        *self.route.borrow_mut() = route.cloned();
    }

    /// The cluster whose policies decide.
    pub fn by(&self, cluster: &Arc<Cluster>) {
        *self.cluster.borrow_mut() = Some(Arc::clone(cluster));
    }

    /// The handles of the request's flow; one without a destination goes to `unknown`.
    pub fn flow(&self) -> Rc<Flow> {
        let mut flow = self.flow.borrow_mut();
        Rc::clone(flow.get_or_insert_with(|| {
            let destination = match self.conn.direction() {
                crate::metrics::Direction::Inbound => &*self.conn.worker.path.service,
                crate::metrics::Direction::Outbound => "unknown",
            };
            self.conn.flow(destination, "")
        }))
    }

    /// One try ended.
    pub fn tried(&self, tried: Try) {
        self.flow().attempt(tried.kind, tried.result);
        if let Some(before) = self.tried.replace(Some(tried)) {
            self.before.borrow_mut().push(before);
        }
    }

    /// Time spent waiting for an upstream.
    pub fn waited(&self, time: Duration) {
        self.waited.set(self.waited.get() + time);
    }

    /// Time spent on getting a connection.
    pub fn connected(&self, time: Duration) {
        self.connecting.set(self.connecting.get() + time);
    }

    /// Time spent waiting for configuration.
    pub fn queued(&self, time: Duration) {
        self.queued.set(self.queued.get() + time);
    }

    /// The upstream's connection is mutual TLS.
    pub fn mutual(&self, mutual: bool) {
        self.mutual.set(self.mutual.get() || mutual);
    }

    /// Bytes of the caller's body have come.
    pub fn received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
        self.flow().received(bytes as u64);
        self.progress();
    }

    /// Bytes have gone to the caller.
    pub fn sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
        self.flow().sent(bytes as u64);
        self.progress();
    }

    /// Bytes that have gone to the caller.
    pub fn bytes_sent(&self) -> u64 {
        self.sent.get()
    }

    /// Something moved.
    pub fn progress(&self) {
        self.progressed.set(clock::now());
    }

    /// When something last moved.
    pub fn progressed(&self) -> Instant {
        self.progressed.get()
    }

    /// The head of the answer goes out.
    pub fn answered<B>(&self, answer: &Response<B>) {
        let took = clock::now().saturating_duration_since(self.started);
        self.first_byte.set(Some(took));
        self.code.set(answer.status().as_u16());
        self.grpc_status(answer.headers());
        self.flow().overhead(took.saturating_sub(self.waited.get()));
    }

    /// Takes note of the gRPC status in headers or trailers.
    pub fn grpc_status(&self, fields: &HeaderMap) {
        if self.speaks.get() == Speaks::Grpc
            && let Some(status) = headers::grpc_status(fields)
        {
            self.grpc.set(Some(status));
        }
    }

    /// The gRPC status so far.
    pub fn grpc(&self) -> Option<u8> {
        self.grpc.get()
    }

    /// Status of the answer; 0 before there is one.
    pub fn code(&self) -> u16 {
        self.code.get()
    }

    /// Why it fails. The first reason stays.
    pub fn fail(&self, reason: Reason, detail: Option<&str>) {
        if self.reason.get().is_none() {
            self.reason.set(Some(reason));
            *self.detail.borrow_mut() = detail.map(Box::from);
        }
    }

    /// Why it failed, so far.
    pub fn reason(&self) -> Option<Reason> {
        self.reason.get()
    }

    /// Counts it out, once.
    fn end(&self) -> bool {
        let first = !self.finished.replace(true);
        if first {
            self.conn.busy.set(self.conn.busy.get() - 1);
        }
        first
    }

    fn write(&self, now: Instant) {
        if !self.end() {
            return;
        }
        let took = now.saturating_duration_since(self.started);
        let key = RequestKey {
            protocol: self.speaks.get(),
            code: self.code.get(),
            grpc: self.grpc.get(),
            reason: self.reason.get(),
            tls: self.mutual.get(),
        };
        self.flow().request(key, took);
        let worker = &self.conn.worker;
        if worker.path.log.wants(self.failed(), || worker.slowest.borrow_mut().is_among(took)) {
            worker.path.log.write(line::Line { entry: self, took }.format(worker.path.log.format()));
        }
    }

    /// Whether the request failed, for the access log: a reason, a server error, a gRPC status that is one.
    fn failed(&self) -> bool {
        self.reason.get().is_some()
            || self.code.get() >= 500
            || matches!(self.grpc.get(), Some(2 | 4 | 8 | 13 | 14 | 15))
    }
}
