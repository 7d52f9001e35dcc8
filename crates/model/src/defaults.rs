//! Every built-in default, in one place. The control plane fills them in; sidecars get complete values.

use std::time::Duration;

use crate::kinds::{DefaultAccess, MtlsMode, RetryOn};

pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Namespace of a resource that names none.
pub const NAMESPACE: &str = "default";
/// Trust domain.
pub const TRUST_DOMAIN: &str = "weft.local";
/// What a workload accepts.
pub const MTLS: MtlsMode = MtlsMode::Strict;
/// Whether a service that no AccessPolicy allows anything may be called.
pub const ACCESS: DefaultAccess = DefaultAccess::Allow;
/// Life of a certificate.
pub const CERTIFICATE_TTL: Duration = Duration::from_secs(24 * 3600);

/// Points on the ring for each unit of weight.
pub const VIRTUAL_NODES: u32 = 150;

/// Connections of one sidecar to one port of a service: no limit but the process's file descriptors.
pub const MAX_CONNECTIONS: u32 = u32::MAX;
/// Requests that wait for a connection.
pub const MAX_PENDING_REQUESTS: u32 = 1024;
/// Requests in flight.
pub const MAX_REQUESTS: u32 = 16_384;
/// A pooled connection is closed when unused for this long.
pub const POOL_IDLE: Duration = Duration::from_secs(60);

/// Failures in a row that open the service's breaker.
pub const BREAKER_FAILURES: u32 = 5;
/// How long the service's breaker stays open.
pub const BREAKER_RECOVERY: Duration = Duration::from_secs(30);
/// Successes while half-open that close it.
pub const BREAKER_SUCCESSES: u32 = 3;
/// Requests let through at one time while half-open.
pub const BREAKER_HALF_OPEN: u32 = 3;

/// Failures in a row that open an endpoint's breaker.
pub const OUTLIER_FAILURES: u32 = 5;
/// First time that it stays open.
pub const OUTLIER_BASE: Duration = Duration::from_secs(1);
/// Longest time that it stays open.
pub const OUTLIER_MAX: Duration = Duration::from_secs(60);
/// Share of the endpoints that may be out.
pub const OUTLIER_PERCENT: u8 = 50;

/// Further tries beyond the first.
pub const RETRIES: u32 = 2;
/// What is tried again.
pub const RETRY_ON: [RetryOn; 4] =
    [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Reset, RetryOn::GatewayError];
/// First bound of the pause before a further try.
pub const BACKOFF_BASE: Duration = Duration::from_millis(25);
/// Last bound of the pause.
pub const BACKOFF_MAX: Duration = Duration::from_millis(250);
/// Bytes of a body that are kept for a further try.
pub const RETRY_BODY: u32 = 64 * 1024;
/// Further tries as a share of the requests, in percent.
pub const BUDGET_PERCENT: u8 = 20;
/// And this many a second besides.
pub const BUDGET_PER_SECOND: u32 = 10;

/// Until a connection has come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
