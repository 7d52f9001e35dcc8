//! One resource for one client, by type and name.

use std::sync::Arc;

use weft_xds::resource::{Encoded, ResourceType};

use super::{Client, Flavour, cluster, encode, endpoints, envoy, grpc, names, sidecar};
use crate::index::World;

/// The resource of that name as `client` gets it; `None`: there is none, or not for this client.
pub fn resource(world: &World, client: &Client, ty: ResourceType, name: &str) -> Option<Arc<Encoded>> {
    match ty {
        ResourceType::Secret => {
            let secret =
                (name == names::ROOTCA && !world.roots.is_empty()).then(|| encode::cluster::root_ca(&world.roots));
            secret.map(|secret| Encoded::new(name, &secret))
        }
        ResourceType::Cluster => {
            let (service, port) = names::of_cluster(name)?;
            let cluster = cluster::build(world, &service, port)?;
            Some(Encoded::new(name, &encode::cluster::encode(&cluster, client.flavour)))
        }
        ResourceType::Endpoints => {
            let (service, port) = names::of_cluster(name)?;
            let entry = world.services.get(&service)?;
            entry.service.port(port)?;
            Some(Encoded::new(name, &encode::endpoints::encode(name, &endpoints::placed(entry, port))))
        }
        ResourceType::Listener => match client.flavour {
            Flavour::Sidecar => sidecar::listener(world, &client.service, name),
            Flavour::Envoy => envoy::listener(world, client, name),
            Flavour::Grpc => grpc::listener(world, client, name),
        },
        ResourceType::Route => match client.flavour {
            Flavour::Sidecar => sidecar::routes(name),
            Flavour::Envoy => envoy::routes(world, client, name),
            Flavour::Grpc => None,
        },
        ResourceType::VirtualHost => match client.flavour {
            Flavour::Sidecar => sidecar::virtual_host(world, name),
            Flavour::Envoy | Flavour::Grpc => None,
        },
    }
}

/// Whether a client may see this at all: an Envoy is given what it can reach, whatever it names.
pub fn visible(world: &World, client: &Client, ty: ResourceType, name: &str) -> bool {
    match (client.flavour, ty) {
        (Flavour::Envoy, ResourceType::Cluster | ResourceType::Endpoints) => {
            names::of_cluster(name).is_some_and(|(service, port)| envoy::reaches(world, client, &service, port))
        }
        _ => true,
    }
}

/// Names of the resources of a type that `client` gets without naming them, in order.
pub fn wildcard(world: &World, client: &Client, ty: ResourceType) -> Vec<Arc<str>> {
    match (client.flavour, ty) {
        (Flavour::Envoy, ResourceType::Cluster) => envoy::clusters(world, client),
        _ => fixed_names(client, ty),
    }
}

/// The same where it does not depend on the world: what a sidecar pays for is what it calls, and a gRPC client never
/// asks for everything.
pub fn fixed_names(client: &Client, ty: ResourceType) -> Vec<Arc<str>> {
    match (client.flavour, ty) {
        (Flavour::Sidecar, ResourceType::Listener) => vec![names::INBOUND.into(), names::OUTBOUND.into()],
        (Flavour::Envoy, ResourceType::Listener) => envoy::listeners(client),
        (Flavour::Sidecar | Flavour::Envoy, ResourceType::Route) => vec![names::OUTBOUND.into()],
        (_, ResourceType::Secret) => vec![names::ROOTCA.into()],
        _ => Vec::new(),
    }
}
