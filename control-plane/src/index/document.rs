//! Documents as the store keeps them, to and from resources.

use std::collections::BTreeMap;

use weft_model::{AppProtocol, Metadata, Resource, ResourceKey, Service, ServicePort, ServiceSpec};

use super::{fold::DocumentError, world::ServiceKey};
use crate::store::{Event, Stored};

/// The resource of a stored document.
/// # Errors
/// It is not readable by this version.
pub fn read(key: &ResourceKey, stored: &Stored) -> Result<Resource, DocumentError> {
    serde_yaml::from_str(&stored.yaml).map_err(|source| DocumentError {
        key: key.clone(),
        revision: stored.revision,
        source,
    })
}

/// The event that makes the store hold a resource.
pub fn write(resource: &Resource) -> Event {
    let api_version = resource.api_version().to_owned();
    Event::Set { key: resource.key(), api_version, yaml: resource.to_yaml() }
}

/// A service from nothing but its ports: number → name and protocol.
pub fn service(key: &ServiceKey, ports: BTreeMap<u16, (String, String)>) -> Service {
    let several = ports.len() > 1;
    let port = |(port, (name, protocol)): (u16, (String, String))| ServicePort {
        name: if name.is_empty() && several { format!("port-{port}") } else { name },
        port,
        app_protocol: protocol_of(&protocol),
        ..ServicePort::default()
    };
    let metadata = Metadata { name: key.name.clone(), namespace: key.namespace.clone(), ..Metadata::default() };
    let spec = ServiceSpec { ports: ports.into_iter().map(port).collect(), ..ServiceSpec::default() };
    Service { metadata, spec }
}

/// The protocols that a workload may name for a port.
pub fn protocol_of(word: &str) -> Option<AppProtocol> {
    match word {
        "http" => Some(AppProtocol::Http),
        "http2" => Some(AppProtocol::Http2),
        "grpc" => Some(AppProtocol::Grpc),
        "tcp" => Some(AppProtocol::Tcp),
        _ => None,
    }
}
