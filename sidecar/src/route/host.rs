//! Names of services: `orders`, `orders.NS`, `orders.NS.svc`, `orders.NS.svc.cluster.local`, `orders.NS.mesh`.

use std::fmt::Write;

use super::normalise::{Authority, Host};

/// A service's host: what all its spellings come down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MeshHost<'a> {
    /// Name of the service.
    pub service: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// The port, when the caller named one.
    pub port: Option<u16>,
}

impl<'a> MeshHost<'a> {
    /// The service that an authority names; a bare name is of the caller's own namespace. `None`: an address, or a name
    /// that cannot be a service's.
    pub fn parse(authority: &'a Authority<'_>, own_namespace: &'a str) -> Option<Self> {
        if authority.kind() != Host::Name {
            return None;
        }
        let mut labels = authority.host().split('.');
        let service = labels.next()?;
        let namespace = labels.next().unwrap_or(own_namespace);
        let rest = (labels.next(), labels.next(), labels.next(), labels.next());
        matches!(rest, (None | Some("svc" | "mesh"), None, ..) | (Some("svc"), Some("cluster"), Some("local"), None))
            .then_some(Self { service, namespace, port: authority.port() })
    }

    /// `orders.default:80`, or `orders.default` when the caller named no port: the key of the snapshot's virtual hosts,
    /// and, after `outbound/`, the name to subscribe to.
    pub fn key(&self) -> String {
        let mut key = String::with_capacity(self.service.len() + self.namespace.len() + 7);
        key.push_str(self.service);
        key.push('.');
        key.push_str(self.namespace);
        if let Some(port) = self.port {
            write!(key, ":{port}").expect("a String takes everything");
        }
        key
    }
}
