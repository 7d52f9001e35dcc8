//! Access rules of a service's port, from the AccessPolicies that name it.

use std::collections::BTreeMap;

use regex::Regex;
use weft_model::{
    AccessAction, AccessOperation, AccessPolicy, AccessRule as ModelRule, AccessSource, DefaultAccess, IdentityPattern,
    MatchType, PathPattern, ServicePort, TargetKind,
};
use weft_xds::resource::{
    AccessRule, HeaderKey, HeaderMatch, HeaderTest, Permission, Principal, Protocol, Rbac, RbacAction, StringMatch,
};

use crate::index::{ServiceKey, World};

/// The rules of one port, in the order in which they are asked: what is only audited, DENY, ALLOW.
///
/// Without any ALLOW policy the Mesh decides: `allow` needs no rule, since the handshake has already refused whoever is
/// not of the trust domain; `deny` is an ALLOW filter that nothing passes.
pub fn rules(world: &World, service: &ServiceKey, port: &ServicePort, protocol: Protocol) -> Vec<Rbac> {
    let policies: Vec<&AccessPolicy> = world
        .access_policies
        .range(ServiceKey::new(service.namespace.clone(), String::new())..)
        .take_while(|(key, _)| key.namespace == service.namespace)
        .map(|(_, policy)| &*policy.resource)
        .filter(|policy| concerns(policy, service, port))
        .collect();
    let of = |action: AccessAction| policies.iter().copied().filter(move |policy| policy.spec.action() == action);
    let rbac = |action: AccessAction| Rbac {
        action: if action == AccessAction::Allow { RbacAction::Allow } else { RbacAction::Deny },
        policies: of(action).flat_map(|policy| policy_rules(world, policy, action, protocol)).collect(),
        shadow: action == AccessAction::Audit,
    };
    let mut out = Vec::new();
    for action in [AccessAction::Audit, AccessAction::Deny] {
        let rbac = rbac(action);
        if !rbac.policies.is_empty() {
            out.push(rbac);
        }
    }
    if of(AccessAction::Allow).next().is_some() || world.mesh.resource.default_access() == DefaultAccess::Deny {
        out.push(rbac(AccessAction::Allow));
    }
    out
}

fn concerns(policy: &AccessPolicy, service: &ServiceKey, port: &ServicePort) -> bool {
    policy.spec.target_refs.iter().any(|target| {
        target.kind == TargetKind::Service
            && *target.name == *service.name
            && target.port.is_none_or(|number| number == port.port)
            && target.section_name.as_ref().is_none_or(|name| *name == port.name)
    })
}

/// In order of name, as they are asked.
fn policy_rules(
    world: &World,
    policy: &AccessPolicy,
    action: AccessAction,
    protocol: Protocol,
) -> impl Iterator<Item = AccessRule> + use<> {
    let name = format!("{}/{}", policy.metadata.namespace, policy.metadata.name);
    let mut rules = BTreeMap::new();
    for (index, rule) in policy.spec.rules.iter().enumerate() {
        let Some(permissions) = permissions(rule, protocol) else { continue };
        let label = rule.label(index);
        rules.insert(
            label.clone(),
            AccessRule {
                policy: name.as_str().into(),
                rule: label.into(),
                principals: principals(world, rule, action),
                permissions,
            },
        );
    }
    rules.into_values()
}

fn principals(world: &World, rule: &ModelRule, action: AccessAction) -> Vec<Principal> {
    if rule.from.is_empty() {
        return vec![Principal::Any];
    }
    rule.from.iter().map(|source| principal(world, source, action)).collect()
}

fn principal(world: &World, source: &AccessSource, action: AccessAction) -> Principal {
    let identity = |text: &String| IdentityPattern::parse(text).ok().map(|pattern| identity(world, pattern));
    let namespace = |name: &String| in_namespace(world.trust_domain.as_str(), name);
    let mut all = Vec::new();
    if !source.identities.is_empty() {
        all.push(any_principal(source.identities.iter().filter_map(identity).collect()));
    }
    if !source.namespaces.is_empty() {
        all.push(any_principal(source.namespaces.iter().map(namespace).collect()));
    }
    let positive = !all.is_empty();
    if !source.not_identities.is_empty() {
        let these = any_principal(source.not_identities.iter().filter_map(identity).collect());
        all.push(Principal::Not(Box::new(these)));
    }
    if !source.not_namespaces.is_empty() {
        let these = any_principal(source.not_namespaces.iter().map(namespace).collect());
        all.push(Principal::Not(Box::new(these)));
    }
    // Who proved nothing is "none of these" too: refused by a DENY rule, but not let in by an ALLOW rule.
    if !positive && !all.is_empty() && action == AccessAction::Allow {
        all.insert(0, Principal::Authenticated(None));
    }
    match all.len() {
        0 => Principal::Any,
        1 => all.remove(0),
        _ => Principal::And(all),
    }
}

fn any_principal(mut these: Vec<Principal>) -> Principal {
    if these.len() == 1 { these.remove(0) } else { Principal::Or(these) }
}

fn identity(world: &World, pattern: IdentityPattern) -> Principal {
    let exact = |domain: &str, namespace: &str, account: &str| {
        Principal::Authenticated(Some(exactly(&format!("spiffe://{domain}/ns/{namespace}/sa/{account}"))))
    };
    match pattern {
        IdentityPattern::Any => Principal::Authenticated(None),
        IdentityPattern::Namespace(namespace) => in_namespace(world.trust_domain.as_str(), &namespace),
        IdentityPattern::Account { namespace, account } => exact(world.trust_domain.as_str(), &namespace, &account),
        IdentityPattern::Spiffe { trust_domain, namespace, account } => exact(&trust_domain, &namespace, &account),
    }
}

fn in_namespace(trust_domain: &str, namespace: &str) -> Principal {
    Principal::Authenticated(Some(beginning(&format!("spiffe://{trust_domain}/ns/{namespace}/"))))
}

/// `None`: every operation speaks of HTTP, which this port does not carry, so the rule can never match.
fn permissions(rule: &ModelRule, protocol: Protocol) -> Option<Vec<Permission>> {
    if rule.to.is_empty() {
        return Some(vec![Permission::Any]);
    }
    let bytes = protocol == Protocol::Tcp;
    let speaks_of_http = |operation: &AccessOperation| {
        !operation.methods.is_empty() || !operation.paths.is_empty() || !operation.headers.is_empty()
    };
    let usable = rule.to.iter().filter(|operation| !(bytes && speaks_of_http(operation)));
    let permissions: Vec<Permission> = usable.map(permission).collect();
    (!permissions.is_empty()).then_some(permissions)
}

fn permission(operation: &AccessOperation) -> Permission {
    let mut all = Vec::new();
    if !operation.methods.is_empty() {
        all.push(any_permission(operation.methods.iter().map(|method| method_is(method)).collect()));
    }
    if !operation.paths.is_empty() {
        let paths = operation.paths().map(|path| match path {
            PathPattern::Exact(path) => Permission::Path(exactly(&path)),
            PathPattern::Prefix(path) => Permission::Path(beginning(&path)),
        });
        all.push(any_permission(paths.collect()));
    }
    if !operation.ports.is_empty() {
        all.push(any_permission(operation.ports.iter().map(|port| Permission::Port(*port)).collect()));
    }
    all.extend(
        operation
            .headers
            .iter()
            .map(|header| Permission::Header(header_match(&header.name, header.match_type(), &header.value))),
    );
    match all.len() {
        0 => Permission::Any,
        1 => all.remove(0),
        _ => Permission::And(all),
    }
}

fn any_permission(mut these: Vec<Permission>) -> Permission {
    if these.len() == 1 { these.remove(0) } else { Permission::Or(these) }
}

fn method_is(method: &str) -> Permission {
    let test = HeaderTest::Value(exactly(method));
    Permission::Header(HeaderMatch { name: HeaderKey::Method, test, invert: false })
}

/// A test of a header as routes and access rules write it.
pub(super) fn header_match(name: &str, kind: MatchType, value: &str) -> HeaderMatch {
    let test = HeaderTest::Value(text_match(kind, value));
    match http::HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => HeaderMatch { name: HeaderKey::Name(name), test, invert: false },
        Err(error) => {
            tracing::error!(%error, name, "a stored header name is none; it matches nothing");
            HeaderMatch { name: HeaderKey::Method, test: HeaderTest::Value(exactly("")), invert: false }
        }
    }
}

/// A test of a text.
pub(super) fn text_match(kind: MatchType, value: &str) -> StringMatch {
    match kind {
        MatchType::Exact => exactly(value),
        MatchType::RegularExpression => StringMatch::Regex(pattern(value)),
    }
}

/// An expression. One that does not compile, which the check at apply refuses, matches nothing.
pub(super) fn pattern(expression: &str) -> Regex {
    Regex::new(expression).unwrap_or_else(|error| {
        tracing::error!(%error, expression, "a stored expression does not compile; it matches nothing");
        Regex::new(r"[^\s\S]").expect("a constant pattern")
    })
}

fn exactly(value: &str) -> StringMatch {
    StringMatch::Exact { value: value.into(), ignore_case: false }
}

fn beginning(value: &str) -> StringMatch {
    StringMatch::Prefix { value: value.into(), ignore_case: false }
}
