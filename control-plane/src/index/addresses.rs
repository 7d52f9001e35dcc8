//! Addresses that stand for a service or for one of its endpoints. Pure.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::world::{EndpointEntry, Map, Owner, Place, ServiceEntry, ServiceKey};

/// Addresses of its own that a service may have: one of each family, and a few that are on their way out.
const MAX_OWN: usize = 8;

/// The addresses of a service and of its endpoints, each with the port that an application names.
pub fn of(key: &ServiceKey, entry: &ServiceEntry) -> BTreeSet<(SocketAddr, Place)> {
    let spec = &entry.service.spec;
    let own: BTreeSet<IpAddr> =
        spec.cluster_ip.iter().chain(&spec.cluster_ips).filter_map(|ip| ip.parse().ok()).take(MAX_OWN).collect();
    let place = |owner, port, endpoint| Place { owner, service: key.clone(), port, endpoint };
    let mut all = BTreeSet::new();
    for port in &spec.ports {
        all.extend(own.iter().map(|ip| (at(*ip, port.port), place(Owner::Service, port.port, None))));
    }
    for endpoint in entry.endpoints.iter() {
        for port in endpoint.ports.iter() {
            let target = SocketAddr::new(endpoint.ip, port.target);
            all.insert((at(endpoint.ip, port.app), place(owner(key, endpoint), port.service, Some(target))));
        }
    }
    all
}

/// As applications see it.
fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}

fn owner(key: &ServiceKey, endpoint: &EndpointEntry) -> Owner {
    if endpoint.workload.is_empty() {
        return Owner::Listed;
    }
    let rest = endpoint.workload.strip_prefix(key.namespace.as_str()).and_then(|rest| rest.strip_prefix('/'));
    let own = rest.and_then(|rest| rest.strip_prefix(key.name.as_str())).is_some_and(|rest| rest.starts_with('/'));
    if own { Owner::Workload } else { Owner::Picked }
}

/// Replaces what a service had by what it has.
pub fn replace(
    all: &mut Map<SocketAddr, Arc<[Place]>>,
    before: &BTreeSet<(SocketAddr, Place)>,
    after: &BTreeSet<(SocketAddr, Place)>,
) {
    let differ: BTreeSet<SocketAddr> = before.symmetric_difference(after).map(|(address, _)| *address).collect();
    for address in &differ {
        let at = |set: &BTreeSet<(SocketAddr, Place)>| -> Vec<Place> {
            // From the least place of this address on.
            let least = Place {
                owner: Owner::Service,
                service: ServiceKey::new(String::new(), String::new()),
                port: 0,
                endpoint: None,
            };
            let from = set.range((*address, least)..).take_while(|(known, _)| known == address);
            from.map(|(_, place)| place.clone()).collect()
        };
        let (gone, come) = (at(before), at(after));
        let known = all.get(address).map(|places| &places[..]).unwrap_or_default();
        let mut places: Vec<Place> = known.iter().filter(|place| !gone.contains(place)).cloned().chain(come).collect();
        places.sort();
        places.dedup();
        match places.is_empty() {
            true => drop(all.remove_mut(address)),
            false => all.insert_mut(*address, places.into()),
        }
    }
}
