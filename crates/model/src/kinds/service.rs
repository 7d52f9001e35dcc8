//! `v1/Service`: a name with ports.

use std::collections::BTreeMap;

use super::Metadata;
use crate::{
    rules::TextRule,
    shape::{choices, object},
    values::PortOrName,
};

/// Service accounts besides its own that may act as the service: `weft.mesh/service-accounts: "a,b"`.
pub const SERVICE_ACCOUNTS: &str = "weft.mesh/service-accounts";

object! {
    /// A name with ports. Its workloads are those that register under its name, or, with a selector, those whose labels
    /// match; EndpointSlices add fixed addresses.
    pub struct Service {
        /// Name, namespace, labels and annotations.
        metadata: Metadata = required(),
        /// Ports and workloads.
        spec: ServiceSpec = required()
    }
}

object! {
    /// Ports and workloads of a service.
    pub struct ServiceSpec {
        /// Ports that callers name. With more than one, each needs a name.
        ports: Vec<ServicePort> = required().items(1, 64),
        /// Labels that a workload of the namespace must carry. Every workload carries `weft.mesh/service` (the name it
        /// registered under) and, when it says so, `version`.
        selector: BTreeMap<String, String> = default("workloads that register under the service's name")
            .keys(TextRule::LabelKey).text(TextRule::LabelValue)
            .when("several services share workloads, or one service is to take only some, say one version"),
        /// How Kubernetes publishes the service.
        kind as "type": Option<ServiceType> = informational(),
        /// Address that Kubernetes gave it, or `None` for a headless one.
        cluster_ip as "clusterIP": Option<String> = informational(),
        /// Addresses that Kubernetes gave it.
        cluster_ips as "clusterIPs": Vec<String> = informational(),
        /// Address families that Kubernetes gave it.
        ip_families: Vec<String> = informational(),
        /// How Kubernetes picks address families.
        ip_family_policy: Option<String> = informational(),
        /// Which endpoints traffic from inside may use.
        internal_traffic_policy: Option<TrafficScope> = default("Cluster"),
        /// Which endpoints traffic from outside may use.
        external_traffic_policy: Option<TrafficScope> = informational(),
        /// Whether a caller keeps its endpoint.
        session_affinity: Option<SessionAffinity> = default("None"),
        /// Whether endpoints that are not ready get traffic.
        publish_not_ready_addresses: Option<bool> = default("false"),
        /// Host name that stands for the service.
        external_name: Option<String> = plain().text(TextRule::Host)
    }
}

object! {
    /// A port of a service.
    pub struct ServicePort {
        /// Name; with `appProtocol` absent, a name that is or begins with `http-`, `http2-`, `grpc-` or `tcp-` tells the
        /// protocol.
        name: String = default("none").text(TextRule::PortName),
        /// Number that callers use.
        port: u16 = required(),
        /// Number or name on the workload: of an EndpointSlice's port, or of a container's port in Kubernetes. A
        /// workload with a sidecar says itself where its application listens.
        target_port: Option<PortOrName> = default("`port`"),
        /// Transport.
        protocol: Option<Transport> = default("TCP"),
        /// What flows.
        app_protocol: Option<AppProtocol> = default("what the port's name tells, else the first bytes")
            .why("detection costs nothing where the client speaks first")
            .when("the server speaks first (`tcp`), or only one protocol may ever be spoken"),
        /// Port that Kubernetes opens on every node.
        node_port: Option<u16> = informational()
    }
}

choices! {
    /// How Kubernetes publishes a service.
    pub enum ServiceType {
        ClusterIp = "ClusterIP": "Inside the cluster.",
        NodePort = "NodePort": "On every node.",
        LoadBalancer = "LoadBalancer": "By a load balancer.",
        ExternalName = "ExternalName": "As an alias of another host.",
    }
}

choices! {
    /// Which endpoints may be used.
    pub enum TrafficScope {
        Cluster = "Cluster": "All.",
        Local = "Local": "Only those on the same node.",
    }
}

choices! {
    /// Whether a caller keeps its endpoint.
    pub enum SessionAffinity {
        None = "None": "Each request is balanced.",
        ClientIp = "ClientIP": "By the caller's address.",
    }
}

choices! {
    /// Transport of a port.
    pub enum Transport {
        Tcp = "TCP": "TCP.",
        Udp = "UDP": "UDP.",
        Sctp = "SCTP": "SCTP.",
    }
}

choices! {
    /// What flows on a port, as the resource words it.
    pub enum AppProtocol {
        Http = "http": "HTTP/1.1, and HTTP/2 where the client begins it.",
        Http2 = "http2": "HTTP/2.",
        H2c = "kubernetes.io/h2c": "HTTP/2; Kubernetes' word.",
        Grpc = "grpc": "gRPC.",
        WebSocket = "kubernetes.io/ws": "WebSocket over HTTP/1.1; Kubernetes' word.",
        Tcp = "tcp": "Bytes; the server may speak first.",
        Mysql = "mysql": "Bytes.",
        Postgresql = "postgresql": "Bytes.",
        Redis = "redis": "Bytes.",
        Mongo = "mongo": "Bytes.",
        Https = "https": "HTTP over the application's own TLS.",
        WebSocketTls = "kubernetes.io/wss": "WebSocket over the application's own TLS; Kubernetes' word.",
        Tls = "tls": "The application's own TLS.",
    }
}

/// What flows on a port, as the mesh treats it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// The first bytes tell.
    #[default]
    Detect,
    /// HTTP/1.1, and HTTP/2 where the client begins it.
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Bytes.
    Tcp,
}

impl AppProtocol {
    /// How the mesh treats it.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Http | Self::WebSocket => Protocol::Http,
            Self::Http2 | Self::H2c => Protocol::Http2,
            Self::Grpc => Protocol::Grpc,
            Self::Tcp | Self::Mysql | Self::Postgresql | Self::Redis | Self::Mongo => Protocol::Tcp,
            Self::Https | Self::WebSocketTls | Self::Tls => Protocol::Tcp,
        }
    }
}

impl ServicePort {
    /// What flows: `appProtocol`, else what the name tells, else detection.
    pub fn app(&self) -> Protocol {
        if let Some(app) = self.app_protocol {
            return app.protocol();
        }
        let word = self.name.split('-').next().unwrap_or_default();
        match word {
            "http" => Protocol::Http,
            "http2" | "h2c" => Protocol::Http2,
            "grpc" => Protocol::Grpc,
            "tcp" => Protocol::Tcp,
            _ => Protocol::Detect,
        }
    }
}

impl Service {
    /// The port with that number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.spec.ports.iter().find(|port| port.port == number)
    }

    /// The port with that name.
    pub fn port_named(&self, name: &str) -> Option<&ServicePort> {
        self.spec.ports.iter().find(|port| port.name == name)
    }

    /// Its name means its endpoints' addresses rather than one of its own: `clusterIP: None`.
    pub fn headless(&self) -> bool {
        let none = |address: &String| address == "None";
        self.spec.cluster_ip.as_ref().is_some_and(none) || self.spec.cluster_ips.iter().any(none)
    }

    /// Service accounts besides its own that may act as the service.
    pub fn service_accounts(&self) -> impl Iterator<Item = &str> {
        let accounts = self.metadata.annotations.get(SERVICE_ACCOUNTS).map_or("", String::as_str);
        accounts.split(',').map(str::trim).filter(|account| !account.is_empty())
    }
}
