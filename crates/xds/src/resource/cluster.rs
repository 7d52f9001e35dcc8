//! Clusters: a service's port as callers see it, with its policies.

use std::time::Duration;

use http::HeaderName;
use weft_identity::SpiffeId;

/// A cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// xDS name: `namespace/service:port`.
    pub name: Box<str>,
    /// `namespace/service`, as in metrics.
    pub service: Box<str>,
    /// Port of the service.
    pub port: u16,
    /// What flows.
    pub protocol: Protocol,
    /// Name of its endpoints resource.
    pub endpoints: Box<str>,
    /// How an endpoint is picked.
    pub balancer: Balancer,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// Limits.
    pub limits: Limits,
    /// The service's three-state breaker. `None`: off.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Per endpoint. `None`: off.
    pub endpoint_breaker: Option<EndpointBreaker>,
    /// Always on.
    pub retry_budget: RetryBudget,
    /// A pooled connection is closed when unused for this long.
    pub pool_idle: Duration,
    /// `None`: plain text.
    pub tls: Option<UpstreamTls>,
    /// `namespace/name@revision` of the policy that decided; empty: defaults.
    pub policy: Box<str>,
    /// Below this share of usable endpoints, in percent, all are used.
    pub panic_percent: u8,
}

/// mTLS towards an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Server name sent.
    pub sni: Box<str>,
    /// Identities that the peer may prove; exact. Empty: what the endpoint says.
    pub identities: Vec<SpiffeId>,
}

/// What flows on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// The first bytes tell.
    #[default]
    Detect,
    /// HTTP/1.1, and HTTP/2 where a client begins it.
    Http,
    /// HTTP/2 without TLS towards the application.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// Bytes.
    Tcp,
}

/// How an endpoint is picked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Balancer {
    /// In turn; equal weights assumed.
    RoundRobin,
    /// Smooth: weights 5/3/2 give 5, 3 and 2 in every ten, interleaved.
    WeightedRoundRobin,
    /// Two random choices, the one with fewer requests in flight.
    #[default]
    LeastRequest,
    /// The one with the fewest in flight of all.
    LeastConnections,
    /// A hash of the source address, on the ring.
    SourceIp,
    /// A ring.
    ConsistentHash {
        /// `None`: the source address.
        header: Option<HeaderName>,
        /// For each unit of weight.
        virtual_nodes: u32,
    },
}

/// Limits of a cluster, for each sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests in flight.
    pub requests: u32,
}

/// The three-state breaker of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitBreaker {
    /// Failures in a row that open it.
    pub consecutive_failures: u32,
    /// Open for this long.
    pub recovery_time: Duration,
    /// Successes while half-open that close it.
    pub successes_to_close: u32,
    /// Requests let through at one time while half-open.
    pub half_open_requests: u32,
}

/// The breaker of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointBreaker {
    /// Failures in a row that open it.
    pub consecutive_failures: u32,
    /// First open time; it doubles.
    pub base_open_time: Duration,
    /// Longest open time.
    pub max_open_time: Duration,
    /// Share of the endpoints that may be open, 0 to 100; one stays in any case.
    pub max_ejection_percent: u8,
}

/// How many retries are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// Share of the requests of the last ten seconds.
    pub percent: u8,
    /// And this many a second besides.
    pub min_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: u32::MAX, pending: 1024, requests: 16_384 }
    }
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            recovery_time: Duration::from_secs(30),
            successes_to_close: 3,
            half_open_requests: 3,
        }
    }
}

impl Default for EndpointBreaker {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            base_open_time: Duration::from_secs(1),
            max_open_time: Duration::from_secs(60),
            max_ejection_percent: 50,
        }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20, min_per_second: 10 }
    }
}
