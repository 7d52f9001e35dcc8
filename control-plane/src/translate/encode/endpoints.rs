//! Endpoints.

use std::collections::BTreeMap;

use weft_proto::{
    envoy::config::{
        core::v3::{HealthStatus, Locality},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint as WireEndpoint, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier,
        },
    },
    weft::v1::EndpointExtension,
};
use weft_xds::resource::{Endpoint, Health};

use crate::translate::wire::{address, extension};

/// An endpoint and its region, which validated endpoints do not carry.
pub struct Placed {
    /// Empty when unknown.
    pub region: Box<str>,
    /// The endpoint.
    pub endpoint: Endpoint,
}

/// The endpoints of a cluster, grouped by locality. Every group has a locality and a weight: gRPC drops those without.
pub fn encode(cluster: &str, endpoints: &[Placed]) -> ClusterLoadAssignment {
    let mut groups: BTreeMap<(u32, &str, &str), Vec<&Endpoint>> = BTreeMap::new();
    for Placed { region, endpoint } in endpoints {
        groups.entry((endpoint.priority, region, &endpoint.zone)).or_default().push(endpoint);
    }
    let endpoints = groups.into_iter().map(|((priority, region, zone), members)| LocalityLbEndpoints {
        locality: Some(Locality { region: region.to_owned(), zone: zone.to_owned(), sub_zone: String::new() }),
        load_balancing_weight: Some(members.iter().fold(0, |sum, member| member.weight.saturating_add(sum))),
        lb_endpoints: members.into_iter().map(lb_endpoint).collect(),
        priority,
        ..LocalityLbEndpoints::default()
    });
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: endpoints.collect(),
        ..ClusterLoadAssignment::default()
    }
}

fn lb_endpoint(endpoint: &Endpoint) -> LbEndpoint {
    let status = match endpoint.health {
        Health::Healthy => HealthStatus::Healthy,
        Health::Unhealthy => HealthStatus::Unhealthy,
        Health::Draining => HealthStatus::Draining,
    };
    LbEndpoint {
        health_status: status as i32,
        metadata: Some(extension(&EndpointExtension {
            identity: endpoint.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
            workload: endpoint.workload.to_string(),
        })),
        load_balancing_weight: Some(endpoint.weight),
        host_identifier: Some(HostIdentifier::Endpoint(WireEndpoint {
            address: Some(address(endpoint.address)),
            hostname: endpoint.hostname.to_string(),
            ..WireEndpoint::default()
        })),
    }
}
