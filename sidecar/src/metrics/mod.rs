//! The data path's Prometheus families and the handles into them.
//!
//! A *flow* is what one source sends to one destination by one route. Its handles are resolved once and kept by each
//! worker, so that a request looks nothing up by label. The number of flows is bounded; one that no worker has used for
//! ten minutes loses its series.

mod cell;
mod clusters;
mod connections;
mod flow;
mod gather;
mod labels;
mod make;
mod memo;

use std::{rc::Rc, sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGaugeVec, Registry};
use weft_xds::resource::Cluster;

pub use self::{
    cell::Count,
    connections::{Connections, OpenConnection},
    flow::Flow,
    labels::{AttemptKind, Direction, FlowKey, RequestKey, Speaks},
    memo::Memo,
};
use self::{gather::Gathered, make::Make};
use crate::balance::{Change, Phase};

/// The families. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    opened: IntCounterVec,
    closed: IntCounterVec,
    active: IntGaugeVec,
    handshakes: IntCounterVec,
    detection: Histogram,
    fallbacks: IntCounterVec,
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
    /// What the workers count.
    gathered: Gathered,
    /// Services and ports that have gauges.
    gauged: Mutex<Vec<(Box<str>, u16)>>,
}

/// A flow that was not used for this long loses its series.
pub const FLOW_IDLE: Duration = Duration::from_secs(600);

impl Metrics {
    /// Registers the families.
    ///
    /// # Panics
    /// When the registry has families of these names already.
    pub fn new(registry: &Registry) -> Self {
        let make = Make { registry };
        Self(Arc::new(Families {
            gathered: make.put(Ok(Gathered::new())),
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
                &cell::seconds(cell::SECONDS).collect::<Vec<_>>(),
            ),
            fallbacks: make.counters(
                "weft_detection_fallbacks_total",
                "Connections taken for TCP because the client was silent.",
                &["port"],
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
            gauged: Mutex::default(),
        }))
    }

    /// The handles of a flow, for one worker to keep.
    pub fn flow(&self, key: FlowKey) -> Rc<Flow> {
        self.0.gathered.flow(key)
    }

    /// Removes the series of flows that no worker holds any more.
    pub fn evict(&self) {
        self.0.gathered.evict();
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

    /// Counter of an access policy's decisions, for one worker to keep.
    pub fn access(&self, decision: &'static str, policy: &str, rule: &str) -> Arc<Count> {
        self.0.gathered.decisions(decision, policy, rule)
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

#[cfg(test)]
mod tests;
