//! Texts of flags → values. Every error names the flag, what was given and how to write it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use weft_telemetry::log::Format;
use weft_xds::resource::Protocol;

use super::{AccessLog, Advertised, HealthCheck, JOIN_TOKEN, Port, SettingsError, TokenSource, UpstreamPort};

pub(super) const ACCESS_LOG: &[(&str, AccessLog)] =
    &[("off", AccessLog::Off), ("failures", AccessLog::Failures), ("all", AccessLog::All)];
pub(super) const FORMAT: &[(&str, Format)] = &[("json", Format::Json), ("text", Format::Text)];
pub(super) const HEALTH_CHECK: &[(&str, HealthCheck)] = &[("tcp", HealthCheck::Tcp), ("off", HealthCheck::Off)];
const PROTOCOL: &[(&str, Protocol)] = &[
    ("http", Protocol::Http),
    ("http2", Protocol::Http2),
    ("grpc", Protocol::Grpc),
    ("tcp", Protocol::Tcp),
    ("detect", Protocol::Detect),
];
const PORT_FORM: &str = "write [NAME=]PORT[:APP_PORT][/PROTOCOL], as in 80:8080/http";
const UPSTREAM_FORM: &str = "write [IP:]PORT=SERVICE:PORT, as in 5432=database:5432";

pub(super) fn missing(flag: &'static str, remedy: &str) -> SettingsError {
    SettingsError::new(flag, "", "is needed", remedy)
}

pub(super) fn choice<T: Copy>(flag: &'static str, value: &str, choices: &[(&str, T)]) -> Result<T, SettingsError> {
    if let Some((_, chosen)) = choices.iter().find(|(name, _)| *name == value) {
        return Ok(*chosen);
    }
    let names = choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    Err(SettingsError::new(flag, value, "not one of the choices", format!("use one of {names}")))
}

/// A DNS label: what names of services and namespaces are.
pub(super) fn label(flag: &'static str, value: String) -> Result<Box<str>, SettingsError> {
    if is_label(&value) {
        return Ok(value.into());
    }
    let remedy = "use at most 63 of a-z, 0-9 and `-`, beginning and ending with a letter or digit";
    Err(SettingsError::new(flag, value, "not a name", remedy))
}

fn is_label(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    matches!(bytes, [first, .., last] if alphanumeric(*first) && alphanumeric(*last) && bytes.len() <= 63)
        && bytes.iter().all(|&byte| alphanumeric(byte) || byte == b'-')
        || matches!(bytes, [only] if alphanumeric(*only))
}

pub(super) fn duration(flag: &'static str, value: &str, example: &str) -> Result<Duration, SettingsError> {
    humantime::parse_duration(value)
        .map_err(|error| SettingsError::new(flag, value, error, format!("write a number and a unit, as in {example}")))
}

pub(super) fn address(flag: &'static str, value: &str, example: &str) -> Result<SocketAddr, SettingsError> {
    let value = value.trim();
    value.parse().or_else(|error| {
        // A bare port is the example's address with that port: what people mean by `--outbound 8001`.
        let default: SocketAddr = example.parse().expect("the example is an address");
        value.parse().map(|port| SocketAddr::new(default.ip(), port)).map_err(|_not_a_port: std::num::ParseIntError| {
            SettingsError::new(flag, value, error, format!("write IP:PORT, as in {example}"))
        })
    })
}

pub(super) fn endpoint(flag: &'static str, value: String) -> Result<Box<str>, SettingsError> {
    let remedy = "write HOST:PORT without a scheme, as in mesh.example:15010";
    if value.contains("://") || value.contains('/') {
        return Err(SettingsError::new(flag, value, "has a scheme or a path", remedy));
    }
    match value.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(value.into()),
        _ => Err(SettingsError::new(flag, value, "has no port", remedy)),
    }
}

pub(super) fn join_token(text: Option<String>, file: Option<PathBuf>) -> Result<Option<TokenSource>, SettingsError> {
    match (text.filter(|text| !text.trim().is_empty()), file) {
        (Some(_), Some(file)) => {
            let remedy = format!("unset one of them; {JOIN_TOKEN} is set, too");
            Err(SettingsError::new("--join-token-file", file.display().to_string(), "two join tokens", remedy))
        }
        (Some(text), None) => Ok(Some(TokenSource::Text(text.into()))),
        (None, Some(file)) => Ok(Some(TokenSource::File(file))),
        (None, None) => Ok(None),
    }
}

pub(super) fn port(spec: &str) -> Result<Port, SettingsError> {
    let wrong = |problem: &str| SettingsError::new("--port", spec, problem, PORT_FORM);
    let number = |text: &str| match text.trim().parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(wrong(&format!("`{text}` is not a port"))),
    };
    let (name, rest) = spec.trim().split_once('=').unwrap_or(("", spec.trim()));
    if !name.is_empty() && !is_label(name) {
        return Err(wrong(&format!("`{name}` is not a name")));
    }
    let (numbers, protocol) = rest.split_once('/').unwrap_or((rest, "detect"));
    let (port, app_port) = numbers.split_once(':').unwrap_or((numbers, numbers));
    let Some((_, protocol)) = PROTOCOL.iter().find(|(name, _)| *name == protocol) else {
        return Err(wrong(&format!("`{protocol}` is not a protocol; there are http, http2, grpc, tcp and detect")));
    };
    Ok(Port { name: name.into(), port: number(port)?, app_port: number(app_port)?, protocol: *protocol })
}

pub(super) fn distinct_ports(ports: &[Port]) -> Result<(), SettingsError> {
    for (index, port) in ports.iter().enumerate() {
        let earlier = &ports[..index];
        if earlier.iter().any(|other| other.port == port.port) {
            let port = port.port.to_string();
            return Err(SettingsError::new("--port", port, "given twice", "give each port of the service once"));
        }
        if !port.name.is_empty() && earlier.iter().any(|other| other.name == port.name) {
            return Err(SettingsError::new("--port", &*port.name, "two ports of this name", "name them differently"));
        }
    }
    Ok(())
}

pub(super) fn upstream(spec: &str, namespace: &str) -> Result<UpstreamPort, SettingsError> {
    let spec = spec.trim();
    let wrong = |problem: String| SettingsError::new("--upstream", spec, problem, UPSTREAM_FORM);
    let Some((listen, service)) = spec.split_once('=') else {
        return Err(wrong("has no `=`".to_owned()));
    };
    let listen = match listen.parse::<u16>() {
        Ok(port) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
        Err(_not_a_port) => listen.parse().map_err(|error| wrong(format!("`{listen}`: {error}")))?,
    };
    let Some((host, port)) = service.rsplit_once(':') else {
        return Err(wrong(format!("`{service}` names no port")));
    };
    let port =
        port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| wrong(format!("`{port}` is not a port")))?;
    let host = canonical(host, namespace).ok_or_else(|| wrong(format!("`{host}` is not the name of a service")))?;
    Ok(UpstreamPort { spec: spec.into(), listen, authority: format!("{host}:{port}").into() })
}

/// `orders`, `orders.shop`, `orders.shop.svc…` and `orders.shop.mesh` → `orders.shop`.
fn canonical(host: &str, namespace: &str) -> Option<String> {
    let host = host.to_ascii_lowercase();
    let mut labels = host.trim_end_matches('.').splitn(3, '.');
    let name = labels.next().filter(|name| is_label(name))?;
    let namespace = labels.next().unwrap_or(namespace);
    let known = matches!(labels.next(), None | Some("svc" | "svc.cluster.local" | "mesh"));
    (known && is_label(namespace)).then(|| format!("{name}.{namespace}"))
}

pub(super) fn advertised(value: &str) -> Result<Advertised, SettingsError> {
    if let Ok(ip) = IpAddr::from_str(value) {
        return usable(value, Advertised { ip, port: None });
    }
    match SocketAddr::from_str(value) {
        Ok(address) => usable(value, Advertised { ip: address.ip(), port: Some(address.port()) }),
        Err(error) => Err(SettingsError::new("--address", value, error, "write IP or IP:PORT, as in 10.0.0.7")),
    }
}

fn usable(value: &str, advertised: Advertised) -> Result<Advertised, SettingsError> {
    if advertised.ip.is_unspecified() || advertised.port == Some(0) {
        let remedy = "write the address by which other sidecars reach this one";
        return Err(SettingsError::new("--address", value, "nobody can call this", remedy));
    }
    Ok(advertised)
}

pub(super) fn key_value(pair: &str) -> Result<(String, String), SettingsError> {
    match pair.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err(SettingsError::new("--labels", pair, "has no key and value", "write key=value,key=value")),
    }
}

pub(super) fn workers(asked: Option<usize>, cores: usize) -> Result<usize, SettingsError> {
    match asked {
        // More threads cost memory in every sidecar of the machine; two carry what one service gets.
        None => Ok(cores.clamp(1, 2)),
        Some(workers @ 1..=256) => Ok(workers),
        Some(other) => Err(SettingsError::new("--workers", other.to_string(), "out of range", "use 1 to 256")),
    }
}
