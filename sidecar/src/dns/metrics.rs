//! What is counted about names.

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// How a query ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A name of the mesh.
    Mesh,
    /// Answered by a resolver of the host.
    Forwarded,
    /// Answered from memory.
    Cached,
    /// From memory though its time was up, since no resolver answered.
    Stale,
    /// No resolver answered, or the mesh has no address left.
    Failed,
    /// Too many at one time.
    Overload,
    /// Could not be read, or is not for this server.
    Refused,
}

impl Ended {
    const ALL: [Self; 7] =
        [Self::Mesh, Self::Forwarded, Self::Cached, Self::Stale, Self::Failed, Self::Overload, Self::Refused];

    /// As the label `result`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Forwarded => "forwarded",
            Self::Cached => "cached",
            Self::Stale => "stale",
            Self::Failed => "failed",
            Self::Overload => "overload",
            Self::Refused => "refused",
        }
    }
}

/// The families' handles.
#[derive(Debug)]
pub struct Metrics {
    queries: Vec<IntCounter>,
    seconds: Vec<Histogram>,
    /// Answers in memory.
    pub cached: IntGauge,
    /// Hosts with virtual addresses.
    pub addresses: IntGauge,
    /// Queries whose handling panicked.
    pub panics: IntCounter,
}

/// From memory to a resolver that takes its time.
const SECONDS: [f64; 10] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

impl Metrics {
    /// Registers the families.
    /// # Errors
    /// When they are registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let queries =
            IntCounterVec::new(Opts::new("weft_dns_queries_total", "Queries of the application."), &["result"])?;
        let options = HistogramOpts::new("weft_dns_query_seconds", "From query to answer.").buckets(SECONDS.to_vec());
        let seconds = HistogramVec::new(options, &["result"])?;
        let cached = IntGauge::new("weft_dns_cache_entries", "Answers of other resolvers that are remembered.")?;
        let addresses = IntGauge::new("weft_dns_virtual_addresses", "Services that have virtual addresses.")?;
        let panics = IntCounter::new("weft_dns_panics_total", "Queries whose handling panicked.")?;
        registry.register(Box::new(queries.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(cached.clone()))?;
        registry.register(Box::new(addresses.clone()))?;
        registry.register(Box::new(panics.clone()))?;
        Ok(Self {
            queries: Ended::ALL.map(|ended| queries.with_label_values(&[ended.label()])).into(),
            seconds: Ended::ALL.map(|ended| seconds.with_label_values(&[ended.label()])).into(),
            cached,
            addresses,
            panics,
        })
    }

    /// How many ended so.
    #[cfg(test)]
    pub fn count(&self, ended: Ended) -> u64 {
        self.queries[ended as usize].get()
    }

    /// A query ended.
    pub fn ended(&self, ended: Ended, took: std::time::Duration) {
        self.queries[ended as usize].inc();
        self.seconds[ended as usize].observe(took.as_secs_f64());
    }
}
