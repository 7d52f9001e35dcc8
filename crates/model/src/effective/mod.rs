//! Which values hold: built-in defaults, then the Mesh, then the policies from the least to the most specific, field by
//! field. Each value knows which resource decided it.

mod leaf;

use std::{ops::Deref, sync::Arc, time::Duration};

use crate::{
    defaults,
    kinds::{
        Balancer, CircuitBreaker, ConnectionPool, GrpcCode, HttpRouteRule, Mesh, OutlierDetection, Retry, RetryOn,
        TargetKind, TargetRef, Timeouts, TrafficPolicy, TrafficPolicySpec,
    },
    period::Period,
};

pub use self::leaf::Leaf;

/// A value and the resource that decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided<T> {
    /// The value.
    pub value: T,
    /// `namespace/name@revision` of the policy, `Mesh default@revision`, or the words given for a route's rule. `None`:
    /// the built-in default.
    pub by: Option<Arc<str>>,
}

impl<T> Decided<T> {
    fn default(value: T) -> Self {
        Self { value, by: None }
    }

    fn set(&mut self, value: Option<T>, by: &Arc<str>) {
        if let Some(value) = value {
            self.value = value;
            self.by = Some(by.clone());
        }
    }
}

impl<T> Deref for Decided<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// How a service is called, every value filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveTraffic {
    /// How an endpoint is picked.
    pub balancer: Decided<Balancer>,
    /// Limits.
    pub connection_pool: EffectivePool,
    /// The breaker of the whole service.
    pub circuit_breaker: EffectiveBreaker,
    /// The breaker of each endpoint.
    pub outlier_detection: EffectiveOutlier,
    /// Further tries.
    pub retry: EffectiveRetry,
    /// Time limits.
    pub timeouts: EffectiveTimeouts,
}

/// Limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectivePool {
    /// Connections; `u32::MAX`: no limit but the process's file descriptors.
    pub max_connections: Decided<u32>,
    /// Requests that wait for a connection.
    pub max_pending_requests: Decided<u32>,
    /// Requests in flight; also what `circuitBreaker.maxRequests` sets.
    pub max_requests: Decided<u32>,
    /// A pooled connection is closed when unused for this long.
    pub idle_timeout: Decided<Duration>,
}

/// The breaker of the whole service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveBreaker {
    /// Whether it is on.
    pub enabled: Decided<bool>,
    /// Failures in a row that open it.
    pub consecutive_failures: Decided<u32>,
    /// Open for this long.
    pub recovery_time: Decided<Duration>,
    /// Successes while half-open that close it.
    pub successes_to_close: Decided<u32>,
    /// Requests let through at one time while half-open.
    pub half_open_requests: Decided<u32>,
}

/// The breaker of each endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveOutlier {
    /// Whether it is on.
    pub enabled: Decided<bool>,
    /// Failures in a row that open it.
    pub consecutive_failures: Decided<u32>,
    /// First time that it stays open.
    pub base_ejection_time: Decided<Duration>,
    /// Longest time that it stays open; never below the first.
    pub max_ejection_time: Decided<Duration>,
    /// Share of the endpoints that may be out, 0 to 100.
    pub max_ejection_percent: Decided<u8>,
}

/// Further tries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveRetry {
    /// Beyond the first try.
    pub attempts: Decided<u32>,
    /// What is tried again.
    pub on: Decided<Vec<RetryOn>>,
    /// Statuses that are tried again as well.
    pub status_codes: Decided<Vec<u16>>,
    /// gRPC codes that are tried again as well.
    pub grpc_codes: Decided<Vec<GrpcCode>>,
    /// First bound of the pause.
    pub backoff_base: Decided<Duration>,
    /// Last bound of the pause; never below the first.
    pub backoff_max: Decided<Duration>,
    /// Every method may be repeated.
    pub idempotent: Decided<bool>,
    /// Bytes of a body that are kept.
    pub body_bytes: Decided<u32>,
    /// Further tries as a share of the requests, 0 to 100.
    pub budget_percent: Decided<u8>,
    /// And this many a second besides.
    pub budget_min_per_second: Decided<u32>,
}

/// Time limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveTimeouts {
    /// The whole request. `None`: off.
    pub request: Decided<Option<Duration>>,
    /// Each try; also what `retry.perTryTimeout` sets. `None`: off.
    pub per_try: Decided<Option<Duration>>,
    /// Until a connection has come about.
    pub connect: Decided<Duration>,
    /// Without a byte either way. `None`: the sidecar's default for the protocol; zero: off.
    pub idle: Decided<Option<Duration>>,
}

/// What is called.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Namespace of the service.
    pub namespace: &'a str,
    /// Name of the service.
    pub service: &'a str,
    /// Port of the service.
    pub port: u16,
    /// Name of that port; may be empty.
    pub port_name: &'a str,
    /// The route that takes the request.
    pub route: Option<CallRoute<'a>>,
}

/// The route that takes a request.
#[derive(Debug, Clone, Copy)]
pub struct CallRoute<'a> {
    /// [`TargetKind::HttpRoute`] or [`TargetKind::GrpcRoute`].
    pub kind: TargetKind,
    /// Namespace of the route.
    pub namespace: &'a str,
    /// Name of the route.
    pub name: &'a str,
    /// Name of the rule, when it has one.
    pub rule: Option<&'a str>,
}

/// How specific a policy is for a call; the greater wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Service,
    Port,
    Route,
    Rule,
}

/// How `call` is made, every value filled in.
///
/// `mesh` and `policies` come with the revision that last changed them; `policies` may be any superset of those that
/// concern the call, in any order. A rule's own `timeouts` and `retry` are added by [`EffectiveTraffic::with_rule`].
pub fn effective_traffic<'a>(
    mesh: Option<(&Mesh, u64)>,
    policies: impl IntoIterator<Item = (&'a TrafficPolicy, u64)>,
    call: &Call<'_>,
) -> EffectiveTraffic {
    let mut traffic = EffectiveTraffic::built_in();
    if let Some((mesh, revision)) = mesh
        && let Some(spec) = &mesh.spec.defaults
    {
        traffic.apply(spec, &format!("Mesh {}@{revision}", mesh.metadata.name).into());
    }
    let mut concerned: Vec<_> = policies
        .into_iter()
        .filter_map(|(policy, revision)| {
            level(policy, call).map(|level| (level, &policy.metadata.name, policy, revision))
        })
        .collect();
    concerned.sort_by_key(|(level, name, _, _)| (*level, *name));
    for (level, _, policy, revision) in concerned {
        let by: Arc<str> = format!("{}/{}@{revision}", policy.metadata.namespace, policy.metadata.name).into();
        match level {
            Level::Service | Level::Port => traffic.apply(&policy.spec, &by),
            Level::Route | Level::Rule => traffic.apply_to_route(&policy.spec, &by),
        }
    }
    traffic.settle();
    traffic
}

/// How specific the policy is for the call. `None`: it does not concern it.
fn level(policy: &TrafficPolicy, call: &Call<'_>) -> Option<Level> {
    let namespace = policy.metadata.namespace.as_str();
    policy.spec.target_refs.iter().filter_map(|target| target_level(target, namespace, call)).max()
}

fn target_level(target: &TargetRef, namespace: &str, call: &Call<'_>) -> Option<Level> {
    match target.kind {
        TargetKind::Service => {
            let named = target.name == call.service && namespace == call.namespace;
            (named && target.covers(call.port, call.port_name)).then_some(if target.whole() {
                Level::Service
            } else {
                Level::Port
            })
        }
        TargetKind::HttpRoute | TargetKind::GrpcRoute => {
            let route = call.route?;
            if target.kind != route.kind || target.name != route.name || namespace != route.namespace {
                return None;
            }
            match target.section_name.as_deref() {
                None => Some(Level::Route),
                Some(section) => (route.rule == Some(section)).then_some(Level::Rule),
            }
        }
    }
}

impl TargetRef {
    /// Whether it means all ports of a Service, or all rules of a route.
    pub fn whole(&self) -> bool {
        self.port.is_none() && self.section_name.is_none()
    }

    /// Whether it means that port of its Service.
    pub fn covers(&self, number: u16, name: &str) -> bool {
        self.port.is_none_or(|port| port == number)
            && self.section_name.as_deref().is_none_or(|section| section == name)
    }
}

impl EffectiveTraffic {
    /// The built-in defaults.
    pub fn built_in() -> Self {
        Self {
            balancer: Decided::default(Balancer::default()),
            connection_pool: EffectivePool {
                max_connections: Decided::default(defaults::MAX_CONNECTIONS),
                max_pending_requests: Decided::default(defaults::MAX_PENDING_REQUESTS),
                max_requests: Decided::default(defaults::MAX_REQUESTS),
                idle_timeout: Decided::default(defaults::POOL_IDLE),
            },
            circuit_breaker: EffectiveBreaker {
                enabled: Decided::default(false),
                consecutive_failures: Decided::default(defaults::BREAKER_FAILURES),
                recovery_time: Decided::default(defaults::BREAKER_RECOVERY),
                successes_to_close: Decided::default(defaults::BREAKER_SUCCESSES),
                half_open_requests: Decided::default(defaults::BREAKER_HALF_OPEN),
            },
            outlier_detection: EffectiveOutlier {
                enabled: Decided::default(true),
                consecutive_failures: Decided::default(defaults::OUTLIER_FAILURES),
                base_ejection_time: Decided::default(defaults::OUTLIER_BASE),
                max_ejection_time: Decided::default(defaults::OUTLIER_MAX),
                max_ejection_percent: Decided::default(defaults::OUTLIER_PERCENT),
            },
            retry: EffectiveRetry {
                attempts: Decided::default(defaults::RETRIES),
                on: Decided::default(defaults::RETRY_ON.to_vec()),
                status_codes: Decided::default(Vec::new()),
                grpc_codes: Decided::default(Vec::new()),
                backoff_base: Decided::default(defaults::BACKOFF_BASE),
                backoff_max: Decided::default(defaults::BACKOFF_MAX),
                idempotent: Decided::default(false),
                body_bytes: Decided::default(defaults::RETRY_BODY),
                budget_percent: Decided::default(defaults::BUDGET_PERCENT),
                budget_min_per_second: Decided::default(defaults::BUDGET_PER_SECOND),
            },
            timeouts: EffectiveTimeouts {
                request: Decided::default(None),
                per_try: Decided::default(None),
                connect: Decided::default(defaults::CONNECT_TIMEOUT),
                idle: Decided::default(None),
            },
        }
    }

    /// With the `timeouts` and `retry` of a rule of an HTTPRoute, which win over every policy.
    ///
    /// `by`: words that name the rule, as `HTTPRoute shop/orders@7`.
    pub fn with_rule(&self, rule: &HttpRouteRule, by: &str) -> Self {
        let by: Arc<str> = by.into();
        let mut traffic = self.clone();
        if let Some(timeouts) = &rule.timeouts {
            traffic.timeouts.request.set(timeouts.request.map(Period::unless_zero), &by);
            traffic.timeouts.per_try.set(timeouts.backend_request.map(Period::unless_zero), &by);
        }
        if let Some(own) = &rule.retry {
            let retry = &mut traffic.retry;
            retry.attempts.set(own.attempts, &by);
            retry.backoff_base.set(own.backoff.map(Period::get), &by);
            if !own.codes.is_empty() {
                let connection = |on: &RetryOn| !matches!(on, RetryOn::GatewayError | RetryOn::ServerError);
                let on = retry.on.iter().copied().filter(connection).collect();
                retry.on.set(Some(on), &by);
                retry.status_codes.set(Some(own.codes.clone()), &by);
            }
        }
        traffic.settle();
        traffic
    }

    /// The resources that decided how endpoints are picked, limited and broken, joined by `, `, the Mesh last. Empty: the
    /// defaults.
    pub fn decided_by(&self) -> String {
        let of_route = |field: &str| field.starts_with("retry.") || field.starts_with("timeouts.");
        let mut all: Vec<&str> =
            self.leaves().into_iter().filter(|leaf| !of_route(leaf.field)).filter_map(|leaf| leaf.by).collect();
        all.sort_by_key(|by| (by.starts_with("Mesh "), *by));
        all.dedup();
        all.join(", ")
    }

    /// Whether a resource says what is tried again.
    pub fn retry_is_explicit(&self) -> bool {
        let retry = &self.retry;
        retry.on.by.is_some() || retry.status_codes.by.is_some() || retry.grpc_codes.by.is_some()
    }

    pub(crate) fn apply(&mut self, spec: &TrafficPolicySpec, by: &Arc<str>) {
        let balancer = spec.load_balancer.as_ref().and_then(super::kinds::LoadBalancer::balancer);
        self.balancer.set(balancer, by);
        if let Some(pool) = &spec.connection_pool {
            self.connection_pool.apply(pool, by);
        }
        if let Some(breaker) = &spec.circuit_breaker {
            self.circuit_breaker.apply(breaker, by);
            self.connection_pool.max_requests.set(breaker.max_requests, by);
        }
        if let Some(outlier) = &spec.outlier_detection {
            self.outlier_detection.apply(outlier, by);
        }
        self.apply_to_route(spec, by);
        self.timeouts.connect.set(spec.timeouts.as_ref().and_then(|timeouts| timeouts.connect).map(Period::get), by);
    }

    /// What a policy may say of a route.
    fn apply_to_route(&mut self, spec: &TrafficPolicySpec, by: &Arc<str>) {
        if let Some(retry) = &spec.retry {
            self.retry.apply(retry, by);
            self.timeouts.per_try.set(retry.per_try_timeout.map(Period::unless_zero), by);
        }
        if let Some(timeouts) = &spec.timeouts {
            self.timeouts.apply(timeouts, by);
        }
    }

    /// A bound that one policy lowered and another did not raise never stands below its beginning.
    fn settle(&mut self) {
        let outlier = &mut self.outlier_detection;
        outlier.max_ejection_time.value = outlier.max_ejection_time.value.max(outlier.base_ejection_time.value);
        let retry = &mut self.retry;
        retry.backoff_max.value = retry.backoff_max.value.max(retry.backoff_base.value);
    }
}

impl EffectivePool {
    fn apply(&mut self, pool: &ConnectionPool, by: &Arc<str>) {
        self.max_connections.set(pool.max_connections, by);
        self.max_pending_requests.set(pool.max_pending_requests, by);
        self.max_requests.set(pool.max_requests, by);
        self.idle_timeout.set(pool.idle_timeout.map(Period::get), by);
    }
}

impl EffectiveBreaker {
    fn apply(&mut self, breaker: &CircuitBreaker, by: &Arc<str>) {
        self.enabled.set(Some(breaker.enabled.unwrap_or(true)), by);
        self.consecutive_failures.set(breaker.consecutive_failures, by);
        self.recovery_time.set(breaker.recovery_time.map(Period::get), by);
        self.successes_to_close.set(breaker.successes_to_close, by);
        self.half_open_requests.set(breaker.half_open_requests, by);
    }
}

impl EffectiveOutlier {
    fn apply(&mut self, outlier: &OutlierDetection, by: &Arc<str>) {
        self.enabled.set(outlier.enabled, by);
        self.consecutive_failures.set(outlier.consecutive_failures, by);
        self.base_ejection_time.set(outlier.base_ejection_time.map(Period::get), by);
        self.max_ejection_time.set(outlier.max_ejection_time.map(Period::get), by);
        self.max_ejection_percent.set(outlier.max_ejection_percent.map(percent), by);
    }
}

impl EffectiveRetry {
    fn apply(&mut self, retry: &Retry, by: &Arc<str>) {
        self.attempts.set(retry.attempts, by);
        self.on.set(retry.on.clone(), by);
        self.status_codes.set(retry.status_codes.clone(), by);
        self.grpc_codes.set(retry.grpc_codes.clone(), by);
        if let Some(backoff) = &retry.backoff {
            self.backoff_base.set(backoff.base.map(Period::get), by);
            self.backoff_max.set(backoff.max.map(Period::get), by);
        }
        self.idempotent.set(retry.idempotent, by);
        self.body_bytes.set(retry.body_bytes, by);
        if let Some(budget) = &retry.budget {
            self.budget_percent.set(budget.percent.map(percent), by);
            self.budget_min_per_second.set(budget.min_per_second, by);
        }
    }
}

impl EffectiveTimeouts {
    fn apply(&mut self, timeouts: &Timeouts, by: &Arc<str>) {
        self.request.set(timeouts.request.map(Period::unless_zero), by);
        self.per_try.set(timeouts.per_try.map(Period::unless_zero), by);
        self.idle.set(timeouts.idle.map(|idle| Some(idle.get())), by);
    }
}

/// Parsing bounds it by 100.
fn percent(value: u32) -> u8 {
    u8::try_from(value.min(100)).unwrap_or(100)
}
