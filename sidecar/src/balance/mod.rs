//! Cluster → endpoint: balancers, breakers, ejection, limits, retry budget.
//!
//! Owns the live state of every cluster and endpoint (in-flight counts, breakers, limits, budget) and carries it over
//! from one snapshot to the next. Never reads a clock, never waits, never does I/O: callers pass `now`.
//!
//! The life of a request here: [`Upstream::admit`] (limit on requests, the service's breaker), then for every try
//! [`Upstream::pick`] (balancer, endpoint breaker, in-flight count). Both return guards: report with `finish`, release by
//! drop. A guard dropped unfinished is a cancelled request: it frees what it held and counts neither way.

pub mod breaker;
pub mod budget;
pub mod ejection;
pub mod hash;
pub mod limits;

mod endpoint;
mod least;
mod level;
mod live;
mod ring;
mod round_robin;
#[cfg(test)]
mod tests;
mod upstream;

pub use self::{
    breaker::{Cause, Change, Phase},
    budget::Budget,
    endpoint::{EndpointState, Picked, StateCounts},
    hash::request_hash,
    limits::{Limit, LimitKind, LimitPermit},
    upstream::{Admitted, PickError, Refused, Upstream},
};

/// How a request or a try ended, as breakers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An answer that does not speak against the endpoint.
    Success,
    /// Speaks against the endpoint.
    Failed(Failure),
    /// Says nothing about the endpoint: cancelled by the caller, 429, refused by a local limit.
    Ignored,
}

/// What speaks against an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No connection came about.
    Connect,
    /// The connection or stream ended early.
    Reset,
    /// No answer in time.
    Timeout,
    /// A 5xx status.
    Status,
    /// A gRPC status of the server's making (UNAVAILABLE, INTERNAL, ...).
    Grpc,
}

impl Failure {
    /// Label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::Grpc => "grpc",
        }
    }
}
