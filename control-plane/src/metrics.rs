//! Metrics of the control plane itself; discovery and certificates have their own.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::{
    registry::{self, lease::State},
    store::Store,
};

/// Handles.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// `weft_cp_store_append_seconds`.
    pub append_seconds: Histogram,
    handshakes: IntCounterVec,
    connections: IntGaugeVec,
    revision: IntGauge,
    endpoints: IntGaugeVec,
}

impl Metrics {
    /// Registers them.
    /// # Errors
    /// The registry has them already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let append =
            HistogramOpts::new("weft_cp_store_append_seconds", "Time until a change of configuration was on disk.")
                .buckets(vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0]);
        let metrics = Self {
            append_seconds: Histogram::with_opts(append)?,
            handshakes: IntCounterVec::new(
                Opts::new("weft_cp_tls_handshakes_total", "TLS handshakes, by port and result."),
                &["port", "result"],
            )?,
            connections: IntGaugeVec::new(
                Opts::new("weft_cp_connections_active", "Open connections, by port."),
                &["port"],
            )?,
            revision: IntGauge::new("weft_cp_revision", "Revision of the configuration log.")?,
            endpoints: IntGaugeVec::new(
                Opts::new("weft_cp_registry_endpoints", "Registered workloads, by state."),
                &["state"],
            )?,
        };
        let leader = IntGauge::new("weft_cp_leader", "Whether this replica writes; one replica always does.")?;
        leader.set(1);
        registry.register(Box::new(leader))?;
        registry.register(Box::new(metrics.append_seconds.clone()))?;
        registry.register(Box::new(metrics.handshakes.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.revision.clone()))?;
        registry.register(Box::new(metrics.endpoints.clone()))?;
        Ok(metrics)
    }

    /// Reads what is only worth reading when someone looks.
    pub fn refresh(&self, store: &Store, registry: &registry::Registry) {
        self.revision.set(i64::try_from(store.log().head()).unwrap_or(i64::MAX));
        let workloads = registry.workloads();
        for state in [State::Ready, State::Unhealthy, State::Draining, State::Lost] {
            let count = workloads.iter().filter(|(_, found)| *found == state).count();
            let label = state.as_str().to_ascii_lowercase();
            self.endpoints.with_label_values(&[&label]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// A handshake ended.
    pub fn handshake(&self, port: &str, result: &str) {
        self.handshakes.with_label_values(&[port, result]).inc();
    }

    /// Counts a connection until it is dropped.
    pub fn connection(&self, port: &str) -> Connected {
        let gauge = self.connections.with_label_values(&[port]);
        gauge.inc();
        Connected(gauge)
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Connected(IntGauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}
