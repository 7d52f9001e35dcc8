//! Policies and slices: targets that exist, and no two policies for the same field of the same target.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::Check;
use crate::{
    check::nearest,
    effective::EffectiveTraffic,
    key::{Kind, ResourceKey, ServiceKey},
    kinds::{AccessAction, AccessPolicy, EndpointSlice, Protocol, TargetKind, TargetRef, TrafficPolicy},
    resource::Resource,
};

/// The service of an EndpointSlice.
pub(super) fn endpoint_slice(check: &mut Check<'_>, key: &ResourceKey, slice: &EndpointSlice) {
    let Some(name) = slice.service() else { return };
    let service = ServiceKey::new(&key.namespace, name);
    let label = format!("metadata.labels[\"{}\"]", crate::kinds::SERVICE_NAME);
    let Some(ports) = check.services.get(&service) else {
        let message = format!("there is no Service {service}: the addresses are not used");
        check.warning(key, &label, message, "declare it".to_owned());
        return;
    };
    let single = ports.ports.len() == 1;
    let unmatched: Vec<usize> = slice
        .ports
        .iter()
        .enumerate()
        .filter(|(_, port)| {
            let named = ports.ports.iter().any(|(_, name, _)| *name == port.name);
            !(named || port.name.is_empty() && single)
        })
        .map(|(index, _)| index)
        .collect();
    let hint = ports.list();
    for index in unmatched {
        let message = format!("Service {service} has no port named `{}`", slice.ports[index].name);
        check.warning(key, &format!("ports[{index}]"), message, hint.clone());
    }
}

/// What a TrafficPolicy is for.
pub(super) fn traffic_targets(check: &mut Check<'_>, key: &ResourceKey, policy: &TrafficPolicy) {
    for (index, target) in policy.spec.target_refs.iter().enumerate() {
        let field = format!("spec.targetRefs[{index}]");
        match target.kind {
            TargetKind::Service => {
                let service = ServiceKey::new(&key.namespace, &target.name);
                check.service(key, &field, &service, target.port, target.section_name.as_deref());
            }
            TargetKind::HttpRoute => route_target(check, key, &field, target, Kind::HttpRoute),
            TargetKind::GrpcRoute => route_target(check, key, &field, target, Kind::GrpcRoute),
        }
    }
}

fn route_target(check: &mut Check<'_>, key: &ResourceKey, field: &str, target: &TargetRef, kind: Kind) {
    let rules: Vec<String> = match check.member(kind, &key.namespace, &target.name).map(|member| &member.resource) {
        Some(Resource::HttpRoute(route)) => route.spec.rules.iter().filter_map(|rule| rule.name.clone()).collect(),
        Some(Resource::GrpcRoute(route)) => route.spec.rules.iter().filter_map(|rule| rule.name.clone()).collect(),
        _ => {
            let siblings = check.set.iter().map(|(key, _)| key);
            let siblings = siblings.filter(|other| other.kind == kind && other.namespace == key.namespace);
            let hint = nearest(&target.name, siblings.map(|other| other.name.as_str()))
                .map_or_else(String::new, |name| format!("did you mean `{name}`?"));
            let message = format!("there is no {kind} {}/{}", key.namespace, target.name);
            check.error(key, &format!("{field}.name"), message, hint);
            return;
        }
    };
    if let Some(section) = target.section_name.as_ref().filter(|section| !rules.contains(section)) {
        let hint = match nearest(section, rules.iter().map(String::as_str)) {
            Some(name) => format!("did you mean `{name}`?"),
            None if rules.is_empty() => "its rules have no names".to_owned(),
            None => format!("its rules are {}", rules.join(", ")),
        };
        let message = format!("{kind} {}/{} has no rule named `{section}`", key.namespace, target.name);
        check.error(key, &format!("{field}.sectionName"), message, hint);
    }
}

/// What an AccessPolicy is for, and whether its rules can match.
pub(super) fn access(check: &mut Check<'_>, key: &ResourceKey, policy: &AccessPolicy) {
    let spec = &policy.spec;
    let mut targets = BTreeSet::new();
    for (index, target) in spec.target_refs.iter().enumerate() {
        let service = ServiceKey::new(&key.namespace, &target.name);
        check.service(key, &format!("spec.targetRefs[{index}]"), &service, None, None);
        targets.insert(service);
    }
    match (spec.rules.is_empty(), spec.action()) {
        (true, AccessAction::Allow) => {
            let message = "an ALLOW policy without rules allows nothing: every call is refused".to_owned();
            check.warning(key, "spec", message, "add `rules`, unless that is meant".to_owned());
        }
        (true, AccessAction::Deny) => {
            let message = "a DENY policy without rules denies nothing".to_owned();
            let hint = "write `rules: [{}]` to deny everything".to_owned();
            check.error(key, "spec", message, hint);
        }
        (true, AccessAction::Audit) | (false, _) => {}
    }
    let known: Vec<(u16, Protocol)> = targets
        .iter()
        .filter_map(|target| check.services.get(target))
        .flat_map(|ports| ports.ports.iter().map(|(number, _, protocol)| (*number, *protocol)))
        .collect();
    if known.is_empty() {
        return;
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        for (place, operation) in rule.to.iter().enumerate() {
            let at = format!("spec.rules[{index}].to[{place}]");
            for (slot, port) in operation.ports.iter().enumerate() {
                if !known.iter().any(|(number, _)| number == port) {
                    let message = format!("no target has a port {port}: the rule never matches there");
                    check.error(key, &format!("{at}.ports[{slot}]"), message, "name ports of the Service".to_owned());
                }
            }
            let http = !operation.methods.is_empty() || !operation.paths.is_empty();
            let mut ports =
                known.iter().filter(|(number, _)| operation.ports.is_empty() || operation.ports.contains(number));
            if http && ports.all(|(_, protocol)| *protocol == Protocol::Tcp) {
                let message = "the targets carry bytes there, which have neither method nor path".to_owned();
                check.warning(key, &at, message, "give the port another `appProtocol`".to_owned());
            }
        }
    }
}

/// What a policy is for, in one form for all ways to write it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Service(ServiceKey, Option<u16>),
    Route(Kind, String, String, Option<String>),
}

/// Two policies that set the same field of the same target: nobody could say which of them is meant.
pub(super) fn overlaps(check: &mut Check<'_>) {
    let mut first: BTreeMap<(Target, &'static str), ResourceKey> = BTreeMap::new();
    let mut found: BTreeMap<(ResourceKey, ResourceKey), BTreeSet<&'static str>> = BTreeMap::new();
    for (key, member) in check.set.iter() {
        let Resource::TrafficPolicy(policy) = &member.resource else { continue };
        let fields = fields(policy);
        for target in policy.spec.target_refs.iter().filter_map(|target| resolve(check, &key.namespace, target)) {
            for field in &fields {
                match first.get(&(target.clone(), *field)) {
                    Some(earlier) if earlier != key => {
                        found.entry((earlier.clone(), key.clone())).or_default().insert(field);
                    }
                    Some(_) => {}
                    None => {
                        first.insert((target.clone(), field), key.clone());
                    }
                }
            }
        }
    }
    for ((earlier, key), fields) in found {
        let other = check.name(&earlier);
        for field in fields {
            let message = format!("{other} sets `{field}` for the same target");
            let hint = "set it in one of the two, or name a port or rule by `sectionName`".to_owned();
            check.error(&key, &format!("spec.{field}"), message, hint);
        }
    }
}

/// The fields that a policy sets, by what they decide: two spellings of one limit are one field.
fn fields(policy: &TrafficPolicy) -> Vec<&'static str> {
    let mut traffic = EffectiveTraffic::built_in();
    traffic.apply(&policy.spec, &Arc::from("policy"));
    traffic.leaves().into_iter().filter(|leaf| leaf.by.is_some()).map(|leaf| leaf.field).collect()
}

fn resolve(check: &Check<'_>, namespace: &str, target: &TargetRef) -> Option<Target> {
    let kind = match target.kind {
        TargetKind::Service => {
            let service = ServiceKey::new(namespace, &target.name);
            let port = match (target.port, target.section_name.as_deref()) {
                (Some(port), _) => Some(port),
                (None, Some(name)) => {
                    let ports = &check.services.get(&service)?.ports;
                    Some(ports.iter().find(|(_, known, _)| *known == name)?.0)
                }
                (None, None) => None,
            };
            return Some(Target::Service(service, port));
        }
        TargetKind::HttpRoute => Kind::HttpRoute,
        TargetKind::GrpcRoute => Kind::GrpcRoute,
    };
    Some(Target::Route(kind, namespace.to_owned(), target.name.clone(), target.section_name.clone()))
}
