//! Which of several matches takes a request: the Gateway API's order, made total by names, so that the order in which
//! routes were applied makes no difference.

use std::cmp::Ordering;

use crate::kinds::{GrpcRoute, GrpcRouteMatch, HttpRoute, HttpRouteMatch, MatchType, PathMatchType};

/// One match of an HTTPRoute with its place.
#[derive(Debug, Clone, Copy)]
pub struct HttpCandidate<'a> {
    /// Route.
    pub route: &'a HttpRoute,
    /// Index of the rule.
    pub rule: usize,
    /// The match. `None`: the rule has none and takes every request.
    pub test: Option<&'a HttpRouteMatch>,
}

/// One match of a GRPCRoute with its place.
#[derive(Debug, Clone, Copy)]
pub struct GrpcCandidate<'a> {
    /// Route.
    pub route: &'a GrpcRoute,
    /// Index of the rule.
    pub rule: usize,
    /// The match. `None`: the rule has none and takes every call.
    pub test: Option<&'a GrpcRouteMatch>,
}

/// Every match of the routes, the one that wins first: an exact path, then an expression, then the longest prefix; then a
/// method, then more headers, then more query parameters; then by namespace and name of the route, and by place in it.
///
/// The Gateway API leaves the place of expressions open. Before prefixes they can be used beside a rule for `/`.
pub fn http_precedence<'a>(routes: impl IntoIterator<Item = &'a HttpRoute>) -> Vec<HttpCandidate<'a>> {
    let mut candidates = Vec::new();
    for route in routes {
        for (rule, body) in route.spec.rules.iter().enumerate() {
            if body.matches.is_empty() {
                candidates.push(HttpCandidate { route, rule, test: None });
            }
            candidates.extend(body.matches.iter().map(|test| HttpCandidate { route, rule, test: Some(test) }));
        }
    }
    candidates.sort_by(|a, b| {
        let owner = |c: &HttpCandidate<'a>| (&c.route.metadata.namespace, &c.route.metadata.name, c.rule);
        http_order(a.test, b.test).then_with(|| owner(a).cmp(&owner(b)))
    });
    candidates
}

/// Every match of the routes, the one that wins first: service and method, then a service alone, the longer name first,
/// then more headers; then by namespace and name of the route, and by place in it.
pub fn grpc_precedence<'a>(routes: impl IntoIterator<Item = &'a GrpcRoute>) -> Vec<GrpcCandidate<'a>> {
    let mut candidates = Vec::new();
    for route in routes {
        for (rule, body) in route.spec.rules.iter().enumerate() {
            if body.matches.is_empty() {
                candidates.push(GrpcCandidate { route, rule, test: None });
            }
            candidates.extend(body.matches.iter().map(|test| GrpcCandidate { route, rule, test: Some(test) }));
        }
    }
    candidates.sort_by(|a, b| {
        let owner = |c: &GrpcCandidate<'a>| (&c.route.metadata.namespace, &c.route.metadata.name, c.rule);
        grpc_order(a.test, b.test).then_with(|| owner(a).cmp(&owner(b)))
    });
    candidates
}

/// How much a match asks for; the greater wins.
type Weight = (u8, usize, bool, usize, usize);

fn http_order(a: Option<&HttpRouteMatch>, b: Option<&HttpRouteMatch>) -> Ordering {
    http_weight(b).cmp(&http_weight(a))
}

fn http_weight(test: Option<&HttpRouteMatch>) -> Weight {
    let Some(test) = test else { return (1, 1, false, 0, 0) };
    let (kind, value) = test.path.as_ref().map_or((PathMatchType::PathPrefix, "/"), |path| path.test());
    let (rank, length) = match kind {
        PathMatchType::Exact => (3, value.len()),
        PathMatchType::RegularExpression => (2, value.len()),
        // A trailing slash says nothing more.
        PathMatchType::PathPrefix => (1, value.trim_end_matches('/').len().max(1)),
    };
    (rank, length, test.method.is_some(), test.headers.len(), test.query_params.len())
}

fn grpc_order(a: Option<&GrpcRouteMatch>, b: Option<&GrpcRouteMatch>) -> Ordering {
    grpc_weight(b).cmp(&grpc_weight(a))
}

fn grpc_weight(test: Option<&GrpcRouteMatch>) -> (usize, usize, usize) {
    let Some(test) = test else { return (0, 0, 0) };
    let method = test.method.as_ref();
    let len = |text: Option<&String>| text.map_or(0, String::len);
    (
        len(method.and_then(|method| method.service.as_ref())),
        len(method.and_then(|method| method.method.as_ref())),
        test.headers.len(),
    )
}

/// What a match says, in one form for all ways to write it: two matches with the same form take the same requests.
pub(crate) fn http_form(test: Option<&HttpRouteMatch>) -> String {
    let Some(test) = test else { return http_form(Some(&HttpRouteMatch::default())) };
    let (kind, value) = test.path.as_ref().map_or((PathMatchType::PathPrefix, "/"), |path| path.test());
    let value = match kind {
        PathMatchType::PathPrefix if value.len() > 1 => value.trim_end_matches('/'),
        PathMatchType::PathPrefix | PathMatchType::Exact | PathMatchType::RegularExpression => value,
    };
    let mut headers: Vec<_> = test.headers.iter().map(header_form).collect();
    headers.sort();
    let mut query: Vec<_> = test
        .query_params
        .iter()
        .map(|query| format!("query parameter `{}` {} `{}`", query.name, verb(query.match_type()), query.value))
        .collect();
    query.sort();
    let mut parts = vec![format!("{kind} `{value}`")];
    parts.extend(test.method.as_ref().map(|method| format!("method {method}")));
    parts.extend(headers);
    parts.extend(query);
    parts.join(", ")
}

/// As [`http_form`], for gRPC.
pub(crate) fn grpc_form(test: Option<&GrpcRouteMatch>) -> String {
    let Some(test) = test else { return "every call".to_owned() };
    let mut parts = Vec::new();
    if let Some(method) = &test.method {
        let service = method.service.as_deref().unwrap_or("*");
        parts.push(format!("method `{service}/{}`", method.method.as_deref().unwrap_or("*")));
    }
    let mut headers: Vec<_> = test.headers.iter().map(header_form).collect();
    headers.sort();
    parts.extend(headers);
    if parts.is_empty() { "every call".to_owned() } else { parts.join(", ") }
}

fn header_form(header: &crate::kinds::HeaderMatch) -> String {
    let name = header.name.to_ascii_lowercase();
    format!("header `{name}` {} `{}`", verb(header.match_type()), header.value)
}

fn verb(kind: MatchType) -> &'static str {
    match kind {
        MatchType::Exact => "is",
        MatchType::RegularExpression => "matches",
    }
}
