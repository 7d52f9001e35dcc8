//! One endpoint: what the snapshot says of it, its live state, and the guard of one try.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use weft_xds::resource::{Endpoint, EndpointBreaker, Health};

use super::{
    Outcome,
    breaker::{Cause, Change, Event, Permit, Phase},
    ejection::{Ejection, Gate},
    live::Live,
};

/// An endpoint of a snapshot. The same value is kept from snapshot to snapshot while nothing about it changes.
#[derive(Debug)]
pub struct EndpointState {
    /// What the snapshot says.
    pub endpoint: Endpoint,
    pub(super) live: Arc<EndpointLive>,
}

impl EndpointState {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    /// Tries in flight.
    pub fn in_flight(&self) -> u32 {
        self.live.in_flight.load(Relaxed)
    }

    /// Phase of its breaker.
    pub fn phase(&self) -> Phase {
        self.live.breaker.lock().phase()
    }

    /// It has left the cluster: connections to it should not be kept.
    pub fn departed(&self) -> bool {
        self.live.departed.load(Relaxed)
    }
}

/// Outlives the snapshot; keyed by address and workload.
#[derive(Debug)]
pub(super) struct EndpointLive {
    cluster: Arc<Live>,
    in_flight: AtomicU32,
    breaker: Mutex<Ejection>,
    /// Picture of the breaker for looks without the lock: see [`pack`].
    gate: AtomicU64,
    /// The breaker's generation, published before the gate: who reads it first and then a closed gate holds a permit
    /// that is at worst out of date, and then its result is ignored.
    generation: AtomicU64,
    departed: AtomicBool,
}

const CALM: u64 = 0;
const TROUBLED: u64 = 1;
const PROBING: u64 = u64::MAX;

impl EndpointLive {
    pub fn new(cluster: Arc<Live>, config: Option<EndpointBreaker>) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            in_flight: AtomicU32::new(0),
            breaker: Mutex::new(Ejection::new(config)),
            gate: AtomicU64::new(CALM),
            generation: AtomicU64::new(0),
            departed: AtomicBool::new(false),
        })
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Counts a try in; the guard counts it out.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// Undoes [`Self::begin`] for a try that was not made.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Closed, by a look without the lock.
    pub fn closed(&self) -> bool {
        self.gate.load(Relaxed) <= TROUBLED
    }

    /// Closed, or due for a probe.
    pub fn passable(&self, now: u64) -> bool {
        let gate = self.gate.load(Relaxed);
        gate <= TROUBLED || (gate != PROBING && gate <= now)
    }

    /// Leave for a try: `None` when the breaker is not closed and no probe may pass. In `panic`, always.
    pub fn enter(&self, now: Instant, panic: bool) -> Option<(Permit, Option<Change>)> {
        let generation = self.generation.load(Acquire);
        if self.gate.load(Acquire) <= TROUBLED {
            return Some((Permit { generation }, None));
        }
        let mut breaker = self.breaker.lock();
        if let Some((permit, change)) = breaker.probe(now) {
            self.publish(&breaker);
            return Some((permit, Some(change)));
        }
        (panic || breaker.phase() == Phase::Closed).then(|| (breaker.permit(), None))
    }

    pub fn configure(&self, config: Option<EndpointBreaker>, now: Instant) -> Option<Change> {
        let mut breaker = self.breaker.lock();
        let change = breaker.configure(config, now, &self.cluster.room);
        self.publish(&breaker);
        change
    }

    /// Closes the breaker because no more may be open, or because the endpoint leaves.
    pub fn close(&self, now: Instant) -> Option<Change> {
        let mut breaker = self.breaker.lock();
        let change = breaker.close(Cause::Reconciled, now, &self.cluster.room);
        self.publish(&breaker);
        change
    }

    /// The endpoint leaves the cluster: it holds no place any more and its breaker stays closed.
    pub fn depart(&self, now: Instant) {
        self.departed.store(true, Relaxed);
        self.configure(None, now);
    }

    /// When its open time ends or has ended, if it is open or half-open.
    pub fn out_until(&self) -> Option<Instant> {
        self.breaker.lock().out_until()
    }

    pub fn phase(&self) -> Phase {
        match self.gate.load(Relaxed) {
            CALM | TROUBLED => Phase::Closed,
            PROBING => Phase::HalfOpen,
            _ => Phase::Open,
        }
    }

    fn on(&self, permit: Permit, event: Event, now: Instant, random: u64) -> Option<Change> {
        if event == Event::Succeeded && self.gate.load(Relaxed) == CALM {
            return None;
        }
        let mut breaker = self.breaker.lock();
        let change = breaker.on(permit, event, now, random, &self.cluster.room);
        self.publish(&breaker);
        change
    }

    fn cancel(&self, permit: Permit) {
        if self.gate.load(Relaxed) <= TROUBLED {
            return;
        }
        let mut breaker = self.breaker.lock();
        breaker.cancel(permit);
        self.publish(&breaker);
    }

    fn publish(&self, breaker: &Ejection) {
        let gate = match breaker.gate() {
            Gate::Calm => CALM,
            Gate::Troubled => TROUBLED,
            Gate::Probing => PROBING,
            Gate::Open(until) => {
                nanos(until.saturating_duration_since(self.cluster.epoch)).clamp(TROUBLED + 1, PROBING - 1)
            }
        };
        self.generation.store(breaker.permit().generation, Release);
        self.gate.store(gate, Release);
    }
}

/// Nanoseconds since the cluster's epoch, as gates have them.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(PROBING - 1)
}

/// One try on one endpoint. Dropped without [`Picked::finish`] it was cancelled; the in-flight count falls at drop.
#[derive(Debug)]
pub struct Picked {
    /// Where to.
    pub endpoint: Arc<EndpointState>,
    /// Picked under the panic rule: too few endpoints were usable, so all were.
    pub panic: bool,
    /// This try is a probe of an open breaker, which has turned half-open.
    pub change: Option<Change>,
    permit: Option<Permit>,
}

impl Picked {
    /// `endpoint` has been counted in by [`EndpointLive::begin`].
    pub(super) fn new(endpoint: Arc<EndpointState>, permit: Permit, change: Option<Change>, panic: bool) -> Self {
        Self { endpoint, panic, change, permit: Some(permit) }
    }

    /// Reports how the try ended, once; later calls do nothing. The in-flight count stays until drop, so that a guard
    /// can live until the last byte. Returns the change of the endpoint's breaker, for metric and log.
    pub fn finish(&mut self, outcome: Outcome, now: Instant) -> Option<Change> {
        let permit = self.permit.take()?;
        self.endpoint.live.on(permit, outcome.into(), now, fastrand::u64(..))
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.endpoint.live.cancel(permit);
        }
        self.endpoint.live.end();
    }
}

impl From<Outcome> for Event {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Success => Self::Succeeded,
            Outcome::Failed(failure) => Self::Failed(failure),
            Outcome::Ignored => Self::Cancelled,
        }
    }
}

/// How many endpoints are in which state. Each endpoint counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateCounts {
    /// Takes traffic.
    pub ready: u32,
    /// Its breaker is open.
    pub open: u32,
    /// A probe is out.
    pub half_open: u32,
    /// Takes no new traffic.
    pub draining: u32,
    /// Unhealthy by the control plane's word.
    pub unhealthy: u32,
}

impl StateCounts {
    pub(super) fn add(&mut self, state: &EndpointState) {
        let count = match (state.endpoint.health, state.live.phase()) {
            (Health::Draining, _) => &mut self.draining,
            (Health::Unhealthy, _) => &mut self.unhealthy,
            (Health::Healthy, Phase::Closed) => &mut self.ready,
            (Health::Healthy, Phase::Open) => &mut self.open,
            (Health::Healthy, Phase::HalfOpen) => &mut self.half_open,
        };
        *count += 1;
    }
}
