//! The breaker of one endpoint: consecutive failures take it out of the balancer for a growing time.
//!
//! Open time starts at the base (1 s) and doubles with each failed probe up to the maximum (60 s), each with ±50 %
//! jitter, so that sidecars do not probe in step. When it is over, one request at a time is let through as a probe. A
//! success closes; time spent closed makes the next open time shorter again. How many endpoints of a cluster may be
//! open at once is the caller's to say ([`Room`]).
//!
//! A core: `(event, now, random)` in, decision out.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use weft_xds::resource::EndpointBreaker;

use super::{
    Failure,
    breaker::{Cause, Change, Event, Permit, Phase},
};

/// How many endpoints of a cluster are open, and may be.
#[derive(Debug, Default)]
pub struct Room {
    open: AtomicU32,
    max: AtomicU32,
}

impl Room {
    /// At most `max` endpoints may be open. Those that are already stay.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Relaxed);
    }

    /// Open or half-open now.
    pub fn open(&self) -> u32 {
        self.open.load(Relaxed)
    }

    /// More are open than may be.
    pub fn overfull(&self) -> bool {
        self.open() > self.max.load(Relaxed)
    }

    /// Of `all` endpoints that take traffic, `healthy` of them by the control plane's word: so many may be open.
    pub fn allowed(all: usize, healthy: usize, percent: u8) -> u32 {
        let share = all * usize::from(percent.min(100)) / 100;
        u32::try_from(share.min(healthy.saturating_sub(1))).unwrap_or(u32::MAX)
    }

    fn take(&self) -> bool {
        let max = self.max.load(Relaxed);
        self.open.fetch_update(Relaxed, Relaxed, |open| (open < max).then_some(open + 1)).is_ok()
    }

    fn give(&self) {
        self.open.fetch_sub(1, Relaxed);
    }
}

/// The breaker of one endpoint.
#[derive(Debug)]
pub struct Ejection {
    config: Option<EndpointBreaker>,
    state: State,
    generation: u64,
    /// Doublings of the next open time.
    step: u32,
    /// Since when it is closed, if it ever was open.
    closed_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { until: Instant },
}

/// What a look without a lock may know of an endpoint's breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Closed, no failure to remember.
    Calm,
    /// Closed, some failures counted.
    Troubled,
    /// Open; a probe may pass from then on.
    Open(Instant),
    /// A probe is out.
    Probing,
}

impl Ejection {
    /// Closed. `None` switches it off.
    pub fn new(config: Option<EndpointBreaker>) -> Self {
        Self { config, state: State::Closed { failures: 0 }, generation: 0, step: 0, closed_at: None }
    }

    /// Takes a new configuration. Switched off, it closes.
    pub fn configure(&mut self, config: Option<EndpointBreaker>, now: Instant, room: &Room) -> Option<Change> {
        self.config = config;
        if config.is_none() { self.close(Cause::Reconciled, now, room) } else { None }
    }

    /// Closes it whatever its state, and gives its place back.
    pub fn close(&mut self, cause: Cause, now: Instant, room: &Room) -> Option<Change> {
        if matches!(self.state, State::Closed { .. }) {
            return None;
        }
        room.give();
        self.closed_at = Some(now);
        Some(self.turn(State::Closed { failures: 0 }, cause))
    }

    /// A permit for a request that is sent whatever the state: the breaker is closed, or the panic rule holds.
    pub fn permit(&self) -> Permit {
        Permit { generation: self.generation }
    }

    /// A permit for a probe: given when the open time is over and no other probe is out.
    pub fn probe(&mut self, now: Instant) -> Option<(Permit, Change)> {
        match self.state {
            State::Open { until } if now >= until => {
                let change = self.turn(State::HalfOpen { until }, Cause::Elapsed);
                Some((self.permit(), change))
            }
            State::Open { .. } | State::HalfOpen { .. } | State::Closed { .. } => None,
        }
    }

    /// Takes a permit back with what became of the request. `random` gives the jitter.
    pub fn on(&mut self, permit: Permit, event: Event, now: Instant, random: u64, room: &Room) -> Option<Change> {
        let config = self.config?;
        if permit.generation != self.generation {
            return None;
        }
        match (self.state, event) {
            (State::Closed { .. }, Event::Succeeded) => {
                self.state = State::Closed { failures: 0 };
                None
            }
            (State::Closed { failures }, Event::Failed(failure)) => {
                let failures = failures.saturating_add(1);
                self.state = State::Closed { failures };
                if failures < config.consecutive_failures.max(1) || !room.take() {
                    return None;
                }
                self.decay(&config, now);
                Some(self.open(&config, Cause::Failures(failure), now, random))
            }
            // The probe, or a request sent under the panic rule: either way the endpoint works.
            (State::HalfOpen { .. } | State::Open { .. }, Event::Succeeded) => {
                self.step = self.step.saturating_sub(1);
                self.close(Cause::ProbeSucceeded, now, room)
            }
            (State::HalfOpen { .. }, Event::Failed(failure)) => Some(self.reopen(&config, failure, now, random)),
            (State::HalfOpen { .. }, Event::Cancelled) => {
                self.cancel(permit);
                None
            }
            (State::Closed { .. } | State::Open { .. }, Event::Cancelled) | (State::Open { .. }, Event::Failed(_)) => {
                None
            }
        }
    }

    /// Frees the place of a probe that ended without a result: the next request may probe at once.
    pub fn cancel(&mut self, permit: Permit) {
        if let (true, State::HalfOpen { until }) = (permit.generation == self.generation, self.state) {
            self.state = State::Open { until };
            self.generation += 1;
        }
    }

    /// The phase, for gauges.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Closed { .. } => Phase::Closed,
            State::Open { .. } => Phase::Open,
            State::HalfOpen { .. } => Phase::HalfOpen,
        }
    }

    /// When its open time ends or has ended, if it is open or half-open.
    pub fn out_until(&self) -> Option<Instant> {
        match self.state {
            State::Closed { .. } => None,
            State::Open { until } | State::HalfOpen { until } => Some(until),
        }
    }

    /// What to publish for looks without a lock.
    pub fn gate(&self) -> Gate {
        match self.state {
            State::Closed { failures: 0 } => Gate::Calm,
            State::Closed { .. } => Gate::Troubled,
            State::Open { until } => Gate::Open(until),
            State::HalfOpen { .. } => Gate::Probing,
        }
    }

    /// One step less for every open time of that step that was spent closed.
    fn decay(&mut self, config: &EndpointBreaker, now: Instant) {
        let Some(closed_at) = self.closed_at else { return };
        let mut closed = now.saturating_duration_since(closed_at);
        while self.step > 0 && closed >= open_time(config, self.step) {
            closed -= open_time(config, self.step);
            self.step -= 1;
        }
    }

    fn reopen(&mut self, config: &EndpointBreaker, failure: Failure, now: Instant, random: u64) -> Change {
        self.open(config, Cause::ProbeFailed(failure), now, random)
    }

    fn open(&mut self, config: &EndpointBreaker, cause: Cause, now: Instant, random: u64) -> Change {
        let until = now + jitter(open_time(config, self.step), random);
        self.step = self.step.saturating_add(1).min(MAX_STEP);
        Change { until: Some(until), ..self.turn(State::Open { until }, cause) }
    }

    fn turn(&mut self, state: State, cause: Cause) -> Change {
        let from = self.phase();
        self.state = state;
        self.generation += 1;
        Change { from, to: self.phase(), cause, until: None }
    }
}

/// Open time without jitter: the base, doubled `step` times, at most the maximum.
pub fn open_time(config: &EndpointBreaker, step: u32) -> Duration {
    config.base_open_time.saturating_mul(1 << step.min(MAX_STEP)).min(config.max_open_time)
}

/// Between half of `time` and one and a half of it.
pub fn jitter(time: Duration, random: u64) -> Duration {
    let half = time / 2;
    half + time.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
}

/// Enough doublings to reach any sensible maximum; more would overflow.
const MAX_STEP: u32 = 30;
