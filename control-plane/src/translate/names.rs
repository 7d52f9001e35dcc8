//! Names: hosts as callers write them, and the names of resources made of them.
//!
//! Canonical host `service.namespace`; cluster and endpoints `namespace/service:port`; virtual host
//! `outbound/service.namespace[:port]`, or `outbound/IP:PORT` for what an application connects to by address.

use std::{net::SocketAddr, sync::Arc};

use crate::index::ServiceKey;

/// Listener and route configuration of outbound traffic; also the prefix of virtual hosts.
pub const OUTBOUND: &str = "outbound";
/// Listener of inbound traffic.
pub const INBOUND: &str = "inbound";
/// Secret with the trust domain's root certificates.
pub const ROOTCA: &str = "ROOTCA";

/// A host and, when the caller named one, a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The service meant.
    pub service: ServiceKey,
    /// As named.
    pub port: Option<u16>,
}

impl Host {
    /// Reads `orders`, `orders.NS`, `orders.NS.svc`, `orders.NS.svc.cluster.local` or `orders.NS.mesh`, with or without
    /// a port; upper case and a trailing dot do not matter. `namespace`: of the caller. `None`: no such form.
    pub fn parse(text: &str, namespace: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port > 0)?)),
            None => (text, None),
        };
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let mut labels = host.split('.');
        let name = labels.next().filter(|name| !name.is_empty())?;
        let namespace = match labels.next() {
            Some(label) if !label.is_empty() => label,
            Some(_) => return None,
            None => namespace,
        };
        let rest: Vec<&str> = labels.collect();
        let known = matches!(rest.as_slice(), [] | ["svc" | "mesh"] | ["svc", "cluster", "local"]);
        known.then(|| Self { service: ServiceKey::new(namespace, name), port })
    }

    /// Reads the name of a virtual host, which has to be canonical. `None`: it is not.
    pub fn of_virtual_host(name: &str) -> Option<Self> {
        let host = Self::parse(name.strip_prefix(OUTBOUND)?.strip_prefix('/')?, "")?;
        let canonical = virtual_host(&host.service, host.port) == name && !host.service.namespace.is_empty();
        canonical.then_some(host)
    }
}

/// Reads the name of an address's virtual host, `outbound/IP:PORT`, with IPv6 in brackets. `None`: it is not canonical.
pub fn address(name: &str) -> Option<SocketAddr> {
    let text = name.strip_prefix(OUTBOUND)?.strip_prefix('/')?;
    let address: SocketAddr = text.parse().ok()?;
    let canonical = address.ip() == address.ip().to_canonical() && address.to_string() == text;
    (canonical && address.port() > 0).then_some(address)
}

/// What a sidecar's DNS server asks for, in the form of a virtual host's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsName {
    /// `outbound/namespaces`: those that have services.
    Namespaces,
    /// `outbound/dns:service.namespace`: whether it exists, and the endpoints of a headless one.
    Service(ServiceKey),
}

impl DnsName {
    /// Reads the name of a virtual host. `None`: it is of another kind.
    pub fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(OUTBOUND)?.strip_prefix('/')?;
        if rest == "namespaces" {
            return Some(Self::Namespaces);
        }
        let (service, namespace) = rest.strip_prefix("dns:")?.split_once('.')?;
        let label = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        (label(service) && label(namespace)).then(|| Self::Service(ServiceKey::new(namespace, service)))
    }
}

/// `outbound/service.namespace[:port]`
pub fn virtual_host(service: &ServiceKey, port: Option<u16>) -> String {
    match port {
        Some(port) => format!("{OUTBOUND}/{}.{}:{port}", service.name, service.namespace),
        None => format!("{OUTBOUND}/{}.{}", service.name, service.namespace),
    }
}

/// `namespace/service:port`
pub fn cluster(service: &ServiceKey, port: u16) -> Arc<str> {
    format!("{service}:{port}").into()
}

/// Reads the name of a cluster or of its endpoints. `None`: it is not one.
pub fn of_cluster(name: &str) -> Option<(ServiceKey, u16)> {
    let (service, port) = name.rsplit_once(':')?;
    let (namespace, service) = service.split_once('/')?;
    let key = ServiceKey::new(namespace, service);
    let port = port.parse().ok()?;
    (*cluster(&key, port) == *name && !namespace.is_empty() && !service.is_empty()).then_some((key, port))
}

/// Every way to write a service's host, without port. `from`: the caller's namespace, where the short form is known.
pub fn hosts(service: &ServiceKey, from: Option<&str>) -> Vec<String> {
    let full = format!("{}.{}", service.name, service.namespace);
    let mut all: Vec<String> = ["", ".svc", ".svc.cluster.local", ".mesh"].map(|end| format!("{full}{end}")).into();
    if from == Some(&*service.namespace) {
        all.push(service.name.to_string());
    }
    all
}

/// The port that an authority without port means: 80, or the only one there is.
pub fn default_port(ports: &[u16]) -> Option<u16> {
    match ports {
        _ if ports.contains(&80) => Some(80),
        [only] => Some(*only),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_host_means_the_same_service() {
        let orders = ServiceKey::new("shop", "orders");
        for host in hosts(&orders, Some("shop")) {
            for text in [host.clone(), format!("{host}."), host.to_uppercase()] {
                assert_eq!(Host::parse(&text, "shop"), Some(Host { service: orders.clone(), port: None }), "{text}");
                let with_port = format!("{text}:8080");
                assert_eq!(Host::parse(&with_port, "shop").and_then(|host| host.port), Some(8080));
            }
        }
        for text in ["", ".", "orders..svc", "orders.shop.local", "orders:0", "orders:x", "a.b.c.d.e", ".shop"] {
            assert_eq!(Host::parse(text, "shop"), None, "{text}");
        }
    }

    #[test]
    fn resource_names_are_read_back_only_in_canonical_form() {
        let orders = ServiceKey::new("shop", "orders");
        let host = Host::of_virtual_host("outbound/orders.shop:80").unwrap();
        assert_eq!((host.service, host.port), (orders.clone(), Some(80)));
        assert_eq!(Host::of_virtual_host("outbound/orders.shop").unwrap().port, None);
        for name in ["orders.shop", "outbound/orders", "outbound/Orders.shop", "outbound/orders.shop.svc", "outbound/"]
        {
            assert_eq!(Host::of_virtual_host(name), None, "{name}");
        }
        assert_eq!(of_cluster("shop/orders:80"), Some((orders, 80)));
        for name in ["orders:80", "shop/orders", "shop/orders:080", "shop/:80", "/orders:80", "shop/orders:70000"] {
            assert_eq!(of_cluster(name), None, "{name}");
        }
    }

    #[test]
    fn addresses_are_read_back_only_in_canonical_form() {
        for (name, address) in [
            ("outbound/10.0.0.5:8080", Some("10.0.0.5:8080")),
            ("outbound/[fd00::5]:80", Some("[fd00::5]:80")),
            ("outbound/fd00::5:80", None),
            ("outbound/[FD00::5]:80", None),
            ("outbound/[::ffff:10.0.0.5]:80", None),
            ("outbound/10.0.0.5", None),
            ("outbound/10.0.0.5:0", None),
            ("outbound/10.0.0.5:080", None),
            ("10.0.0.5:80", None),
            ("outbound/orders.shop:80", None),
        ] {
            assert_eq!(super::address(name), address.map(|address| address.parse().unwrap()), "{name}");
            assert!(address.is_none() || Host::of_virtual_host(name).is_none(), "{name} is no service's");
        }
    }

    #[test]
    fn what_dns_asks_for() {
        let orders = DnsName::Service(ServiceKey::new("shop", "orders"));
        assert_eq!(DnsName::parse("outbound/dns:orders.shop"), Some(orders));
        assert_eq!(DnsName::parse("outbound/namespaces"), Some(DnsName::Namespaces));
        for name in ["outbound/orders.shop", "dns:orders.shop", "outbound/dns:orders", "outbound/dns:a.b.c"] {
            assert_eq!(DnsName::parse(name), None, "{name}");
        }
        for name in ["outbound/namespaces", "outbound/dns:orders.shop"] {
            assert_eq!(Host::of_virtual_host(name), None, "{name}");
        }
    }

    #[test]
    fn eighty_or_the_only_port_is_the_default() {
        assert_eq!(default_port(&[9000, 80]), Some(80));
        assert_eq!(default_port(&[9000]), Some(9000));
        assert_eq!(default_port(&[9000, 9001]), None);
        assert_eq!(default_port(&[]), None);
    }
}
