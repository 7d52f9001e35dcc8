//! Clusters: a port of a service, as callers see it.

use std::collections::BTreeSet;

use weft_identity::SpiffeId;
use weft_model::{
    Balancer as ModelBalancer, Call, CallRoute, EffectiveTraffic, Protocol as ModelProtocol, ServicePort,
};
use weft_xds::resource::{
    Balancer, CircuitBreaker, Cluster, EndpointBreaker, Limits, Protocol, RetryBudget, UpstreamTls, sni,
};

use super::names;
use crate::index::{ServiceEntry, ServiceKey, World};

/// The cluster of a service's port; `None`: there is no such service or port.
pub fn build(world: &World, service: &ServiceKey, port: u16) -> Option<Cluster> {
    let entry = world.services.get(service)?;
    let service_port = entry.service.port(port)?;
    let traffic = traffic(world, service, service_port, None);
    let name = names::cluster(service, port);
    let breaker = &traffic.circuit_breaker;
    let outlier = &traffic.outlier_detection;
    Some(Cluster {
        name: (&*name).into(),
        service: service.to_string().into(),
        port,
        protocol: protocol(service_port.app()),
        endpoints: (&*name).into(),
        balancer: balancer(&traffic),
        connect_timeout: *traffic.timeouts.connect,
        limits: Limits {
            connections: *traffic.connection_pool.max_connections,
            pending: *traffic.connection_pool.max_pending_requests,
            requests: *traffic.connection_pool.max_requests,
        },
        circuit_breaker: breaker.enabled.value.then(|| CircuitBreaker {
            consecutive_failures: *breaker.consecutive_failures,
            recovery_time: *breaker.recovery_time,
            successes_to_close: *breaker.successes_to_close,
            half_open_requests: *breaker.half_open_requests,
        }),
        endpoint_breaker: outlier.enabled.value.then(|| EndpointBreaker {
            consecutive_failures: *outlier.consecutive_failures,
            base_open_time: *outlier.base_ejection_time,
            max_open_time: *outlier.max_ejection_time,
            max_ejection_percent: *outlier.max_ejection_percent,
        }),
        retry_budget: RetryBudget {
            percent: *traffic.retry.budget_percent,
            min_per_second: *traffic.retry.budget_min_per_second,
        },
        pool_idle: *traffic.connection_pool.idle_timeout,
        tls: tls(entry, service, port),
        policy: traffic.decided_by().into(),
        panic_percent: PANIC_PERCENT,
    })
}

/// What holds for calls to a port, or for the calls that a route takes to it.
pub fn traffic(
    world: &World,
    service: &ServiceKey,
    port: &ServicePort,
    route: Option<CallRoute<'_>>,
) -> EffectiveTraffic {
    let call =
        Call { namespace: &service.namespace, service: &service.name, port: port.port, port_name: &port.name, route };
    let first = ServiceKey::new(service.namespace.clone(), String::new());
    let policies = world.traffic_policies.range(first..).take_while(|(key, _)| key.namespace == service.namespace);
    let policies = policies.map(|(_, policy)| (&*policy.resource, policy.revision));
    weft_model::effective_traffic(Some((&*world.mesh.resource, world.mesh.revision)), policies, &call)
}

/// How an endpoint is picked.
pub fn balancer(traffic: &EffectiveTraffic) -> Balancer {
    match &traffic.balancer.value {
        ModelBalancer::LeastRequest => Balancer::LeastRequest,
        ModelBalancer::RoundRobin => Balancer::RoundRobin,
        ModelBalancer::WeightedRoundRobin => Balancer::WeightedRoundRobin,
        ModelBalancer::LeastConnections => Balancer::LeastConnections,
        ModelBalancer::SourceIp => Balancer::SourceIp,
        ModelBalancer::ConsistentHash { header, virtual_nodes } => Balancer::ConsistentHash {
            header: header.as_ref().and_then(|name| name.parse().ok()),
            virtual_nodes: *virtual_nodes,
        },
    }
}

/// What flows, in the words of xDS.
pub fn protocol(protocol: ModelProtocol) -> Protocol {
    match protocol {
        ModelProtocol::Detect => Protocol::Detect,
        ModelProtocol::Http => Protocol::Http,
        ModelProtocol::Http2 => Protocol::Http2,
        ModelProtocol::Grpc => Protocol::Grpc,
        ModelProtocol::Tcp => Protocol::Tcp,
    }
}

/// The numbers of a service's ports, in its order; none when there is no such service.
pub fn ports(world: &World, service: &ServiceKey) -> Vec<u16> {
    let entry = world.services.get(service);
    entry.map(|entry| entry.service.spec.ports.iter().map(|port| port.port).collect()).unwrap_or_default()
}

/// What a service's cluster says of its endpoints' identities: `None` when all are outside the mesh.
pub fn peers(world: &World, service: &ServiceKey) -> Option<BTreeSet<SpiffeId>> {
    world.services.get(service).and_then(|entry| identities(entry))
}

fn identities(entry: &ServiceEntry) -> Option<BTreeSet<SpiffeId>> {
    let proven = entry.endpoints.iter().filter_map(|endpoint| endpoint.identity.clone());
    if !entry.endpoints.is_empty() && entry.endpoints.iter().all(|endpoint| endpoint.identity.is_none()) {
        return None;
    }
    Some(proven.chain(entry.accounts.iter().cloned()).collect())
}

/// Whoever may serve the service, whether it does so now or not: endpoints that come and go leave the cluster alone.
fn tls(entry: &ServiceEntry, service: &ServiceKey, port: u16) -> Option<UpstreamTls> {
    let identities = identities(entry)?;
    let sni = sni(&service.namespace, &service.name, port).into();
    Some(UpstreamTls { sni, identities: identities.into_iter().collect() })
}

/// Two endpoints that are out must not mean a total outage.
const PANIC_PERCENT: u8 = 50;
