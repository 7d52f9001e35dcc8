//! `gateway.networking.k8s.io/v1 HTTPRoute`: where HTTP requests to a service go.

use super::{
    Metadata,
    route::{BackendRef, HeaderMatch, MatchType, ParentRef, RouteFilter, SessionPersistence, attached},
};
use crate::{
    Period,
    rules::TextRule,
    shape::{choices, object},
};

object! {
    /// Where HTTP requests to a service go. Of several rules that match a request, the most specific one takes it: see
    /// the order of precedence.
    pub struct HttpRoute {
        /// Name, namespace, labels and annotations.
        metadata: Metadata = required(),
        /// Services, and rules for their requests.
        spec: HttpRouteSpec = required()
    }
}

object! {
    /// Services, and rules for their requests.
    pub struct HttpRouteSpec {
        /// Services whose traffic the route takes.
        parent_refs: Vec<ParentRef> = required().items(1, 32),
        /// Host names besides the services' own.
        hostnames: Vec<String> = default("the services' own names").items(0, 16).text(TextRule::HostPattern),
        /// Rules. A request that none takes is answered with 404.
        rules: Vec<HttpRouteRule> = required().items(1, 64)
    }
}

object! {
    /// Which requests, and what becomes of them.
    pub struct HttpRouteRule {
        /// Name, in metrics and as `sectionName` of a policy.
        name: Option<String> = default("its index").text(TextRule::SectionName),
        /// Any of these must match.
        matches: Vec<HttpRouteMatch> = default("every request").items(0, 64),
        /// Done in order.
        filters: Vec<RouteFilter> = default("none").items(0, 16),
        /// Services that share the requests.
        backend_refs: Vec<BackendRef> = default("none: a redirect answers").items(0, 16),
        /// Time limits.
        timeouts: Option<HttpRouteTimeouts> = default("those of the TrafficPolicy"),
        /// Retries.
        retry: Option<HttpRouteRetry> = default("those of the TrafficPolicy"),
        /// Sessions.
        session_persistence: Option<SessionPersistence> = plain()
    }
}

object! {
    /// A test of a request: all of it must hold.
    pub struct HttpRouteMatch {
        /// Path.
        path: Option<PathMatch> = default("every path"),
        /// Headers; each must match.
        headers: Vec<HeaderMatch> = default("none").items(0, 16),
        /// Query parameters; each must match.
        query_params: Vec<QueryParamMatch> = default("none").items(0, 16),
        /// Method.
        method: Option<String> = default("every method").text(TextRule::Method)
    }
}

object! {
    /// A test of the path, normalised and without query.
    pub struct PathMatch {
        /// How.
        kind as "type": Option<PathMatchType> = default("PathPrefix"),
        /// Path, or expression.
        value: Option<String> = default("/")
    }
}

choices! {
    /// How a path is tested.
    pub enum PathMatchType {
        PathPrefix = "PathPrefix": "Equal, or begins with it and a `/`.",
        Exact = "Exact": "Equal.",
        RegularExpression = "RegularExpression": "An expression (RE2 syntax) that must match the whole path.",
    }
}

object! {
    /// A test of one query parameter.
    pub struct QueryParamMatch {
        /// How.
        kind as "type": Option<MatchType> = default("Exact"),
        /// Name, compared after percent-decoding.
        name: String = required(),
        /// What it must hold; with `RegularExpression`, an expression that must match the whole value.
        value: String = required()
    }
}

object! {
    /// Time limits of a rule. `0s` switches one off.
    pub struct HttpRouteTimeouts {
        /// The whole request, retries included.
        request: Option<Period> = default("that of the TrafficPolicy, off unless told")
            .why("a mesh must not break long polls, event streams and big uploads"),
        /// Each try.
        backend_request: Option<Period> = default("that of the TrafficPolicy, off unless told")
    }
}

object! {
    /// Retries of a rule.
    pub struct HttpRouteRetry {
        /// Statuses that are tried again, for idempotent methods; they take the place of those of the TrafficPolicy.
        codes: Vec<u16> = default("those of the TrafficPolicy").items(0, 32).range(400, 599),
        /// Further tries beyond the first. 0: none.
        attempts: Option<u32> = default("that of the TrafficPolicy, 2 unless told").range(0, 10),
        /// First pause before a further try; it doubles, with jitter.
        backoff: Option<Period> = default("that of the TrafficPolicy, 25ms unless told")
            .within(std::time::Duration::from_millis(1), std::time::Duration::from_secs(60))
    }
}

impl HttpRoute {
    /// Whether it takes the traffic of that port of `service`.
    pub fn attached(&self, service: &crate::ServiceKey, number: u16, name: &str) -> bool {
        attached(&self.metadata, &self.spec.parent_refs, service, number, name)
    }
}

impl HttpRouteRule {
    /// Its name, or its index.
    pub fn label(&self, index: usize) -> String {
        self.name.clone().unwrap_or_else(|| index.to_string())
    }
}

impl PathMatch {
    /// How it tests, and what.
    pub fn test(&self) -> (PathMatchType, &str) {
        (self.kind.unwrap_or_default(), self.value.as_deref().unwrap_or("/"))
    }
}

impl QueryParamMatch {
    /// How it tests.
    pub fn match_type(&self) -> MatchType {
        self.kind.unwrap_or_default()
    }
}
