//! The listeners of a service's sidecars.

use std::{collections::BTreeSet, time::Duration};

use weft_model::{EgressMode, MtlsMode, PortOrName, Service, ServicePort};
use weft_xds::resource::{Egress, Inbound, InboundPort, sni};

use super::{access, cluster};
use crate::index::{ServiceKey, WorkloadEntry, World};

/// What comes in for each port of the service, in the order of its ports, and then for the services whose selector picks
/// its workloads: such a service is reached by its own name, but the workload is the same, and so is who guards it.
/// `None`: there is no such service.
pub fn inbound(world: &World, service: &ServiceKey) -> Option<Inbound> {
    let own = world.services.get(service)?;
    let mut ports: Vec<InboundPort> = Vec::new();
    for port in &own.service.spec.ports {
        ports.push(inbound_port(world, service, port, sni(&service.namespace, &service.name, port.port)));
    }
    let workloads: Vec<&WorkloadEntry> = world.registered(service).map(|workload| &**workload).collect();
    for key in world.selecting_in(&service.namespace).filter(|key| *key != service) {
        let Some(entry) = world.services.get(key) else { continue };
        if !workloads.iter().any(|workload| picks(&entry.service, &key.namespace, workload)) {
            continue;
        }
        for port in &entry.service.spec.ports {
            let Some(target) = target_port(&own.service, port) else { continue };
            let mut alias = inbound_port(world, service, target, sni(&key.namespace, &key.name, port.port));
            // Both services' rules hold: a second name is no way round the first one's.
            alias.access.extend(access::rules(world, key, port, alias.protocol));
            ports.push(alias);
        }
    }
    Some(Inbound { ports, permissive: world.mesh.resource.mtls() == MtlsMode::Permissive })
}

/// What becomes of calls to hosts that are not in the mesh.
pub fn egress(world: &World) -> Egress {
    match world.mesh.resource.egress() {
        EgressMode::Any => Egress::Any,
        EgressMode::Registered => Egress::Registered,
    }
}

fn inbound_port(world: &World, service: &ServiceKey, port: &ServicePort, sni: String) -> InboundPort {
    let protocol = cluster::protocol(port.app());
    InboundPort {
        sni: sni.into(),
        service: service.to_string().into(),
        port: port.port,
        protocol,
        access: access::rules(world, service, port, protocol),
        request_timeout: REQUEST_TIMEOUT,
    }
}

/// The own port behind a port of a service that selects the workload: the same number, name or target.
fn target_port<'a>(own: &'a Service, port: &ServicePort) -> Option<&'a ServicePort> {
    let named = |name: &str| (!name.is_empty()).then(|| own.port_named(name)).flatten();
    let target = match &port.target_port {
        Some(PortOrName::Number(number)) => own.port(*number),
        Some(PortOrName::Name(name)) => named(name),
        None => None,
    };
    own.port(port.port).or_else(|| named(&port.name)).or(target)
}

/// The services whose workloads a service with a selector picks; workloads that drain are still among them.
pub fn members(world: &World, service: &ServiceKey) -> BTreeSet<ServiceKey> {
    let Some(entry) = world.services.get(service).filter(|entry| !entry.service.spec.selector.is_empty()) else {
        return BTreeSet::new();
    };
    let all = world.workloads_of(&service.namespace);
    let picked = all.filter(|workload| picks(&entry.service, &service.namespace, workload));
    picked.map(|workload| workload.service.clone()).filter(|member| member != service).collect()
}

fn picks(service: &Service, namespace: &str, workload: &WorkloadEntry) -> bool {
    let selector = &service.spec.selector;
    workload.service.namespace == namespace
        && !selector.is_empty()
        && selector.iter().all(|(name, value)| workload.labels.get(name) == Some(value))
}

/// The caller's sidecar keeps the time limits: it alone knows the route.
const REQUEST_TIMEOUT: Option<Duration> = None;
