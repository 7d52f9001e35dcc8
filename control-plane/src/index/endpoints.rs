//! Who serves a service: registered workloads and static addresses, joined. Pure.

use std::{collections::BTreeMap, sync::Arc};

use weft_identity::SpiffeId;
use weft_model::{EndpointSlice, PortOrName, Service, ServicePort};
use weft_xds::resource::Health;

use super::world::{EndpointEntry, EndpointPort, HOSTNAME, ServiceKey, WorkloadEntry, WorkloadPort};

/// Whether a workload serves a service: it registered under its name, or the service's selector picks it.
pub fn serves(workload: &WorkloadEntry, key: &ServiceKey, service: &Service) -> bool {
    if workload.service.namespace != key.namespace {
        return false;
    }
    match service.spec.selector.is_empty() {
        true => workload.service == *key,
        false => service.spec.selector.iter().all(|(name, value)| workload.labels.get(name) == Some(value)),
    }
}

/// Endpoints of a service, in order of address. Draining workloads are not among them.
pub fn of<'a>(
    service: &Service,
    workloads: impl Iterator<Item = &'a Arc<WorkloadEntry>>,
    slices: impl Iterator<Item = &'a Arc<EndpointSlice>>,
) -> Arc<[EndpointEntry]> {
    joined(service, workloads, slices.flat_map(|slice| of_slice(service, slice)))
}

/// As [`of`], with what became of the slices.
pub fn joined<'a>(
    service: &Service,
    workloads: impl Iterator<Item = &'a Arc<WorkloadEntry>>,
    slices: impl Iterator<Item = EndpointEntry>,
) -> Arc<[EndpointEntry]> {
    let mut endpoints: Vec<_> = workloads.filter_map(|workload| of_workload(service, workload)).chain(slices).collect();
    endpoints.sort_by(|a, b| (a.ip, &a.ports, &a.workload).cmp(&(b.ip, &b.ports, &b.workload)));
    // Two slices may name the same address; a workload's own word comes first.
    endpoints
        .dedup_by(|a, b| a.ip == b.ip && a.ports == b.ports && (a.workload.is_empty() || a.workload == b.workload));
    endpoints.into()
}

/// A workload as an endpoint of a service, if it serves one of its ports and is not leaving.
pub fn of_workload(service: &Service, workload: &WorkloadEntry) -> Option<EndpointEntry> {
    if workload.health == Health::Draining {
        return None;
    }
    let target = workload.address.port();
    let ports: Vec<_> = service
        .spec
        .ports
        .iter()
        .filter_map(|port| {
            let own = workload_port(workload, port)?;
            Some(EndpointPort { service: port.port, target, app: own.app })
        })
        .collect();
    (!ports.is_empty()).then(|| EndpointEntry {
        ip: workload.address.ip(),
        ports: ports.into(),
        weight: workload.weight,
        health: workload.health,
        region: workload.region.clone(),
        zone: workload.zone.clone(),
        identity: Some(workload.identity.clone()),
        workload: workload.id.clone(),
        labels: workload.labels.clone(),
    })
}

/// A workload names the service ports that it serves; a service that selects it may number them otherwise.
fn workload_port<'w>(workload: &'w WorkloadEntry, port: &ServicePort) -> Option<&'w WorkloadPort> {
    let numbered = |number: u16| workload.ports.iter().find(|own| own.port == number);
    let named = |name: &str| workload.ports.iter().find(|own| !name.is_empty() && &*own.name == name);
    let target = || match &port.target_port {
        Some(PortOrName::Number(number)) => numbered(*number),
        Some(PortOrName::Name(name)) => named(name),
        None => None,
    };
    numbered(port.port).or_else(|| named(&port.name)).or_else(target)
}

/// The addresses of a slice that are not leaving, in plain text.
pub fn of_slice(service: &Service, slice: &EndpointSlice) -> Vec<EndpointEntry> {
    let ports: Vec<_> = service.spec.ports.iter().filter_map(|port| slice_port(service, slice, port)).collect();
    if ports.is_empty() {
        return Vec::new();
    }
    let ports: Arc<[EndpointPort]> = ports.into();
    let mut found = Vec::new();
    for endpoint in slice.endpoints.iter().filter(|endpoint| !endpoint.draining()) {
        let hostname = endpoint.hostname.iter().map(|name| (HOSTNAME.to_owned(), name.clone()));
        let labels: Arc<BTreeMap<_, _>> = Arc::new(hostname.collect());
        for ip in endpoint.addresses() {
            found.push(EndpointEntry {
                ip,
                ports: ports.clone(),
                weight: 1,
                health: if endpoint.ready() { Health::Healthy } else { Health::Unhealthy },
                region: "".into(),
                zone: endpoint.zone.as_deref().unwrap_or_default().into(),
                identity: None,
                workload: "".into(),
                labels: labels.clone(),
            });
        }
    }
    found
}

/// The slice's port of the same name; with no name, the only one.
fn slice_port(service: &Service, slice: &EndpointSlice, port: &ServicePort) -> Option<EndpointPort> {
    let same_name = slice.ports.iter().find(|own| own.name == port.name);
    let only = || match (slice.ports.as_slice(), service.spec.ports.len()) {
        ([own], 1) if own.name.is_empty() => Some(own),
        _ => None,
    };
    let own = same_name.or_else(only)?;
    Some(EndpointPort { service: port.port, target: own.port, app: own.port })
}

/// Identities that endpoints of a service may prove: its own account and those it names, in order.
pub fn accounts<'a>(
    own: impl Iterator<Item = SpiffeId>,
    workloads: impl Iterator<Item = &'a Arc<WorkloadEntry>>,
) -> Arc<[SpiffeId]> {
    let mut all: Vec<_> = own.chain(workloads.map(|workload| workload.identity.clone())).collect();
    all.sort();
    all.dedup();
    all.into()
}

/// The service that workloads make by registering for a name that no resource declares.
pub fn implicit<'a>(key: &ServiceKey, workloads: impl Iterator<Item = &'a Arc<WorkloadEntry>>) -> Service {
    let mut ports: BTreeMap<u16, (String, String)> = BTreeMap::new();
    for port in workloads.flat_map(|workload| &workload.ports) {
        // They may differ while a new version rolls out; the first in order of id decides, until it is gone.
        ports.entry(port.port).or_insert_with(|| (port.name.to_string(), port.protocol.to_string()));
    }
    super::document::service(key, ports)
}
