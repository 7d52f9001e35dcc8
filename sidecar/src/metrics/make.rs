//! Makes and registers families.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

/// Makes and registers families.
pub(super) struct Make<'a> {
    pub(super) registry: &'a Registry,
}

impl Make<'_> {
    pub(super) fn put<C: prometheus::core::Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let family = made.expect("the names and labels are valid");
        self.registry.register(Box::new(family.clone())).expect("the names are registered once");
        family
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.put(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.put(IntCounter::new(name, help))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.put(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.put(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }
}
