//! `weft.mesh/v1alpha1 TrafficPolicy`: how a service is called.

use super::Metadata;
use crate::{
    Period,
    defaults::{MILLISECOND, SECOND},
    rules::TextRule,
    shape::{choices, object},
};

object! {
    /// How sidecars call a service: balancing, limits, breakers, retries, time limits. A field that no policy sets has
    /// the Mesh's value, else the built-in default.
    pub struct TrafficPolicy {
        /// Name, namespace, labels and annotations.
        metadata: Metadata = required(),
        /// Target and settings.
        spec: TrafficPolicySpec = required()
    }
}

object! {
    /// Target and settings.
    pub struct TrafficPolicySpec {
        /// What the policy is for: Services or routes of its namespace. The most specific policy wins, field by field:
        /// a rule of a route, a route, a port of a service, a service, the Mesh. Required, except in a Mesh, where it
        /// cannot stand.
        target_refs: Vec<TargetRef> = default("none").items(0, 32),
        /// How an endpoint is picked.
        load_balancer: Option<LoadBalancer> = default("leastRequest")
            .why("two choices come close to the best pick at no cost and avoid slow endpoints"),
        /// Connections, waiting and concurrent requests.
        connection_pool: Option<ConnectionPool> = default("see its fields"),
        /// The breaker of the whole service.
        circuit_breaker: Option<CircuitBreaker> = default("off")
            .why("the breaker of each endpoint is always on; a breaker for the whole service is the owner's choice"),
        /// The breaker of each endpoint.
        outlier_detection: Option<OutlierDetection> = default("on, see its fields"),
        /// Further tries.
        retry: Option<Retry> = default("on, see its fields"),
        /// Time limits.
        timeouts: Option<Timeouts> = default("see its fields"),
        /// A second try before the first has failed.
        hedging: Option<Hedging> = default("off"),
        /// How many requests are let through.
        rate_limit: Option<RateLimit> = default("off"),
        /// Questions put to endpoints.
        health_check: Option<HealthCheck> = default("off"),
        /// Preference for near endpoints.
        locality: Option<Locality> = default("off"),
        /// Less traffic for new endpoints.
        slow_start: Option<SlowStart> = default("off"),
        /// Faults made on purpose.
        fault_injection: Option<FaultInjection> = default("off")
    }
}

object! {
    /// A Service or a route of the policy's namespace.
    pub struct TargetRef {
        /// API group; empty for a Service, `gateway.networking.k8s.io` for a route.
        group: Option<String> = default("that of the kind"),
        /// Kind.
        kind: TargetKind = required(),
        /// Name.
        name: String = required().text(TextRule::DnsName),
        /// Only this part: the name of a Service's port, or of a route's rule.
        section_name: Option<String> = default("all of it").text(TextRule::SectionName),
        /// Only this port of a Service.
        port: Option<u16> = default("all ports")
    }
}

choices! {
    /// What a policy may be for.
    pub enum TargetKind {
        Service = "Service": "A service, as callee.",
        HttpRoute = "HTTPRoute": "An HTTPRoute; `retry` and `timeouts` only.",
        GrpcRoute = "GRPCRoute": "A GRPCRoute; `retry` and `timeouts` only.",
    }
}

object! {
    /// How an endpoint is picked: exactly one field is set. Health and weight of the endpoints are respected by all.
    pub struct LoadBalancer {
        /// Two random endpoints, the one with fewer requests in flight.
        least_request: Option<LeastRequest> = plain(),
        /// In turn.
        round_robin: Option<RoundRobin> = plain(),
        /// In turn, smoothly by weight: weights 5, 3 and 2 give 5, 3 and 2 in every ten, interleaved.
        weighted_round_robin: Option<WeightedRoundRobin> = plain(),
        /// The endpoint with the fewest requests in flight of all, exactly.
        least_connections: Option<LeastConnections> = plain(),
        /// By a hash of the caller's address.
        source_ip: Option<SourceIp> = plain(),
        /// By a hash on a ring: when an endpoint goes, only its share of the keys moves.
        consistent_hash: Option<ConsistentHash> = plain(),
        /// Two random endpoints, the one that answers faster.
        peak_ewma: Option<PeakEwma> = plain()
    }
}

object! {
    /// No settings.
    pub struct LeastRequest {}
}
object! {
    /// No settings.
    pub struct RoundRobin {}
}
object! {
    /// No settings.
    pub struct WeightedRoundRobin {}
}
object! {
    /// No settings.
    pub struct LeastConnections {}
}
object! {
    /// No settings.
    pub struct SourceIp {}
}
object! {
    /// No settings.
    pub struct PeakEwma {}
}

object! {
    /// What is hashed: exactly one of `header` and `sourceIp`.
    pub struct ConsistentHash {
        /// A header's first value. A request without it is balanced at random.
        header: Option<String> = plain().text(TextRule::HeaderName),
        /// The caller's address.
        source_ip: Option<bool> = plain(),
        /// Points on the ring for each unit of an endpoint's weight.
        virtual_nodes: Option<u32> = default("150").range(1, 1024)
            .why("keeps the shares of equal endpoints within a few percent")
            .when("more for evenness among few endpoints, fewer for memory among very many")
    }
}

object! {
    /// Limits of what one sidecar sends to one port of the service. What exceeds one is answered 503 with the reason
    /// that names the limit.
    pub struct ConnectionPool {
        /// Connections.
        max_connections: Option<u32> = default("unlimited, within the process's file descriptors")
            .range(1, 1_000_000).why("a low limit surprises under load").when("the service has a hard limit of its own"),
        /// Requests that wait for a connection.
        max_pending_requests: Option<u32> = default("1024").range(1, 1_000_000),
        /// Requests in flight.
        max_requests: Option<u32> = default("16384").range(1, 10_000_000),
        /// A pooled connection is closed when unused for this long.
        idle_timeout: Option<Period> = default("1m").within(SECOND, SECOND.saturating_mul(24 * 3600))
            .why("must stay under the idle limit of what is called")
            .when("static endpoints close idle connections sooner")
    }
}

object! {
    /// The breaker of the whole service, one for each sidecar and port: closed, open, half-open. Failures in a row open
    /// it; one success while closed forgets them, for failures hours apart say nothing about now.
    pub struct CircuitBreaker {
        /// Whether it is on.
        enabled: Option<bool> = default("true once `circuitBreaker` is set").when("the Mesh has it on for all services"),
        /// Failures in a row that open it.
        consecutive_failures: Option<u32> = default("5").range(1, 10_000),
        /// Open for this long, then half-open.
        recovery_time: Option<Period> = default("30s").within(MILLISECOND, SECOND.saturating_mul(3600)),
        /// Successes while half-open that close it; one failure opens it again.
        successes_to_close: Option<u32> = default("3").range(1, 10_000),
        /// Requests let through at one time while half-open.
        half_open_requests: Option<u32> = default("3").range(1, 10_000),
        /// Requests in flight: the same limit as `connectionPool.maxRequests`.
        max_requests: Option<u32> = default("16384").range(1, 10_000_000)
    }
}

object! {
    /// The breaker of each endpoint: it takes a failing endpoint out of the balance, tries it again with one request,
    /// and stays open longer each time that fails.
    pub struct OutlierDetection {
        /// Whether it is on.
        enabled: Option<bool> = default("true").why("a mesh that sends on to a dead endpoint is no help"),
        /// Failures in a row that open it: 5xx, resets, refused connections, gRPC's equivalents; 429 is none.
        consecutive_failures: Option<u32> = default("5").range(1, 10_000),
        /// First time that it stays open; it doubles.
        base_ejection_time: Option<Period> = default("1s").within(MILLISECOND, SECOND.saturating_mul(3600))
            .why("a fixed half minute punishes a restart of two seconds"),
        /// Longest time that it stays open.
        max_ejection_time: Option<Period> = default("1m").within(MILLISECOND, SECOND.saturating_mul(24 * 3600)),
        /// Share of the endpoints that may be out at one time, in percent; one stays in any case.
        max_ejection_percent: Option<u32> = default("50").range(0, 100)
            .why("most services have two or three workloads; 10 % of three is none")
    }
}

object! {
    /// Further tries. What a request may already have caused is not repeated: `connect-failure` and `refused-stream`
    /// hold for every method, the other conditions for GET, HEAD, OPTIONS, TRACE, PUT and DELETE, or for all when
    /// `idempotent` is true.
    pub struct Retry {
        /// Further tries beyond the first. 0: none.
        attempts: Option<u32> = default("2").range(0, 10),
        /// What is tried again.
        on: Option<Vec<RetryOn>> = default("[connect-failure, refused-stream, reset, gateway-error]").items(0, 5),
        /// Statuses that are tried again as well.
        status_codes: Option<Vec<u16>> = default("none").items(0, 32).range(400, 599),
        /// gRPC codes that are tried again as well.
        grpc_codes: Option<Vec<GrpcCode>> = default("none").items(0, 16),
        /// Limit of each try: the same as `timeouts.perTry`.
        per_try_timeout: Option<Period> = default("off"),
        /// Pause before a further try.
        backoff: Option<Backoff> = default("see its fields"),
        /// Every method may be repeated.
        idempotent: Option<bool> = default("false")
            .why("a payment made twice is worse than one that failed")
            .when("the callee recognises a repeated request, say by a key"),
        /// Bytes of a body that are kept for a further try; a request with a longer one is not repeated once more than
        /// that was sent.
        body_bytes: Option<u32> = default("65536").range(0, 16 * 1024 * 1024),
        /// How many further tries there may be in all.
        budget: Option<RetryBudget> = default("see its fields")
    }
}

choices! {
    /// What is tried again.
    pub enum RetryOn {
        ConnectFailure = "connect-failure": "No connection came about.",
        RefusedStream = "refused-stream": "The callee said that it did not process the request.",
        Reset = "reset": "The connection ended before an answer began.",
        GatewayError = "gateway-error": "502, 503, 504.",
        ServerError = "server-error": "Any 5xx.",
    }
}

choices! {
    /// A gRPC code that may be tried again.
    pub enum GrpcCode {
        Cancelled = "cancelled": "1",
        Unknown = "unknown": "2",
        DeadlineExceeded = "deadline-exceeded": "4",
        ResourceExhausted = "resource-exhausted": "8",
        Aborted = "aborted": "10",
        Internal = "internal": "13",
        Unavailable = "unavailable": "14",
        DataLoss = "data-loss": "15",
    }
}

object! {
    /// Pause before a further try: random between zero and a bound that begins at `base` and doubles up to `max`.
    pub struct Backoff {
        /// First bound.
        base: Option<Period> = default("25ms").within(MILLISECOND, SECOND.saturating_mul(60)),
        /// Last bound.
        max: Option<Period> = default("250ms").within(MILLISECOND, SECOND.saturating_mul(600))
    }
}

object! {
    /// How many further tries one sidecar may make towards the service, over the last ten seconds. Always on: it keeps
    /// retries from drowning a service that struggles.
    pub struct RetryBudget {
        /// Share of the requests, in percent.
        percent: Option<u32> = default("20").range(0, 100),
        /// And this many a second besides.
        min_per_second: Option<u32> = default("10").range(0, 100_000)
    }
}

object! {
    /// Time limits. `0s` switches one off, `connect` excepted.
    pub struct Timeouts {
        /// The whole request, retries included.
        request: Option<Period> = default("off")
            .why("a mesh must not break long polls, event streams and big uploads")
            .when("the service answers within known bounds"),
        /// Each try.
        per_try: Option<Period> = default("off"),
        /// Until a connection has come about, its handshake included.
        connect: Option<Period> = default("1s").within(MILLISECOND, SECOND.saturating_mul(60))
            .why("a neighbour that takes longer is not there"),
        /// Without a byte either way.
        idle: Option<Period> = default("5m for HTTP, 1h for TCP")
    }
}

object! {
    /// A second try before the first has failed.
    pub struct Hedging {
        /// Wait this long for an answer first.
        delay: Option<Period> = required(),
        /// Tries in all.
        max_attempts: Option<u32> = default("2").range(2, 5)
    }
}

object! {
    /// How many requests are let through.
    pub struct RateLimit {
        /// Requests a second.
        requests_per_second: u32 = required().range(1, 10_000_000),
        /// At once.
        burst: Option<u32> = default("`requestsPerSecond`").range(1, 10_000_000),
        /// One limit for each value of this header.
        per_header: Option<String> = default("one limit for all").text(TextRule::HeaderName)
    }
}

object! {
    /// Questions put to endpoints.
    pub struct HealthCheck {
        /// A GET of this path.
        http_path: Option<String> = default("a connection").text(TextRule::Path),
        /// gRPC's health service.
        grpc_service: Option<String> = plain().text(TextRule::GrpcService),
        /// Pause between two.
        interval: Option<Period> = default("10s").within(SECOND, SECOND.saturating_mul(3600)),
        /// Limit of each.
        timeout: Option<Period> = default("1s"),
        /// Failures in a row that take the endpoint out.
        unhealthy_threshold: Option<u32> = default("3").range(1, 100),
        /// Successes in a row that take it in.
        healthy_threshold: Option<u32> = default("2").range(1, 100)
    }
}

object! {
    /// Preference for near endpoints.
    pub struct Locality {
        /// Whether the caller's zone comes first.
        prefer_zone: Option<bool> = default("true"),
        /// Healthy endpoints that a zone must have to be preferred.
        min_endpoints: Option<u32> = default("2").range(1, 10_000)
    }
}

object! {
    /// Less traffic for new endpoints.
    pub struct SlowStart {
        /// Until a new endpoint has its full share.
        window: Option<Period> = default("30s").within(SECOND, SECOND.saturating_mul(3600))
    }
}

object! {
    /// Faults made on purpose.
    pub struct FaultInjection {
        /// Requests that are held up.
        delay: Option<FaultDelay> = plain(),
        /// Requests that are answered with an error.
        abort: Option<FaultAbort> = plain()
    }
}

object! {
    /// Requests that are held up.
    pub struct FaultDelay {
        /// Share of the requests, in percent.
        percent: u32 = required().range(1, 100),
        /// For how long.
        duration: Option<Period> = required()
    }
}

object! {
    /// Requests that are answered with an error.
    pub struct FaultAbort {
        /// Share of the requests, in percent.
        percent: u32 = required().range(1, 100),
        /// Status.
        status: Option<u16> = plain().range(200, 599),
        /// gRPC code.
        grpc_code: Option<GrpcCode> = plain()
    }
}

/// How an endpoint is picked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Balancer {
    /// Two random endpoints, the one with fewer requests in flight.
    #[default]
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// In turn, smoothly by weight.
    WeightedRoundRobin,
    /// The endpoint with the fewest requests in flight of all.
    LeastConnections,
    /// By a hash of the caller's address.
    SourceIp,
    /// By a hash on a ring.
    ConsistentHash {
        /// `None`: the caller's address.
        header: Option<String>,
        /// Points on the ring for each unit of weight.
        virtual_nodes: u32,
    },
}

impl LoadBalancer {
    /// What it says. `None`: nothing that is supported, which parsing refuses.
    pub fn balancer(&self) -> Option<Balancer> {
        if self.least_request.is_some() {
            Some(Balancer::LeastRequest)
        } else if self.round_robin.is_some() {
            Some(Balancer::RoundRobin)
        } else if self.weighted_round_robin.is_some() {
            Some(Balancer::WeightedRoundRobin)
        } else if self.least_connections.is_some() {
            Some(Balancer::LeastConnections)
        } else if self.source_ip.is_some() {
            Some(Balancer::SourceIp)
        } else {
            self.consistent_hash.as_ref().map(|hash| Balancer::ConsistentHash {
                header: hash.header.as_ref().map(|header| header.to_ascii_lowercase()),
                virtual_nodes: hash.virtual_nodes.unwrap_or(crate::defaults::VIRTUAL_NODES),
            })
        }
    }
}

impl GrpcCode {
    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Self::Cancelled => 1,
            Self::Unknown => 2,
            Self::DeadlineExceeded => 4,
            Self::ResourceExhausted => 8,
            Self::Aborted => 10,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::DataLoss => 15,
        }
    }
}

impl TargetKind {
    /// The API group of the kind.
    pub fn group(self) -> &'static str {
        match self {
            Self::Service => "",
            Self::HttpRoute | Self::GrpcRoute => "gateway.networking.k8s.io",
        }
    }
}
