//! What only Weft's own sidecar gets: its inbound listener, and virtual hosts by name.

use std::sync::Arc;

use weft_xds::resource::Encoded;

use super::{Flavour, dns, encode, listener, names, routes};
use crate::index::{ServiceKey, World};

/// `inbound`, of the sidecar's own service, or `outbound`.
pub fn listener(world: &World, service: &ServiceKey, name: &str) -> Option<Arc<Encoded>> {
    match name {
        names::INBOUND => {
            let inbound = listener::inbound(world, service)?;
            Some(Encoded::new(name, &encode::listener::inbound(&inbound)))
        }
        names::OUTBOUND => {
            let bind = super::DEFAULT_OUTBOUND.parse().expect("a constant address");
            Some(Encoded::new(name, &encode::listener::outbound(bind, Some(listener::egress(world)))))
        }
        _ => None,
    }
}

/// `outbound`: empty, virtual hosts are asked for by name.
pub fn routes(name: &str) -> Option<Arc<Encoded>> {
    (name == names::OUTBOUND).then(|| Encoded::new(name, &encode::listener::on_demand_routes()))
}

/// `outbound/service.namespace[:port]`, `outbound/IP:PORT`, or what DNS asks for.
pub fn virtual_host(world: &World, name: &str) -> Option<Arc<Encoded>> {
    if let Some(asked) = names::DnsName::parse(name) {
        let built = dns::virtual_host(world, name, &asked)?;
        return Some(Encoded::new(name, &encode::routes::encode(&built, Flavour::Sidecar)));
    }
    if let Some(address) = names::address(name) {
        let built = routes::at(world, address, name)?;
        return Some(Encoded::new(name, &encode::routes::encode(&built, Flavour::Sidecar)));
    }
    let host = names::Host::of_virtual_host(name)?;
    let port = routes::resolve(world, &host)?;
    let domains = routes::domains(&host.service, host.port, None);
    let built = routes::virtual_host(world, &host.service, port, name, domains)?;
    Some(Encoded::new(name, &encode::routes::encode(&built, Flavour::Sidecar)))
}
