//! Policies and the Mesh: targets, and settings that belong together.

use std::collections::HashSet;

use crate::{
    check::Report,
    kinds::{
        AccessOperation, AccessPolicy, AccessSource, ConsistentHash, LoadBalancer, Mesh, Retry, TargetKind, TargetRef,
        TrafficPolicy, TrafficPolicySpec,
    },
};

/// What is wrong with a TrafficPolicy taken by itself.
pub(super) fn traffic(policy: &TrafficPolicy, report: &mut Report<'_>) {
    let targets = &policy.spec.target_refs;
    if targets.is_empty() {
        report.error("spec", "`targetRefs` is missing", "the Services or routes that the policy is for");
    }
    self::targets(targets, report);
    for (index, target) in targets.iter().enumerate().filter(|(_, target)| target.kind != TargetKind::Service) {
        if target.port.is_some() {
            let hint = "name a rule by `sectionName`";
            report.error(&format!("spec.targetRefs[{index}].port"), format!("an {} has no port", target.kind), hint);
        }
        for field in of_service(&policy.spec) {
            let message = format!("`{field}` cannot be set for an {}", target.kind);
            report.error(&format!("spec.{field}"), message, "write a policy for the Service it leads to");
        }
    }
    settings(&policy.spec, "spec", report);
    if of_service(&policy.spec).is_empty() && policy.spec.retry.is_none() && policy.spec.timeouts.is_none() {
        report.error("spec", "the policy sets nothing", "");
    }
}

/// Fields that only a Service can have.
fn of_service(spec: &TrafficPolicySpec) -> Vec<&'static str> {
    [
        ("loadBalancer", spec.load_balancer.is_some()),
        ("connectionPool", spec.connection_pool.is_some()),
        ("circuitBreaker", spec.circuit_breaker.is_some()),
        ("outlierDetection", spec.outlier_detection.is_some()),
        ("retry.budget", spec.retry.as_ref().is_some_and(|retry| retry.budget.is_some())),
        ("timeouts.connect", spec.timeouts.as_ref().is_some_and(|timeouts| timeouts.connect.is_some())),
    ]
    .into_iter()
    .filter_map(|(name, set)| set.then_some(name))
    .collect()
}

fn targets(targets: &[TargetRef], report: &mut Report<'_>) {
    let mut seen = HashSet::new();
    for (index, target) in targets.iter().enumerate() {
        let at = format!("spec.targetRefs[{index}]");
        let right = target.kind.group();
        if let Some(group) = target.group.as_deref().filter(|group| *group != right && (*group, right) != ("core", ""))
        {
            let message = format!("`{group}` has no {}", target.kind);
            report.error(&format!("{at}.group"), message, format!("write `group: \"{right}\"` or leave it out"));
        }
        if target.port.is_some() && target.section_name.is_some() {
            report.error(&at, "`port` and `sectionName` both name a port", "remove one of them");
        }
        if !seen.insert((target.kind, &target.name, target.port, &target.section_name)) {
            report.error(&at, format!("{} `{}` stands twice", target.kind, target.name), "");
        }
    }
}

fn settings(spec: &TrafficPolicySpec, at: &str, report: &mut Report<'_>) {
    if let Some(balancer) = &spec.load_balancer {
        load_balancer(balancer, &format!("{at}.loadBalancer"), report);
    }
    let pool = spec.connection_pool.as_ref().and_then(|pool| pool.max_requests);
    let breaker = spec.circuit_breaker.as_ref().and_then(|breaker| breaker.max_requests);
    if pool.is_some() && breaker.is_some() {
        let message = "`connectionPool.maxRequests` sets the same limit";
        report.error(&format!("{at}.circuitBreaker.maxRequests"), message, "remove one of them");
    }
    if let Some(outlier) = &spec.outlier_detection
        && let (Some(base), Some(max)) = (outlier.base_ejection_time, outlier.max_ejection_time)
        && max < base
    {
        let message = format!("{max} is shorter than `baseEjectionTime`, {base}");
        report.error(&format!("{at}.outlierDetection.maxEjectionTime"), message, "");
    }
    if let Some(retry) = &spec.retry {
        self::retry(retry, &format!("{at}.retry"), report);
    }
    let Some(timeouts) = &spec.timeouts else { return };
    let retry_per_try = spec.retry.as_ref().and_then(|retry| retry.per_try_timeout);
    if timeouts.per_try.is_some() && retry_per_try.is_some() {
        let message = "`timeouts.perTry` sets the same limit";
        report.error(&format!("{at}.retry.perTryTimeout"), message, "remove one of them");
    }
    let per_try = timeouts.per_try.or(retry_per_try).filter(|period| period.unless_zero().is_some());
    if let (Some(request), Some(per_try)) = (timeouts.request.filter(|period| period.unless_zero().is_some()), per_try)
        && per_try > request
    {
        let field = if timeouts.per_try.is_some() { "timeouts.perTry" } else { "retry.perTryTimeout" };
        let message = format!("{per_try} for each try is longer than {request} for the whole request");
        report.error(&format!("{at}.{field}"), message, "");
    }
}

fn load_balancer(balancer: &LoadBalancer, at: &str, report: &mut Report<'_>) {
    let set = [
        balancer.least_request.is_some(),
        balancer.round_robin.is_some(),
        balancer.weighted_round_robin.is_some(),
        balancer.least_connections.is_some(),
        balancer.source_ip.is_some(),
        balancer.consistent_hash.is_some(),
        balancer.peak_ewma.is_some(),
    ];
    match set.into_iter().filter(|set| *set).count() {
        1 => {}
        0 => report.error(at, "it names no balancer", "such as `leastRequest: {}`"),
        count => report.error(at, format!("it names {count} balancers"), "leave one"),
    }
    if let Some(ConsistentHash { header, source_ip, .. }) = &balancer.consistent_hash {
        let source_ip = source_ip.unwrap_or(false);
        if header.is_some() == source_ip {
            let message = if source_ip { "it hashes two things" } else { "it does not say what to hash" };
            report.error(&format!("{at}.consistentHash"), message, "write `header: NAME` or `sourceIp: true`");
        }
    }
}

fn retry(retry: &Retry, at: &str, report: &mut Report<'_>) {
    if let Some(backoff) = &retry.backoff
        && let (Some(base), Some(max)) = (backoff.base, backoff.max)
        && max < base
    {
        report.error(&format!("{at}.backoff.max"), format!("{max} is shorter than `base`, {base}"), "");
    }
    let twice =
        |list: &[u16]| list.iter().enumerate().find(|(index, code)| list[..*index].contains(code)).map(|(i, _)| i);
    if let Some(codes) = &retry.status_codes
        && let Some(index) = twice(codes)
    {
        report.error(&format!("{at}.statusCodes[{index}]"), format!("{} stands twice", codes[index]), "");
    }
}

/// What is wrong with an AccessPolicy taken by itself.
pub(super) fn access(policy: &AccessPolicy, report: &mut Report<'_>) {
    let spec = &policy.spec;
    for (index, target) in spec.target_refs.iter().enumerate() {
        let at = format!("spec.targetRefs[{index}]");
        if target.kind != TargetKind::Service {
            let message = format!("an AccessPolicy is for Services, not for an {}", target.kind);
            report.error(&format!("{at}.kind"), message, "write a rule with `to.paths`");
        }
        for (field, set) in [("port", target.port.is_some()), ("sectionName", target.section_name.is_some())] {
            if set {
                let message = "an AccessPolicy is for a whole Service";
                report.error(&format!("{at}.{field}"), message, "write a rule with `to.ports`");
            }
        }
    }
    targets(&spec.target_refs, report);
    super::unique_names(spec.rules.iter().map(|rule| rule.name.as_deref().unwrap_or("")), "spec.rules", report);
    for (index, rule) in spec.rules.iter().enumerate() {
        for (place, source) in rule.from.iter().enumerate() {
            let AccessSource { identities, namespaces, not_identities, not_namespaces } = source;
            if [identities, namespaces, not_identities, not_namespaces].iter().all(|list| list.is_empty()) {
                let at = format!("spec.rules[{index}].from[{place}]");
                report.error(&at, "it says nothing about the caller", "to mean anyone, leave `from` out");
            }
        }
        for (place, operation) in rule.to.iter().enumerate() {
            let AccessOperation { methods, paths, ports, headers } = operation;
            if methods.is_empty() && paths.is_empty() && ports.is_empty() && headers.is_empty() {
                let at = format!("spec.rules[{index}].to[{place}]");
                report.error(&at, "it says nothing about the request", "to mean anything, leave `to` out");
            }
        }
    }
}

/// What is wrong with the Mesh taken by itself.
pub(super) fn mesh(mesh: &Mesh, report: &mut Report<'_>) {
    let Some(defaults) = &mesh.spec.defaults else { return };
    if !defaults.target_refs.is_empty() {
        report.error("spec.defaults.targetRefs", "the Mesh's defaults are for every Service", "remove it");
    }
    settings(defaults, "spec.defaults", report);
}
