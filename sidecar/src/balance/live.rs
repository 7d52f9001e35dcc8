//! Live state of a cluster: what outlives a snapshot.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Instant,
};

use parking_lot::Mutex;
use weft_xds::resource::{CircuitBreaker, Cluster};

use super::{
    breaker::{Breaker, Change, Event, Permit, Phase, Rejected},
    budget::Budget,
    ejection::Room,
    limits::Limits,
};

/// Shared by every [`Upstream`](super::Upstream) of one cluster.
#[derive(Debug)]
pub(super) struct Live {
    /// Zero of the endpoints' gates.
    pub epoch: Instant,
    pub breaker: ServiceBreaker,
    pub budget: Budget,
    pub limits: Limits,
    pub room: Room,
    /// Picks made under the panic rule.
    pub panics: AtomicU64,
}

impl Live {
    pub fn new(cluster: &Cluster, now: Instant) -> Arc<Self> {
        Arc::new(Self {
            epoch: now,
            breaker: ServiceBreaker::new(cluster.circuit_breaker),
            budget: Budget::new(cluster.retry_budget, now),
            limits: Limits::new(&cluster.limits),
            room: Room::default(),
            panics: AtomicU64::new(0),
        })
    }

    pub fn configure(&self, cluster: &Cluster) {
        self.breaker.configure(cluster.circuit_breaker);
        self.budget.configure(cluster.retry_budget);
        self.limits.configure(&cluster.limits);
    }
}

/// The service's breaker for all workers. While nothing fails, neither asking nor reporting takes the lock.
#[derive(Debug)]
pub(super) struct ServiceBreaker {
    core: Mutex<Option<Breaker>>,
    /// [`OFF`], or the generation, doubled, plus one when the breaker is closed with no failure to remember.
    word: AtomicU64,
}

/// No breaker.
const OFF: u64 = u64::MAX;

impl ServiceBreaker {
    fn new(config: Option<CircuitBreaker>) -> Self {
        let breaker = Self { core: Mutex::new(None), word: AtomicU64::new(OFF) };
        breaker.configure(config);
        breaker
    }

    fn configure(&self, config: Option<CircuitBreaker>) {
        let mut core = self.core.lock();
        match (core.as_mut(), config) {
            (Some(breaker), Some(config)) => breaker.configure(config),
            (None, Some(config)) => *core = Some(Breaker::new(config)),
            (_, None) => *core = None,
        }
        self.publish(core.as_ref());
    }

    /// `None` as permit: there is no breaker.
    pub fn ask(&self, now: Instant) -> Result<(Option<Permit>, Option<Change>), Rejected> {
        let word = self.word.load(Acquire);
        if word == OFF {
            return Ok((None, None));
        }
        if word & 1 == 1 {
            return Ok((Some(Permit { generation: word >> 1 }), None));
        }
        let mut core = self.core.lock();
        let Some(breaker) = core.as_mut() else { return Ok((None, None)) };
        let asked = breaker.ask(now);
        self.publish(core.as_ref());
        asked.map(|(permit, change)| (Some(permit), change))
    }

    pub fn on(&self, permit: Permit, event: Event, now: Instant) -> Option<Change> {
        let calm = self.word.load(Acquire) == (permit.generation << 1 | 1);
        if calm && !matches!(event, Event::Failed(_)) {
            return None;
        }
        let mut core = self.core.lock();
        let change = core.as_mut()?.on(permit, event, now);
        self.publish(core.as_ref());
        change
    }

    pub fn cancel(&self, permit: Permit) {
        if self.word.load(Acquire) == (permit.generation << 1 | 1) {
            return;
        }
        if let Some(breaker) = self.core.lock().as_mut() {
            breaker.cancel(permit);
        }
    }

    pub fn phase(&self) -> Option<Phase> {
        self.core.lock().as_ref().map(Breaker::phase)
    }

    fn publish(&self, breaker: Option<&Breaker>) {
        let word = match breaker {
            None => OFF,
            Some(breaker) => breaker.generation() << 1 | u64::from(breaker.calm()),
        };
        self.word.store(word, Release);
    }
}

/// Counts up, for metrics.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
