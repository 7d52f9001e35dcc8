//! One try of a request: how it stands, and how it ended.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use http::{Response, header};

use super::{
    answer::{Failed, Served},
    headers,
    incoming::Incoming,
    marks::Marks,
};
use crate::{
    balance::{Failure, Outcome, Picked},
    clock,
    metrics::{AttemptKind, Speaks},
    policy::{backoff::parse_retry_after, retry::Attempt, timeouts::Bound},
    reason::{Executed, Reason},
    record::Entry,
    upstream::{ConnectFailure, Destination, Lease, Missed, Stage, Wire},
    worker::Conn,
};

/// State of the tries of one request.
pub(super) struct Tried {
    /// Where it has been; others are preferred.
    pub(super) addresses: Vec<SocketAddr>,
    /// Where it is now.
    pub(super) at: Option<SocketAddr>,
    /// Why the next try is made.
    pub(super) kind: AttemptKind,
    /// The next try goes over a new connection.
    pub(super) fresh: bool,
    /// Number of the next try; replays do not count.
    pub(super) number: u32,
}

impl Default for Tried {
    fn default() -> Self {
        Self { addresses: Vec::new(), at: None, kind: AttemptKind::First, fresh: false, number: 1 }
    }
}

impl Tried {
    pub(super) fn next(&mut self, replay: bool) {
        self.addresses.extend(self.at.take());
        self.kind = if replay { AttemptKind::ReuseReplay } else { AttemptKind::Retry };
        self.fresh = replay;
        self.number += u32::from(!replay);
    }
}

/// Where a try goes.
pub(super) struct Aim {
    pub(super) destination: Destination,
    /// The endpoint's in-flight count and breaker, where it is a workload of the mesh.
    pub(super) picked: Option<Picked>,
}

impl Aim {
    /// Tells the endpoint's breaker how the try ended.
    pub(super) fn report(&mut self, conn: &Conn, outcome: Outcome) {
        if let Some(picked) = &mut self.picked
            && let Destination::Workload(upstream, endpoint) = &self.destination
            && let Some(change) = picked.finish(outcome, clock::now())
        {
            conn.worker.path.metrics.ejection(upstream.cluster(), endpoint.address(), &change);
        }
    }

    /// What is held until the answer's last byte.
    pub(super) fn served(&mut self, conn: &Rc<Conn>, lease: Lease) -> Served {
        let upstream = match &self.destination {
            Destination::Workload(upstream, _) => Some(Arc::clone(upstream)),
            Destination::App(_) | Destination::External(_) => None,
        };
        let (picked, lease) = (self.picked.take(), Some(lease));
        Served { admitted: None, picked, lease, upload: None, conn: Rc::clone(conn), upstream }
    }
}

/// An answer's head has come.
pub(super) struct Sent {
    pub(super) response: Response<Incoming>,
    pub(super) served: Served,
    /// What the head has.
    pub(super) has: Marks,
}

impl Sent {
    pub(super) fn new(response: Response<Incoming>, served: Served) -> Self {
        let has = Marks::of(response.headers());
        Self { response, served, has }
    }

    pub(super) fn grpc(&self) -> Option<u8> {
        if self.has.has(Marks::GRPC_STATUS) { headers::grpc_status(self.response.headers()) } else { None }
    }

    /// What the peer's sidecar says, when it is one.
    pub(super) fn told(&self) -> Option<Reason> {
        if !self.has.has(Marks::REASON) {
            return None;
        }
        let mutual = self.served.lease.as_ref().is_some_and(|lease| lease.mutual);
        self.response.headers().get(headers::REASON).filter(|_| mutual).and_then(Reason::from_header)
    }

    /// How the try ended, if it is one that might be repeated.
    pub(super) fn retriable(&self, record: &Entry) -> Option<Attempt> {
        let code = self.response.status();
        if self.told().is_some_and(|reason| reason.executed() == Executed::No && code.is_server_error()) {
            return Some(Attempt::NotExecuted);
        }
        match self.grpc() {
            Some(0) => None,
            Some(status) if record.speaks() == Speaks::Grpc => Some(Attempt::GrpcStatus(status)),
            Some(_) | None if code.is_server_error() || code.is_client_error() => {
                let after = self.response.headers().get(header::RETRY_AFTER);
                Some(Attempt::Status { code, retry_after: after.and_then(|after| parse_retry_after(after.as_bytes())) })
            }
            Some(_) | None => None,
        }
    }
}

/// A try without an answer.
pub(super) struct Lost {
    pub(super) failed: Failed,
    pub(super) attempt: Option<Attempt>,
    /// For the service's breaker.
    pub(super) outcome: Outcome,
}

impl Lost {
    pub(super) fn late(bound: Bound) -> Self {
        let (reason, attempt) = match bound {
            Bound::Overall => (Reason::RequestTimeout, None),
            Bound::Try => (Reason::TryTimeout, Some(Attempt::PerTryTimeout)),
        };
        Self { failed: reason.into(), attempt, outcome: Outcome::Failed(Failure::Timeout) }
    }

    pub(super) fn unconnected(failure: ConnectFailure) -> Self {
        let overflow = matches!(failure.reason, Reason::OverflowConnections | Reason::OverflowPending);
        let outcome = if overflow { Outcome::Ignored } else { Outcome::Failed(Failure::Connect) };
        let attempt = (!overflow).then_some(Attempt::ConnectFailed);
        Self { failed: Failed::with(failure.reason, failure.detail), attempt, outcome }
    }

    pub(super) fn unanswered(missed: Missed, lease: &Lease) -> Self {
        let (attempt, outcome) = match missed.stage {
            Stage::NotSent => (Some(Attempt::ConnectFailed), Outcome::Failed(Failure::Connect)),
            Stage::Refused => (Some(Attempt::RefusedStream), Outcome::Failed(Failure::Reset)),
            Stage::Goaway => (Some(Attempt::GoawayUnprocessed), Outcome::Ignored),
            Stage::NoAnswer if lease.reused && lease.wire() == Wire::Http1 => {
                (Some(Attempt::ReusedConnectionClosed), Outcome::Ignored)
            }
            Stage::NoAnswer => (Some(Attempt::Reset), Outcome::Failed(Failure::Reset)),
            Stage::BadAnswer => (None, Outcome::Failed(Failure::Reset)),
            Stage::CallerFailed => (None, Outcome::Ignored),
        };
        Self { failed: Failed::with(missed.reason, missed.detail), attempt, outcome }
    }

    pub(super) fn here(reason: Reason, detail: &str) -> Self {
        Self { failed: Failed::with(reason, detail), attempt: None, outcome: Outcome::Ignored }
    }
}

/// Runs a step and tells how long it waited: no time, and no look at the clock, when it was ready at once.
pub(super) async fn timed<T>(step: impl Future<Output = T>) -> (T, Duration) {
    let mut step = pin!(step);
    let mut since: Option<Instant> = None;
    let ended = poll_fn(|cx| {
        let polled = step.as_mut().poll(cx);
        if polled.is_pending() {
            since.get_or_insert_with(clock::now);
        }
        polled
    });
    let ended = ended.await;
    (ended, since.map_or(Duration::ZERO, |since| clock::now().saturating_duration_since(since)))
}

/// How long a try may take.
pub(super) struct Within<'w> {
    /// No byte either way for this long ends it.
    pub(super) idle: Duration,
    /// Its end, and which bound that is.
    pub(super) until: Option<(Instant, Bound)>,
    pub(super) record: &'w Entry,
}

impl Within<'_> {
    /// Runs the try, and ends it when its time is over.
    pub(super) async fn run(
        &self,
        mut attempt: Pin<&mut impl Future<Output = Result<Box<Sent>, Box<Lost>>>>,
    ) -> Result<Box<Sent>, Box<Lost>> {
        let mut alarm = self.record.conn().worker.alarms.take();
        poll_fn(|cx| {
            if let Poll::Ready(ended) = attempt.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            loop {
                let quiet = self.record.progressed().checked_add(self.idle);
                let Some(at) = [quiet, self.until.map(|(at, _)| at)].into_iter().flatten().min() else {
                    return Poll::Pending;
                };
                ready!(alarm.poll(cx, at));
                let now = clock::now();
                if let Some((_, bound)) = self.until.filter(|(until, _)| *until <= now) {
                    return Poll::Ready(Err(Box::new(Lost::late(bound))));
                }
                if now.saturating_duration_since(self.record.progressed()) >= self.idle {
                    let outcome = Outcome::Failed(Failure::Timeout);
                    let failed = Reason::IdleTimeout.into();
                    return Poll::Ready(Err(Box::new(Lost { failed, attempt: None, outcome })));
                }
            }
        })
        .await
    }
}
