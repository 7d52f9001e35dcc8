//! What fields of one object demand of each other, in CEL: the rules of `semantics`, as an API server evaluates them.

use serde_json::{Value, json};

use crate::{key::Kind, kinds::MESH_NAME, rules::TextRule};

/// A rule, what is said when it does not hold, and the field to blame. Without one: the object.
pub(super) fn rule(rule: impl Into<String>, message: impl Into<String>, field: &str) -> Value {
    let mut value = json!({ "rule": rule.into(), "message": message.into() });
    if !field.is_empty() {
        value["fieldPath"] = format!(".{field}").into();
    }
    value
}

/// The rules of an object, by the name of its type.
pub(super) fn of(kind: Kind, object: &str) -> Vec<Value> {
    match (object, kind) {
        ("Mesh", _) => vec![rule(format!("self.metadata.name == '{MESH_NAME}'"), "there is one Mesh, `default`", "")],
        ("TrafficPolicySpec", Kind::Mesh) => {
            let mut rules = settings();
            let message = "the Mesh's defaults are for every Service: remove it";
            rules.push(rule("!has(self.targetRefs) || size(self.targetRefs) == 0", message, "targetRefs"));
            rules
        }
        ("TrafficPolicySpec", _) => {
            let mut rules = targets();
            rules.extend(settings());
            rules
        }
        ("AccessPolicySpec", _) => access(),
        ("TargetRef", _) => target(),
        ("LoadBalancer", _) => vec![rule(
            "[has(self.leastRequest), has(self.roundRobin), has(self.weightedRoundRobin), has(self.leastConnections), \
             has(self.sourceIp), has(self.consistentHash)].filter(set, set).size() == 1",
            "name exactly one balancer, such as `leastRequest: {}`",
            "",
        )],
        ("ConsistentHash", _) => vec![rule(
            "has(self.header) != (has(self.sourceIp) && self.sourceIp)",
            "write either `header: NAME` or `sourceIp: true`",
            "",
        )],
        ("OutlierDetection", _) => vec![ordered("baseEjectionTime", "maxEjectionTime")],
        ("Backoff", _) => vec![ordered("base", "max")],
        ("Retry", _) => vec![rule(
            "!has(self.statusCodes) || self.statusCodes.all(a, self.statusCodes.exists_one(b, a == b))",
            "a status stands twice",
            "statusCodes",
        )],
        ("AccessSource", _) => vec![rule(
            any_of(&["identities", "namespaces"]),
            "it says nothing about the caller; to mean anyone, leave `from` out",
            "",
        )],
        ("AccessOperation", _) => vec![rule(
            any_of(&["methods", "paths", "ports"]),
            "it says nothing about the request; to mean anything, leave `to` out",
            "",
        )],
        _ => Vec::new(),
    }
}

/// What a text must obey beyond its pattern.
pub(super) fn of_text(text: TextRule) -> Vec<Value> {
    if text != TextRule::HeaderName {
        return Vec::new();
    }
    let names: Vec<_> = crate::rules::HOP_BY_HOP.iter().map(|name| format!("'{name}'")).collect();
    let message = "it belongs to the connection, not to the request";
    vec![rule(format!("!(self.lowerAscii() in [{}])", names.join(", ")), message, "")]
}

/// What a TrafficPolicy's targets allow.
fn targets() -> Vec<Value> {
    let mut rules = vec![
        rule(
            "has(self.targetRefs) && size(self.targetRefs) > 0",
            "`targetRefs` is missing: the Services or routes that the policy is for",
            "",
        ),
        distinct_targets(),
        rule(
            "has(self.loadBalancer) || has(self.connectionPool) || has(self.circuitBreaker) || \
             has(self.outlierDetection) || has(self.retry) || has(self.timeouts)",
            "the policy sets nothing",
            "",
        ),
    ];
    for (field, set) in [
        ("loadBalancer", "has(self.loadBalancer)"),
        ("connectionPool", "has(self.connectionPool)"),
        ("circuitBreaker", "has(self.circuitBreaker)"),
        ("outlierDetection", "has(self.outlierDetection)"),
        ("retry.budget", "has(self.retry) && has(self.retry.budget)"),
        ("timeouts.connect", "has(self.timeouts) && has(self.timeouts.connect)"),
    ] {
        rules.push(rule(
            format!("!({set}) || !has(self.targetRefs) || self.targetRefs.all(t, t.kind == 'Service')"),
            "it cannot be set for a route: write a policy for the Service it leads to",
            field,
        ));
    }
    rules
}

/// Settings that a TrafficPolicy and the Mesh's defaults share.
fn settings() -> Vec<Value> {
    let per_try = period("self.timeouts.perTry");
    let request = period("self.timeouts.request");
    let retry = period("self.retry.perTryTimeout");
    let zero = "duration('0s')";
    vec![
        rule(
            "!has(self.connectionPool) || !has(self.connectionPool.maxRequests) || !has(self.circuitBreaker) || \
             !has(self.circuitBreaker.maxRequests)",
            "`connectionPool.maxRequests` sets the same limit: remove one of them",
            "circuitBreaker.maxRequests",
        ),
        rule(
            "!has(self.timeouts) || !has(self.timeouts.perTry) || !has(self.retry) || !has(self.retry.perTryTimeout)",
            "`timeouts.perTry` sets the same limit: remove one of them",
            "retry.perTryTimeout",
        ),
        rule(
            format!(
                "!has(self.timeouts) || !has(self.timeouts.request) || !has(self.timeouts.perTry) || {request} == {zero} \
                 || {per_try} <= {request}"
            ),
            "each try may take longer than the whole request",
            "timeouts.perTry",
        ),
        rule(
            format!(
                "!has(self.timeouts) || !has(self.timeouts.request) || !has(self.retry) || \
                 !has(self.retry.perTryTimeout) || {request} == {zero} || {retry} <= {request}"
            ),
            "each try may take longer than the whole request",
            "retry.perTryTimeout",
        ),
    ]
}

fn access() -> Vec<Value> {
    vec![
        rule(
            "self.targetRefs.all(t, t.kind == 'Service')",
            "an AccessPolicy is for Services; for a route write a rule with `to.paths`",
            "targetRefs",
        ),
        rule(
            "self.targetRefs.all(t, !has(t.port) && !has(t.sectionName))",
            "an AccessPolicy is for a whole Service; write a rule with `to.ports`",
            "targetRefs",
        ),
        distinct_targets(),
        rule(
            "!has(self.rules) || self.rules.all(a, !has(a.name) || self.rules.exists_one(b, has(b.name) && b.name == \
             a.name))",
            "two rules have the same name",
            "rules",
        ),
    ]
}

fn target() -> Vec<Value> {
    vec![
        rule(
            "!has(self.group) || (self.kind == 'Service' ? self.group in ['', 'core'] : self.group == \
             'gateway.networking.k8s.io')",
            "not the group of that kind: leave it out",
            "group",
        ),
        rule(
            "!has(self.port) || !has(self.sectionName)",
            "`port` and `sectionName` both name a port: remove one of them",
            "sectionName",
        ),
        rule("!has(self.port) || self.kind == 'Service'", "a route has no port: name a rule by `sectionName`", "port"),
    ]
}

fn distinct_targets() -> Value {
    rule(
        "!has(self.targetRefs) || self.targetRefs.all(a, self.targetRefs.exists_one(b, a.kind == b.kind && a.name == \
         b.name && (has(a.port) ? a.port : 0) == (has(b.port) ? b.port : 0) && (has(a.sectionName) ? a.sectionName : \
         '') == (has(b.sectionName) ? b.sectionName : '')))",
        "a target stands twice",
        "targetRefs",
    )
}

/// At least one of the lists holds something.
fn any_of(lists: &[&str]) -> String {
    let each: Vec<_> = lists.iter().map(|list| format!("has(self.{list}) && size(self.{list}) > 0")).collect();
    each.iter().map(|one| format!("({one})")).collect::<Vec<_>>().join(" || ")
}

fn ordered(short: &str, long: &str) -> Value {
    let (from, to) = (period(&format!("self.{short}")), period(&format!("self.{long}")));
    let rule = format!("!has(self.{short}) || !has(self.{long}) || {from} <= {to}");
    self::rule(rule, format!("shorter than `{short}`"), long)
}

/// A duration of at most a day; Go, and so CEL, knows no `d`.
fn period(field: &str) -> String {
    format!("duration({field} == '1d' ? '24h' : {field})")
}
