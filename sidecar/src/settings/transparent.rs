//! Settings of transparent mode: redirected connections, DNS, the mark of own packets, probes in plain text.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::{Args, builder::BoolishValueParser};

use super::{SettingsError, parse::address};

/// The mark on the sidecar's own packets unless `--mark` says otherwise.
pub const MARK: u32 = 0x1577;
/// Where DNS is answered in transparent mode.
pub(super) const DNS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15053);
/// More are a mistake, and each is looked at for each connection in plain text.
const PROBES_AT_MOST: usize = 32;

/// Flags of transparent mode.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Transparent mode")]
pub struct TransparentFlags {
    /// Take connections that rules of this host have redirected (`weft-sidecar init`), IPv4 and IPv6
    ///
    /// The application then calls services by their usual addresses, without a proxy variable.
    #[arg(long, env = "WEFT_TRANSPARENT", global = true, value_parser = BoolishValueParser::new())]
    pub(super) transparent: bool,
    /// Where DNS is answered, or `off`; default: 127.0.0.1:15053 with --transparent, else off
    ///
    /// Names of the mesh get addresses of their own; all else is asked of --dns-servers.
    #[arg(long, env = "WEFT_DNS", global = true, value_name = "IP:PORT")]
    pub(super) dns: Option<String>,
    /// Resolvers for names outside the mesh: IP[:PORT],…; default: those of /etc/resolv.conf
    #[arg(long, env = "WEFT_DNS_SERVERS", global = true, value_name = "IP", value_delimiter = ',')]
    dns_servers: Vec<String>,
    /// Mark on the sidecar's own packets (SO_MARK), which rules let pass: a number, or `off`
    ///
    /// Needs CAP_NET_ADMIN; without it rules tell the sidecar by its user.
    #[arg(long, env = "WEFT_MARK", global = true, value_name = "N", default_value = "0x1577")]
    pub(super) mark: String,
    /// Health probes of the application that may come in plain text: PATH@PORT, tcp@PORT or grpc@PORT, comma separated
    ///
    /// PORT is where the application listens. A probe is answered by the application, so it fails when that is down.
    #[arg(long, env = "WEFT_PROBES", global = true, value_name = "SPEC", value_delimiter = ',')]
    probes: Vec<String>,
    /// Addresses from which probes come: IP,…; default: any
    #[arg(long, env = "WEFT_PROBE_SOURCE", global = true, value_name = "IP", value_delimiter = ',')]
    probe_source: Vec<String>,
}

/// What transparent mode obeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transparent {
    /// Redirected connections are taken.
    pub on: bool,
    /// Where DNS is answered. `None`: nowhere.
    pub dns: Option<SocketAddr>,
    /// Resolvers for names outside the mesh; empty: those of `/etc/resolv.conf`.
    pub dns_servers: Vec<SocketAddr>,
    /// Mark on own packets. `None`: none.
    pub mark: Option<u32>,
    /// Probes that may come in plain text.
    pub probes: Vec<Probe>,
    /// Where probes come from; empty: anywhere.
    pub probe_sources: Vec<IpAddr>,
}

/// A health probe of the application that may come in plain text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// How it asks.
    pub kind: ProbeKind,
    /// Where the application listens.
    pub port: u16,
}

/// How a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeKind {
    /// `GET` of a path, with its query if it has one.
    Http(Box<str>),
    /// A connection.
    Tcp,
    /// `grpc.health.v1.Health/Check`.
    Grpc,
}

impl Transparent {
    /// Checks the flags.
    ///
    /// # Errors
    /// The first one that cannot be obeyed.
    pub fn new(flags: &TransparentFlags) -> Result<Self, SettingsError> {
        if flags.probes.len() > PROBES_AT_MOST {
            let count = flags.probes.len().to_string();
            return Err(SettingsError::new("--probes", count, "too many", format!("use at most {PROBES_AT_MOST}")));
        }
        Ok(Self {
            on: flags.transparent,
            dns: dns(flags.dns.as_deref(), flags.transparent)?,
            dns_servers: flags.dns_servers.iter().map(|text| dns_server(text)).collect::<Result<_, _>>()?,
            mark: mark(&flags.mark)?,
            probes: flags.probes.iter().map(|text| probe(text)).collect::<Result<_, _>>()?,
            probe_sources: flags.probe_source.iter().map(|text| probe_source(text)).collect::<Result<_, _>>()?,
        })
    }
}

fn dns(given: Option<&str>, transparent: bool) -> Result<Option<SocketAddr>, SettingsError> {
    match given.map(str::trim) {
        None => Ok(transparent.then_some(DNS)),
        Some("off") => Ok(None),
        Some(text) => {
            let at = address("--dns", text, "127.0.0.1:15053")?;
            // Anyone who can ask has the host's resolvers, and the mesh's names, at their disposal.
            if !at.ip().is_loopback() {
                let remedy = "use a loopback address, as in 127.0.0.1:15053: only this host's applications may ask";
                return Err(SettingsError::new("--dns", text, "open to others", remedy));
            }
            Ok(Some(at))
        }
    }
}

fn dns_server(text: &str) -> Result<SocketAddr, SettingsError> {
    const PORT: u16 = 53;
    let text = text.trim();
    let server = match text.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, PORT)),
        Err(_not_an_ip) => text.parse::<SocketAddr>().ok(),
    };
    server.filter(|server| !server.ip().is_unspecified() && server.port() > 0).ok_or_else(|| {
        SettingsError::new("--dns-servers", text, "not a resolver's address", "write IP or IP:PORT, as in 10.0.0.53")
    })
}

/// A number, decimal or hexadecimal; `off` is none.
pub(super) fn mark(text: &str) -> Result<Option<u32>, SettingsError> {
    let text = text.trim();
    if text == "off" {
        return Ok(None);
    }
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match number {
        Ok(mark) if mark > 0 => Ok(Some(mark)),
        // Every packet without a mark has mark 0.
        Ok(_zero) => Err(SettingsError::new("--mark", text, "no mark at all", "use 1 to 0xffffffff, or `off`")),
        Err(error) => Err(SettingsError::new("--mark", text, error, "write a number, as in 0x1577, or `off`")),
    }
}

fn probe(text: &str) -> Result<Probe, SettingsError> {
    const FORM: &str = "write PATH@PORT, tcp@PORT or grpc@PORT, as in /healthz@8080";
    let text = text.trim();
    let wrong = |problem: &str| SettingsError::new("--probes", text, problem, FORM);
    let (what, port) = text.rsplit_once('@').ok_or_else(|| wrong("has no `@`"))?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong("its port is not a port"))?;
    let kind = match what {
        "tcp" => ProbeKind::Tcp,
        "grpc" => ProbeKind::Grpc,
        path if path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()) => {
            ProbeKind::Http(path.into())
        }
        _ => return Err(wrong("neither a path nor `tcp` nor `grpc`")),
    };
    Ok(Probe { kind, port })
}

fn probe_source(text: &str) -> Result<IpAddr, SettingsError> {
    let text = text.trim();
    text.parse().map_err(|error| {
        SettingsError::new("--probe-source", text, error, "write the IP addresses of who probes, as in 10.0.0.1")
    })
}
