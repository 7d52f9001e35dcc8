//! What resources must obey together. The order in which they were applied makes no difference: everything here goes by
//! the order of keys.

mod policies;
mod routes;

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    check::nearest,
    finding::{Finding, Severity},
    key::{Kind, ResourceKey, ServiceKey},
    kinds::{Protocol, Service},
    resource::Resource,
    set::{Member, ResourceSet},
};

/// Services that no resource declares but workloads registered for, with their ports.
pub type KnownServices = BTreeMap<ServiceKey, BTreeSet<u16>>;

/// Everything that is wrong with the set as a whole, errors and warnings, in the order of the keys.
pub fn validate(set: &ResourceSet, known: &KnownServices) -> Vec<Finding> {
    let mut check = Check { set, services: services(set, known), findings: Vec::new() };
    for (key, member) in set.iter() {
        match &member.resource {
            Resource::EndpointSlice(slice) => policies::endpoint_slice(&mut check, key, slice),
            Resource::HttpRoute(route) => routes::http_references(&mut check, key, route),
            Resource::GrpcRoute(route) => routes::grpc_references(&mut check, key, route),
            Resource::TrafficPolicy(policy) => policies::traffic_targets(&mut check, key, policy),
            Resource::AccessPolicy(policy) => policies::access(&mut check, key, policy),
            Resource::Service(_) | Resource::Mesh(_) => {}
        }
    }
    routes::conflicts(&mut check);
    policies::overlaps(&mut check);
    let mut findings = check.findings;
    findings.sort_by(|a, b| (&a.resource, a.line, a.column, &a.field).cmp(&(&b.resource, b.line, b.column, &b.field)));
    findings
}

/// The errors of `after` that `before` did not have: what a change brings, wherever the resources stand. So a service
/// that went away by itself does not keep everybody else from changing the configuration.
pub fn introduced(before: &[Finding], after: &[Finding]) -> Vec<Finding> {
    let place = |finding: &Finding| (finding.resource.clone(), finding.field.clone(), finding.message.clone());
    let old: BTreeSet<_> = before.iter().filter(|finding| finding.is_error()).map(place).collect();
    after.iter().filter(|finding| finding.is_error() && !old.contains(&place(finding))).cloned().collect()
}

/// The ports of a service, as far as they are known.
struct Ports<'a> {
    /// Number, name, protocol.
    ports: Vec<(u16, &'a str, Protocol)>,
}

impl Ports<'_> {
    fn has(&self, number: u16) -> bool {
        self.ports.iter().any(|(port, _, _)| *port == number)
    }

    fn list(&self) -> String {
        let all: Vec<_> = self
            .ports
            .iter()
            .map(|(number, name, _)| if name.is_empty() { number.to_string() } else { format!("{number} ({name})") })
            .collect();
        format!("its ports are {}", all.join(", "))
    }
}

struct Check<'a> {
    set: &'a ResourceSet,
    services: BTreeMap<ServiceKey, Ports<'a>>,
    findings: Vec<Finding>,
}

fn services<'a>(set: &'a ResourceSet, known: &KnownServices) -> BTreeMap<ServiceKey, Ports<'a>> {
    let implicit = known.iter().map(|(key, ports)| {
        (key.clone(), Ports { ports: ports.iter().map(|port| (*port, "", Protocol::Detect)).collect() })
    });
    let declared = set.iter().filter_map(|(key, member)| match &member.resource {
        Resource::Service(service) => {
            Some((ServiceKey::new(&key.namespace, &key.name), Ports { ports: ports(service) }))
        }
        _ => None,
    });
    implicit.chain(declared).collect()
}

fn ports(service: &Service) -> Vec<(u16, &str, Protocol)> {
    service.spec.ports.iter().map(|port| (port.port, port.name.as_str(), port.app())).collect()
}

impl Check<'_> {
    fn error(&mut self, key: &ResourceKey, field: &str, message: String, hint: String) {
        self.find(Severity::Error, key, field, message, hint);
    }

    fn warning(&mut self, key: &ResourceKey, field: &str, message: String, hint: String) {
        self.find(Severity::Warning, key, field, message, hint);
    }

    fn find(&mut self, severity: Severity, key: &ResourceKey, field: &str, message: String, hint: String) {
        let origin = self.set.get(key).and_then(|member| member.origin.as_deref());
        let position = origin.map(|origin| origin.locate(field)).unwrap_or_default();
        self.findings.push(Finding {
            severity,
            file: origin.map(|origin| origin.file().to_owned()).unwrap_or_default(),
            line: position.line,
            column: position.column,
            field: origin.map_or_else(|| field.to_owned(), |origin| origin.field(field)),
            resource: Some(key.clone()),
            message,
            hint,
        });
    }

    /// A service that is referred to must exist, and have the port.
    fn service(&mut self, key: &ResourceKey, field: &str, service: &ServiceKey, port: Option<u16>, name: Option<&str>) {
        let Some(ports) = self.services.get(service) else {
            let siblings = self.services.keys().filter(|known| known.namespace == service.namespace);
            let nearest = nearest(&service.name, siblings.map(|known| known.name.as_str()));
            let hint = match (self.services.keys().find(|known| known.name == service.name), nearest) {
                (Some(elsewhere), _) => format!("there is a Service {elsewhere}"),
                (None, Some(name)) => format!("did you mean `{name}`?"),
                (None, None) => "declare it, or let a workload register for it first".to_owned(),
            };
            self.error(key, &format!("{field}.name"), format!("there is no Service {service}"), hint);
            return;
        };
        if let Some(port) = port.filter(|port| !ports.has(*port)) {
            let hint = ports.list();
            self.error(key, &format!("{field}.port"), format!("Service {service} has no port {port}"), hint);
        } else if let Some(name) = name.filter(|name| !ports.ports.iter().any(|(_, known, _)| known == name)) {
            let hint = ports.list();
            let message = format!("Service {service} has no port named `{name}`");
            self.error(key, &format!("{field}.sectionName"), message, hint);
        }
    }

    /// `HTTPRoute shop/orders, orders.yaml:3`
    fn name(&self, key: &ResourceKey) -> String {
        match self.set.get(key).and_then(|member| member.origin.as_deref()) {
            Some(origin) => format!("{key} ({}:{})", origin.file(), origin.position().line),
            None => key.to_string(),
        }
    }

    fn member(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Member> {
        self.set.get(&ResourceKey::new(kind, namespace, name))
    }
}
