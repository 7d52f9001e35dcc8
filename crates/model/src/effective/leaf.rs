//! Every value of an [`EffectiveTraffic`] under the name of its field, for people and for finding overlaps.

use std::time::Duration;

use super::{Decided, EffectiveTraffic};
use crate::{
    kinds::{Balancer, GrpcCode, RetryOn},
    period::Period,
};

/// One value's field and who decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf<'a> {
    /// Path below `spec`.
    pub field: &'static str,
    /// The value as one writes it.
    pub value: String,
    /// As in [`Decided::by`].
    pub by: Option<&'a str>,
}

impl EffectiveTraffic {
    /// Every value's field path below `spec`, and who decided it.
    pub fn leaves(&self) -> Vec<Leaf<'_>> {
        let (pool, breaker, outlier) = (&self.connection_pool, &self.circuit_breaker, &self.outlier_detection);
        let (retry, timeouts) = (&self.retry, &self.timeouts);
        vec![
            leaf("loadBalancer", &self.balancer),
            leaf("connectionPool.maxConnections", &pool.max_connections),
            leaf("connectionPool.maxPendingRequests", &pool.max_pending_requests),
            leaf("connectionPool.maxRequests", &pool.max_requests),
            leaf("connectionPool.idleTimeout", &pool.idle_timeout),
            leaf("circuitBreaker.enabled", &breaker.enabled),
            leaf("circuitBreaker.consecutiveFailures", &breaker.consecutive_failures),
            leaf("circuitBreaker.recoveryTime", &breaker.recovery_time),
            leaf("circuitBreaker.successesToClose", &breaker.successes_to_close),
            leaf("circuitBreaker.halfOpenRequests", &breaker.half_open_requests),
            leaf("outlierDetection.enabled", &outlier.enabled),
            leaf("outlierDetection.consecutiveFailures", &outlier.consecutive_failures),
            leaf("outlierDetection.baseEjectionTime", &outlier.base_ejection_time),
            leaf("outlierDetection.maxEjectionTime", &outlier.max_ejection_time),
            leaf("outlierDetection.maxEjectionPercent", &outlier.max_ejection_percent),
            leaf("retry.attempts", &retry.attempts),
            leaf("retry.on", &retry.on),
            leaf("retry.statusCodes", &retry.status_codes),
            leaf("retry.grpcCodes", &retry.grpc_codes),
            leaf("retry.backoff.base", &retry.backoff_base),
            leaf("retry.backoff.max", &retry.backoff_max),
            leaf("retry.idempotent", &retry.idempotent),
            leaf("retry.bodyBytes", &retry.body_bytes),
            leaf("retry.budget.percent", &retry.budget_percent),
            leaf("retry.budget.minPerSecond", &retry.budget_min_per_second),
            leaf("timeouts.request", &timeouts.request),
            leaf("timeouts.perTry", &timeouts.per_try),
            leaf("timeouts.connect", &timeouts.connect),
            idle(&timeouts.idle),
        ]
    }
}

fn leaf<'a, T: Written>(field: &'static str, decided: &'a Decided<T>) -> Leaf<'a> {
    Leaf { field, value: decided.value.written(), by: decided.by.as_deref() }
}

/// Absent, it is the sidecar's default for the protocol; `0s` switches it off.
fn idle(decided: &Decided<Option<Duration>>) -> Leaf<'_> {
    let value = decided.value.map_or_else(|| "5m for HTTP, 1h for TCP".to_owned(), |idle| Period(idle).to_string());
    Leaf { field: "timeouts.idle", value, by: decided.by.as_deref() }
}

/// A value as one writes it.
trait Written {
    fn written(&self) -> String;
}

impl Written for u32 {
    fn written(&self) -> String {
        if *self == u32::MAX { "unlimited".to_owned() } else { self.to_string() }
    }
}

impl Written for u8 {
    fn written(&self) -> String {
        self.to_string()
    }
}

impl Written for u16 {
    fn written(&self) -> String {
        self.to_string()
    }
}

impl Written for bool {
    fn written(&self) -> String {
        self.to_string()
    }
}

impl Written for Duration {
    fn written(&self) -> String {
        Period(*self).to_string()
    }
}

impl Written for Option<Duration> {
    fn written(&self) -> String {
        self.map_or_else(|| "off".to_owned(), |duration| duration.written())
    }
}

impl Written for RetryOn {
    fn written(&self) -> String {
        self.to_string()
    }
}

impl Written for GrpcCode {
    fn written(&self) -> String {
        self.to_string()
    }
}

impl<T: Written> Written for Vec<T> {
    fn written(&self) -> String {
        if self.is_empty() {
            return "none".to_owned();
        }
        let all: Vec<String> = self.iter().map(Written::written).collect();
        format!("[{}]", all.join(", "))
    }
}

impl Written for Balancer {
    fn written(&self) -> String {
        match self {
            Self::LeastRequest => "leastRequest".to_owned(),
            Self::RoundRobin => "roundRobin".to_owned(),
            Self::WeightedRoundRobin => "weightedRoundRobin".to_owned(),
            Self::LeastConnections => "leastConnections".to_owned(),
            Self::SourceIp => "sourceIp".to_owned(),
            Self::ConsistentHash { header: Some(header), .. } => format!("consistentHash on header {header}"),
            Self::ConsistentHash { header: None, .. } => "consistentHash on the source address".to_owned(),
        }
    }
}
