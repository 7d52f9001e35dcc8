//! `discovery.k8s.io/v1 EndpointSlice`: fixed addresses of a service.

use super::{AppProtocol, Metadata, Transport};
use crate::{
    rules::TextRule,
    shape::{choices, object},
};

/// Label that names the service of an EndpointSlice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

object! {
    /// Fixed addresses of the service that the label `kubernetes.io/service-name` names. They are reached in plain text:
    /// what has a sidecar registers itself.
    pub struct EndpointSlice {
        /// Name, namespace, labels and annotations.
        metadata: Metadata = required(),
        /// What the addresses are.
        address_type: AddressType = required(),
        /// The endpoints.
        endpoints: Vec<SliceEndpoint> = default("none").items(0, 1000),
        /// Ports that every endpoint of the slice has.
        ports: Vec<EndpointPort> = required().items(1, 64)
    }
}

object! {
    /// One endpoint. Each of its addresses gets traffic.
    pub struct SliceEndpoint {
        /// Addresses, all of the slice's type.
        addresses: Vec<String> = required().items(1, 100).text(TextRule::Address),
        /// What it is fit for.
        conditions: EndpointConditions = default("ready"),
        /// Name within the service.
        hostname: Option<String> = informational().text(TextRule::DnsLabel),
        /// Node that it runs on.
        node_name: Option<String> = informational().text(TextRule::DnsName),
        /// Zone that it runs in.
        zone: Option<String> = default("unknown").text(TextRule::LabelValue),
        /// Object that it stands for.
        target_ref: Option<ObjectReference> = informational(),
        /// What Kubernetes suggests to its own proxies.
        hints: Option<EndpointHints> = informational()
    }
}

object! {
    /// What an endpoint is fit for.
    pub struct EndpointConditions {
        /// It gets traffic.
        ready: Option<bool> = default("true"),
        /// It would serve, though it may be leaving.
        serving: Option<bool> = informational(),
        /// It is leaving: it gets no new traffic.
        terminating: Option<bool> = default("false")
    }
}

object! {
    /// An object in a cluster.
    pub struct ObjectReference {
        /// Kind.
        kind: Option<String> = informational(),
        /// Namespace.
        namespace: Option<String> = informational(),
        /// Name.
        name: Option<String> = informational(),
        /// Unique id.
        uid: Option<String> = informational(),
        /// API version.
        api_version: Option<String> = informational(),
        /// Part of the object.
        field_path: Option<String> = informational(),
        /// Version of the object.
        resource_version: Option<String> = informational()
    }
}

object! {
    /// What Kubernetes suggests to its own proxies.
    pub struct EndpointHints {
        /// Zones that should use the endpoint.
        for_zones: Vec<ZoneHint> = informational()
    }
}

object! {
    /// A zone.
    pub struct ZoneHint {
        /// Its name.
        name: Option<String> = informational()
    }
}

object! {
    /// A port of the slice's endpoints.
    pub struct EndpointPort {
        /// The service's port of the same name leads here; with no name, the service's only port.
        name: String = default("none").text(TextRule::PortName),
        /// Number on the endpoint.
        port: u16 = required(),
        /// Transport.
        protocol: Option<Transport> = default("TCP"),
        /// What flows; the service's port decides.
        app_protocol: Option<AppProtocol> = informational()
    }
}

choices! {
    /// What the addresses of a slice are.
    pub enum AddressType {
        Ipv4 = "IPv4": "IPv4 addresses.",
        Ipv6 = "IPv6": "IPv6 addresses.",
        Fqdn = "FQDN": "Names that are looked up.",
    }
}

impl EndpointSlice {
    /// Name of the service, in the slice's namespace.
    pub fn service(&self) -> Option<&str> {
        self.metadata.labels.get(SERVICE_NAME).map(String::as_str)
    }
}

impl SliceEndpoint {
    /// It gets traffic.
    pub fn ready(&self) -> bool {
        self.conditions.ready.unwrap_or(true) && !self.draining()
    }

    /// It is leaving.
    pub fn draining(&self) -> bool {
        self.conditions.terminating.unwrap_or(false)
    }

    /// Its addresses. A stored resource was checked when it was applied.
    pub fn addresses(&self) -> impl Iterator<Item = std::net::IpAddr> {
        self.addresses.iter().filter_map(|address| address.parse().ok())
    }
}
