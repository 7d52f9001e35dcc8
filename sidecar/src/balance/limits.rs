//! Limits with gauges: connections, pending requests, requests in flight.
//!
//! A permit is a guard; the count falls when it is dropped, and by nothing else. A rejection and its counter are one
//! step, so that the metric and the reason `overflow` cannot disagree.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use weft_xds::resource;

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// Connections.
    Connections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests in flight.
    Requests,
}

impl LimitKind {
    /// Label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Pending => "pending",
            Self::Requests => "requests",
        }
    }
}

/// One limit and its gauge.
#[derive(Debug)]
pub struct Limit {
    kind: LimitKind,
    max: AtomicU32,
    used: AtomicU32,
    rejected: AtomicU64,
}

impl Limit {
    /// A limit of which nothing is used.
    pub fn new(kind: LimitKind, max: u32) -> Arc<Self> {
        Arc::new(Self { kind, max: AtomicU32::new(max), used: AtomicU32::new(0), rejected: AtomicU64::new(0) })
    }

    /// Takes one.
    /// # Errors
    /// The kind of the limit, when it is used up; counted.
    pub fn acquire(self: &Arc<Self>) -> Result<LimitPermit, LimitKind> {
        let max = self.max();
        match self.used.fetch_update(Relaxed, Relaxed, |used| (used < max).then_some(used + 1)) {
            Ok(_) => Ok(LimitPermit { limit: Arc::clone(self) }),
            Err(_full) => {
                self.rejected.fetch_add(1, Relaxed);
                Err(self.kind)
            }
        }
    }

    /// Which.
    pub fn kind(&self) -> LimitKind {
        self.kind
    }

    /// In use.
    pub fn used(&self) -> u32 {
        self.used.load(Relaxed)
    }

    /// At most.
    pub fn max(&self) -> u32 {
        self.max.load(Relaxed)
    }

    /// Rejected since the beginning.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Relaxed)
    }

    /// A lower maximum takes nothing away from who has it.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Relaxed);
    }
}

/// One unit of a limit.
#[derive(Debug)]
pub struct LimitPermit {
    limit: Arc<Limit>,
}

impl Drop for LimitPermit {
    fn drop(&mut self) {
        self.limit.used.fetch_sub(1, Relaxed);
    }
}

/// The limits of a cluster.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections.
    pub connections: Arc<Limit>,
    /// Requests that wait for a connection.
    pub pending: Arc<Limit>,
    /// Requests in flight.
    pub requests: Arc<Limit>,
}

impl Limits {
    /// Unused limits.
    pub fn new(config: &resource::Limits) -> Self {
        Self {
            connections: Limit::new(LimitKind::Connections, config.connections),
            pending: Limit::new(LimitKind::Pending, config.pending),
            requests: Limit::new(LimitKind::Requests, config.requests),
        }
    }

    /// Takes new maxima.
    pub fn configure(&self, config: &resource::Limits) {
        self.connections.set_max(config.connections);
        self.pending.set_max(config.pending);
        self.requests.set_max(config.requests);
    }

    /// All, for metrics.
    pub fn all(&self) -> [&Arc<Limit>; 3] {
        [&self.connections, &self.pending, &self.requests]
    }
}
