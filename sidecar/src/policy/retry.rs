//! Whether a request is tried again.
//!
//! What a request's bytes may already have caused is not repeated by default: what was certainly not executed is tried
//! again whatever its method; what may have been, only when its method is idempotent, the route says so, or the route
//! names the very status. A POST answered 503 is sent once.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use weft_xds::resource::RetryPolicy;

use super::{
    backoff::{MAX_RETRY_AFTER, backoff},
    timeouts::Deadline,
};
use crate::balance::Budget;

/// How a try ended that might be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// No connection came about, TLS included.
    ConnectFailed,
    /// REFUSED_STREAM.
    RefusedStream,
    /// A GOAWAY said that the stream was not processed.
    GoawayUnprocessed,
    /// The peer's sidecar, known by its identity, says that the application has not seen the request.
    NotExecuted,
    /// A connection that had served before ended before the first byte of the answer: most likely it was closed as idle
    /// while the request was on its way. The replay must go over a fresh connection.
    ReusedConnectionClosed,
    /// The stream or connection ended before the answer began.
    Reset,
    /// The try took too long.
    PerTryTimeout,
    /// An answer with this status.
    Status {
        /// The status.
        code: StatusCode,
        /// What `retry-after` says.
        retry_after: Option<Duration>,
    },
    /// A gRPC answer with this code in its head (trailers-only).
    GrpcStatus(u8),
}

/// Why a request is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GiveUp {
    /// The policy does not name this failure.
    NotRetriable,
    /// It may have been executed, and its method is not idempotent.
    NotIdempotent,
    /// All retries are used up.
    Limit,
    /// The budget is.
    Budget,
    /// Its body is no longer whole here.
    Body,
    /// Not enough time is left.
    Deadline,
    /// The answer has begun.
    ResponseBegun,
}

impl GiveUp {
    /// Label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotRetriable => "not_retriable",
            Self::NotIdempotent => "not_idempotent",
            Self::Limit => "limit",
            Self::Budget => "budget",
            Self::Body => "body",
            Self::Deadline => "deadline",
            Self::ResponseBegun => "response_begun",
        }
    }
}

/// What to do after a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Try again after this time.
    Retry {
        /// How long to wait.
        backoff: Duration,
        /// It is the replay of a request that met a closed connection, not a retry; use a fresh connection.
        replay: bool,
    },
    /// It ends here.
    GiveUp(GiveUp),
}

/// What else must be known after a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// The whole body can be sent again.
    pub replayable: bool,
    /// A byte of the answer has gone to the caller.
    pub response_begun: bool,
}

/// The retries of one request.
#[derive(Debug, Clone)]
pub struct RetryPlan<'p> {
    policy: &'p RetryPolicy,
    /// Repeating it does no harm.
    safe: bool,
    retries: u32,
    replays: u32,
}

static DEFAULT: LazyLock<RetryPolicy> = LazyLock::new(RetryPolicy::default);

impl<'p> RetryPlan<'p> {
    /// `policy`: the route's; `None`: the default.
    pub fn new(policy: Option<&'p RetryPolicy>, method: &Method) -> Self {
        let policy = policy.unwrap_or(&DEFAULT);
        Self { policy, safe: policy.idempotent || is_idempotent(method), retries: 0, replays: 0 }
    }

    /// The policy in force.
    pub fn policy(&self) -> &'p RetryPolicy {
        self.policy
    }

    /// Retries begun so far, replays apart.
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// Bytes of body worth keeping for a replay.
    pub fn body_bytes(&self) -> usize {
        self.policy.body_bytes
    }

    /// What to do after a try. A retry is counted, and taken out of the budget, when this says so. `random` is uniform
    /// over all of `u64`.
    pub fn after(
        &mut self,
        attempt: Attempt,
        circumstances: Circumstances,
        deadline: &Deadline,
        budget: &Budget,
        now: Instant,
        random: u64,
    ) -> Verdict {
        match self.decide(attempt, circumstances, deadline, budget, now, random) {
            Ok((backoff, replay)) => {
                if replay {
                    self.replays += 1;
                } else {
                    self.retries += 1;
                }
                Verdict::Retry { backoff, replay }
            }
            Err(why) => Verdict::GiveUp(why),
        }
    }

    fn decide(
        &self,
        attempt: Attempt,
        circumstances: Circumstances,
        deadline: &Deadline,
        budget: &Budget,
        now: Instant,
        random: u64,
    ) -> Result<(Duration, bool), GiveUp> {
        if circumstances.response_begun {
            return Err(GiveUp::ResponseBegun);
        }
        let replay = attempt == Attempt::ReusedConnectionClosed && self.replays < MAX_REPLAYS;
        let named = self.named(attempt);
        if named == Named::Not && !replay {
            return Err(GiveUp::NotRetriable);
        }
        if named != Named::Outright && !self.safe {
            return Err(GiveUp::NotIdempotent);
        }
        if !replay && self.retries >= self.policy.retries {
            return Err(GiveUp::Limit);
        }
        if !circumstances.replayable {
            return Err(GiveUp::Body);
        }
        let wait = if replay { Duration::ZERO } else { self.wait(attempt, random)? };
        if deadline.left(now).is_some_and(|left| left <= wait) {
            return Err(GiveUp::Deadline);
        }
        // A connection that did not come about has cost its server nothing: it never lacks budget.
        if attempt != Attempt::ConnectFailed && !budget.withdraw(now) {
            return Err(GiveUp::Budget);
        }
        Ok((wait, replay))
    }

    fn named(&self, attempt: Attempt) -> Named {
        let on = &self.policy.on;
        let when = |on: bool, named: Named| if on { named } else { Named::Not };
        match attempt {
            Attempt::ConnectFailed => when(on.connect_failure, Named::Outright),
            Attempt::RefusedStream | Attempt::GoawayUnprocessed | Attempt::NotExecuted => {
                when(on.refused_stream, Named::Outright)
            }
            Attempt::Reset | Attempt::ReusedConnectionClosed => when(on.reset, Named::IfSafe),
            Attempt::PerTryTimeout => self.named_status(StatusCode::GATEWAY_TIMEOUT),
            Attempt::Status { code, .. } => self.named_status(code),
            Attempt::GrpcStatus(code) => when(on.grpc.contains(&code), Named::Outright),
        }
    }

    fn named_status(&self, code: StatusCode) -> Named {
        let on = &self.policy.on;
        let gateway = matches!(code.as_u16(), 502..=504);
        if on.statuses.contains(&code) {
            Named::Outright
        } else if on.gateway_error && gateway || on.server_error && code.is_server_error() {
            Named::IfSafe
        } else {
            Named::Not
        }
    }

    fn wait(&self, attempt: Attempt, random: u64) -> Result<Duration, GiveUp> {
        let jittered = backoff(self.policy.backoff_base, self.policy.backoff_max, self.retries, random);
        match attempt {
            // The next one goes elsewhere, and nobody is overloaded: no reason to wait.
            Attempt::GoawayUnprocessed => Ok(Duration::ZERO),
            Attempt::ConnectFailed if self.retries == 0 => Ok(Duration::ZERO),
            // Coming back before the server asked for would be rude, waiting longer useless to the caller.
            Attempt::Status { retry_after: Some(after), .. } if after > MAX_RETRY_AFTER => Err(GiveUp::NotRetriable),
            Attempt::Status { retry_after: Some(after), .. } => Ok(after.max(jittered)),
            Attempt::ConnectFailed
            | Attempt::RefusedStream
            | Attempt::NotExecuted
            | Attempt::ReusedConnectionClosed
            | Attempt::Reset
            | Attempt::PerTryTimeout
            | Attempt::Status { retry_after: None, .. }
            | Attempt::GrpcStatus(_) => Ok(jittered),
        }
    }
}

/// How a policy names a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Not,
    /// Where repeating does no harm.
    IfSafe,
    /// For every method: it was not executed, or the route names the very status.
    Outright,
}

/// Methods whose repetition does no harm (RFC 9110, 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

/// A fresh connection cannot be closed as idle; a second time is a reset like any other.
const MAX_REPLAYS: u32 = 1;
