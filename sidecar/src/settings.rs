//! Settings: flags and `WEFT_*` variables, checked once at start.
//!
//! [`Flags`] is what clap reads; [`Settings`] is what the sidecar obeys. An error names the flag, the value and what to
//! do about it.

mod accounts;
mod cli;
mod launch;
mod parse;
mod redirect;
mod transparent;

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use thiserror::Error;
use weft_identity::TrustDomain;
use weft_telemetry::log::Format;
use weft_xds::resource::Protocol;

use self::parse::{
    ACCESS_LOG, FORMAT, HEALTH_CHECK, address, advertised, choice, distinct_ports, duration, endpoint, join_token,
    key_value, label, missing, port, upstream, workers,
};
pub use self::{
    accounts::{Accounts, AppUser},
    cli::{Cli, Command},
    launch::{Launch, LaunchFlags, Own},
    redirect::{Init, InitFlags, PauseFlags, Redirect, RedirectFlags},
    transparent::{MARK, Probe, ProbeKind, Transparent, TransparentFlags},
};

/// The variable with the join token; there is no flag, since flags are visible to every user of the machine.
pub const JOIN_TOKEN: &str = "WEFT_JOIN_TOKEN";

/// The flags. All are global: they may stand before or after the subcommand.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Mesh")]
pub struct Flags {
    /// Address of the control plane's gRPC port
    #[arg(long, env = "WEFT_CONTROL_PLANE", global = true, value_name = "HOST:PORT")]
    control_plane: Option<String>,
    /// File with the join token (or the token itself in WEFT_JOIN_TOKEN); needed until there is a certificate
    #[arg(long, env = "WEFT_JOIN_TOKEN_FILE", global = true, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    /// Root certificates of the control plane, PEM; needed when that file holds a Kubernetes service-account token
    ///
    /// A join token names the CA that the first contact must show; a service-account token does not. The control plane
    /// publishes the file as the ConfigMap `weft-root`.
    #[arg(long, env = "WEFT_CA_FILE", global = true, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Trust domain of the mesh
    #[arg(long, env = "WEFT_TRUST_DOMAIN", global = true, value_name = "NAME", default_value = "weft.local")]
    trust_domain: String,
    /// Namespace of the service
    #[arg(long, env = "WEFT_NAMESPACE", global = true, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// Name of the service
    #[arg(long, env = "WEFT_SERVICE", global = true, value_name = "NAME")]
    service: Option<String>,
    /// A port of the service: [NAME=]PORT[:APP_PORT][/PROTOCOL], where PROTOCOL is http, http2, grpc, tcp or detect
    ///
    /// PORT is what callers name; APP_PORT is where the application listens on --app-address (default: PORT). Without
    /// PROTOCOL the first bytes of a connection tell. Repeat the flag for more ports; WEFT_PORTS takes a comma list.
    #[arg(long = "port", env = "WEFT_PORTS", global = true, value_name = "SPEC", value_delimiter = ',')]
    ports: Vec<String>,
    /// Labels of this workload: key=value,…
    #[arg(long, env = "WEFT_LABELS", global = true, value_name = "K=V", value_delimiter = ',')]
    labels: Vec<String>,
    /// Version of the application, also its label `version`
    #[arg(long, env = "WEFT_APP_VERSION", global = true, value_name = "TEXT")]
    app_version: Option<String>,
    /// Share of the traffic relative to the other workloads, 1 to 1000
    #[arg(long, env = "WEFT_WEIGHT", global = true, default_value_t = 1, value_name = "N")]
    weight: u32,
    /// Region of this workload
    #[arg(long, env = "WEFT_REGION", global = true, value_name = "NAME")]
    region: Option<String>,
    /// Zone of this workload
    #[arg(long, env = "WEFT_ZONE", global = true, value_name = "NAME")]
    zone: Option<String>,
    /// Directory for certificate, key and last known configuration; default: weft-data/SERVICE
    #[arg(long, env = "WEFT_DATA_DIR", global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Where the application calls the mesh
    #[arg(
        long,
        env = "WEFT_OUTBOUND",
        global = true,
        default_value = "127.0.0.1:15001",
        value_name = "IP:PORT",
        help_heading = "Addresses (port 0: any free port; see addresses.json in the data directory)"
    )]
    outbound: String,
    /// Where other sidecars call
    #[arg(
        long,
        env = "WEFT_INBOUND",
        global = true,
        default_value = "0.0.0.0:15006",
        value_name = "IP:PORT",
        help_heading = "Addresses (port 0: any free port; see addresses.json in the data directory)"
    )]
    inbound: String,
    /// Admin pages; loopback only
    #[arg(
        long,
        env = "WEFT_ADMIN",
        global = true,
        default_value = "127.0.0.1:15000",
        value_name = "IP:PORT",
        help_heading = "Addresses (port 0: any free port; see addresses.json in the data directory)"
    )]
    admin: String,
    /// Prometheus metrics and health
    #[arg(
        long,
        env = "WEFT_METRICS",
        global = true,
        default_value = "0.0.0.0:15020",
        value_name = "IP:PORT",
        help_heading = "Addresses (port 0: any free port; see addresses.json in the data directory)"
    )]
    metrics: String,
    /// Address that other sidecars are told, IP or IP:PORT; default: the one that reaches the control plane
    #[arg(
        long,
        env = "WEFT_ADDRESS",
        global = true,
        value_name = "IP[:PORT]",
        help_heading = "Addresses (port 0: any free port; see addresses.json in the data directory)"
    )]
    address: Option<String>,
    /// Address on which the application listens
    #[arg(
        long,
        env = "WEFT_APP_ADDRESS",
        global = true,
        default_value = "127.0.0.1",
        value_name = "IP",
        help_heading = "Addresses (port 0: any free port; see addresses.json in the data directory)"
    )]
    app_address: String,
    /// A local port for an upstream: [IP:]PORT=SERVICE:PORT; for protocols that name no host
    ///
    /// Repeat the flag for more; WEFT_UPSTREAMS takes a comma list.
    #[arg(
        long = "upstream",
        env = "WEFT_UPSTREAMS",
        global = true,
        value_delimiter = ',',
        value_name = "SPEC",
        help_heading = "Addresses (port 0: any free port; see addresses.json in the data directory)"
    )]
    upstreams: Vec<String>,

    #[command(flatten)]
    transparent: TransparentFlags,

    /// Worker threads; default: the number of cores, at most 2
    #[arg(long, env = "WEFT_WORKERS", global = true, value_name = "N", help_heading = "Behaviour")]
    workers: Option<usize>,
    /// How long requests may take to end when the sidecar is stopped
    #[arg(
        long,
        env = "WEFT_DRAIN",
        global = true,
        default_value = "30s",
        value_name = "TIME",
        help_heading = "Behaviour"
    )]
    drain: String,
    /// How long the first call to a service waits for its configuration
    #[arg(
        long,
        env = "WEFT_ON_DEMAND_WAIT",
        global = true,
        default_value = "2s",
        value_name = "TIME",
        help_heading = "Behaviour"
    )]
    on_demand_wait: String,
    /// A service that has not been called for this long is forgotten
    #[arg(
        long,
        env = "WEFT_ON_DEMAND_IDLE",
        global = true,
        default_value = "10m",
        value_name = "TIME",
        help_heading = "Behaviour"
    )]
    on_demand_idle: String,
    /// Check of the application: `tcp` connects to its first port every second, `off` trusts it
    #[arg(
        long,
        env = "WEFT_HEALTH_CHECK",
        global = true,
        default_value = "tcp",
        value_name = "KIND",
        help_heading = "Behaviour"
    )]
    health_check: String,

    /// Requests that get a line: off, failures or all
    #[arg(
        long,
        env = "WEFT_ACCESS_LOG",
        global = true,
        default_value = "failures",
        value_name = "WHICH",
        help_heading = "Logs"
    )]
    access_log: String,
    /// json or text
    #[arg(
        long,
        env = "WEFT_ACCESS_LOG_FORMAT",
        global = true,
        default_value = "json",
        value_name = "FORMAT",
        help_heading = "Logs"
    )]
    access_log_format: String,
    /// Filter: a level, or targets such as info,weft_sidecar::xds=debug
    #[arg(long, env = "WEFT_LOG", global = true, default_value = "info", value_name = "FILTER", help_heading = "Logs")]
    log: String,
    /// text or json
    #[arg(
        long,
        env = "WEFT_LOG_FORMAT",
        global = true,
        default_value = "text",
        value_name = "FORMAT",
        help_heading = "Logs"
    )]
    log_format: String,
}

/// What the sidecar obeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `host:port` of the control plane's gRPC port.
    pub control_plane: Box<str>,
    /// Where the join token comes from.
    pub join_token: Option<TokenSource>,
    /// What the control plane's certificate must lead to while no join token pins it.
    pub ca_file: Option<PathBuf>,
    /// Trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// Namespace of the service.
    pub namespace: Box<str>,
    /// Name of the service.
    pub service: Box<str>,
    /// Ports of the service; empty for a mere caller.
    pub ports: Vec<Port>,
    /// Where the application listens.
    pub app_address: IpAddr,
    /// Certificate, key, cache.
    pub data_dir: PathBuf,
    /// Where the application calls the mesh.
    pub outbound: SocketAddr,
    /// Where other sidecars call.
    pub inbound: SocketAddr,
    /// Admin pages; loopback.
    pub admin: SocketAddr,
    /// Metrics and health.
    pub metrics: SocketAddr,
    /// What other sidecars are told. `None`: found out.
    pub address: Option<Advertised>,
    /// Labels of the workload.
    pub labels: BTreeMap<String, String>,
    /// Version of the application, empty when not given.
    pub app_version: Box<str>,
    /// 1 to 1000.
    pub weight: u32,
    /// Empty when not given.
    pub region: Box<str>,
    /// Empty when not given.
    pub zone: Box<str>,
    /// Local ports for upstreams.
    pub upstreams: Vec<UpstreamPort>,
    /// At least 1.
    pub workers: usize,
    /// Which requests get a line.
    pub access_log: AccessLog,
    /// How an access line looks.
    pub access_log_format: Format,
    /// Filter of the log.
    pub log: Box<str>,
    /// How a log line looks.
    pub log_format: Format,
    /// How long requests may take to end when the sidecar is stopped.
    pub drain: Duration,
    /// How long the first call to a service waits for its configuration.
    pub on_demand_wait: Duration,
    /// A service that has not been called for this long is forgotten.
    pub on_demand_idle: Duration,
    /// How the application is checked.
    pub health_check: HealthCheck,
    /// Redirected connections, DNS, mark, probes.
    pub transparent: Transparent,
}

/// Where the join token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// From the environment.
    Text(Box<str>),
    /// Read anew at each use, so that a replaced file is noticed.
    File(PathBuf),
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => out.write_str("Text(redacted)"),
            Self::File(path) => out.debug_tuple("File").field(path).finish(),
        }
    }
}

impl TokenSource {
    /// The token's text.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self) -> Result<String, SettingsError> {
        match self {
            Self::Text(text) => Ok(text.trim().to_owned()),
            Self::File(path) => fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|error| {
                let path = path.display().to_string();
                SettingsError::new("--join-token-file", path, error, "make a token with `weft token create`")
            }),
        }
    }
}

/// A port of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Empty when not given.
    pub name: Box<str>,
    /// What callers name.
    pub port: u16,
    /// Where the application listens.
    pub app_port: u16,
    /// What flows.
    pub protocol: Protocol,
}

/// What other sidecars are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advertised {
    /// Address.
    pub ip: IpAddr,
    /// `None`: the inbound port.
    pub port: Option<u16>,
}

/// A local port for an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamPort {
    /// As given, the key in `addresses.json`.
    pub spec: Box<str>,
    /// Where the sidecar listens.
    pub listen: SocketAddr,
    /// Canonical authority: `inventory.default:9000`.
    pub authority: Box<str>,
}

/// Which requests get a line in the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    Off,
    /// Those that failed.
    Failures,
    /// All.
    All,
}

/// How the application is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthCheck {
    /// A connection to its first port every second.
    Tcp,
    /// It is taken to be healthy.
    Off,
}

/// A setting that cannot be obeyed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{flag} `{value}`: {problem}; {remedy}")]
pub struct SettingsError {
    flag: &'static str,
    value: String,
    problem: String,
    remedy: String,
}

impl SettingsError {
    fn new(flag: &'static str, value: impl Into<String>, problem: impl ToString, remedy: impl Into<String>) -> Self {
        Self { flag, value: value.into(), problem: problem.to_string(), remedy: remedy.into() }
    }
}

/// How long `wait` waits.
///
/// # Errors
/// It is no time.
pub fn patience(timeout: &str) -> Result<Duration, SettingsError> {
    duration("--timeout", timeout, "60s")
}

impl Flags {
    /// Where metrics and health are.
    ///
    /// # Errors
    /// It is no address.
    pub fn metrics(&self) -> Result<SocketAddr, SettingsError> {
        address("--metrics", &self.metrics, "0.0.0.0:15020")
    }
}

impl Settings {
    /// Checks the flags. `token`: content of [`JOIN_TOKEN`]; `cores`: of the machine.
    ///
    /// # Errors
    /// The first setting that cannot be obeyed.
    pub fn new(flags: Flags, token: Option<String>, cores: usize) -> Result<Self, SettingsError> {
        let metrics = flags.metrics()?;
        let namespace = label("--namespace", flags.namespace)?;
        let Some(service) = flags.service else {
            return Err(missing("--service", "name the service beside which this sidecar runs"));
        };
        let service = label("--service", service)?;
        let Some(control_plane) = flags.control_plane else {
            return Err(missing("--control-plane", "give the address of the control plane, as in mesh.example:15010"));
        };
        let ports = flags.ports.iter().map(|spec| port(spec)).collect::<Result<Vec<_>, _>>()?;
        distinct_ports(&ports)?;
        let upstreams = flags.upstreams.iter().map(|spec| upstream(spec, &namespace)).collect::<Result<_, _>>()?;
        let admin = address("--admin", &flags.admin, "127.0.0.1:15000")?;
        if !admin.ip().is_loopback() {
            let remedy = "use a loopback address; the metrics port has /ready, /live and /metrics for other machines";
            return Err(SettingsError::new("--admin", flags.admin, "the admin port is for this machine alone", remedy));
        }
        let trust_domain = TrustDomain::parse(&flags.trust_domain).map_err(|error| {
            SettingsError::new(
                "--trust-domain",
                &flags.trust_domain,
                error,
                "use the control plane's, as in weft.local",
            )
        })?;
        if !(1..=1000).contains(&flags.weight) {
            let weight = flags.weight.to_string();
            return Err(SettingsError::new("--weight", weight, "out of range", "use 1 to 1000"));
        }
        let app_address = flags.app_address.parse().map_err(|error| {
            SettingsError::new("--app-address", &flags.app_address, error, "use an IP address, as in 127.0.0.1")
        })?;
        Ok(Self {
            control_plane: endpoint("--control-plane", control_plane)?,
            join_token: join_token(token, flags.join_token_file)?,
            ca_file: flags.ca_file,
            trust_domain,
            data_dir: flags.data_dir.unwrap_or_else(|| PathBuf::from("weft-data").join(&*service)),
            namespace,
            service,
            ports,
            app_address,
            outbound: address("--outbound", &flags.outbound, "127.0.0.1:15001")?,
            inbound: address("--inbound", &flags.inbound, "0.0.0.0:15006")?,
            admin,
            metrics,
            address: flags.address.as_deref().map(advertised).transpose()?,
            labels: flags.labels.iter().map(|pair| key_value(pair)).collect::<Result<_, _>>()?,
            app_version: flags.app_version.unwrap_or_default().into(),
            weight: flags.weight,
            region: flags.region.unwrap_or_default().into(),
            zone: flags.zone.unwrap_or_default().into(),
            upstreams,
            workers: workers(flags.workers, cores)?,
            access_log: choice("--access-log", &flags.access_log, ACCESS_LOG)?,
            access_log_format: choice("--access-log-format", &flags.access_log_format, FORMAT)?,
            log: flags.log.into(),
            log_format: choice("--log-format", &flags.log_format, FORMAT)?,
            drain: duration("--drain", &flags.drain, "30s")?,
            on_demand_wait: duration("--on-demand-wait", &flags.on_demand_wait, "2s")?,
            on_demand_idle: duration("--on-demand-idle", &flags.on_demand_idle, "10m")?,
            health_check: choice("--health-check", &flags.health_check, HEALTH_CHECK)?,
            transparent: Transparent::new(&flags.transparent)?,
        })
    }

    /// `namespace/service`, as in metrics.
    #[must_use]
    pub fn service_key(&self) -> String {
        format!("{}/{}", self.namespace, self.service)
    }
}

#[cfg(test)]
mod tests;
