//! The three-state breaker of a service: closed (traffic flows), open (rejects), half-open (probes).
//!
//! While closed it counts *consecutive* failures. The textbook's counter only ever grows while closed: five failures
//! spread over a month open it, and the more traffic a service has the sooner a harmless error rate trips it. Counting
//! consecutive ones says what a breaker is for: "nothing comes back right now". One success forgets.
//!
//! A core: takes `(event, now)`, holds no clock and no lock. A permit remembers the generation in which it was given;
//! results that arrive after the state has changed are ignored, so that stragglers from before an opening neither
//! reopen nor close anything.

use std::time::Instant;

use weft_xds::resource::CircuitBreaker;

use super::Failure;

/// Phase of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Traffic flows.
    Closed,
    /// Traffic is rejected.
    Open,
    /// Probes flow.
    HalfOpen,
}

impl Phase {
    /// Label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Why a breaker changed its phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Too many failures in a row; the last was this.
    Failures(Failure),
    /// A probe failed.
    ProbeFailed(Failure),
    /// The open time is over.
    Elapsed,
    /// Probes succeeded.
    ProbeSucceeded,
    /// A new configuration or set of endpoints left no room for it.
    Reconciled,
}

impl Cause {
    /// Label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Failures(failure) | Self::ProbeFailed(failure) => failure.label(),
            Self::Elapsed => "elapsed",
            Self::ProbeSucceeded => "probe_succeeded",
            Self::Reconciled => "reconciled",
        }
    }
}

/// One change of phase, for metric and log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub from: Phase,
    /// After.
    pub to: Phase,
    /// Why.
    pub cause: Cause,
    /// When it lets a probe through, if it opened.
    pub until: Option<Instant>,
}

/// What became of a request that a breaker let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It succeeded.
    Succeeded,
    /// It failed.
    Failed(Failure),
    /// It ended without saying anything.
    Cancelled,
}

/// Leave to send one request. Give it back with [`Breaker::on`], exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    pub(super) generation: u64,
}

/// The breaker rejects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejected {
    /// From when on a probe may pass. `None`: all probes are out.
    pub until: Option<Instant>,
}

/// The three-state breaker.
#[derive(Debug)]
pub struct Breaker {
    config: CircuitBreaker,
    state: State,
    generation: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { successes: u32, probes: u32 },
}

impl Breaker {
    /// A closed breaker.
    pub fn new(config: CircuitBreaker) -> Self {
        Self { config, state: State::Closed { failures: 0 }, generation: 0 }
    }

    /// Takes a new configuration. The phase stays; the new numbers count from the next event on.
    pub fn configure(&mut self, config: CircuitBreaker) {
        self.config = config;
    }

    /// May a request pass? The first one after the open time turns the breaker half-open and is a probe.
    /// # Errors
    /// [`Rejected`] while open, and in half-open when all probes are out.
    pub fn ask(&mut self, now: Instant) -> Result<(Permit, Option<Change>), Rejected> {
        match self.state {
            State::Closed { .. } => Ok((self.permit(), None)),
            State::Open { until } if now < until => Err(Rejected { until: Some(until) }),
            State::Open { .. } => {
                let change = self.turn(State::HalfOpen { successes: 0, probes: 1 }, Cause::Elapsed);
                Ok((self.permit(), Some(change)))
            }
            State::HalfOpen { successes, probes } if probes < self.config.half_open_requests.max(1) => {
                self.state = State::HalfOpen { successes, probes: probes + 1 };
                Ok((self.permit(), None))
            }
            State::HalfOpen { .. } => Err(Rejected { until: None }),
        }
    }

    /// Takes a permit back with what became of the request.
    pub fn on(&mut self, permit: Permit, event: Event, now: Instant) -> Option<Change> {
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
                if failures >= self.config.consecutive_failures.max(1) {
                    return Some(self.open(Cause::Failures(failure), now));
                }
                self.state = State::Closed { failures };
                None
            }
            (State::HalfOpen { successes, probes }, Event::Succeeded) => {
                let successes = successes.saturating_add(1);
                if successes >= self.config.successes_to_close.max(1) {
                    return Some(self.turn(State::Closed { failures: 0 }, Cause::ProbeSucceeded));
                }
                self.state = State::HalfOpen { successes, probes: probes.saturating_sub(1) };
                None
            }
            (State::HalfOpen { .. }, Event::Failed(failure)) => Some(self.open(Cause::ProbeFailed(failure), now)),
            (State::HalfOpen { successes, probes }, Event::Cancelled) => {
                self.state = State::HalfOpen { successes, probes: probes.saturating_sub(1) };
                None
            }
            (State::Closed { .. }, Event::Cancelled) => None,
            // No permit has an open breaker's generation: opening makes a new one and gives none out.
            (State::Open { .. }, _) => None,
        }
    }

    /// Frees the slot of a request that ended without a result. Needs no clock.
    pub fn cancel(&mut self, permit: Permit) {
        if let (true, State::HalfOpen { successes, probes }) = (permit.generation == self.generation, self.state) {
            self.state = State::HalfOpen { successes, probes: probes.saturating_sub(1) };
        }
    }

    /// The phase, for gauges: open stays open until a request asks.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Closed { .. } => Phase::Closed,
            State::Open { .. } => Phase::Open,
            State::HalfOpen { .. } => Phase::HalfOpen,
        }
    }

    /// Closed without a failure to remember: a success would change nothing.
    pub(super) fn calm(&self) -> bool {
        matches!(self.state, State::Closed { failures: 0 })
    }

    /// Changes of phase so far.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    fn permit(&self) -> Permit {
        Permit { generation: self.generation }
    }

    fn open(&mut self, cause: Cause, now: Instant) -> Change {
        let until = now + self.config.recovery_time;
        Change { until: Some(until), ..self.turn(State::Open { until }, cause) }
    }

    fn turn(&mut self, state: State, cause: Cause) -> Change {
        let from = self.phase();
        self.state = state;
        self.generation += 1;
        Change { from, to: self.phase(), cause, until: None }
    }
}
