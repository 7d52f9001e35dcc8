//! ClusterLoadAssignment.

use std::collections::HashSet;

use weft_proto::{
    envoy::config::{
        core::v3::HealthStatus,
        endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier},
    },
    weft::v1::EndpointExtension,
};

use super::{
    super::{Endpoint, Endpoints, Health},
    value::{At, Result, err, extension, identity, name, socket_address, unsupported},
};

pub(super) fn decode(proto: ClusterLoadAssignment) -> Result<Endpoints> {
    let cluster = name(&proto.cluster_name, "cluster_name")?;
    unsupported(!proto.named_endpoints.is_empty(), "named_endpoints")?;
    if let Some(policy) = &proto.policy {
        unsupported(!policy.drop_overloads.is_empty(), "policy.drop_overloads")?;
    }
    let mut endpoints = Vec::new();
    let mut seen = HashSet::new();
    for (at, group) in proto.endpoints.iter().enumerate() {
        check_group(group).at_index("endpoints", at)?;
        for (index, it) in group.lb_endpoints.iter().enumerate() {
            let decoded = endpoint(it, group).and_then(|it| match seen.insert(it.address) {
                true => Ok(it),
                false => err("endpoint.address", format!("{} occurs twice", it.address)),
            });
            endpoints.push(decoded.at_index("lb_endpoints", index).at_index("endpoints", at)?);
        }
    }
    endpoints.sort_by_key(|it| it.address);
    Ok(Endpoints { cluster, endpoints })
}

fn check_group(group: &LocalityLbEndpoints) -> Result<()> {
    unsupported(group.lb_config.is_some(), "lb_config")?;
    if group.priority > 127 {
        return err("priority", format!("{} is above 127", group.priority));
    }
    if group.load_balancing_weight == Some(0) {
        return err("load_balancing_weight", "is zero");
    }
    Ok(())
}

fn endpoint(proto: &LbEndpoint, group: &LocalityLbEndpoints) -> Result<Endpoint> {
    let host = match &proto.host_identifier {
        Some(HostIdentifier::Endpoint(host)) => host,
        Some(HostIdentifier::EndpointName(_)) => return err("endpoint_name", "is not supported"),
        None => return err("endpoint", "is missing"),
    };
    let address = socket_address(host.address.as_ref()).at("endpoint.address")?;
    let weight = proto.load_balancing_weight.unwrap_or(1);
    if weight == 0 {
        return err("load_balancing_weight", "is zero");
    }
    let health = match HealthStatus::try_from(proto.health_status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Health::Healthy,
        // Degraded: Envoy uses it when the healthy do not suffice; here that is the panic rule.
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout | HealthStatus::Degraded) => Health::Unhealthy,
        Ok(HealthStatus::Draining) => Health::Draining,
        Err(unknown) => return err("health_status", format!("{} is not known", unknown.0)),
    };
    let extension = extension::<EndpointExtension>(proto.metadata.as_ref())?.unwrap_or_default();
    let identity = match extension.identity.as_str() {
        "" => None,
        id => Some(identity(id, "metadata.identity")?),
    };
    Ok(Endpoint {
        address,
        weight,
        health,
        priority: group.priority,
        zone: group.locality.as_ref().map(|it| it.zone.as_str()).unwrap_or_default().into(),
        identity,
        workload: extension.workload.into(),
        hostname: hostname(&host.hostname)?,
    })
}

/// One label of DNS, in lower case; empty when there is none.
fn hostname(value: &str) -> Result<Box<str>> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if value.len() > 63 || !value.bytes().all(good) {
        return err("endpoint.hostname", format!("{value:?} is not a label of DNS"));
    }
    Ok(value.to_ascii_lowercase().into())
}
