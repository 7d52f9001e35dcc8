//! What goes back to the caller: an upstream's answer, or one of ours that names what failed.

use std::{
    borrow::Cow,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header};
use http_body::{Body as _, Frame, SizeHint};

use super::{
    body::{Body, BoxError, Source},
    headers,
    incoming::Incoming,
};
use crate::{
    alarm::Borrowed,
    balance::{Admitted, Failure, Outcome, Picked, Upstream},
    clock,
    metrics::{Direction, Speaks},
    reason::Reason,
    record::Record,
    upstream::Lease,
    worker::Conn,
};

/// Why a request fails here.
#[derive(Debug)]
pub struct Failed {
    /// The reason.
    pub reason: Reason,
    /// For the log, and for the body where it helps the caller.
    pub detail: Option<Box<str>>,
    /// The caller may read the detail.
    pub tell: bool,
}

impl From<Reason> for Failed {
    fn from(reason: Reason) -> Self {
        Self { reason, detail: None, tell: false }
    }
}

impl Failed {
    /// With a detail for the log only.
    pub fn with(reason: Reason, detail: impl Into<Box<str>>) -> Self {
        Self { reason, detail: Some(detail.into()), tell: false }
    }

    /// With a detail that the caller may read.
    pub fn told(reason: Reason, detail: impl Into<Box<str>>) -> Self {
        Self { reason, detail: Some(detail.into()), tell: true }
    }

    /// The answer that names the failure; the record goes with it.
    pub fn answer(self, record: Record) -> Response<Body> {
        record.fail(self.reason, self.detail.as_deref());
        let after = record.started().elapsed().as_millis();
        let named = format!("{}; side={}; after={after}ms", self.reason.code(), self.reason.side().as_str());
        let told = self.detail.as_deref().filter(|_| self.tell);
        let mut answer = match record.speaks() {
            Speaks::Grpc => grpc_answer(self.reason, told),
            Speaks::Http1 | Speaks::Http2 | Speaks::Tcp => http_answer(self.reason, told),
        };
        let named = HeaderValue::try_from(named).expect("codes, sides and numbers are valid");
        answer.headers_mut().insert(headers::REASON, named);
        if closes(self.reason) && answer.version() != Version::HTTP_2 {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        local(answer, record)
    }
}

/// After these the connection's state is not worth keeping.
fn closes(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::AmbiguousFraming
            | Reason::ClientProtocolError
            | Reason::HeadersTooLarge
            | Reason::HeaderTimeout
            | Reason::BodyTimeout
            | Reason::Overloaded
    )
}

fn http_answer(reason: Reason, detail: Option<&str>) -> Response<Bytes> {
    let mut text = format!("{}: {}\n", reason.code(), reason.what());
    if let Some(detail) = detail {
        text.push_str(detail);
        text.push('\n');
    }
    text.push_str(reason.next_step());
    text.push('\n');
    let mut answer = Response::new(Bytes::from(text));
    *answer.status_mut() = reason.status();
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

fn grpc_answer(reason: Reason, detail: Option<&str>) -> Response<Bytes> {
    let mut answer = Response::new(Bytes::new());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    grpc_fields(answer.headers_mut(), reason, detail);
    answer
}

fn grpc_fields(fields: &mut HeaderMap, reason: Reason, detail: Option<&str>) {
    fields.insert(headers::GRPC_STATUS, HeaderValue::from(u16::from(reason.grpc_status())));
    let message = match detail {
        Some(detail) => Cow::Owned(format!("{}: {} {detail}", reason.code(), reason.what())),
        None => Cow::Owned(format!("{}: {}", reason.code(), reason.what())),
    };
    let message = percent_encoding::utf8_percent_encode(&message, percent_encoding::CONTROLS).to_string();
    if let Ok(message) = HeaderValue::try_from(message.replace('%', "%25")) {
        fields.insert(headers::GRPC_MESSAGE, message);
    }
}

/// An answer of ours as it leaves.
pub fn local(answer: Response<Bytes>, record: Record) -> Response<Body> {
    record.answered(&answer);
    let (parts, bytes) = answer.into_parts();
    let body = Answer {
        from: From_::Here(Some(bytes)),
        record,
        served: None,
        idle: Duration::MAX,
        until: None,
        alarm: None,
        expected: None,
        done: false,
    };
    Response::from_parts(parts, Body::Answer(Box::new(body)))
}

/// What an upstream's answer holds until its last byte.
#[derive(Debug)]
pub struct Served {
    /// The request limit and the service's breaker.
    pub admitted: Option<Admitted>,
    /// The endpoint's in-flight count and breaker.
    pub picked: Option<Picked>,
    /// The connection.
    pub lease: Option<Lease>,
    /// The request's body: its connection serves again only when it was sent whole.
    pub upload: Option<Rc<Source>>,
    /// Who serves.
    pub conn: Rc<Conn>,
    /// Whose breakers are meant. `None`: not a service of the mesh.
    pub upstream: Option<Arc<Upstream>>,
}

impl Served {
    /// Reports how it ended, and counts what changed by it.
    pub fn finish(&mut self, outcome: Outcome, now: Instant) {
        let Some(upstream) = &self.upstream else { return };
        let metrics = &self.conn.worker.path.metrics;
        if let Some(picked) = &mut self.picked
            && let Some(change) = picked.finish(outcome, now)
        {
            metrics.ejection(upstream.cluster(), picked.endpoint.address(), &change);
        }
        if let Some(admitted) = &mut self.admitted
            && let Some(change) = admitted.finish(outcome, now)
        {
            metrics.breaker(upstream.cluster(), &change);
        }
    }
}

/// The body of an answer; finishes the record at its last byte.
#[derive(Debug)]
pub struct Answer {
    from: From_,
    record: Record,
    served: Option<Served>,
    /// No byte for this long ends it.
    idle: Duration,
    /// The whole request's deadline.
    until: Option<Instant>,
    alarm: Option<Borrowed>,
    /// `content-length` of the answer.
    expected: Option<u64>,
    done: bool,
}

#[derive(Debug)]
enum From_ {
    Here(Option<Bytes>),
    Upstream(Incoming),
    /// It broke off and the caller was told in trailers.
    Broken,
}

impl Answer {
    /// An upstream's answer on its way.
    pub fn new(incoming: Incoming, record: Record, served: Served, idle: Duration, until: Option<Instant>) -> Self {
        let expected = incoming.size_hint().exact();
        Self {
            from: From_::Upstream(incoming),
            record,
            served: Some(served),
            idle,
            until,
            alarm: None,
            expected,
            done: false,
        }
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let incoming = match &mut self.from {
            From_::Broken => return Poll::Ready(None),
            From_::Here(bytes) => {
                let bytes = bytes.take().filter(|bytes| !bytes.is_empty());
                if let Some(bytes) = &bytes {
                    self.record.sent(bytes.len());
                }
                self.complete();
                return Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))));
            }
            From_::Upstream(incoming) => incoming,
        };
        let frame = match Pin::new(&mut *incoming).poll_frame(cx) {
            Poll::Pending => return self.poll_timer(cx),
            Poll::Ready(frame) => frame,
        };
        let ended = incoming.is_end_stream();
        match frame {
            None => {
                self.complete();
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                let reason = match self.served.as_ref().map(|served| served.conn.direction()) {
                    Some(Direction::Inbound) => Reason::AppReset,
                    Some(Direction::Outbound) | None => Reason::UpstreamReset,
                };
                self.broke(reason, &error.to_string(), Failure::Reset)
            }
            Some(Ok(frame)) => {
                let frame = match frame.into_data() {
                    Ok(data) => {
                        self.record.sent(data.len());
                        Frame::data(data)
                    }
                    Err(other) => match other.into_trailers() {
                        Ok(mut trailers) => {
                            self.record.grpc_status(&trailers);
                            self.take_reason(&trailers);
                            let reason = trailers.get(&headers::REASON).cloned().filter(|_| self.trusts());
                            headers::strip_trailers(&mut trailers);
                            if let Some(reason) = reason {
                                trailers.insert(headers::REASON, reason);
                            }
                            Frame::trailers(trailers)
                        }
                        Err(unknown) => unknown,
                    },
                };
                if ended || frame.is_trailers() {
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if let From_::Upstream(incoming) = &mut self.from {
            incoming.poll_upload(cx);
        }
    }

    /// What the peer says of reasons is believed: it is a sidecar.
    fn trusts(&self) -> bool {
        let lease = self.served.as_ref().and_then(|served| served.lease.as_ref());
        lease.is_some_and(|lease| lease.mutual)
    }

    fn take_reason(&self, fields: &HeaderMap) {
        if self.trusts()
            && let Some(reason) = fields.get(&headers::REASON).and_then(Reason::from_header)
        {
            self.record.fail(reason, Some("reported by the callee's sidecar"));
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let idle_at = self.record.progressed().checked_add(self.idle);
            let Some(at) = [idle_at, self.until].into_iter().flatten().min() else { return Poll::Pending };
            let alarm = self.alarm.get_or_insert_with(|| self.record.conn().worker.alarms.take());
            ready!(alarm.poll(cx, at));
            let now = clock::now();
            if self.until.is_some_and(|until| now >= until) {
                return self.broke(Reason::RequestTimeout, "the answer was not complete in time", Failure::Timeout);
            }
            if now.saturating_duration_since(self.record.progressed()) >= self.idle {
                return self.broke(Reason::IdleTimeout, "no byte for too long", Failure::Timeout);
            }
        }
    }

    fn broke(
        &mut self,
        reason: Reason,
        detail: &str,
        failure: Failure,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let caller = self.served.as_ref().and_then(|served| served.upload.as_ref()).is_some_and(|body| body.failed());
        let (reason, outcome) =
            if caller { (Reason::ClientCancelled, Outcome::Ignored) } else { (reason, Outcome::Failed(failure)) };
        self.record.fail(reason, Some(detail));
        self.from = From_::Broken;
        let trailers = self.record.speaks() == Speaks::Grpc && !caller;
        if trailers {
            let mut fields = HeaderMap::new();
            grpc_fields(&mut fields, reason, None);
            let named = format!("{}; side={}", reason.code(), reason.side().as_str());
            fields.insert(headers::REASON, HeaderValue::try_from(named).expect("codes and sides are valid"));
            self.record.grpc_status(&fields);
            self.end(outcome);
            return Poll::Ready(Some(Ok(Frame::trailers(fields))));
        }
        self.end(outcome);
        Poll::Ready(Some(Err(reason.code().into())))
    }

    /// The last byte has gone.
    fn complete(&mut self) {
        let outcome = outcome(self.record.code(), self.record.grpc());
        let sent_whole = |served: &Served| served.upload.as_ref().is_none_or(|upload| upload.ended());
        if let Some(served) = &mut self.served
            && sent_whole(served)
            && let Some(lease) = served.lease.take()
        {
            lease.give_back();
        }
        self.end(outcome);
    }

    fn end(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        let now = clock::now();
        if let Some(mut served) = self.served.take() {
            served.finish(outcome, now);
        }
        self.record.finish_at(now);
    }

    pub(super) fn is_end(&self) -> bool {
        match &self.from {
            From_::Here(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            From_::Upstream(incoming) => incoming.is_end_stream(),
            From_::Broken => true,
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match &self.from {
            From_::Here(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            From_::Upstream(incoming) => incoming.size_hint(),
            From_::Broken => SizeHint::default(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // An answer without a body is never polled; one of known length may not be polled to its end.
        let whole = self.is_end()
            || self.expected.is_some_and(|expected| self.record.bytes_sent() >= expected)
            || *self.record.method() == http::Method::HEAD;
        if whole {
            self.complete();
        }
    }
}

/// What an answer says of its endpoint.
pub fn outcome(code: u16, grpc: Option<u8>) -> Outcome {
    match (code, grpc) {
        // UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS.
        (_, Some(2 | 4 | 13 | 14 | 15)) => Outcome::Failed(Failure::Grpc),
        // 429 and RESOURCE_EXHAUSTED: it lives, and says that it has enough.
        (429, _) | (_, Some(8)) => Outcome::Ignored,
        (500.., _) => Outcome::Failed(Failure::Status),
        _ => Outcome::Success,
    }
}

/// A plain answer from the configuration.
pub fn configured(status: StatusCode, body: &str, record: Record) -> Response<Body> {
    let mut answer = Response::new(Bytes::copy_from_slice(body.as_bytes()));
    *answer.status_mut() = status;
    if !body.is_empty() {
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    local(answer, record)
}
