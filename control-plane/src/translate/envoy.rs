//! What only a stock Envoy gets: a listener that binds, and all routes in one route configuration, scoped to the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_proto::envoy::config::route::v3::RouteConfiguration;
use weft_xds::resource::{Encoded, Protocol};

use super::{Client, Flavour, LocalPort, cluster, encode, names, routes};
use crate::index::{ServiceKey, World};

/// Names of an Envoy's listeners.
pub fn listeners(client: &Client) -> Vec<Arc<str>> {
    let local = client.listeners.iter().map(|port| local_name(port.bind));
    std::iter::once(names::OUTBOUND.into()).chain(local).collect()
}

fn local_name(bind: std::net::SocketAddr) -> Arc<str> {
    format!("{}/{bind}", names::OUTBOUND).into()
}

/// The local port that has this listener.
pub fn local_port<'a>(client: &'a Client, name: &str) -> Option<&'a LocalPort> {
    client.listeners.iter().find(|port| *local_name(port.bind) == *name)
}

/// `outbound`, where the node says, or a local port of the node's `weft.listeners`.
pub fn listener(world: &World, client: &Client, name: &str) -> Option<Arc<Encoded>> {
    if name == names::OUTBOUND {
        return Some(Encoded::new(name, &encode::listener::outbound(client.outbound, None)));
    }
    let port = local_port(client, name)?;
    world.services.get(&port.service)?.service.port(port.port)?;
    let cluster = names::cluster(&port.service, port.port);
    Some(Encoded::new(name, &encode::listener::outbound_tcp(name, port.bind, &cluster)))
}

/// `outbound`: a virtual host for each HTTP port of each service that the node wants.
pub fn routes(world: &World, client: &Client, name: &str) -> Option<Arc<Encoded>> {
    if name != names::OUTBOUND {
        return None;
    }
    let mut virtual_hosts = Vec::new();
    for (service, port) in ports(world, client) {
        let mut domains = routes::domains(&service, Some(port), Some(&client.service.namespace));
        if names::default_port(&cluster::ports(world, &service)) == Some(port) {
            domains.extend(routes::domains(&service, None, Some(&client.service.namespace)));
        }
        let host_name = names::virtual_host(&service, Some(port));
        let built = routes::virtual_host(world, &service, port, &host_name, domains);
        virtual_hosts.extend(built.map(|built| encode::routes::encode(&built, Flavour::Envoy)));
    }
    let configuration =
        RouteConfiguration { name: names::OUTBOUND.to_owned(), virtual_hosts, ..RouteConfiguration::default() };
    Some(Encoded::new(name, &configuration))
}

/// Names of the clusters that the node's routes and local ports lead to.
pub fn clusters(world: &World, client: &Client) -> Vec<Arc<str>> {
    let mut wanted: BTreeMap<ServiceKey, BTreeSet<u16>> = BTreeMap::new();
    for (service, port) in ports(world, client) {
        for (backend, port) in routes::backends(world, &service, port) {
            wanted.entry(backend).or_default().insert(port);
        }
        wanted.entry(service).or_default().insert(port);
    }
    for port in client.listeners.iter() {
        wanted.entry(port.service.clone()).or_default().insert(port.port);
    }
    wanted.iter().flat_map(|(service, ports)| ports.iter().map(|port| names::cluster(service, *port))).collect()
}

/// Whether the node's routes or local ports lead to this cluster.
pub fn reaches(world: &World, client: &Client, service: &ServiceKey, port: u16) -> bool {
    if client.listeners.iter().any(|local| local.service == *service && local.port == port) {
        return true;
    }
    match &client.upstreams {
        Some(_) => clusters(world, client).iter().any(|name| *names::cluster(service, port) == **name),
        None => {
            let port = world.services.get(service).and_then(|entry| entry.service.port(port));
            port.is_some_and(|port| cluster::protocol(port.app()) != Protocol::Tcp)
        }
    }
}

/// The ports that carry HTTP, of the services that the node wants.
fn ports(world: &World, client: &Client) -> Vec<(ServiceKey, u16)> {
    let services = world.services.iter().filter(|(key, _)| client.wants(key));
    let ports = services.flat_map(|(key, entry)| {
        let http = entry.service.spec.ports.iter().filter(|port| cluster::protocol(port.app()) != Protocol::Tcp);
        http.map(|port| (key.clone(), port.port))
    });
    ports.collect()
}
