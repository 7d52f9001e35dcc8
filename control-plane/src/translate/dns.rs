//! What a sidecar's DNS server is told: which namespaces there are, that a service exists, and, of a headless one, its
//! endpoints. Virtual hosts that no request ever takes, so that they are fetched, kept and dropped like all others.

use std::{collections::BTreeSet, sync::Arc};

use weft_xds::resource::{Forward, HeaderEdits, Route, RouteAction, RouteMatch, VirtualHost, WeightedCluster};

use super::names::{self, DnsName};
use crate::index::{ServiceEntry, ServiceKey, World};

/// With more the list costs more than it saves: a sidecar without it asks for each name.
const MAX_NAMESPACES: usize = 2000;

/// What `name` asks for; `None`: there is no such thing.
pub fn virtual_host(world: &World, name: &str, asked: &DnsName) -> Option<VirtualHost> {
    let (domains, routes) = match asked {
        DnsName::Namespaces => (namespaces(world)?, Vec::new()),
        DnsName::Service(service) => {
            let entry = world.services.get(service)?;
            let domain = format!("{}.{}", service.name, service.namespace).into();
            (vec![domain], endpoints(service, entry).into_iter().map(Arc::new).collect())
        }
    };
    Some(VirtualHost { name: name.into(), domains, routes, endpoint: None })
}

fn namespaces(world: &World) -> Option<Vec<Box<str>>> {
    let all: BTreeSet<&str> = world.services.keys().map(|service| &*service.namespace).collect();
    (!all.is_empty() && all.len() <= MAX_NAMESPACES).then(|| all.into_iter().map(Into::into).collect())
}

/// A route to all ports of a headless service: with their clusters come its endpoints.
fn endpoints(service: &ServiceKey, entry: &ServiceEntry) -> Option<Route> {
    if !entry.service.headless() {
        return None;
    }
    let ports = entry.service.spec.ports.iter();
    let clusters = ports.map(|port| WeightedCluster::new(&*names::cluster(service, port.port), 1));
    Some(Route {
        name: "endpoints".into(),
        matches: RouteMatch::any(),
        action: RouteAction::Forward(Box::new(Forward::to(clusters.collect()))),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        source: format!("Service {service}").into(),
        revision: entry.revision,
    })
}
