//! What a resource must obey beyond the shape of its fields: fields that belong together, and expressions that compile.

mod policy;
mod route;

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use crate::{
    check::{Report, nearest},
    kinds::{AddressType, EndpointSlice, Metadata, SERVICE_ACCOUNTS, SERVICE_NAME, Service},
    resource::Resource,
    rules::TextRule,
};

/// Reports what is wrong with a resource taken by itself.
pub(crate) fn check(resource: &Resource, report: &mut Report<'_>) {
    annotations(resource, report);
    match resource {
        Resource::Service(service) => self::service(service, report),
        Resource::EndpointSlice(slice) => endpoint_slice(slice, report),
        Resource::HttpRoute(route) => self::route::http(route, report),
        Resource::GrpcRoute(route) => self::route::grpc(route, report),
        Resource::TrafficPolicy(policy) => self::policy::traffic(policy, report),
        Resource::AccessPolicy(policy) => self::policy::access(policy, report),
        Resource::Mesh(mesh) => self::policy::mesh(mesh, report),
    }
}

/// Annotations that begin with `weft.mesh/` change what the mesh does, so a misspelt one is an error.
fn annotations(resource: &Resource, report: &mut Report<'_>) {
    let known: &[&str] = match resource {
        Resource::Service(_) => &[SERVICE_ACCOUNTS],
        _ => &[],
    };
    let Metadata { annotations, .. } = resource.metadata();
    for key in annotations.keys().filter(|key| key.starts_with("weft.mesh/") && !known.contains(&key.as_str())) {
        let hint = match nearest(key, known.iter().copied()) {
            Some(name) => format!("did you mean `{name}`?"),
            None if known.is_empty() => format!("a {} has none", resource.kind()),
            None => format!("known: {}", known.join(", ")),
        };
        report.error(&format!("metadata.annotations[\"{key}\"]"), format!("unknown annotation `{key}`"), hint);
    }
}

fn service(service: &Service, report: &mut Report<'_>) {
    let ports = &service.spec.ports;
    let mut numbers = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        if !numbers.insert(port.port) {
            report.error(&format!("{at}.port"), format!("port {} stands twice", port.port), "");
        }
        if port.name.is_empty() && ports.len() > 1 {
            report.error(&at, "a Service with several ports needs a name for each", "add `name`");
        }
    }
    unique_names(ports.iter().map(|port| port.name.as_str()), "spec.ports", report);
    if let Some(accounts) = service.metadata.annotations.get(SERVICE_ACCOUNTS) {
        for account in accounts.split(',').map(str::trim) {
            if let Err(message) = TextRule::DnsLabel.check(account) {
                let field = format!("metadata.annotations[\"{SERVICE_ACCOUNTS}\"]");
                report.error(&field, message, "service accounts, joined by commas");
            }
        }
    }
}

fn endpoint_slice(slice: &EndpointSlice, report: &mut Report<'_>) {
    match slice.service() {
        None => report.error(
            "metadata.labels",
            format!("the label `{SERVICE_NAME}` is missing"),
            "it names the Service that the addresses belong to",
        ),
        Some(name) => {
            if let Err(message) = TextRule::DnsLabel.check(name) {
                report.error(&format!("metadata.labels[\"{SERVICE_NAME}\"]"), message, "");
            }
        }
    }
    unique_names(slice.ports.iter().map(|port| port.name.as_str()), "ports", report);
    if slice.ports.len() > 1 {
        for (index, _) in slice.ports.iter().enumerate().filter(|(_, port)| port.name.is_empty()) {
            report.error(&format!("ports[{index}]"), "with several ports each needs a name", "add `name`");
        }
    }
    let mut seen = HashSet::new();
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        for (place, text) in endpoint.addresses.iter().enumerate() {
            let field = format!("endpoints[{index}].addresses[{place}]");
            let Ok(address) = text.parse::<IpAddr>() else { continue };
            let right = match slice.address_type {
                AddressType::Ipv4 => address.is_ipv4(),
                AddressType::Ipv6 => address.is_ipv6(),
                AddressType::Fqdn => false,
            };
            if !right {
                report.error(&field, format!("`{text}` is not {}", slice.address_type), "see `addressType`");
            }
            if address.is_unspecified() || address.is_multicast() {
                report.error(&field, format!("`{text}` is not the address of an endpoint"), "");
            }
            if !seen.insert(address) {
                report.error(&field, format!("`{text}` stands twice"), "");
            }
        }
    }
}

/// No two entries of the list at `path` have the same name; empty names aside.
fn unique_names<'a>(names: impl Iterator<Item = &'a str>, path: &str, report: &mut Report<'_>) {
    let mut first = BTreeMap::new();
    for (index, name) in names.enumerate().filter(|(_, name)| !name.is_empty()) {
        if let Some(earlier) = first.insert(name, index) {
            report.error(
                &format!("{path}[{index}].name"),
                format!("`{name}` is also the name of {path}[{earlier}]"),
                "",
            );
        }
    }
}
