//! The life of a request, from its head to the last byte of its answer.
//!
//! Decides first (pure), then acts. What flows between the steps is small: a `Call`, a [`Plan`], an [`Aim`], a [`Sent`] or a [`Lost`].

use std::{pin::pin, rc::Rc, sync::Arc, time::Instant};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use http_body::Body as _;
use weft_xds::resource::{InboundPort, RouteAction};

use super::{
    answer::{Failed, outcome},
    body::{Body, Source},
    classify::{Call, Whither, classify},
    headers,
    incoming::Incoming,
    marks::Marks,
    plan::{Plan, To, own_fields, prepare},
    reply::Reply,
    tries::{Aim, Lost, Sent, Tried, Within, timed},
    upgrade::{connect, outside},
};
use crate::{
    balance::{Admitted, Failure, LimitKind, Outcome, PickError, Refused, Upstream},
    clock,
    demand::{DemandError, Ready},
    policy::{
        access,
        retry::{Circumstances, Verdict, is_idempotent},
    },
    reason::Reason,
    record::{Record, Try},
    route::{Head, pick_cluster, rewrite},
    upstream::{Destination, Missed, Sending, Stage, send},
    worker::{Conn, Origin, inbound_port},
};

/// Proxies one HTTP request: decide, act, record.
pub async fn proxy(conn: &Rc<Conn>, request: Request<Incoming>) -> Response<Body> {
    let has = Marks::of(request.headers());
    let record = Record::start(conn, &request, has);
    let connect = request.method() == Method::CONNECT;
    let upgrades = has.has(Marks::UPGRADE)
        && headers::names_upgrade(request.headers()).is_some()
        && request.body().is_end_stream();
    let switches = connect || upgrades;
    let http1 = request.version() != Version::HTTP_2;
    let reply = steps(conn, request, has, &record).await;
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

/// Answers a request whose head was refused before it was one.
pub fn refuse(conn: &Rc<Conn>, reason: Reason) -> Response<Body> {
    // Nothing of it is believed, so nothing of it is shown.
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(b"WEFT-REFUSED").expect("letters and a dash are a token");
    let record = Record::start(conn, &request, Marks::default());
    Failed::from(reason).answer(record)
}

async fn steps(conn: &Rc<Conn>, request: Request<Incoming>, has: Marks, record: &Record) -> Result<Reply, Failed> {
    let (mut parts, incoming) = request.into_parts();
    // classify: what is it, whom does it ask for?
    let call = classify(conn, &mut parts, has)?;
    if parts.method == Method::CONNECT {
        return Box::pin(connect(conn, call, record)).await;
    }
    let target = call.target()?;
    let head = Head {
        method: &parts.method,
        path: &target.path,
        query: target.query,
        authority: call.named.authority.host(),
        scheme: "http",
        headers: &parts.headers,
    };
    let snapshot;
    let ready;
    let mut plan = match (&conn.origin, &call.named.whither) {
        (Origin::Inbound(sni), _) => {
            snapshot = conn.worker.path.shared.snapshot.load_full();
            let port = inbound_port(&snapshot, sni).ok_or_else(|| no_port(conn))?;
            record.goes(&conn.worker.path.service, None);
            // authorize: may this caller ask for this?
            authorize(conn, port, Some(&head))?;
            Plan::inbound(conn, port, &call, &head, record)
        }
        (Origin::Probe(port), _) => {
            record.goes(&conn.worker.path.service, None);
            Plan::probe(conn, *port, &call, &head, record)
        }
        (_, Whither::Mesh { key, certainly }) => {
            // route: the service's routes, fetched at the first call; the first that takes the request.
            let (found, queued) = timed(conn.worker.path.shared.demand.ensure(&conn.worker.path.shared, key)).await;
            if !queued.is_zero() {
                record.queued(queued);
                record.progress();
            }
            match found {
                Err(DemandError::NotFound) if !certainly && call.to_proxy => {
                    let address = outside(conn, &call.named.authority, record).await?;
                    Plan::outside(conn, address, &call, &head, record)
                }
                Err(error) => return Err(unknown(error, key)),
                Ok(found) => {
                    ready = found;
                    match to_service(conn, &ready, key, &call, &head, record)? {
                        Routed::Answer(reply) => return Ok(*reply),
                        Routed::Forward(plan) => plan,
                    }
                }
            }
        }
        (_, Whither::Outside | Whither::App) => {
            let address = outside(conn, &call.named.authority, record).await?;
            Plan::outside(conn, address, &call, &head, record)
        }
    };
    exchange(conn, &mut plan, &mut parts, incoming, record).await
}

/// What a route says.
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one, and lives in the request's own future")]
enum Routed<'p> {
    Answer(Box<Reply>),
    Forward(Plan<'p>),
}

/// A request to a service: its route, its cluster, and whether there is room.
fn to_service<'p>(
    conn: &'p Rc<Conn>,
    ready: &'p Ready,
    key: &str,
    call: &Call,
    head: &Head<'_>,
    record: &Record,
) -> Result<Routed<'p>, Failed> {
    let route = ready.host.route(head).ok_or(Reason::NoRoute)?;
    let forward = match &route.action {
        RouteAction::Forward(forward) => forward,
        RouteAction::Respond { status, body } => {
            record.goes(key, Some(route));
            return Ok(Routed::Answer(Box::new(Reply::Configured(*status, body.clone(), route.clone()))));
        }
        RouteAction::Redirect(redirect) => {
            record.goes(key, Some(route));
            let (status, location) = rewrite::redirect(redirect, &route.matches.path, head, &call.named.authority)
                .ok_or_else(|| Failed::with(Reason::InternalError, "the redirect makes no location"))?;
            return Ok(Routed::Answer(Box::new(Reply::Redirect(status, location, route.clone()))));
        }
    };
    let share = pick_cluster(forward, fastrand::u64(..)).ok_or(Reason::NoRoute)?;
    let upstream = ready
        .snapshot
        .cluster(&share.name)
        .ok_or_else(|| Failed::told(Reason::ServiceUnknown, format!("no cluster {}", share.name)))?;
    record.goes(&upstream.cluster().service, Some(route));
    record.by(upstream.cluster());
    // limit: is there room, and is the service's breaker closed?
    let admitted = admit(conn, upstream, record.progressed())?;
    let mut plan = Plan::mesh(conn, upstream, admitted, route, forward, call, head, record);
    plan.endpoint = ready.host.routes.endpoint.as_ref();
    plan.edits = [Some(&route.request_headers), Some(&share.request_headers)];
    plan.answer_edits = Some((route.clone(), share.response_headers.clone()));
    Ok(Routed::Forward(plan))
}

/// Sends the request, and again while it may be and does some good.
async fn exchange(
    conn: &Rc<Conn>,
    plan: &mut Plan<'_>,
    parts: &mut Parts,
    incoming: Incoming,
    record: &Record,
) -> Result<Reply, Failed> {
    let bodyless = incoming.is_end_stream();
    plan.upgrade = plan.upgrade.take().filter(|_| bodyless);
    prepare(conn, plan, &mut parts.headers, record);
    let body = (!bodyless).then(|| Source::new(incoming, plan.retry.body_bytes(), Rc::clone(record.entry())));
    let mut tried = Tried::default();
    loop {
        let ended = match pick(conn, plan, &mut tried, record.progressed()) {
            Ok(aim) => one_try(conn, plan, &tried, aim, parts, body.as_ref(), record).await,
            Err(nobody) => Err(nobody),
        };
        // retry: only what cannot have been executed, or may be repeated; under the budget; never after an answer began.
        let (again, ended) = match ended {
            Ok(sent) => (sent.retriable(record), Ok(sent)),
            Err(lost) => (lost.attempt, Err(lost)),
        };
        let circumstances = Circumstances { replayable: replayable(body.as_ref()), response_begun: false };
        let verdict = again.map(|attempt| {
            plan.retry.after(attempt, circumstances, &plan.deadline, plan.budget, clock::now(), fastrand::u64(..))
        });
        match (verdict, ended) {
            (Some(Verdict::Retry { backoff, replay }), ended) => {
                tried.next(replay);
                if let Ok(mut sent) = ended {
                    sent.served.finish(outcome(sent.response.status().as_u16(), sent.grpc()), clock::now());
                }
                if !backoff.is_zero() {
                    tokio::time::sleep(backoff).await;
                }
                record.progress();
            }
            (verdict, ended) => {
                if let Some(Verdict::GiveUp(why)) = verdict
                    && !matches!(why.label(), "not_retriable" | "response_begun")
                {
                    record.flow().suppressed(why.label());
                }
                return finish(plan, ended, body, record);
            }
        }
    }
}

fn finish(
    plan: &mut Plan<'_>,
    ended: Result<Box<Sent>, Box<Lost>>,
    body: Option<Rc<Source>>,
    record: &Record,
) -> Result<Reply, Failed> {
    match ended {
        Ok(mut sent) => {
            sent.served.admitted = plan.admitted.take();
            sent.served.upload = body;
            let (idle, until, upgrade) = (plan.idle, plan.deadline.overall(), plan.upgrade.is_some());
            Ok(Reply::Upstream { sent, upgrade, edits: plan.answer_edits.take(), idle, until })
        }
        Err(lost) => {
            let mut failed = lost.failed;
            if body.as_ref().is_some_and(|body| body.failed()) {
                failed = caller_failed(record, failed);
            }
            if let Some(admitted) = &mut plan.admitted
                && let To::Mesh(upstream) = plan.to
                && let Some(change) = admitted.finish(lost.outcome, clock::now())
            {
                record.conn().worker.path.metrics.breaker(upstream.cluster(), &change);
            }
            Err(failed)
        }
    }
}

/// The caller's body ended in an error: what was seen on the wire says why.
fn caller_failed(record: &Record, failed: Failed) -> Failed {
    match record.conn().refused.get() {
        Some(reason) => Failed { reason, ..failed },
        None => Failed { reason: Reason::ClientCancelled, ..failed },
    }
}

/// Tries once, within the try's time, and tells the breakers and the record how it ended.
async fn one_try(
    conn: &Rc<Conn>,
    plan: &Plan<'_>,
    tried: &Tried,
    mut aim: Aim,
    parts: &Parts,
    body: Option<&Rc<Source>>,
    record: &Record,
) -> Result<Box<Sent>, Box<Lost>> {
    record.progress();
    let began = record.progressed();
    let within = Within { idle: plan.idle, until: plan.deadline.try_until(began), record };
    let mut ended = within.run(pin!(attempt(conn, plan, tried, &mut aim, parts, body, record))).await;
    if let Err(lost) = &mut ended {
        // Whoever waits for the caller's body cannot be blamed for being late.
        if lost.outcome == Outcome::Failed(Failure::Timeout) && body.is_some_and(|body| !body.ended()) {
            lost.outcome = Outcome::Ignored;
        }
        aim.report(conn, lost.outcome);
    }
    // With an answer's head the clock was read.
    let now = if ended.is_ok() { record.progressed() } else { clock::now() };
    let took = now.saturating_duration_since(began);
    record.waited(took);
    let result = match &ended {
        Ok(sent) => sent.told().map_or("ok", Reason::code),
        Err(lost) => lost.failed.reason.code(),
    };
    record.tried(Try { endpoint: aim.destination.address(), kind: tried.kind, result, took });
    ended
}

async fn attempt(
    conn: &Rc<Conn>,
    plan: &Plan<'_>,
    tried: &Tried,
    aim: &mut Aim,
    parts: &Parts,
    source: Option<&Rc<Source>>,
    record: &Record,
) -> Result<Box<Sent>, Box<Lost>> {
    let careful = !is_idempotent(&parts.method);
    let own = own_fields(plan, tried.number);
    let sending = Sending { plan, parts, own: &own };
    let mut fresh = tried.fresh;
    loop {
        // connect: a pooled connection that is still alive, or a new one; the peer proves who it is before any byte.
        let lease = conn.worker.pools.lease(&conn.worker, &aim.destination, plan.wire, fresh, careful);
        let (leased, connecting) = timed(lease).await;
        record.connected(connecting);
        let mut lease = leased.map_err(|failure| Box::new(Lost::unconnected(failure)))?;
        record.mutual(lease.mutual);
        // send: the head, and the body as it comes; wait for the head of the answer.
        let body = source.map_or(Body::Empty, |source| Body::Upload(source.upload()));
        match send(&mut lease, &aim.destination, sending, body).await {
            Ok(response) => {
                record.progress();
                return Ok(Box::new(Sent::new(response, aim.served(conn, lease))));
            }
            Err(missed) => match *missed {
                // The pooled connection had ended; nothing was sent, so this is the same try.
                Missed { stage: Stage::NotSent, .. } if lease.reused && replayable(source) => fresh = true,
                missed => return Err(Box::new(Lost::unanswered(missed, &lease))),
            },
        }
    }
}

/// Whether all of the caller's body that came so far can be sent once more.
fn replayable(body: Option<&Rc<Source>>) -> bool {
    body.is_none_or(|body| body.replayable())
}

fn pick(conn: &Conn, plan: &Plan<'_>, tried: &mut Tried, now: Instant) -> Result<Aim, Box<Lost>> {
    // pick: an endpoint that takes traffic, by the service's balancer.
    let upstream = match plan.to {
        To::App(address) => return Ok(Aim { destination: Destination::App(address), picked: None }),
        To::Outside(address) => return Ok(Aim { destination: Destination::External(address), picked: None }),
        To::Mesh(upstream) => upstream,
    };
    let picked = match plan.endpoint {
        None => upstream.pick(plan.hash, &tried.addresses, now),
        Some(only) => upstream.pick_only(*only, now),
    };
    let picked = picked.map_err(|error| {
        let reason = match error {
            PickError::NoEndpoints => Reason::NoEndpoints,
            PickError::NoneReady => Reason::NoReadyEndpoint,
        };
        Box::new(Lost::here(reason, &upstream.cluster().name))
    })?;
    let address = picked.endpoint.address();
    if let Some(change) = &picked.change {
        conn.worker.path.metrics.ejection(upstream.cluster(), address, change);
    }
    tried.at = Some(address);
    let destination = Destination::Workload(Arc::clone(upstream), Arc::clone(&picked.endpoint));
    Ok(Aim { destination, picked: Some(picked) })
}

/// Asks the port's access policies, and counts what they say.
/// # Errors
/// `access_denied`, `plaintext_refused`.
pub fn authorize(conn: &Conn, port: &InboundPort, head: Option<&Head<'_>>) -> Result<(), Failed> {
    let identity = conn.identity.as_ref().map(|id| id.as_str());
    let verdict = access::evaluate(&port.access, &access::Call { identity, port: port.port, head });
    if let Some(shadow) = verdict.shadow {
        conn.worker.decided("audit_deny", shadow.policy(), shadow.rule());
    }
    match verdict.decision {
        access::Decision::Allowed(None) => Ok(()),
        access::Decision::Allowed(Some(by)) => {
            conn.worker.decided("allow", by.policy, by.rule);
            Ok(())
        }
        access::Decision::Denied(denial) => {
            conn.worker.decided("deny", denial.policy(), denial.rule());
            let (policy, rule) = (denial.policy(), denial.rule());
            let caller = identity.unwrap_or("a caller without identity");
            Err(Failed::told(Reason::AccessDenied, format!("policy={policy} rule={rule} caller={caller}")))
        }
    }
}

/// Lets a request of the application's into a cluster.
fn admit(conn: &Conn, upstream: &Upstream, now: Instant) -> Result<Admitted, Failed> {
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
