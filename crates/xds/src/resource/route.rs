//! Route configurations, virtual hosts and routes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode};
use regex::Regex;

use super::{HeaderMatch, QueryMatch};

/// A route configuration.
#[derive(Debug, Clone)]
pub struct RouteConfiguration {
    /// xDS name.
    pub name: Box<str>,
    /// Virtual hosts that came with it.
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// More are to be asked for by name (VHDS).
    pub on_demand: bool,
}

/// The routes of one authority.
#[derive(Debug, Clone)]
pub struct VirtualHost {
    /// xDS name.
    pub name: Box<str>,
    /// Authorities, lower case; `*` or a leading `*.` as wildcard.
    pub domains: Vec<Box<str>>,
    /// First match wins.
    pub routes: Vec<Arc<Route>>,
    /// The one endpoint that calls go to: the caller has addressed it. `None`: the balancer picks.
    pub endpoint: Option<SocketAddr>,
}

/// One route.
#[derive(Debug, Clone)]
pub struct Route {
    /// Name, as in metrics: `namespace/route/rule`, or `default`.
    pub name: Box<str>,
    /// What it takes.
    pub matches: RouteMatch,
    /// What becomes of it.
    pub action: RouteAction,
    /// Edits of the request's headers.
    pub request_headers: HeaderEdits,
    /// Edits of the response's headers.
    pub response_headers: HeaderEdits,
    /// `HTTPRoute namespace/name rule 2`: what decided, for people.
    pub source: Box<str>,
    /// Configuration revision that decided.
    pub revision: u64,
}

/// What a route takes.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    /// Path.
    pub path: PathMatch,
    /// All must match.
    pub headers: Vec<HeaderMatch>,
    /// All must match.
    pub query: Vec<QueryMatch>,
    /// Only gRPC (content-type `application/grpc`).
    pub grpc: bool,
}

impl RouteMatch {
    /// Takes every request.
    #[must_use]
    pub fn any() -> Self {
        Self { path: PathMatch::Prefix("/".into()), headers: Vec::new(), query: Vec::new(), grpc: false }
    }
}

/// Test of a path, normalised and without query.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// Begins with, byte for byte. `/` takes all.
    Prefix(Box<str>),
    /// Equal, or begins with it and a `/`.
    SeparatedPrefix(Box<str>),
    /// Equal.
    Exact(Box<str>),
    /// The whole path matches.
    Regex(Regex),
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum RouteAction {
    /// It goes to a cluster.
    Forward(Box<Forward>),
    /// 3xx.
    Redirect(Box<Redirect>),
    /// An answer from the configuration.
    Respond {
        /// Status.
        status: StatusCode,
        /// Body.
        body: Box<str>,
    },
}

/// Where and how a request is forwarded.
#[derive(Debug, Clone)]
pub struct Forward {
    /// At least one; weights sum to more than 0.
    pub clusters: Vec<WeightedCluster>,
    /// Whole request, retries included. `None`: off.
    pub timeout: Option<Duration>,
    /// No byte either way for this long ends it. `None`: the sidecar's default.
    pub idle_timeout: Option<Duration>,
    /// Retries. `None`: the sidecar's default policy.
    pub retry: Option<RetryPolicy>,
    /// Path rewrite.
    pub rewrite: Option<PathRewrite>,
    /// Replaces the authority.
    pub host_rewrite: Option<HeaderValue>,
    /// What a consistent-hash balancer hashes; the first that yields a value wins.
    pub hash: Vec<HashOn>,
}

impl Forward {
    /// To clusters, with nothing else said.
    #[must_use]
    pub fn to(clusters: Vec<WeightedCluster>) -> Self {
        Self {
            clusters,
            timeout: None,
            idle_timeout: None,
            retry: None,
            rewrite: None,
            host_rewrite: None,
            hash: Vec::new(),
        }
    }
}

/// A cluster and its share.
#[derive(Debug, Clone)]
pub struct WeightedCluster {
    /// xDS name of the cluster.
    pub name: Box<str>,
    /// Share of the sum.
    pub weight: u32,
    /// Edits for this share alone.
    pub request_headers: HeaderEdits,
    /// Edits for this share alone.
    pub response_headers: HeaderEdits,
}

impl WeightedCluster {
    /// A cluster and its share, without edits.
    pub fn new(name: impl Into<Box<str>>, weight: u32) -> Self {
        Self {
            name: name.into(),
            weight,
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
        }
    }
}

/// How a path is rewritten.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// The matched prefix is replaced.
    Prefix(Box<str>),
    /// The whole path is.
    Full(Box<str>),
}

/// A redirect.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// `None`: as asked.
    pub scheme: Option<Box<str>>,
    /// `None`: as asked.
    pub host: Option<Box<str>>,
    /// `None`: as asked.
    pub port: Option<u16>,
    /// `None`: as asked.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// Edits of headers, in this order: remove, set, add.
#[derive(Debug, Clone, Default)]
pub struct HeaderEdits {
    /// Removed.
    pub remove: Vec<HeaderName>,
    /// Replaced.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Appended.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

/// What is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// A header's first value.
    Header(HeaderName),
    /// The source address.
    SourceIp,
}

/// When and how a request is tried again.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Further tries beyond the first.
    pub retries: u32,
    /// For what.
    pub on: RetryOn,
    /// Bound of each try. `None`: off.
    pub per_try_timeout: Option<Duration>,
    /// First back-off; it doubles.
    pub backoff_base: Duration,
    /// Longest back-off.
    pub backoff_max: Duration,
    /// Resets and gateway errors may be retried for every method.
    pub idempotent: bool,
    /// Bytes of a body that are kept for a replay.
    pub body_bytes: usize,
}

/// Conditions of a retry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetryOn {
    /// No connection came about.
    pub connect_failure: bool,
    /// REFUSED_STREAM or a GOAWAY that did not process it.
    pub refused_stream: bool,
    /// The connection ended before an answer began.
    pub reset: bool,
    /// 502, 503, 504.
    pub gateway_error: bool,
    /// Any 5xx.
    pub server_error: bool,
    /// These statuses.
    pub statuses: Vec<StatusCode>,
    /// These gRPC codes.
    pub grpc: Vec<u8>,
}

impl Default for RetryPolicy {
    /// 2 retries, 25 to 250 ms, 64 KiB: see the reference of defaults.
    fn default() -> Self {
        Self {
            retries: 2,
            on: RetryOn {
                connect_failure: true,
                refused_stream: true,
                reset: true,
                gateway_error: true,
                server_error: false,
                statuses: Vec::new(),
                grpc: Vec::new(),
            },
            per_try_timeout: None,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            idempotent: false,
            body_bytes: 64 * 1024,
        }
    }
}
