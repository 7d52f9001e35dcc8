//! Ports of a service: compose's `ports` and `expose`, an image's EXPOSE, and the label that names what flows.

use std::fmt;

use serde_json::Value;

use super::InjectError;

/// What flows at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2.
    Http,
    /// HTTP/2 alone.
    Http2,
    /// gRPC.
    Grpc,
    /// Bytes.
    Tcp,
    /// The first bytes of a connection tell.
    Detect,
}

impl Protocol {
    const ALL: [(&str, Self); 5] = [
        ("http", Self::Http),
        ("http2", Self::Http2),
        ("grpc", Self::Grpc),
        ("tcp", Self::Tcp),
        ("detect", Self::Detect),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, protocol)| *protocol)
    }

    /// As flags have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, known)| *known == self).map_or("detect", |(name, _)| name)
    }
}

/// A port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// What callers name.
    pub port: u16,
    /// Where the application listens.
    pub app_port: u16,
    /// What flows.
    pub protocol: Protocol,
}

impl fmt::Display for Port {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.port)?;
        if self.app_port != self.port {
            write!(out, ":{}", self.app_port)?;
        }
        match self.protocol {
            Protocol::Detect => Ok(()),
            protocol => write!(out, "/{}", protocol.name()),
        }
    }
}

/// A port as the compose file or the image has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// In the container.
    pub target: u16,
    /// `app_protocol`, where it is one that Weft knows.
    pub protocol: Option<Protocol>,
    /// The host has it, too.
    pub published: bool,
    /// UDP and SCTP are not carried.
    pub tcp: bool,
}

/// An entry of `ports`.
pub fn published(place: &str, value: &Value) -> Result<Vec<Found>, InjectError> {
    if let Value::Object(long) = value {
        let target = long.get("target").map(text).unwrap_or_default();
        let protocol = long.get("app_protocol").and_then(Value::as_str).and_then(Protocol::named);
        let tcp = long.get("protocol").and_then(Value::as_str).is_none_or(|transport| transport == "tcp");
        let found = range(place, &target)?;
        return Ok(found.map(|target| Found { target, protocol, published: true, tcp }).collect());
    }
    // [IP:][HOST:]CONTAINER[/TRANSPORT]
    let short = text(value);
    let (numbers, transport) = short.rsplit_once('/').unwrap_or((&short, "tcp"));
    let target = numbers.rsplit_once(':').map_or(numbers, |(_, target)| target);
    let tcp = transport == "tcp";
    Ok(range(place, target)?.map(|target| Found { target, protocol: None, published: true, tcp }).collect())
}

/// An entry of `expose`, or of an image's EXPOSE.
pub fn exposed(place: &str, value: &str) -> Result<Vec<Found>, InjectError> {
    let (target, transport) = value.split_once('/').unwrap_or((value, "tcp"));
    let tcp = transport == "tcp";
    Ok(range(place, target)?.map(|target| Found { target, protocol: None, published: false, tcp }).collect())
}

/// The label: `8080/http, 80:8081/grpc, 9100`.
pub fn labelled(place: &str, label: &str) -> Result<Vec<Port>, InjectError> {
    let remedy = "write PORT[:APP_PORT][/PROTOCOL], …, as in \"8080/http, 9100/tcp\"; protocols are http, http2, grpc, tcp and detect";
    let wrong = |spec: &str, problem: &str| InjectError::new(place, format!("`{spec}`: {problem}"), remedy);
    let mut ports: Vec<Port> = Vec::new();
    for spec in label.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        let (numbers, protocol) = spec.split_once('/').unwrap_or((spec, "detect"));
        let protocol = Protocol::named(protocol).ok_or_else(|| wrong(spec, "no such protocol"))?;
        let (port, app_port) = numbers.split_once(':').unwrap_or((numbers, numbers));
        let (port, app_port) = (number(port), number(app_port));
        let (Some(port), Some(app_port)) = (port, app_port) else { return Err(wrong(spec, "not a port")) };
        if ports.iter().any(|other| other.port == port) {
            return Err(wrong(spec, "named twice"));
        }
        ports.push(Port { port, app_port, protocol });
    }
    Ok(ports)
}

fn number(text: &str) -> Option<u16> {
    text.trim().parse().ok().filter(|port| *port > 0)
}

fn range(place: &str, text: &str) -> Result<std::ops::RangeInclusive<u16>, InjectError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last && last - first < MOST_PORTS => Ok(first..=last),
        (Some(_), Some(_)) => Err(InjectError::new(
            place,
            format!("`{text}` is not a range of at most {MOST_PORTS} ports"),
            "name the ports that others call with the label weft.mesh/ports",
        )),
        _ => Err(InjectError::new(
            place,
            format!("`{text}` is not a port"),
            "write a number, or name the ports with the label weft.mesh/ports",
        )),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Each is a listener in every caller's sidecar.
const MOST_PORTS: u16 = 64;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_form_of_a_port() {
        let targets = |value: Value| published("p", &value).unwrap().iter().map(|p| p.target).collect::<Vec<_>>();
        assert_eq!(targets(json!("8080:80")), [80]);
        assert_eq!(targets(json!(80)), [80]);
        assert_eq!(targets(json!("127.0.0.1:8080:80/tcp")), [80]);
        assert_eq!(targets(json!("[::1]:8080:80")), [80]);
        assert_eq!(targets(json!("${PORT:-8080}:80")), [80]);
        assert_eq!(targets(json!("3000-3002:4000-4002")), [4000, 4001, 4002]);
        assert_eq!(targets(json!({ "target": 80, "published": "8080" })), [80]);
        assert!(!published("p", &json!("53:53/udp")).unwrap()[0].tcp);
        assert!(!published("p", &json!({ "target": 53, "protocol": "udp" })).unwrap()[0].tcp);
        let long = json!({ "target": 80, "app_protocol": "http2" });
        assert_eq!(published("p", &long).unwrap()[0].protocol, Some(Protocol::Http2));
        for wrong in ["${PORT}", "0", "70000", "1-65535", "9-8"] {
            let error = published("services.a.ports", &json!(wrong)).unwrap_err().to_string();
            assert!(error.starts_with("services.a.ports: `") && error.contains("weft.mesh/ports"), "{error}");
        }
    }

    #[test]
    fn labels_name_what_flows() {
        let ports = labelled("l", "8080/http, 80:8081/grpc,9100").unwrap();
        let shown: Vec<String> = ports.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["8080/http", "80:8081/grpc", "9100"]);
        for wrong in ["http", "80/smtp", "80:0", "80,80"] {
            assert!(labelled("l", wrong).is_err(), "{wrong}");
        }
    }
}
