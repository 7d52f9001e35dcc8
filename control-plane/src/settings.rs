//! Flags and `WEFT_*` variables.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, builder::BoolishValueParser};
use weft_identity::TrustDomain;
use weft_telemetry::log;

use crate::kubernetes;

/// The control plane of a Weft mesh: serves configuration, service discovery and certificates to sidecars.
///
/// At first start it makes a certificate authority and an operator's credential in its data directory. The credential,
/// operator.json, is what `weft` commands and the HTTP API need:
///
///   weft-control-plane &
///   weft apply -f services.yaml
///   weft token create --service orders      # lets a sidecar join as `orders`
///   weft status
///
/// Both ports speak TLS only. Every flag is also a variable: --data-dir is WEFT_DATA_DIR.
#[derive(Debug, Clone, Parser)]
#[command(name = "weft-control-plane", version, verbatim_doc_comment)]
pub struct Cli {
    /// Flags.
    #[command(flatten)]
    pub settings: Settings,
    /// What to do; to serve, when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What else there is to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Ask the control plane of --data-dir whether it is ready
    ///
    /// For the health checks of containers, which have no other program. Status 0: it is; 1: it is not, and standard
    /// error says why. Flags of the control plane stand before the word: weft-control-plane --data-dir DIR health
    Health {
        /// How long to wait for the answer
        #[arg(long, default_value = "2s", value_parser = humantime::parse_duration, value_name = "TIME")]
        timeout: Duration,
    },
    /// Print the operator's credential of --data-dir, with which the `weft` command may do everything
    ///
    /// For containers, which have no other program to read the file:
    ///
    ///   kubectl exec weft-control-plane-0 -- /weft-control-plane credential > operator.json
    ///
    /// Flags of the control plane stand before the word: weft-control-plane --data-dir DIR credential
    #[command(verbatim_doc_comment)]
    Credential,
}

/// Flags and variables.
#[derive(Debug, Clone, Parser)]
pub struct Settings {
    /// Address for sidecars, stock Envoys, gRPC clients and the `weft` command. Port 0: any free one; addresses.json in
    /// the data directory tells which.
    #[arg(long, env = "WEFT_GRPC", default_value = "0.0.0.0:15010", value_name = "IP:PORT")]
    pub grpc: SocketAddr,

    /// Address for the HTTP API, /metrics, /healthz and /readyz.
    #[arg(long, env = "WEFT_HTTP", default_value = "0.0.0.0:15080", value_name = "IP:PORT")]
    pub http: SocketAddr,

    /// Everything that must survive a restart: configuration, CA, operator's credential. Back it up, and keep it private.
    #[arg(long, env = "WEFT_DATA_DIR", default_value = "weft-data/control-plane", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Trust domain: the first part of every identity of this mesh. It cannot be changed later.
    #[arg(long, env = "WEFT_TRUST_DOMAIN", default_value = weft_identity::spiffe::DEFAULT_TRUST_DOMAIN, value_name = "NAME")]
    pub trust_domain: TrustDomain,

    /// Host name or address under which others reach this control plane; goes into operator.json and the certificate.
    /// Default: the address listened on, or 127.0.0.1.
    #[arg(long, env = "WEFT_ADVERTISE", value_name = "HOST")]
    pub advertise: Option<String>,

    /// A CA made elsewhere, PEM: the certificate that is to sign first, its root last. Needs --ca-key.
    #[arg(long, env = "WEFT_CA_CERT", value_name = "FILE", requires = "ca_key")]
    pub ca_cert: Option<PathBuf>,

    /// The key of that CA, PEM.
    #[arg(long, env = "WEFT_CA_KEY", value_name = "FILE", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,

    /// Life of the certificates of workloads. They renew at half of it; longer bridges longer outages of the control
    /// plane, shorter limits the worth of a stolen key.
    #[arg(long, env = "WEFT_CERTIFICATE_TTL", default_value = "24h", value_parser = certificate_ttl, value_name = "TIME")]
    pub certificate_ttl: Duration,

    /// Time without a heartbeat after which a workload is taken out. Heartbeats come at a third of it.
    #[arg(long, env = "WEFT_LEASE", default_value = "15s", value_parser = lease, value_name = "TIME")]
    pub lease: Duration,

    /// Resources to apply at the first start, when nothing is configured yet: a file, or a directory of .yaml, .yml and
    /// .json files.
    #[arg(long, env = "WEFT_CONFIG", value_name = "PATH", conflicts_with = "kubernetes")]
    pub config: Option<PathBuf>,

    /// Take configuration and discovery from Kubernetes: Services, EndpointSlices, Pods, HTTPRoutes, GRPCRoutes and
    /// Weft's own kinds. The API server then owns them: change them with kubectl; `weft apply` is refused. Sidecars may
    /// join with a service-account token.
    #[arg(long, env = "WEFT_KUBERNETES", value_parser = BoolishValueParser::new())]
    pub kubernetes: bool,

    /// How to reach the API server. Default: as a pod does, by its service account.
    #[arg(long, env = "WEFT_KUBECONFIG", value_name = "FILE", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,

    /// Look at these namespaces only. Default: all of the cluster.
    #[arg(long, env = "WEFT_KUBERNETES_NAMESPACES", value_name = "NAME,…", value_delimiter = ',')]
    pub kubernetes_namespaces: Vec<String>,

    /// Audience that a service-account token must be made for.
    #[arg(long, env = "WEFT_KUBERNETES_AUDIENCE", value_name = "NAME", default_value = "weft")]
    pub kubernetes_audience: String,

    /// What is logged: a level, or targets (`info,weft_control_plane=debug`).
    #[arg(long, env = "WEFT_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,

    /// How a log line looks: text or json.
    #[arg(long, env = "WEFT_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: log::Format,
}

impl Settings {
    /// The cluster, with `--kubernetes`.
    pub fn cluster(&self) -> Option<kubernetes::Settings> {
        self.kubernetes.then(|| kubernetes::Settings {
            kubeconfig: self.kubeconfig.clone(),
            namespaces: self.kubernetes_namespaces.iter().filter(|name| !name.is_empty()).cloned().collect(),
            audience: self.kubernetes_audience.clone(),
        })
    }

    /// Where others reach a port that this process listens on.
    pub fn advertised(&self, bound: SocketAddr) -> String {
        let host = match &self.advertise {
            Some(host) => host.clone(),
            None if bound.ip().is_unspecified() => "127.0.0.1".to_owned(),
            None => bound.ip().to_string(),
        };
        let bare_v6 = host.contains(':') && !host.starts_with('[');
        if bare_v6 { format!("[{host}]:{}", bound.port()) } else { format!("{host}:{}", bound.port()) }
    }
}

fn certificate_ttl(text: &str) -> Result<Duration, String> {
    between(text, Duration::from_secs(10), Duration::from_secs(90 * 24 * 3600))
}

fn lease(text: &str) -> Result<Duration, String> {
    between(text, Duration::from_millis(300), Duration::from_secs(3600))
}

fn between(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 15s, 5m or 24h"))?;
    if time < min || time > max {
        let (min, max) = (humantime::format_duration(min), humantime::format_duration(max));
        return Err(format!("it must lie between {min} and {max}"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        Settings::command().debug_assert();
    }

    #[test]
    fn addresses_for_others() {
        let advertised = |args: &[&str], bound: &str| {
            let args = std::iter::once("weft-control-plane").chain(args.iter().copied());
            Settings::parse_from(args).advertised(bound.parse().unwrap())
        };
        assert_eq!(advertised(&[], "0.0.0.0:15010"), "127.0.0.1:15010");
        assert_eq!(advertised(&[], "10.1.2.3:15010"), "10.1.2.3:15010");
        assert_eq!(advertised(&[], "[::1]:15010"), "[::1]:15010");
        assert_eq!(advertised(&["--advertise", "cp.example"], "0.0.0.0:1"), "cp.example:1");
        assert_eq!(advertised(&["--advertise", "fd00::1"], "0.0.0.0:1"), "[fd00::1]:1");
    }

    #[test]
    fn bounds_are_told() {
        let error = Settings::try_parse_from(["weft-control-plane", "--lease", "1ms"]).unwrap_err().to_string();
        assert!(error.contains("between 300ms and 1h"), "{error}");
        assert!(Settings::try_parse_from(["weft-control-plane", "--ca-cert", "x"]).is_err(), "needs the key");
        let both = Settings::try_parse_from(["weft-control-plane", "--kubernetes", "--config", "x"]);
        assert!(both.is_err(), "the API server owns the configuration");
    }

    #[test]
    fn the_cluster() {
        let cluster = |args: &[&str]| {
            let args = std::iter::once("weft-control-plane").chain(args.iter().copied());
            Settings::try_parse_from(args).map(|settings| settings.cluster())
        };
        assert!(cluster(&[]).unwrap().is_none());
        let given = cluster(&["--kubernetes", "--kubernetes-namespaces", "shop,bar"]).unwrap().unwrap();
        assert_eq!((given.namespaces.as_slice(), &*given.audience), (["shop".into(), "bar".into()].as_slice(), "weft"));
        assert!(cluster(&["--kubeconfig", "x"]).is_err(), "of what cluster?");
    }
}
