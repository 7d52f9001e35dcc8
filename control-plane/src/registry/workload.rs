//! What a workload says of itself, checked. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use thiserror::Error;
use weft_identity::SpiffeId;
use weft_proto::weft::v1;
use weft_xds::resource::Health;

use crate::index::{ServiceKey, WorkloadEntry, WorkloadPort};

/// Why a registration is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {message}")]
pub struct Refused {
    /// Of the message.
    pub field: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Reads the first message of a stream. `peer`: where the stream comes from.
/// # Errors
/// A field is not acceptable.
pub fn read(message: v1::Workload, identity: SpiffeId, peer: IpAddr) -> Result<WorkloadEntry, Refused> {
    let namespace = label("namespace", &message.namespace)?;
    let service = label("service", &message.service)?;
    let instance = instance(&message.instance)?;
    let address = address(&message.address, message.port, peer)?;
    let ports = ports(message.ports)?;
    let weight = match message.weight {
        0 => 1,
        weight @ 1..=1000 => weight,
        other => return refuse("weight", format!("{other} is out of range; it is 1 to 1000")),
    };
    let labels = labels(message.labels, &service, &message.version)?;
    Ok(WorkloadEntry {
        id: format!("{namespace}/{service}/{instance}").into(),
        service: ServiceKey::new(namespace, service),
        identity,
        address,
        ports,
        weight,
        labels: Arc::new(labels),
        region: text("region", message.region)?.into(),
        zone: text("zone", message.zone)?.into(),
        health: if message.healthy { Health::Healthy } else { Health::Unhealthy },
    })
}

/// An address that others can reach and that belongs, as far as can be told, to who names it. Empty: the peer's own.
fn address(address: &str, port: u32, peer: IpAddr) -> Result<SocketAddr, Refused> {
    let port = match u16::try_from(port) {
        Ok(port) if port > 0 => port,
        _ => return refuse("port", format!("{port} is not a port; it is 1 to 65535")),
    };
    let peer = peer.to_canonical();
    if address.is_empty() {
        return Ok(SocketAddr::new(peer, port));
    }
    let Ok(ip) = address.parse::<IpAddr>() else {
        return refuse("address", format!("`{address}` is not an IP address"));
    };
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_unspecified() || ip.is_multicast() || link_local {
        return refuse("address", format!("{ip} is not an address that other sidecars can reach this workload at"));
    }
    if ip.is_loopback() && !peer.is_loopback() {
        let message = format!(
            "{ip} is this machine's own, but the registration comes from {peer}: name an address \
                               that other sidecars can reach (--address)"
        );
        return refuse("address", message);
    }
    Ok(SocketAddr::new(ip, port))
}

fn ports(ports: Vec<v1::WorkloadPort>) -> Result<Vec<WorkloadPort>, Refused> {
    if ports.is_empty() || ports.len() > MAX_PORTS {
        return refuse("ports", format!("{} ports; a workload serves 1 to {MAX_PORTS}", ports.len()));
    }
    let mut known = BTreeMap::new();
    for port in ports {
        let number = match u16::try_from(port.port) {
            Ok(number) if number > 0 => number,
            _ => return refuse("ports", format!("{} is not a port; it is 1 to 65535", port.port)),
        };
        if !matches!(port.protocol.as_str(), "" | "http" | "http2" | "grpc" | "tcp") {
            return refuse(
                "ports",
                format!("`{}` is not a protocol: http, http2, grpc, tcp or nothing", port.protocol),
            );
        }
        let name = if port.name.is_empty() { String::new() } else { label("ports", &port.name)? };
        let app = match u16::try_from(port.app_port) {
            Ok(0) => number,
            Ok(app) => app,
            Err(_) => return refuse("ports", format!("app_port {} is not a port; it is 1 to 65535", port.app_port)),
        };
        let entry = WorkloadPort { name: name.into(), port: number, protocol: port.protocol.into(), app };
        if known.insert(number, entry).is_some() {
            return refuse("ports", format!("port {number} is there twice"));
        }
    }
    Ok(known.into_values().collect())
}

fn labels(
    labels: impl IntoIterator<Item = (String, String)>,
    service: &str,
    version: &str,
) -> Result<BTreeMap<String, String>, Refused> {
    let mut all = BTreeMap::new();
    for (key, value) in labels {
        if key.is_empty() || key.len() > 316 || value.len() > 63 || !key.chars().chain(value.chars()).all(printable) {
            return refuse("labels", format!("`{key}: {value}` is not a label: up to 63 printable characters"));
        }
        all.insert(key, value);
    }
    if all.len() > MAX_LABELS {
        return refuse("labels", format!("{} labels; at most {MAX_LABELS}", all.len()));
    }
    if !version.is_empty() {
        let version = text("version", version.to_owned())?;
        all.entry("version".into()).or_insert(version);
    }
    // Not for the workload to choose: selectors trust it.
    all.insert(SERVICE_LABEL.into(), service.into());
    Ok(all)
}

fn instance(name: &str) -> Result<String, Refused> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 253 || !name.chars().all(valid) {
        return refuse("instance", format!("`{name}` is not a name: letters, digits, `.`, `_` and `-`, at most 253"));
    }
    Ok(name.into())
}

fn label(field: &'static str, name: &str) -> Result<String, Refused> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = !name.starts_with('-') && !name.ends_with('-');
    if name.is_empty() || name.len() > 63 || !edges || !name.chars().all(valid) {
        return refuse(field, format!("`{name}` is not a DNS label: lower-case letters, digits and `-`, at most 63"));
    }
    Ok(name.into())
}

fn text(field: &'static str, text: String) -> Result<String, Refused> {
    if text.len() > 63 || !text.chars().all(printable) {
        return refuse(field, "longer than 63 characters, or with control characters".into());
    }
    Ok(text)
}

fn printable(c: char) -> bool {
    !c.is_control()
}

fn refuse<T>(field: &'static str, message: String) -> Result<T, Refused> {
    Err(Refused { field, message })
}

/// Label that every workload carries: the service that it registered for.
pub const SERVICE_LABEL: &str = "weft.mesh/service";
const MAX_PORTS: usize = 64;
const MAX_LABELS: usize = 64;

#[cfg(test)]
mod tests {
    use weft_identity::TrustDomain;

    use super::*;

    fn workload() -> v1::Workload {
        v1::Workload {
            instance: "host-1.x".into(),
            namespace: "default".into(),
            service: "orders".into(),
            address: "10.0.0.7".into(),
            port: 15006,
            ports: vec![v1::WorkloadPort { port: 8080, protocol: "http".into(), ..v1::WorkloadPort::default() }],
            version: "v2".into(),
            healthy: true,
            ..v1::Workload::default()
        }
    }

    fn read_from(message: v1::Workload, peer: &str) -> Result<WorkloadEntry, Refused> {
        let identity = SpiffeId::new(&TrustDomain::parse("weft.local").unwrap(), "default", "orders").unwrap();
        read(message, identity, peer.parse().unwrap())
    }

    #[test]
    fn takes_what_is_right() {
        let entry = read_from(workload(), "10.0.0.7").unwrap();
        assert_eq!(&*entry.id, "default/orders/host-1.x");
        assert_eq!(entry.address, "10.0.0.7:15006".parse().unwrap());
        assert_eq!(entry.weight, 1);
        assert_eq!(entry.labels["version"], "v2");
        assert_eq!(entry.labels[SERVICE_LABEL], "orders");
    }

    #[test]
    fn an_application_listens_on_its_port_unless_it_says_otherwise() {
        for (app_port, app) in [(0, Ok(8080)), (9090, Ok(9090)), (70_000, Err("ports"))] {
            let port = v1::WorkloadPort { app_port, ..workload().ports[0].clone() };
            let read = read_from(v1::Workload { ports: vec![port], ..workload() }, "10.0.0.7");
            assert_eq!(read.map(|entry| entry.ports[0].app).map_err(|refused| refused.field), app);
        }
    }

    #[test]
    fn the_service_label_is_not_the_workloads_to_choose() {
        let labels = [(SERVICE_LABEL.to_owned(), "payments".to_owned())].into();
        let entry = read_from(v1::Workload { labels, ..workload() }, "10.0.0.7").unwrap();
        assert_eq!(entry.labels[SERVICE_LABEL], "orders");
    }

    #[test]
    fn addresses() {
        for (address, peer, result) in [
            ("", "10.0.0.9", Ok("10.0.0.9")),
            ("", "::ffff:10.0.0.9", Ok("10.0.0.9")),
            ("192.168.1.2", "10.0.0.9", Ok("192.168.1.2")),
            ("fd00::1", "10.0.0.9", Ok("fd00::1")),
            ("127.0.0.1", "127.0.0.1", Ok("127.0.0.1")),
            ("127.0.0.1", "10.0.0.9", Err("address")),
            ("::1", "10.0.0.9", Err("address")),
            ("0.0.0.0", "10.0.0.9", Err("address")),
            ("::", "10.0.0.9", Err("address")),
            ("169.254.169.254", "10.0.0.9", Err("address")),
            ("::ffff:169.254.169.254", "10.0.0.9", Err("address")),
            ("224.0.0.1", "10.0.0.9", Err("address")),
            ("255.255.255.255", "10.0.0.9", Err("address")),
            ("fe80::1", "10.0.0.9", Err("address")),
            ("orders.example", "10.0.0.9", Err("address")),
        ] {
            let read = read_from(v1::Workload { address: address.into(), ..workload() }, peer);
            let read = read.map(|entry| entry.address.ip().to_string()).map_err(|refused| refused.field);
            assert_eq!(read.as_deref().map_err(|field| *field), result, "{address} from {peer}");
        }
    }

    #[test]
    fn refuses_and_names_the_field() {
        let twice = vec![workload().ports[0].clone(), workload().ports[0].clone()];
        for (message, field) in [
            (v1::Workload { instance: "a/b".into(), ..workload() }, "instance"),
            (v1::Workload { instance: String::new(), ..workload() }, "instance"),
            (v1::Workload { service: "Orders".into(), ..workload() }, "service"),
            (v1::Workload { namespace: "-".into(), ..workload() }, "namespace"),
            (v1::Workload { port: 0, ..workload() }, "port"),
            (v1::Workload { port: 70000, ..workload() }, "port"),
            (v1::Workload { weight: 1001, ..workload() }, "weight"),
            (v1::Workload { ports: vec![], ..workload() }, "ports"),
            (v1::Workload { ports: twice, ..workload() }, "ports"),
            (v1::Workload { zone: "z\n".into(), ..workload() }, "zone"),
            (v1::Workload { labels: [("a".into(), "b\r\n".into())].into(), ..workload() }, "labels"),
        ] {
            assert_eq!(read_from(message, "10.0.0.7").unwrap_err().field, field);
        }
    }
}
