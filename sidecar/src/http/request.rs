//! The life of a request, from its head to the last byte of its answer.
//!
//! Decides first (pure), then acts. What flows between the steps is small: a [`Call`], a [`Plan`], a [`Sent`].

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use http_body::Body as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use weft_xds::resource::{Forward, HeaderEdits, InboundPort, Protocol, RetryOn, RetryPolicy, Route, RouteAction};

use super::{
    answer::{Answer, Failed, Served, configured, local, outcome},
    body::{Body, Source},
    classify::{Call, Whither, classify},
    headers,
    upgrade::{Tunnel, outside},
};
use crate::{
    balance::{Admitted, Budget, Failure, LimitKind, Outcome, PickError, Picked, Refused, Upstream, request_hash},
    demand::DemandError,
    metrics::{AttemptKind, Speaks},
    policy::{
        access,
        backoff::parse_retry_after,
        retry::{Attempt, Circumstances, RetryPlan, Verdict, is_idempotent},
        timeouts::{Bound, Deadline, parse_grpc_timeout},
    },
    reason::{Executed, Reason},
    record::{Entry, Record, Try},
    route::{Head, find_route, headers::edit, pick_cluster, rewrite},
    upstream::{Destination, Lease, Missed, Stage, Wire, send},
    worker::{Conn, Origin, inbound_port},
};

/// Proxies one HTTP request: decide, act, record.
pub async fn proxy(conn: &Rc<Conn>, request: Request<Incoming>) -> Response<Body> {
    let record = Record::start(conn, &request);
    let connect = request.method() == http::Method::CONNECT;
    let switches = connect || headers::names_upgrade(request.headers()).is_some() && request.body().is_end_stream();
    let http1 = request.version() != Version::HTTP_2;
    let reply = steps(conn, request, &record).await;
    // answer: the upstream's, edited, or one that names what failed.
    // record: at the last byte of the answer, whichever it is.
    let mut answer = match reply {
        Ok(reply) => reply.answer(conn, record),
        Err(failed) => failed.answer(record),
    };
    let switched = answer.status() == StatusCode::SWITCHING_PROTOCOLS || connect && answer.status().is_success();
    if switches && http1 && !switched {
        // What follows such a request was not followed as HTTP/1.
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

async fn steps(conn: &Rc<Conn>, request: Request<Incoming>, record: &Record) -> Result<Reply, Failed> {
    let (mut parts, incoming) = request.into_parts();
    // classify: what is it, whom does it ask for?
    let call = classify(conn, &mut parts)?;
    if parts.method == http::Method::CONNECT {
        return connect(conn, call, parts, record).await;
    }
    let target = call.target()?;
    let head = Head {
        method: &parts.method,
        path: &target.path,
        query: target.query,
        authority: call.authority.host(),
        scheme: "http",
        headers: &parts.headers,
    };
    match &conn.origin {
        Origin::Inbound(sni) => {
            let snapshot = conn.worker.path.shared.snapshot.load_full();
            let port = inbound_port(&snapshot, sni).ok_or_else(|| no_port(conn))?;
            record.goes(&conn.worker.path.service, None);
            // authorize: may this caller ask for this?
            authorize(conn, port, Some(&head))?;
            let plan = Plan::inbound(conn, port, &call, &head, record);
            exchange(conn, plan, parts, incoming, record).await
        }
        Origin::Outbound | Origin::Fixed(_) => {
            let Whither::Mesh { key, certainly } = &call.whither else {
                let address = outside(conn, &call.authority, record).await?;
                let plan = Plan::outside(conn, address, &call, &head, record);
                return exchange(conn, plan, parts, incoming, record).await;
            };
            // route: the service's routes, fetched at the first call; the first that takes the request.
            let asked = Instant::now();
            let found = conn.worker.path.shared.demand.ensure(&conn.worker.path.shared, key).await;
            record.queued(asked.elapsed());
            let ready = match found {
                Err(DemandError::NotFound) if !certainly && call.to_proxy => {
                    let address = outside(conn, &call.authority, record).await?;
                    let plan = Plan::outside(conn, address, &call, &head, record);
                    return exchange(conn, plan, parts, incoming, record).await;
                }
                found => found.map_err(|error| unknown(error, key))?,
            };
            let route = find_route(&ready.routes, &head).ok_or(Reason::NoRoute)?;
            let forward = match &route.action {
                RouteAction::Forward(forward) => forward,
                RouteAction::Respond { status, body } => {
                    record.goes(key, Some(route));
                    return Ok(Reply::Configured(*status, body.clone(), route.clone()));
                }
                RouteAction::Redirect(redirect) => {
                    record.goes(key, Some(route));
                    let (status, location) =
                        rewrite::redirect(redirect, &route.matches.path, &head, &call.authority)
                            .ok_or_else(|| Failed::with(Reason::InternalError, "the redirect makes no location"))?;
                    return Ok(Reply::Redirect(status, location, route.clone()));
                }
            };
            let share = pick_cluster(forward, fastrand::u64(..)).ok_or(Reason::NoRoute)?;
            let upstream = ready
                .snapshot
                .cluster(&share.name)
                .ok_or_else(|| Failed::told(Reason::ServiceUnknown, format!("no cluster {}", share.name)))?;
            record.goes(&upstream.cluster().service, Some(route));
            record.policy(&upstream.cluster().policy);
            // limit: is there room, and is the service's breaker closed?
            let admitted = admit(conn, upstream)?;
            let mut plan = Plan::mesh(conn, upstream, admitted, route, forward, &call, &head, record);
            plan.edits = [Some(&route.request_headers), Some(&share.request_headers)];
            plan.answer_edits = Some((route.clone(), share.response_headers.clone()));
            exchange(conn, plan, parts, incoming, record).await
        }
    }
}

/// What becomes of a request that is let through.
struct Plan<'p> {
    to: To<'p>,
    admitted: Option<Admitted>,
    /// What the request line will say.
    path: PathAndQuery,
    /// What Host or `:authority` will say.
    host: HeaderValue,
    wire: Wire,
    retry: RetryPlan<'p>,
    budget: &'p Budget,
    deadline: Deadline,
    idle: std::time::Duration,
    hash: Option<u64>,
    edits: [Option<&'p HeaderEdits>; 2],
    answer_edits: Option<(Arc<Route>, HeaderEdits)>,
    upgrade: Option<HeaderValue>,
    source: SocketAddr,
}

#[derive(Clone, Copy)]
enum To<'p> {
    Mesh(&'p Arc<Upstream>),
    App(SocketAddr),
    Outside(SocketAddr),
}

/// Nothing is retried but what met a closed pooled connection.
static REPLAY_ONLY: std::sync::LazyLock<RetryPolicy> =
    std::sync::LazyLock::new(|| RetryPolicy { retries: 0, on: RetryOn::default(), ..RetryPolicy::default() });

impl<'p> Plan<'p> {
    #[expect(clippy::too_many_arguments, reason = "what was decided so far, used once")]
    fn mesh(
        conn: &'p Conn,
        upstream: &'p Arc<Upstream>,
        admitted: Admitted,
        route: &'p Arc<Route>,
        forward: &'p Forward,
        call: &Call,
        head: &Head<'_>,
        record: &Entry,
    ) -> Self {
        let mut plan = Self::plain(conn, To::Mesh(upstream), call, head, record);
        let asked = head.headers.get("grpc-timeout").filter(|_| record.speaks() == Speaks::Grpc);
        plan.admitted = Some(admitted);
        plan.retry = RetryPlan::new(forward.retry.as_ref(), head.method);
        plan.budget = upstream.budget();
        plan.deadline = Deadline::new(
            record.started(),
            forward.timeout,
            asked.and_then(|asked| parse_grpc_timeout(asked.as_bytes())),
            plan.retry.policy().per_try_timeout,
        );
        plan.idle = forward.idle_timeout.unwrap_or(plan.idle);
        plan.hash = request_hash(&upstream.cluster().balancer, &forward.hash, head.headers, conn.peer.ip());
        if let Some(rewrite) = &forward.rewrite {
            let path = rewrite::rewrite(rewrite, &route.matches.path, head.path, head.query);
            plan.path = PathAndQuery::try_from(path).unwrap_or(plan.path);
        }
        if let Some(host) = &forward.host_rewrite {
            plan.host = host.clone();
        }
        let http2 = match upstream.cluster().protocol {
            Protocol::Http2 | Protocol::Grpc => true,
            Protocol::Http | Protocol::Detect => record.speaks() != Speaks::Http1,
            Protocol::Tcp => false,
        };
        plan.wire = wire(http2, plan.upgrade.is_some());
        plan
    }

    fn inbound(conn: &'p Conn, port: &InboundPort, call: &Call, head: &Head<'_>, record: &Entry) -> Self {
        let app = conn.worker.path.app(port.port);
        let mut plan = Self::plain(conn, To::App(app), call, head, record);
        plan.deadline = Deadline::new(record.started(), port.request_timeout, None, None);
        let http2 = match port.protocol {
            Protocol::Http2 | Protocol::Grpc => true,
            Protocol::Http => record.speaks() == Speaks::Grpc,
            Protocol::Detect => record.speaks() != Speaks::Http1,
            Protocol::Tcp => false,
        };
        plan.wire = wire(http2, plan.upgrade.is_some());
        plan
    }

    fn outside(conn: &'p Conn, address: SocketAddr, call: &Call, head: &Head<'_>, record: &Entry) -> Self {
        Self::plain(conn, To::Outside(address), call, head, record)
    }

    fn plain(conn: &'p Conn, to: To<'p>, call: &Call, head: &Head<'_>, record: &Entry) -> Self {
        let raw = call.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let path = match (head.query, raw.strip_prefix(head.path)) {
            // What normalisation left as it was is not copied.
            (None, Some("")) => call.uri.path_and_query().cloned(),
            (Some(query), Some(rest)) if rest.strip_prefix('?') == Some(query) => call.uri.path_and_query().cloned(),
            (query, _) => {
                let query = query.map(|query| format!("?{query}")).unwrap_or_default();
                PathAndQuery::try_from(format!("{}{query}", head.path)).ok()
            }
        };
        // A fixed authority is the name that counts; what the application calls its local port by is nobody's name.
        let host = match &conn.origin {
            Origin::Fixed(key) => HeaderValue::from_str(key).ok(),
            Origin::Outbound | Origin::Inbound(_) => match head.headers.get(header::HOST) {
                Some(host) if host == call.authority.host() => Some(host.clone()),
                _ => HeaderValue::from_str(&call.authority.to_string()).ok(),
            },
        };
        let upgrade = headers::asks_upgrade(head.headers).filter(|_| record.speaks() == Speaks::Http1);
        Self {
            to,
            admitted: None,
            path: path.unwrap_or_else(|| PathAndQuery::from_static("/")),
            host: host.unwrap_or_else(|| HeaderValue::from_static("unknown")),
            wire: Wire::Http1,
            retry: RetryPlan::new(Some(&REPLAY_ONLY), head.method),
            budget: &conn.worker.app_budget,
            deadline: Deadline::new(record.started(), None, None, None),
            idle: conn.worker.path.bounds.stream_idle,
            hash: None,
            edits: [None, None],
            answer_edits: None,
            upgrade,
            source: conn.peer,
        }
    }
}

fn wire(http2: bool, upgrade: bool) -> Wire {
    if http2 && !upgrade { Wire::Http2 } else { Wire::Http1 }
}

/// Sends the request, and again while it may be and does some good.
async fn exchange(
    conn: &Rc<Conn>,
    mut plan: Plan<'_>,
    mut parts: Parts,
    incoming: Incoming,
    record: &Record,
) -> Result<Reply, Failed> {
    let bodyless = incoming.is_end_stream();
    let downstream = plan.upgrade.as_ref().filter(|_| bodyless).and_then(|_| parts.extensions.remove::<OnUpgrade>());
    if downstream.is_none() {
        plan.upgrade = None;
    }
    prepare(conn, &plan, &mut parts.headers, record);
    let body = (!bodyless).then(|| Source::new(incoming, plan.retry.body_bytes(), Rc::clone(record.entry())));
    let mut tried = Tried { addresses: Vec::new(), kind: AttemptKind::First, fresh: false, number: 1 };
    loop {
        let began = Instant::now();
        let attempt = one_try(conn, &plan, &mut tried, &parts, body.as_ref(), record);
        let ended = match plan.deadline.try_until(began) {
            None => within_idle(attempt, plan.idle, record).await,
            Some((at, bound)) => {
                match tokio::time::timeout_at(at.into(), within_idle(attempt, plan.idle, record)).await {
                    Ok(ended) => ended,
                    Err(_elapsed) => Err(Box::new(Lost::late(bound))),
                }
            }
        };
        record.waited(began.elapsed());
        if let Some(endpoint) = tried.addresses.last() {
            let result = match &ended {
                Ok(sent) => sent.told().map_or("ok", Reason::code),
                Err(lost) => lost.failed.reason.code(),
            };
            record.tried(Try { endpoint: *endpoint, kind: tried.kind, result, took: began.elapsed() });
        }
        // retry: only what cannot have been executed, or may be repeated; under the budget; never after an answer began.
        let (again, ended) = match ended {
            Ok(sent) => (sent.retriable(record), Ok(sent)),
            Err(lost) => (lost.attempt, Err(lost)),
        };
        let replayable = body.as_ref().is_none_or(|body| body.replayable());
        let circumstances = Circumstances { replayable, response_begun: false };
        let verdict = again.map(|attempt| {
            plan.retry.after(attempt, circumstances, &plan.deadline, plan.budget, Instant::now(), fastrand::u64(..))
        });
        match (verdict, ended) {
            (Some(Verdict::Retry { backoff, replay }), ended) => {
                tried.next(replay);
                if let Ok(mut sent) = ended {
                    sent.served.finish(outcome(sent.response.status().as_u16(), sent.grpc()));
                }
                if !backoff.is_zero() {
                    tokio::time::sleep(backoff).await;
                }
            }
            (verdict, ended) => {
                if let Some(Verdict::GiveUp(why)) = verdict
                    && !matches!(why.label(), "not_retriable" | "response_begun")
                {
                    record.flow().suppressed(why.label());
                }
                return finish(plan, ended, body, downstream, record);
            }
        }
    }
}

fn finish(
    mut plan: Plan<'_>,
    ended: Result<Box<Sent>, Box<Lost>>,
    body: Option<Rc<Source>>,
    downstream: Option<OnUpgrade>,
    record: &Record,
) -> Result<Reply, Failed> {
    match ended {
        Ok(mut sent) => {
            sent.served.admitted = plan.admitted.take();
            sent.served.upload = body;
            let idle = if sent.served.lease.is_some() { plan.idle } else { std::time::Duration::MAX };
            Ok(Reply::Upstream { sent, downstream, edits: plan.answer_edits, idle, until: plan.deadline.overall() })
        }
        Err(lost) => {
            let mut failed = lost.failed;
            if body.as_ref().is_some_and(|body| body.failed()) {
                failed = caller_failed(record, failed);
            }
            if let Some(admitted) = &mut plan.admitted
                && let To::Mesh(upstream) = plan.to
                && let Some(change) = admitted.finish(lost.outcome, Instant::now())
            {
                record.conn().worker.path.metrics.breaker(upstream.cluster(), &change);
            }
            Err(failed)
        }
    }
}

/// The caller's body ended in an error: what the guard saw says why.
fn caller_failed(record: &Record, failed: Failed) -> Failed {
    match record.conn().signals.refused() {
        Some(reason) => Failed { reason, ..failed },
        None => Failed { reason: Reason::ClientCancelled, ..failed },
    }
}

/// State of the tries of one request.
struct Tried {
    addresses: Vec<SocketAddr>,
    kind: AttemptKind,
    fresh: bool,
    number: u32,
}

impl Tried {
    fn next(&mut self, replay: bool) {
        self.kind = if replay { AttemptKind::ReuseReplay } else { AttemptKind::Retry };
        self.fresh = replay;
        self.number += u32::from(!replay);
    }
}

/// An answer's head has come.
struct Sent {
    response: Response<Incoming>,
    served: Served,
}

impl Sent {
    fn grpc(&self) -> Option<u8> {
        headers::grpc_status(self.response.headers())
    }

    /// What the peer's sidecar says, when it is one.
    fn told(&self) -> Option<Reason> {
        let mutual = self.served.lease.as_ref().is_some_and(|lease| lease.mutual);
        self.response.headers().get(headers::REASON).filter(|_| mutual).and_then(Reason::from_header)
    }

    /// How the try ended, if it is one that might be repeated.
    fn retriable(&self, record: &Entry) -> Option<Attempt> {
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
struct Lost {
    failed: Failed,
    attempt: Option<Attempt>,
    /// For the service's breaker.
    outcome: Outcome,
}

impl Lost {
    fn late(bound: Bound) -> Self {
        let (reason, attempt) = match bound {
            Bound::Overall => (Reason::RequestTimeout, None),
            Bound::Try => (Reason::TryTimeout, Some(Attempt::PerTryTimeout)),
        };
        Self { failed: reason.into(), attempt, outcome: Outcome::Failed(Failure::Timeout) }
    }

    fn here(reason: Reason, detail: &str) -> Self {
        Self { failed: Failed::with(reason, detail), attempt: None, outcome: Outcome::Ignored }
    }
}

/// Ends a try in which no byte moved either way for too long.
async fn within_idle(
    attempt: impl Future<Output = Result<Box<Sent>, Box<Lost>>>,
    idle: std::time::Duration,
    record: &Entry,
) -> Result<Box<Sent>, Box<Lost>> {
    record.progress();
    let quiet = async {
        while let Some(at) = record.progressed().checked_add(idle) {
            if at <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(at.into()).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        biased;
        ended = attempt => ended,
        () = quiet => {
            let outcome = Outcome::Failed(Failure::Timeout);
            Err(Box::new(Lost { failed: Reason::IdleTimeout.into(), attempt: None, outcome }))
        }
    }
}

async fn one_try(
    conn: &Rc<Conn>,
    plan: &Plan<'_>,
    tried: &mut Tried,
    parts: &Parts,
    body: Option<&Rc<Source>>,
    record: &Record,
) -> Result<Box<Sent>, Box<Lost>> {
    // pick: an endpoint that takes traffic, by the service's balancer.
    let (destination, mut picked) = pick(conn, plan, &tried.addresses)?;
    tried.addresses.push(destination.address());
    let careful = !is_idempotent(&parts.method);
    let mut request = build(plan, tried, parts, body);
    let mut fresh = tried.fresh;
    loop {
        // connect: a pooled connection that is still alive, or a new one; the peer proves who it is before any byte.
        let asked = Instant::now();
        let leased = conn.worker.pools.lease(&conn.worker, &destination, plan.wire, fresh, careful).await;
        record.connected(asked.elapsed());
        let mut lease = leased.map_err(|failure| unconnected(conn, &mut picked, &destination, failure))?;
        record.mutual(lease.mutual);
        // send: the head, and the body as it comes; wait for the head of the answer.
        match send(&mut lease, &destination, request).await {
            Ok(response) => {
                record.progress();
                let upstream = match destination {
                    Destination::Workload(upstream, _) => Some(upstream),
                    Destination::App(_) | Destination::External(_) => None,
                };
                let served = Served {
                    admitted: None,
                    picked,
                    lease: Some(lease),
                    upload: None,
                    conn: Rc::clone(conn),
                    upstream,
                };
                return Ok(Box::new(Sent { response, served }));
            }
            Err(missed) => match *missed {
                // The pooled connection had ended; nothing was sent, so this is the same try.
                Missed { stage: Stage::NotSent, unsent: Some(unsent), .. } if lease.reused => {
                    request = *unsent;
                    fresh = true;
                }
                missed => return Err(unanswered(conn, &mut picked, &destination, missed, &lease)),
            },
        }
    }
}

fn pick(conn: &Conn, plan: &Plan<'_>, tried: &[SocketAddr]) -> Result<(Destination, Option<Picked>), Box<Lost>> {
    let upstream = match plan.to {
        To::App(address) => return Ok((Destination::App(address), None)),
        To::Outside(address) => return Ok((Destination::External(address), None)),
        To::Mesh(upstream) => upstream,
    };
    let picked = upstream.pick(plan.hash, tried, Instant::now()).map_err(|error| {
        let reason = match error {
            PickError::NoEndpoints => Reason::NoEndpoints,
            PickError::NoneReady => Reason::NoReadyEndpoint,
        };
        Box::new(Lost::here(reason, &upstream.cluster().name))
    })?;
    if let Some(change) = &picked.change {
        let address = picked.endpoint.address();
        conn.worker.path.metrics.ejection(upstream.cluster(), address, change);
    }
    Ok((Destination::Workload(Arc::clone(upstream), Arc::clone(&picked.endpoint)), Some(picked)))
}

fn report(conn: &Conn, picked: &mut Option<Picked>, destination: &Destination, outcome: Outcome) {
    if let Some(picked) = picked
        && let Destination::Workload(upstream, endpoint) = destination
        && let Some(change) = picked.finish(outcome, Instant::now())
    {
        conn.worker.path.metrics.ejection(upstream.cluster(), endpoint.address(), &change);
    }
}

fn unconnected(
    conn: &Conn,
    picked: &mut Option<Picked>,
    destination: &Destination,
    failure: crate::upstream::ConnectFailure,
) -> Box<Lost> {
    let overflow = matches!(failure.reason, Reason::OverflowConnections | Reason::OverflowPending);
    let outcome = if overflow { Outcome::Ignored } else { Outcome::Failed(Failure::Connect) };
    report(conn, picked, destination, outcome);
    let attempt = (!overflow).then_some(Attempt::ConnectFailed);
    Box::new(Lost { failed: Failed::with(failure.reason, failure.detail), attempt, outcome })
}

fn unanswered(
    conn: &Conn,
    picked: &mut Option<Picked>,
    destination: &Destination,
    missed: Missed,
    lease: &Lease,
) -> Box<Lost> {
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
    report(conn, picked, destination, outcome);
    Box::new(Lost { failed: Failed::with(missed.reason, missed.detail), attempt, outcome })
}

/// What the next hop gets to see of the request's fields.
fn prepare(conn: &Conn, plan: &Plan<'_>, fields: &mut HeaderMap, record: &Entry) {
    let hops = headers::hops(fields) + 1;
    let mesh = !matches!(plan.to, To::Outside(_));
    let attempt = match (&conn.origin, &conn.identity) {
        // What a sidecar says of tries is passed on to the application.
        (Origin::Inbound(_), Some(_)) => fields.get(headers::ATTEMPT).cloned(),
        _ => None,
    };
    headers::strip_hop_by_hop(fields);
    headers::strip_ours(fields);
    fields.remove(header::EXPECT);
    fields.remove(headers::HOPS);
    if mesh {
        fields.insert(headers::HOPS, HeaderValue::from(hops));
    }
    if let Some(attempt) = attempt {
        fields.insert(headers::ATTEMPT, attempt);
    }
    record.trace(headers::ensure_trace(fields));
    if let Origin::Inbound(_) = conn.origin {
        let proto = if conn.identity.is_some() { "https" } else { "http" };
        fields.insert(headers::FORWARDED_PROTO, HeaderValue::from_static(proto));
        let from = plan.source.ip().to_canonical().to_string();
        fields.insert(headers::FORWARDED_FOR, HeaderValue::try_from(from).expect("an address is a header value"));
        if let (Some(peer), Some(own)) = (&conn.identity, conn.worker.path.shared.tls.load().as_ref()) {
            let said = format!("By={};URI={peer}", own.id);
            fields.insert(headers::CLIENT_CERT, HeaderValue::try_from(said).expect("a SPIFFE ID is a header value"));
        }
    }
    for edits in plan.edits.into_iter().flatten() {
        edit(edits, fields);
    }
    if let Some(to) = &plan.upgrade {
        fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        fields.insert(header::UPGRADE, to.clone());
    }
    match plan.wire {
        Wire::Http1 => {
            fields.insert(header::HOST, plan.host.clone());
        }
        Wire::Http2 => {
            fields.remove(header::HOST);
        }
    }
}

/// The request of one try.
fn build(plan: &Plan<'_>, tried: &Tried, parts: &Parts, body: Option<&Rc<Source>>) -> Request<Body> {
    let mut request = Request::new(body.map_or(Body::Empty, |body| Body::Upload(body.upload())));
    *request.method_mut() = parts.method.clone();
    *request.headers_mut() = parts.headers.clone();
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(plan.path.clone());
    if plan.wire == Wire::Http2 {
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = http::uri::Authority::try_from(plan.host.as_bytes()).ok();
        *request.version_mut() = Version::HTTP_2;
    }
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
    if tried.number > 1 {
        request.headers_mut().insert(headers::ATTEMPT, HeaderValue::from(tried.number));
    }
    if request.headers().contains_key("grpc-timeout")
        && let Some(left) = plan.deadline.grpc_timeout(Instant::now())
    {
        request.headers_mut().insert("grpc-timeout", left);
    }
    request
}

/// What goes back to the caller.
enum Reply {
    Upstream {
        sent: Box<Sent>,
        downstream: Option<OnUpgrade>,
        edits: Option<(Arc<Route>, HeaderEdits)>,
        idle: std::time::Duration,
        until: Option<Instant>,
    },
    Configured(StatusCode, Box<str>, Arc<Route>),
    Redirect(StatusCode, HeaderValue, Arc<Route>),
    /// CONNECT was taken: what flows next is in the connection's tunnel.
    Connected(Tunnel),
}

impl Reply {
    fn answer(self, conn: &Conn, record: Record) -> Response<Body> {
        match self {
            Self::Configured(status, body, route) => {
                let mut answer = configured(status, &body, record);
                edit(&route.response_headers, answer.headers_mut());
                answer
            }
            Self::Redirect(status, location, route) => {
                let mut answer = configured(status, "", record);
                answer.headers_mut().insert(header::LOCATION, location);
                edit(&route.response_headers, answer.headers_mut());
                answer
            }
            Self::Connected(tunnel) => {
                let established = local(Response::new(Bytes::new()), record);
                *conn.tunnel.borrow_mut() = Some(tunnel);
                established.map(|_done| Body::Empty)
            }
            Self::Upstream { sent, downstream, edits, idle, until } => {
                let told = sent.told();
                let Sent { mut response, served } = *sent;
                if let Some(told) = told {
                    record.fail(told, Some("reported by the callee's sidecar"));
                }
                if response.status().is_informational() {
                    return switched(conn, response, served, downstream, record);
                }
                let fields = response.headers_mut();
                let reason = fields.get(headers::REASON).cloned().filter(|_| told.is_some());
                headers::strip_hop_by_hop(fields);
                headers::strip_ours(fields);
                if let Some(reason) = reason {
                    fields.insert(headers::REASON, reason);
                }
                if let Some((route, share)) = &edits {
                    edit(&route.response_headers, fields);
                    edit(share, fields);
                }
                record.answered(&response);
                let (mut head, incoming) = response.into_parts();
                head.version = Version::HTTP_11;
                head.extensions.clear();
                let answer = Answer::new(incoming, record, served, idle, until);
                Response::from_parts(head, Body::Answer(Box::new(answer)))
            }
        }
    }
}

/// 101: from now on bytes flow. Anything else informational as a final answer is no HTTP.
fn switched(
    conn: &Conn,
    mut response: Response<Incoming>,
    mut served: Served,
    downstream: Option<OnUpgrade>,
    record: Record,
) -> Response<Body> {
    let upstream = response.extensions_mut().remove::<OnUpgrade>();
    let (Some(downstream), Some(upstream), StatusCode::SWITCHING_PROTOCOLS) = (downstream, upstream, response.status())
    else {
        served.finish(Outcome::Failed(Failure::Status));
        return Failed::with(Reason::UpstreamProtocolError, "101 without having been asked for").answer(record);
    };
    let protocol = response.headers().get(header::UPGRADE).cloned();
    headers::strip_hop_by_hop(response.headers_mut());
    headers::strip_ours(response.headers_mut());
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::UPGRADE, protocol);
    }
    record.answered(&response);
    *conn.tunnel.borrow_mut() = Some(Tunnel::Switched { downstream, upstream, record, served });
    let (head, _empty) = response.into_parts();
    Response::from_parts(head, Body::Empty)
}

/// CONNECT: to a service it is ended here, and what flows inside is a connection like any other; to the outside world
/// it is a tunnel.
async fn connect(conn: &Rc<Conn>, call: Call, mut parts: Parts, record: &Record) -> Result<Reply, Failed> {
    let downstream = parts
        .extensions
        .remove::<OnUpgrade>()
        .ok_or_else(|| Failed::told(Reason::ClientProtocolError, "this connection cannot be switched"))?;
    if conn.depth > 0 {
        return Err(Reason::LoopDetected.into());
    }
    if let Whither::Mesh { key, certainly } = &call.whither {
        let shared = &conn.worker.path.shared;
        match shared.demand.ensure(shared, key).await {
            Ok(_ready) => {
                record.goes(&conn.worker.path.service, None);
                return Ok(Reply::Connected(Tunnel::Mesh { downstream, authority: key.clone() }));
            }
            Err(DemandError::NotFound) if !certainly => {}
            Err(error) => return Err(unknown(error, key)),
        }
    }
    let address = outside(conn, &call.authority, record).await?;
    let stream = crate::upstream::connect(&conn.worker, &Destination::External(address), crate::shared::Alpn::None)
        .await
        .map_err(|failure| Failed::with(failure.reason, failure.detail))?;
    Ok(Reply::Connected(Tunnel::Outside { downstream, upstream: Box::new(stream.io) }))
}

/// Asks the port's access policies, and counts what they say.
/// # Errors
/// `access_denied`, `plaintext_refused`.
pub fn authorize(conn: &Conn, port: &InboundPort, head: Option<&Head<'_>>) -> Result<(), Failed> {
    let identity = conn.identity.as_ref().map(|id| id.as_str());
    let metrics = &conn.worker.path.metrics;
    let verdict = access::evaluate(&port.access, &access::Call { identity, port: port.port, head });
    if let Some(shadow) = verdict.shadow {
        metrics.access("audit_deny", shadow.policy(), shadow.rule());
    }
    match verdict.decision {
        access::Decision::Allowed(None) => Ok(()),
        access::Decision::Allowed(Some(by)) => {
            metrics.access("allow", by.policy, by.rule);
            Ok(())
        }
        access::Decision::Denied(denial) => {
            metrics.access("deny", denial.policy(), denial.rule());
            let (policy, rule) = (denial.policy(), denial.rule());
            let caller = identity.unwrap_or("a caller without identity");
            Err(Failed::told(Reason::AccessDenied, format!("policy={policy} rule={rule} caller={caller}")))
        }
    }
}

/// Lets a request of the application's into a cluster.
fn admit(conn: &Conn, upstream: &Upstream) -> Result<Admitted, Failed> {
    let now = Instant::now();
    upstream.budget().deposit(now);
    match upstream.admit(now) {
        Ok(admitted) => {
            if let Some(change) = &admitted.change {
                conn.worker.path.metrics.breaker(upstream.cluster(), change);
            }
            Ok(admitted)
        }
        Err(Refused::BreakerOpen { .. }) => Err(Failed::with(Reason::BreakerOpen, &*upstream.cluster().name)),
        Err(Refused::Overflow(kind)) => {
            let reason = match kind {
                LimitKind::Connections => Reason::OverflowConnections,
                LimitKind::Pending => Reason::OverflowPending,
                LimitKind::Requests => Reason::OverflowRequests,
            };
            Err(Failed::with(reason, &*upstream.cluster().name))
        }
    }
}

/// Why there are no routes.
pub fn unknown(error: DemandError, key: &str) -> Failed {
    let reason = match error {
        DemandError::NotFound => Reason::ServiceUnknown,
        DemandError::Timeout { control_plane_connected: true } => Reason::ConfigTimeout,
        DemandError::Timeout { control_plane_connected: false } => Reason::ControlPlaneUnreachable,
        DemandError::TooMany => Reason::Overloaded,
    };
    Failed::told(reason, format!("service={key}"))
}

fn no_port(conn: &Conn) -> Failed {
    tracing::debug!(peer = %conn.peer, "a request before there is configuration");
    Failed::with(Reason::ConfigTimeout, "this sidecar has no configuration for what comes in yet")
}

#[cfg(test)]
mod tests {
    /// Every step of the page stands in this file in the page's words, and the other way round.
    #[test]
    fn the_page_tells_what_the_code_does() {
        let page = include_str!("../../../docs/request.md");
        let rows = page.lines().filter(|line| line.starts_with("| ")).skip(1);
        let told: Vec<(&str, &str)> = rows
            .map(|row| {
                let mut cells = row.split('|').map(str::trim).skip(1);
                (cells.next().unwrap(), cells.next().unwrap())
            })
            .collect();
        let code = include_str!("request.rs");
        let done: Vec<(&str, &str)> = code
            .lines()
            .filter_map(|line| line.trim().strip_prefix("// "))
            .filter_map(|line| line.split_once(": "))
            .filter(|(step, _)| step.bytes().all(|byte| byte.is_ascii_lowercase()))
            .collect();
        for step in &told {
            assert!(done.contains(step), "{step:?} is told and not done; done is {done:?}");
        }
        for step in &done {
            assert!(told.contains(step), "{step:?} is done and not told");
        }
        assert_eq!(told.len(), 10);
    }
}
