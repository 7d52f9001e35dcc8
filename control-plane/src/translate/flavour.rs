//! Which kind of client asks, and as whom. Weft's sidecar, Envoy and proxyless gRPC need different renderings of the
//! same service.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use prost_types::{Struct, value::Kind};
use weft_proto::envoy::config::core::v3::{Node, node::UserAgentVersionType};

use crate::index::ServiceKey;

/// A kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flavour {
    /// Weft's own sidecar.
    Sidecar,
    /// A stock Envoy.
    Envoy,
    /// A proxyless gRPC client.
    Grpc,
}

/// Who asks: read once, from the node of a stream's first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// `namespace/service/instance`.
    pub id: Arc<str>,
    /// What kind it is.
    pub flavour: Flavour,
    /// The service it belongs to.
    pub service: ServiceKey,
    /// Name and version of the program, for people.
    pub agent: String,
    /// Envoy: where its outbound listener binds.
    pub outbound: SocketAddr,
    /// Envoy: the services it wants; `None`: all.
    pub upstreams: Option<Arc<BTreeSet<ServiceKey>>>,
    /// Envoy: local ports that lead to one port of one service as bytes.
    pub listeners: Arc<[LocalPort]>,
}

/// A local port of an Envoy that leads to one port of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPort {
    /// Where it binds.
    pub bind: SocketAddr,
    /// The service.
    pub service: ServiceKey,
    /// Its port.
    pub port: u16,
}

/// What is wrong with a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Not of three parts.
    #[error("node.id `{0}` is not NAMESPACE/SERVICE/INSTANCE")]
    Id(String),
    /// The address cannot be read.
    #[error("node.metadata `{OUTBOUND}` `{0}` is not an address such as {DEFAULT_OUTBOUND}")]
    Outbound(String),
    /// The list cannot be read.
    #[error("node.metadata `{UPSTREAMS}`: `{0}` is not SERVICE or SERVICE.NAMESPACE")]
    Upstream(String),
    /// The list cannot be read.
    #[error("node.metadata `{LISTENERS}`: `{0}` is not ADDRESS:PORT=SERVICE:PORT")]
    Listener(String),
}

impl Client {
    /// Reads a node.
    ///
    /// # Errors
    /// [`NodeError`], which names the field.
    pub fn from_node(node: &Node) -> Result<Self, NodeError> {
        let service = service_of(&node.id).ok_or_else(|| NodeError::Id(node.id.clone()))?;
        let flavour = match node.user_agent_name.as_str() {
            "envoy" => Flavour::Envoy,
            name if name.starts_with("gRPC") || name.starts_with("grpc") || name.starts_with("tonic") => Flavour::Grpc,
            _ => Flavour::Sidecar,
        };
        let outbound = match text(node.metadata.as_ref(), OUTBOUND) {
            Some(address) => address.parse().map_err(|_| NodeError::Outbound(address.to_owned()))?,
            None => DEFAULT_OUTBOUND.parse().expect("a constant address"),
        };
        let upstreams = match text(node.metadata.as_ref(), UPSTREAMS) {
            Some(list) => Some(Arc::new(upstreams(list, &service)?)),
            None => None,
        };
        let listeners = match text(node.metadata.as_ref(), LISTENERS) {
            Some(list) => local_ports(list, &service)?,
            None => Vec::new(),
        };
        let listeners = listeners.into();
        Ok(Self { id: node.id.as_str().into(), flavour, service, agent: agent(node), outbound, upstreams, listeners })
    }

    /// Whether the client's configuration may hold this service.
    pub fn wants(&self, service: &ServiceKey) -> bool {
        self.upstreams.as_ref().is_none_or(|wanted| wanted.contains(service))
    }
}

fn service_of(id: &str) -> Option<ServiceKey> {
    let mut parts = id.splitn(3, '/');
    let (namespace, name, instance) = (parts.next()?, parts.next()?, parts.next()?);
    let complete = !namespace.is_empty() && !name.is_empty() && !instance.is_empty();
    complete.then(|| ServiceKey::new(namespace, name))
}

fn upstreams(list: &str, own: &ServiceKey) -> Result<BTreeSet<ServiceKey>, NodeError> {
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let host = super::names::Host::parse(name, &own.namespace);
            host.map(|host| host.service).ok_or_else(|| NodeError::Upstream(name.to_owned()))
        })
        .collect()
}

fn local_ports(list: &str, own: &ServiceKey) -> Result<Vec<LocalPort>, NodeError> {
    let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let read = |entry: &str| {
        let (bind, target) = entry.split_once('=')?;
        let host = super::names::Host::parse(target.trim(), &own.namespace)?;
        Some(LocalPort { bind: bind.trim().parse().ok()?, port: host.port?, service: host.service })
    };
    entries.map(|entry| read(entry).ok_or_else(|| NodeError::Listener(entry.to_owned()))).collect()
}

fn text<'a>(metadata: Option<&'a Struct>, key: &str) -> Option<&'a str> {
    match metadata?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(value) => Some(value),
        _ => None,
    }
}

fn agent(node: &Node) -> String {
    let name = if node.user_agent_name.is_empty() { "unknown" } else { &node.user_agent_name };
    match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) if !version.is_empty() => format!("{name} {version}"),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => match &build.version {
            Some(v) => format!("{name} {}.{}.{}", v.major_number, v.minor_number, v.patch),
            None => name.to_owned(),
        },
        _ => name.to_owned(),
    }
}

/// Key in node.metadata: where an Envoy's outbound listener binds.
pub const OUTBOUND: &str = "weft.outbound";
/// Key in node.metadata: the services that an Envoy wants, separated by commas.
pub const UPSTREAMS: &str = "weft.upstreams";
/// Key in node.metadata: local ports of an Envoy, `ADDRESS:PORT=SERVICE:PORT`, separated by commas.
pub const LISTENERS: &str = "weft.listeners";
/// Where an Envoy's outbound listener binds unless its node says otherwise.
pub const DEFAULT_OUTBOUND: &str = "127.0.0.1:15001";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn node(id: &str, agent: &str, metadata: &[(&str, &str)]) -> Node {
        let fields = metadata.iter().map(|(key, value)| {
            let value = prost_types::Value { kind: Some(Kind::StringValue((*value).to_owned())) };
            ((*key).to_owned(), value)
        });
        Node {
            id: id.into(),
            user_agent_name: agent.into(),
            metadata: Some(Struct { fields: fields.collect::<BTreeMap<_, _>>() }),
            ..Node::default()
        }
    }

    #[test]
    fn a_node_tells_flavour_service_and_scope() {
        let metadata = [(OUTBOUND, "127.0.0.1:9"), (UPSTREAMS, "orders, stock.shop")];
        let client = Client::from_node(&node("default/frontend/a/b", "envoy", &metadata)).unwrap();
        assert_eq!(client.flavour, Flavour::Envoy);
        assert_eq!(client.service, ServiceKey::new("default", "frontend"));
        assert_eq!(client.outbound.port(), 9);
        assert!(client.wants(&ServiceKey::new("default", "orders")));
        assert!(client.wants(&ServiceKey::new("shop", "stock")));
        assert!(!client.wants(&ServiceKey::new("default", "stock")));
        let tcp = Client::from_node(&node("a/b/c", "envoy", &[(LISTENERS, "127.0.0.1:9=stock.shop:9000")])).unwrap();
        assert_eq!((&*tcp.listeners[0].service.name, tcp.listeners[0].port), ("stock", 9000));
        let grpc = Client::from_node(&node("default/frontend/1", "gRPC C-core linux", &[])).unwrap();
        assert_eq!(grpc.flavour, Flavour::Grpc);
        assert_eq!(grpc.outbound.to_string(), DEFAULT_OUTBOUND);
        let sidecar = Client::from_node(&node("default/frontend/1", "weft-sidecar", &[])).unwrap();
        assert_eq!(sidecar.flavour, Flavour::Sidecar);
    }

    #[test]
    fn a_bad_node_is_refused_by_field() {
        for id in ["", "frontend", "default/frontend", "default//x", "/frontend/x", "default/frontend/"] {
            assert_eq!(Client::from_node(&node(id, "envoy", &[])), Err(NodeError::Id(id.to_owned())), "{id}");
        }
        let bad = node("a/b/c", "envoy", &[(OUTBOUND, "localhost")]);
        assert_eq!(Client::from_node(&bad), Err(NodeError::Outbound("localhost".into())));
        let bad = node("a/b/c", "envoy", &[(UPSTREAMS, "a.b.c.d")]);
        assert_eq!(Client::from_node(&bad), Err(NodeError::Upstream("a.b.c.d".into())));
    }
}
