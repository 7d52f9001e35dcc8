//! Endpoints of a cluster, from a service's entry in the world.

use weft_xds::resource::Endpoint;

use super::encode::endpoints::Placed;
use crate::index::ServiceEntry;

/// The endpoints of one port, in order of address.
pub fn placed(entry: &ServiceEntry, port: u16) -> Vec<Placed> {
    // Only there is an endpoint called by its own name.
    let named = entry.service.headless();
    let endpoints = entry.endpoints.iter().filter_map(|endpoint| {
        Some(Placed {
            region: (&*endpoint.region).into(),
            endpoint: Endpoint {
                address: endpoint.address(port)?,
                weight: endpoint.weight.max(1),
                health: endpoint.health,
                priority: 0,
                zone: (&*endpoint.zone).into(),
                identity: endpoint.identity.clone(),
                workload: (&*endpoint.workload).into(),
                hostname: endpoint.hostname().filter(|_| named).unwrap_or_default().into(),
            },
        })
    });
    let mut endpoints: Vec<Placed> = endpoints.collect();
    endpoints.sort_by_key(|placed| placed.endpoint.address);
    endpoints
}
