//! The data path's Prometheus families and the handles into them.
//!
//! A *flow* is what one source sends to one destination by one route. Its handles are resolved once and kept by each
//! worker, so that a request looks nothing up by label. The number of flows is bounded; one that no worker has used for
//! ten minutes loses its series.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use weft_xds::resource::Cluster;

use crate::{
    balance::{Change, Phase, Upstream},
    reason::Reason,
    snapshot::Snapshot,
};

/// Which way traffic flows, seen from the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the application into the mesh.
    Outbound,
    /// From the mesh to the application.
    Inbound,
}

impl Direction {
    /// Label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// What a request speaks, as in metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speaks {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Bytes.
    Tcp,
}

impl Speaks {
    /// Label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// Why an attempt was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptKind {
    /// The first.
    First,
    /// A retry.
    Retry,
    /// The same again, because a pooled connection turned out closed; not counted as a retry.
    ReuseReplay,
}

impl AttemptKind {
    /// Label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Retry => "retry",
            Self::ReuseReplay => "reuse_replay",
        }
    }
}

/// The families. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    requests: IntCounterVec,
    duration: HistogramVec,
    overhead: HistogramVec,
    attempts: IntCounterVec,
    suppressed: IntCounterVec,
    bytes: IntCounterVec,
    opened: IntCounterVec,
    closed: IntCounterVec,
    active: IntGaugeVec,
    handshakes: IntCounterVec,
    detection: Histogram,
    fallbacks: IntCounterVec,
    access: IntCounterVec,
    breaker_state: IntGaugeVec,
    breakers: IntCounterVec,
    ejections: IntCounterVec,
    endpoints: IntGaugeVec,
    budget: IntGaugeVec,
    limit_used: IntGaugeVec,
    limit_max: IntGaugeVec,
    limit_rejected: IntCounterVec,
    dropped_log_lines: IntCounter,
    panics: IntCounter,
    /// All flows that have series.
    flows: Mutex<HashMap<FlowKey, Arc<Series>>>,
    /// Services and ports that have gauges.
    gauged: Mutex<Vec<(Box<str>, u16)>>,
}

/// Source, destination and route of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Which way.
    pub direction: Direction,
    /// `namespace/service`, or `unmeshed`.
    pub source: Box<str>,
    /// `namespace/service`, or `external`.
    pub destination: Box<str>,
    /// Name of the route; empty for TCP and inbound.
    pub route: Box<str>,
}

/// The label sets that a flow has in the families, to be removed with it.
#[derive(Debug, Default)]
struct Series(Mutex<Vec<(Family, Vec<Box<str>>)>>);

#[derive(Debug, Clone, Copy)]
enum Family {
    Requests,
    Duration,
    Overhead,
    Attempts,
    Bytes,
    Suppressed,
}

/// Flows that have series of their own; of the ones beyond, all share those named `__overflow__`.
const MAX_FLOWS: usize = 400;
/// A flow that was not used for this long loses its series.
pub const FLOW_IDLE: Duration = Duration::from_secs(600);
const OVERFLOW: &str = "__overflow__";
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const OVERHEAD_SECONDS: &[f64] =
    &[0.00002, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5];

impl Metrics {
    /// Registers the families.
    ///
    /// # Panics
    /// When the registry has families of these names already.
    pub fn new(registry: &Registry) -> Self {
        let flow = ["direction", "source", "destination"];
        let with = |more: &[&'static str]| -> Vec<&'static str> { flow.iter().chain(more).copied().collect() };
        let make = Make { registry };
        Self(Arc::new(Families {
            requests: make.counters(
                "weft_requests_total",
                "Requests, one each as the caller saw it.",
                &with(&["route", "protocol", "code", "grpc_status", "reason", "tls"]),
            ),
            duration: make.histograms(
                "weft_request_duration_seconds",
                "From the request's head to the answer's last byte.",
                &with(&["route", "protocol", "code_class"]),
                SECONDS,
            ),
            overhead: make.histograms(
                "weft_proxy_overhead_seconds",
                "Time to the answer's head that was spent inside this sidecar.",
                &flow,
                OVERHEAD_SECONDS,
            ),
            attempts: make.counters(
                "weft_attempts_total",
                "Tries; retries are those whose kind is not first.",
                &with(&["kind", "result"]),
            ),
            suppressed: make.counters(
                "weft_retries_suppressed_total",
                "Retries that were wanted and not made.",
                &with(&["why"]),
            ),
            bytes: make.counters(
                "weft_bytes_total",
                "Bytes of bodies and TCP streams, counted as they pass.",
                &with(&["io"]),
            ),
            opened: make.counters("weft_connections_opened_total", "Connections opened.", &["direction", "peer"]),
            closed: make.counters(
                "weft_connections_closed_total",
                "Connections closed.",
                &["direction", "peer", "reason"],
            ),
            active: make.gauges("weft_connections_active", "Connections that are open.", &["direction", "peer"]),
            handshakes: make.counters(
                "weft_tls_handshakes_total",
                "TLS handshakes; plain text counts as result=plaintext.",
                &["direction", "result", "reason", "group"],
            ),
            detection: make.histogram(
                "weft_detection_seconds",
                "Wait for the first bytes where no protocol is declared.",
                SECONDS,
            ),
            fallbacks: make.counters(
                "weft_detection_fallbacks_total",
                "Connections taken for TCP because the client was silent.",
                &["port"],
            ),
            access: make.counters(
                "weft_access_decisions_total",
                "Decisions of access policies.",
                &["decision", "policy", "rule"],
            ),
            breakers: make.counters(
                "weft_breaker_transitions_total",
                "Changes of the services' breakers.",
                &["destination", "port", "to", "cause"],
            ),
            ejections: make.counters(
                "weft_ejections_total",
                "Endpoints taken out by their breaker.",
                &["destination", "port", "cause"],
            ),
            breaker_state: make.gauges(
                "weft_breaker_state",
                "The service's circuit breaker: 1 at the state it is in. Only where there is one.",
                &["destination", "port", "state"],
            ),
            endpoints: make.gauges("weft_endpoints", "Endpoints by state.", &["destination", "port", "state"]),
            budget: make.gauges(
                "weft_retry_budget_available",
                "Retries that could be made now.",
                &["destination", "port"],
            ),
            limit_used: make.gauges("weft_limit_in_use", "Used of a limit.", &["destination", "port", "limit"]),
            limit_max: make.gauges("weft_limit_max", "A limit.", &["destination", "port", "limit"]),
            limit_rejected: make.counters(
                "weft_limit_rejected_total",
                "Rejected by a limit.",
                &["destination", "port", "limit"],
            ),
            dropped_log_lines: make
                .counter("weft_access_log_dropped_total", "Access-log lines dropped because the writer was behind."),
            panics: make.counter("weft_task_panics_total", "Tasks that panicked; each cost one connection."),
            flows: Mutex::default(),
            gauged: Mutex::default(),
        }))
    }

    /// The handles of a flow, for one worker to keep.
    pub fn flow(&self, key: FlowKey) -> Rc<Flow> {
        let mut flows = self.0.flows.lock();
        let known = flows.contains_key(&key);
        let key = if known || flows.len() < MAX_FLOWS {
            key
        } else {
            FlowKey {
                direction: key.direction,
                source: OVERFLOW.into(),
                destination: OVERFLOW.into(),
                route: OVERFLOW.into(),
            }
        };
        let series = Arc::clone(flows.entry(key.clone()).or_default());
        drop(flows);
        Rc::new(Flow::new(self.clone(), key, series))
    }

    /// Removes the series of flows that no worker holds any more.
    pub fn evict(&self) {
        let mut flows = self.0.flows.lock();
        flows.retain(|_, series| {
            let held = Arc::strong_count(series) > 1;
            if !held {
                self.remove(series);
            }
            held
        });
    }

    fn remove(&self, series: &Series) {
        for (family, labels) in series.0.lock().drain(..) {
            let labels: Vec<&str> = labels.iter().map(|label| &**label).collect();
            let removed = match family {
                Family::Requests => self.0.requests.remove_label_values(&labels),
                Family::Duration => self.0.duration.remove_label_values(&labels),
                Family::Overhead => self.0.overhead.remove_label_values(&labels),
                Family::Attempts => self.0.attempts.remove_label_values(&labels),
                Family::Bytes => self.0.bytes.remove_label_values(&labels),
                Family::Suppressed => self.0.suppressed.remove_label_values(&labels),
            };
            if let Err(error) = removed {
                // Two flows of one worker each may have named the same series; the first removal was enough.
                tracing::trace!(%error, "series already removed");
            }
        }
    }

    /// Brings the gauges of clusters up to date; called before a scrape.
    pub fn refresh(&self, snapshot: &Snapshot, now: Instant) {
        let mut gauged = self.0.gauged.lock();
        let mut current = Vec::with_capacity(snapshot.clusters.len());
        for upstream in snapshot.clusters.values() {
            let cluster = upstream.cluster();
            self.gauge(upstream, &cluster.service, &cluster.port.to_string(), now);
            current.push((cluster.service.clone(), cluster.port));
        }
        for (service, port) in gauged.iter().filter(|known| !current.contains(known)) {
            self.forget(service, &port.to_string());
        }
        *gauged = current;
    }

    fn gauge(&self, upstream: &Upstream, service: &str, port: &str, now: Instant) {
        let states = upstream.states();
        for (state, count) in [
            ("ready", states.ready),
            ("open", states.open),
            ("half_open", states.half_open),
            ("draining", states.draining),
            ("unhealthy", states.unhealthy),
        ] {
            self.0.endpoints.with_label_values(&[service, port, state]).set(i64::from(count));
        }
        if let Some(phase) = upstream.breaker() {
            for state in BREAKER_STATES {
                let at_it = i64::from(state == phase.label());
                self.0.breaker_state.with_label_values(&[service, port, state]).set(at_it);
            }
        }
        let available = i64::try_from(upstream.budget().available(now)).unwrap_or(i64::MAX);
        self.0.budget.with_label_values(&[service, port]).set(available);
        for limit in upstream.limits().all() {
            let labels = [service, port, limit.kind().label()];
            self.0.limit_used.with_label_values(&labels).set(i64::from(limit.used()));
            self.0.limit_max.with_label_values(&labels).set(i64::from(limit.max()));
            // The limit counts by itself; what it has counted since the last time is added.
            let rejected = self.0.limit_rejected.with_label_values(&labels);
            rejected.inc_by(limit.rejected().saturating_sub(rejected.get()));
        }
    }

    fn forget(&self, service: &str, port: &str) {
        let mut gone = vec![self.0.budget.remove_label_values(&[service, port])];
        for state in ["ready", "open", "half_open", "draining", "unhealthy"] {
            gone.push(self.0.endpoints.remove_label_values(&[service, port, state]));
        }
        gone.extend(BREAKER_STATES.map(|state| self.0.breaker_state.remove_label_values(&[service, port, state])));
        for limit in ["connections", "pending", "requests"] {
            let labels = [service, port, limit];
            gone.push(self.0.limit_used.remove_label_values(&labels));
            gone.push(self.0.limit_max.remove_label_values(&labels));
            gone.push(self.0.limit_rejected.remove_label_values(&labels));
        }
        for error in gone.into_iter().filter_map(Result::err) {
            tracing::trace!(%error, service, "series was not there");
        }
    }

    /// Handles for the connections of one side of a listener. `peer`: `downstream`, `upstream` or `app`.
    pub fn connections(&self, direction: Direction, peer: &'static str) -> Connections {
        let labels = [direction.label(), peer];
        Connections {
            opened: self.0.opened.with_label_values(&labels),
            active: self.0.active.with_label_values(&labels),
            closed: self.0.closed.clone(),
            labels,
        }
    }

    /// A TLS handshake ended. `reason`: empty when it succeeded.
    pub fn handshake(&self, direction: Direction, result: &str, reason: &str, group: &str) {
        self.0.handshakes.with_label_values(&[direction.label(), result, reason, group]).inc();
    }

    /// The first bytes of a connection without declared protocol came, or the wait for them ended.
    pub fn detected(&self, port: u16, waited: Duration, silent: bool) {
        self.0.detection.observe(waited.as_secs_f64());
        if silent {
            self.0.fallbacks.with_label_values(&[&port.to_string()]).inc();
        }
    }

    /// Counter of an access policy's decisions, for a worker to keep.
    pub fn access(&self, decision: &str, policy: &str, rule: &str) -> IntCounter {
        self.0.access.with_label_values(&[decision, policy, rule])
    }

    /// A service's breaker changed.
    pub fn breaker(&self, cluster: &Cluster, change: &Change) {
        let (to, cause) = (change.to.label(), change.cause.label());
        self.0.breakers.with_label_values(&[&cluster.service, &*cluster.port.to_string(), to, cause]).inc();
        tracing::info!(cluster = &*cluster.name, from = change.from.label(), to, cause, "circuit breaker");
    }

    /// An endpoint's breaker changed.
    pub fn ejection(&self, cluster: &Cluster, endpoint: std::net::SocketAddr, change: &Change) {
        let (to, cause) = (change.to.label(), change.cause.label());
        if change.to == Phase::Open {
            self.0.ejections.with_label_values(&[&cluster.service, &*cluster.port.to_string(), cause]).inc();
        }
        tracing::info!(cluster = &*cluster.name, %endpoint, from = change.from.label(), to, cause, "endpoint breaker");
    }

    /// An access-log line was dropped.
    pub fn log_line_dropped(&self) {
        self.0.dropped_log_lines.inc();
    }

    /// A task panicked.
    pub fn task_panicked(&self) {
        self.0.panics.inc();
    }
}

/// A worker's handles of one flow.
#[derive(Debug)]
pub struct Flow {
    /// Whose.
    pub key: FlowKey,
    metrics: Metrics,
    series: Arc<Series>,
    overhead: Histogram,
    received: IntCounter,
    sent: IntCounter,
    requests: RefCell<Vec<(RequestKey, IntCounter)>>,
    durations: RefCell<Vec<((Speaks, u16), Histogram)>>,
    attempts: RefCell<Vec<((AttemptKind, &'static str), IntCounter)>>,
    /// When it was last used.
    pub used: Cell<Instant>,
}

/// Labels of `weft_requests_total` beyond the flow's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestKey {
    /// What the caller spoke.
    pub protocol: Speaks,
    /// Status of the answer.
    pub code: u16,
    /// gRPC status of the answer.
    pub grpc: Option<u8>,
    /// Why it failed.
    pub reason: Option<Reason>,
    /// The connection on the mesh's side was mutual TLS.
    pub tls: bool,
}

impl Flow {
    fn new(metrics: Metrics, key: FlowKey, series: Arc<Series>) -> Self {
        let base = [key.direction.label(), &*key.source, &*key.destination];
        let family = &metrics.0;
        let with = |more: &'static str| [base[0], base[1], base[2], more];
        let overhead = family.overhead.with_label_values(&base);
        series.note(Family::Overhead, &base);
        let (received, sent) =
            (family.bytes.with_label_values(&with("received")), family.bytes.with_label_values(&with("sent")));
        series.note(Family::Bytes, &with("received"));
        series.note(Family::Bytes, &with("sent"));
        Self {
            metrics: metrics.clone(),
            series,
            overhead,
            received,
            sent,
            requests: RefCell::default(),
            durations: RefCell::default(),
            attempts: RefCell::default(),
            used: Cell::new(Instant::now()),
            key,
        }
    }

    fn labels<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let base: [&str; 3] = [self.key.direction.label(), &self.key.source, &self.key.destination];
        base.into_iter().chain(more.iter().copied()).collect()
    }

    /// One request was answered, `took` from head to last byte.
    pub fn request(&self, key: RequestKey, took: Duration) {
        let counter = remembered(&self.requests, key, || {
            let code = key.code.to_string();
            let grpc = key.grpc.map(|status| status.to_string()).unwrap_or_default();
            let reason = key.reason.map_or("", Reason::code);
            let tls = if key.tls { "mutual" } else { "none" };
            let labels = self.labels(&[&self.key.route, key.protocol.label(), &code, &grpc, reason, tls]);
            self.series.note(Family::Requests, &labels);
            self.metrics.0.requests.with_label_values(&labels)
        });
        counter.inc();
        let class = key.code / 100;
        let duration = remembered(&self.durations, (key.protocol, class), || {
            let class = ["", "1xx", "2xx", "3xx", "4xx", "5xx"].get(usize::from(class)).copied().unwrap_or("");
            let labels = self.labels(&[&self.key.route, key.protocol.label(), class]);
            self.series.note(Family::Duration, &labels);
            self.metrics.0.duration.with_label_values(&labels)
        });
        duration.observe(took.as_secs_f64());
    }

    /// Time to the answer's head inside this sidecar.
    pub fn overhead(&self, took: Duration) {
        self.overhead.observe(took.as_secs_f64());
    }

    /// One try ended. `result`: `ok`, or the code of a reason.
    pub fn attempt(&self, kind: AttemptKind, result: &'static str) {
        let counter = remembered(&self.attempts, (kind, result), || {
            let labels = self.labels(&[kind.label(), result]);
            self.series.note(Family::Attempts, &labels);
            self.metrics.0.attempts.with_label_values(&labels)
        });
        counter.inc();
    }

    /// A retry was wanted and not made.
    pub fn suppressed(&self, why: &'static str) {
        let labels = self.labels(&[why]);
        self.series.note(Family::Suppressed, &labels);
        self.metrics.0.suppressed.with_label_values(&labels).inc();
    }

    /// Counter of bytes that the caller sent.
    pub fn received(&self) -> &IntCounter {
        &self.received
    }

    /// Counter of bytes that the caller got.
    pub fn sent(&self) -> &IntCounter {
        &self.sent
    }
}

impl Series {
    fn note(&self, family: Family, labels: &[&str]) {
        self.0.lock().push((family, labels.iter().map(|label| Box::from(*label)).collect()));
    }
}

/// The handle remembered for `key`, made when it is new. There are few keys: a search in line beats a hash.
fn remembered<K: PartialEq + Copy, H: Clone>(known: &RefCell<Vec<(K, H)>>, key: K, make: impl FnOnce() -> H) -> H {
    if let Some((_, handle)) = known.borrow().iter().find(|(known, _)| *known == key) {
        return handle.clone();
    }
    let handle = make();
    known.borrow_mut().push((key, handle.clone()));
    handle
}

/// Handles for connections of one kind.
#[derive(Debug, Clone)]
pub struct Connections {
    opened: IntCounter,
    active: IntGauge,
    closed: IntCounterVec,
    labels: [&'static str; 2],
}

impl Connections {
    /// A connection opened; it is counted out by drop.
    pub fn open(&self) -> OpenConnection {
        self.opened.inc();
        self.active.inc();
        OpenConnection { handles: self.clone(), reason: "closed" }
    }
}

/// One open connection.
#[derive(Debug)]
pub struct OpenConnection {
    handles: Connections,
    reason: &'static str,
}

impl OpenConnection {
    /// Why it will have closed.
    pub fn closing(&mut self, reason: &'static str) {
        self.reason = reason;
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.handles.active.dec();
        let [direction, peer] = self.handles.labels;
        self.handles.closed.with_label_values(&[direction, peer, self.reason]).inc();
    }
}

/// Makes and registers families.
struct Make<'a> {
    registry: &'a Registry,
}

impl Make<'_> {
    fn put<C: prometheus::core::Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let family = made.expect("the names and labels are valid");
        self.registry.register(Box::new(family.clone())).expect("the names are registered once");
        family
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.put(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.put(IntCounter::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.put(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.put(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.put(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }
}

/// States of a service's breaker, as labels.
const BREAKER_STATES: [&str; 3] = ["closed", "open", "half_open"];

#[cfg(test)]
mod tests {
    use super::*;

    fn key(destination: &str) -> FlowKey {
        FlowKey {
            direction: Direction::Outbound,
            source: "default/a".into(),
            destination: destination.into(),
            route: "default".into(),
        }
    }

    const OK: RequestKey = RequestKey { protocol: Speaks::Http1, code: 200, grpc: None, reason: None, tls: true };

    #[test]
    fn series_end_with_their_flow() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        let flow = metrics.flow(key("default/b"));
        flow.request(OK, Duration::from_millis(3));
        flow.request(OK, Duration::from_millis(3));
        flow.attempt(AttemptKind::First, "ok");
        metrics.evict();
        let text = weft_telemetry::metrics::render(&registry);
        assert!(text.contains("weft_requests_total{code=\"200\",destination=\"default/b\""), "{text}");
        drop(flow);
        metrics.evict();
        assert!(!weft_telemetry::metrics::render(&registry).contains("default/b"));
    }

    #[test]
    fn flows_are_bounded() {
        let metrics = Metrics::new(&Registry::new());
        let flows: Vec<_> = (0..MAX_FLOWS + 10).map(|n| metrics.flow(key(&format!("default/{n}")))).collect();
        assert_eq!(flows.iter().filter(|flow| &*flow.key.destination == OVERFLOW).count(), 10);
    }
}
