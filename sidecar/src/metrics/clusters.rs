//! Gauges of clusters: endpoints by state, breaker, budget, limits. Brought up to date before a scrape.

use std::time::Instant;

use super::Metrics;
use crate::{balance::Upstream, snapshot::Snapshot};

impl Metrics {
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
}

/// States of a service's breaker, as labels.
const BREAKER_STATES: [&str; 3] = ["closed", "open", "half_open"];
