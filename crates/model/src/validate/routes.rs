//! Routes: references that lead somewhere, and no two routes for the same requests.

use std::collections::{BTreeMap, BTreeSet};

use super::Check;
use crate::{
    key::{ResourceKey, ServiceKey},
    kinds::{BackendRef, GrpcRoute, HttpRoute, ParentRef, Protocol},
    precedence::{grpc_form, http_form},
    resource::Resource,
};

/// Services that an HTTPRoute names.
pub(super) fn http_references(check: &mut Check<'_>, key: &ResourceKey, route: &HttpRoute) {
    parents(check, key, &route.spec.parent_refs);
    for (index, rule) in route.spec.rules.iter().enumerate() {
        backends(check, key, &format!("spec.rules[{index}].backendRefs"), &rule.backend_refs);
    }
}

/// Services that a GRPCRoute names.
pub(super) fn grpc_references(check: &mut Check<'_>, key: &ResourceKey, route: &GrpcRoute) {
    parents(check, key, &route.spec.parent_refs);
    for (index, rule) in route.spec.rules.iter().enumerate() {
        backends(check, key, &format!("spec.rules[{index}].backendRefs"), &rule.backend_refs);
    }
}

fn parents(check: &mut Check<'_>, key: &ResourceKey, parents: &[ParentRef]) {
    for (index, parent) in parents.iter().enumerate() {
        let field = format!("spec.parentRefs[{index}]");
        let service = parent.service(&key.namespace);
        check.service(key, &field, &service, parent.port, parent.section_name.as_deref());
        let Some(ports) = check.services.get(&service) else { continue };
        let mut covered = ports.ports.iter().filter(|(number, name, _)| parent.covers(*number, name)).peekable();
        if covered.peek().is_some() && covered.all(|(_, _, protocol)| *protocol == Protocol::Tcp) {
            let message = format!("Service {service} carries bytes there: the route has no effect");
            check.warning(key, &field, message, "give the port another `appProtocol`, or name another port".to_owned());
        }
    }
}

fn backends(check: &mut Check<'_>, key: &ResourceKey, field: &str, backends: &[BackendRef]) {
    for (index, backend) in backends.iter().enumerate() {
        let service = backend.service(&key.namespace);
        check.service(key, &format!("{field}[{index}]"), &service, Some(backend.port), None);
    }
}

/// A match of a route: which route, and where in it.
#[derive(Clone)]
struct Place {
    route: ResourceKey,
    field: String,
}

/// Two routes that ask for exactly the same requests of a port: nobody could say which of them is meant.
pub(super) fn conflicts(check: &mut Check<'_>) {
    let mut first: BTreeMap<(ServiceKey, u16, String), Place> = BTreeMap::new();
    let mut told = BTreeSet::new();
    for (key, member) in check.set.iter() {
        let (parents, forms) = match &member.resource {
            Resource::HttpRoute(route) => (&route.spec.parent_refs, http_forms(route)),
            Resource::GrpcRoute(route) => (&route.spec.parent_refs, grpc_forms(route)),
            _ => continue,
        };
        let mut found = Vec::new();
        for (service, port) in covered(check, key, parents) {
            for (form, field) in &forms {
                let slot = (service.clone(), port, form.clone());
                match first.get(&slot) {
                    None => {
                        first.insert(slot, Place { route: key.clone(), field: field.clone() });
                    }
                    Some(earlier) if told.insert((earlier.route.clone(), key.clone(), field.clone())) => {
                        found.push((earlier.clone(), service.clone(), form.clone(), field.clone()));
                    }
                    Some(_) => {}
                }
            }
        }
        for (earlier, service, form, field) in found {
            let form = form.split_once(": ").map_or(form.as_str(), |(_, form)| form);
            if earlier.route == *key {
                let message = format!("never used: {} takes the same requests ({form})", earlier.field);
                check.warning(key, &field, message, "remove it, or ask for more".to_owned());
            } else {
                let other = check.name(&earlier.route);
                let message = format!("{other} takes the same requests of Service {service}: {form}");
                check.error(key, &field, message, "change one of the two, or join them into one route".to_owned());
            }
        }
    }
}

/// The ports that the parents take, of services that exist.
fn covered(check: &Check<'_>, key: &ResourceKey, parents: &[ParentRef]) -> BTreeSet<(ServiceKey, u16)> {
    let mut covered = BTreeSet::new();
    for parent in parents {
        let service = parent.service(&key.namespace);
        let ports = check.services.get(&service).map_or(&[][..], |ports| &ports.ports);
        let ports = ports.iter().filter(|(number, name, _)| parent.covers(*number, name));
        covered.extend(ports.map(|(number, _, _)| (service.clone(), *number)));
    }
    covered
}

fn http_forms(route: &HttpRoute) -> Vec<(String, String)> {
    let mut forms = Vec::new();
    for (index, rule) in route.spec.rules.iter().enumerate() {
        if rule.matches.is_empty() {
            forms.push((format!("http: {}", http_form(None)), format!("spec.rules[{index}]")));
        }
        for (place, test) in rule.matches.iter().enumerate() {
            forms.push((format!("http: {}", http_form(Some(test))), format!("spec.rules[{index}].matches[{place}]")));
        }
    }
    forms
}

fn grpc_forms(route: &GrpcRoute) -> Vec<(String, String)> {
    let mut forms = Vec::new();
    for (index, rule) in route.spec.rules.iter().enumerate() {
        if rule.matches.is_empty() {
            forms.push((format!("grpc: {}", grpc_form(None)), format!("spec.rules[{index}]")));
        }
        for (place, test) in rule.matches.iter().enumerate() {
            forms.push((format!("grpc: {}", grpc_form(Some(test))), format!("spec.rules[{index}].matches[{place}]")));
        }
    }
    forms
}
