//! What becomes of a request that is let through, and how it looks to the next hop. Pure.

use std::{net::SocketAddr, sync::Arc, sync::LazyLock, time::Duration};

use http::{
    HeaderMap, HeaderValue, Request, Uri, Version, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use weft_xds::resource::{Forward, HeaderEdits, InboundPort, Protocol, RetryOn, RetryPolicy, Route};

use super::{classify::Call, headers, marks::Marks};
use crate::{
    balance::{Admitted, Budget, Upstream, request_hash},
    clock,
    metrics::Speaks,
    policy::{
        retry::RetryPlan,
        timeouts::{Deadline, parse_grpc_timeout},
    },
    record::Entry,
    route::{Head, headers::edit, rewrite},
    upstream::Wire,
    worker::{Conn, Origin},
};

/// What becomes of a request that is let through.
pub struct Plan<'p> {
    pub(super) to: To<'p>,
    pub(super) admitted: Option<Admitted>,
    /// What the request line will say.
    pub(crate) path: PathAndQuery,
    /// What Host or `:authority` will say.
    pub(super) host: HeaderValue,
    /// The Host field says so already.
    pub(super) host_kept: bool,
    pub(super) wire: Wire,
    pub(super) retry: RetryPlan<'p>,
    pub(super) budget: &'p Budget,
    pub(super) deadline: Deadline,
    pub(super) idle: Duration,
    pub(super) hash: Option<u64>,
    /// The one endpoint that is meant.
    pub(super) endpoint: Option<&'p SocketAddr>,
    pub(super) edits: [Option<&'p HeaderEdits>; 2],
    pub(super) answer_edits: Option<(Arc<Route>, HeaderEdits)>,
    pub(super) upgrade: Option<HeaderValue>,
    /// What the head had when it came.
    pub(super) has: Marks,
}

#[derive(Clone, Copy)]
pub(super) enum To<'p> {
    Mesh(&'p Arc<Upstream>),
    App(SocketAddr),
    Outside(SocketAddr),
}

/// Nothing is retried but what met a closed pooled connection.
static REPLAY_ONLY: LazyLock<RetryPolicy> =
    LazyLock::new(|| RetryPolicy { retries: 0, on: RetryOn::default(), ..RetryPolicy::default() });

impl<'p> Plan<'p> {
    #[expect(clippy::too_many_arguments, reason = "what was decided so far, used once")]
    pub(super) fn mesh(
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
        let grpc = record.speaks() == Speaks::Grpc && call.has.has(Marks::GRPC_TIMEOUT);
        let asked = if grpc { head.headers.get(headers::GRPC_TIMEOUT) } else { None };
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
            plan.host_kept = false;
        }
        let http2 = match upstream.cluster().protocol {
            Protocol::Http2 | Protocol::Grpc => true,
            Protocol::Http | Protocol::Detect => record.speaks() != Speaks::Http1,
            Protocol::Tcp => false,
        };
        plan.wire = wire(http2, plan.upgrade.is_some());
        plan
    }

    pub(super) fn inbound(conn: &'p Conn, port: &InboundPort, call: &Call, head: &Head<'_>, record: &Entry) -> Self {
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

    /// A health probe: to the port of the application that was meant, and nothing but a request.
    pub(super) fn probe(conn: &'p Conn, port: u16, call: &Call, head: &Head<'_>, record: &Entry) -> Self {
        let app = SocketAddr::new(conn.worker.path.shared.settings.app_address, port);
        let mut plan = Self::plain(conn, To::App(app), call, head, record);
        plan.upgrade = None;
        plan.wire = wire(record.speaks() != Speaks::Http1, false);
        plan
    }

    pub(super) fn outside(conn: &'p Conn, address: SocketAddr, call: &Call, head: &Head<'_>, record: &Entry) -> Self {
        Self::plain(conn, To::Outside(address), call, head, record)
    }

    pub(super) fn plain(conn: &'p Conn, to: To<'p>, call: &Call, head: &Head<'_>, record: &Entry) -> Self {
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
        let asked = || headers::asks_upgrade(head.headers).filter(|_| record.speaks() == Speaks::Http1);
        let upgrade = if call.has.has(Marks::UPGRADE) { asked() } else { None };
        Self {
            to,
            admitted: None,
            path: path.unwrap_or_else(|| PathAndQuery::from_static("/")),
            host: call.named.sent.clone(),
            host_kept: call.named.kept,
            wire: Wire::Http1,
            retry: RetryPlan::new(Some(&REPLAY_ONLY), head.method),
            budget: &conn.worker.app_budget,
            deadline: Deadline::new(record.started(), None, None, None),
            idle: conn.worker.path.bounds.stream_idle,
            hash: None,
            endpoint: None,
            edits: [None, None],
            answer_edits: None,
            upgrade,
            has: call.has,
        }
    }
}

pub(super) fn wire(http2: bool, upgrade: bool) -> Wire {
    if http2 && !upgrade { Wire::Http2 } else { Wire::Http1 }
}

/// What the next hop gets to see of the request's fields.
pub(super) fn prepare(conn: &Conn, plan: &mut Plan<'_>, fields: &mut HeaderMap, record: &Entry) {
    let has = plan.has;
    let hops = headers::next_hops(if has.has(Marks::HOPS) { headers::hops(fields) } else { 0 });
    let mesh = !matches!(plan.to, To::Outside(_));
    let attempt = match (&conn.origin, &conn.identity) {
        // What a sidecar says of tries is passed on to the application.
        (Origin::Inbound(_), Some(_)) if has.has(Marks::OURS) => fields.get(headers::ATTEMPT).cloned(),
        _ => None,
    };
    headers::strip_hop_by_hop(fields, has);
    headers::strip_ours(fields, has);
    if has.has(Marks::EXPECT) {
        fields.remove(header::EXPECT);
    }
    if mesh {
        fields.insert(headers::HOPS, hops);
    } else if has.has(Marks::HOPS) {
        fields.remove(headers::HOPS);
    }
    if let Some(attempt) = attempt {
        fields.insert(headers::ATTEMPT, attempt);
    }
    record.trace(headers::ensure_trace(fields, has));
    if let Origin::Inbound(_) | Origin::Probe(_) = conn.origin {
        let proto = if conn.identity.is_some() { "https" } else { "http" };
        fields.insert(headers::FORWARDED_PROTO, HeaderValue::from_static(proto));
        let [address, proved] = conn.forwarded();
        for (name, value) in [(headers::FORWARDED_FOR, address), (headers::CLIENT_CERT, proved)] {
            match value {
                Some(value) => fields.insert(name, value.clone()),
                None => fields.remove(&name),
            };
        }
    }
    for edits in plan.edits.into_iter().flatten() {
        if edit(edits, fields) {
            plan.has = Marks::of(fields);
            plan.host_kept = false;
        }
    }
    if let Some(to) = &plan.upgrade {
        fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        fields.insert(header::UPGRADE, to.clone());
    }
    match plan.wire {
        Wire::Http1 if plan.host_kept => {}
        Wire::Http1 => {
            fields.insert(header::HOST, plan.host.clone());
        }
        Wire::Http2 => {
            fields.remove(header::HOST);
        }
    }
}

/// Fields of one try alone.
pub(super) fn own_fields(plan: &Plan<'_>, number: u32) -> HeaderMap {
    let mut own = HeaderMap::new();
    if number > 1 {
        own.insert(headers::ATTEMPT, HeaderValue::from(number));
    }
    if plan.has.has(Marks::GRPC_TIMEOUT)
        && let Some(left) = plan.deadline.grpc_timeout(clock::now())
    {
        own.insert(headers::GRPC_TIMEOUT, left);
    }
    own
}

/// The request of one try over HTTP/2.
pub fn http2(plan: &Plan<'_>, parts: &Parts, own: &HeaderMap) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.headers_mut() = parts.headers.clone();
    for (name, value) in own {
        request.headers_mut().insert(name, value.clone());
    }
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(plan.path.clone());
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = http::uri::Authority::try_from(plan.host.as_bytes()).ok();
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
    request
}
