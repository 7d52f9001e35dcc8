//! The command line: what there is to do, and the help that teaches it.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::{Flags, InitFlags, LaunchFlags, PauseFlags};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "weft-sidecar",
    version,
    about = "The proxy beside a service: mutual TLS, retries, circuit breaking, load balancing.",
    long_about = LONG_ABOUT,
    after_long_help = EXAMPLES,
    max_term_width = 110
)]
pub struct Cli {
    /// Settings.
    #[command(flatten)]
    pub flags: Flags,
    /// What to do; `serve` when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Serve beside an application that something else starts (the default)
    Serve,
    /// Start an application when the mesh is ready, and end as it ends
    ///
    /// The application gets HTTP_PROXY, http_proxy and NO_PROXY, so that HTTP libraries call the mesh without further
    /// ado, and WEFT_OUTBOUND, the address of the outbound port. Signals are passed on. On SIGTERM the sidecar first
    /// leaves the mesh and lets requests end, then passes the signal to the application, which can go on calling out
    /// until it is gone. The exit status is the application's (128 + n when signal n ended it).
    Run(LaunchFlags),
    /// Set the rules that redirect this network namespace's connections to the sidecar, and end
    ///
    /// Outbound TCP goes to the port of --outbound, inbound TCP to that of --inbound, DNS to that of --dns. What the sidecar
    /// itself sends passes, by its mark (--mark) or its user (--uid); so do loopback and what the flags name. UDP other
    /// than DNS, ICMP and connections that are established already are left alone. A second run changes nothing; rules of
    /// others are never touched. Needs CAP_NET_ADMIN.
    #[command(after_long_help = INIT_EXAMPLES)]
    Init(InitFlags),
    /// Copy this program into a folder, such as a volume that containers share
    Install {
        /// The folder; made if it is not there
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// A folder of programs that set rules, to be copied as well
        #[arg(long, env = "WEFT_TOOLS", value_name = "DIR")]
        tools: Option<PathBuf>,
    },
    /// Hold a network namespace that other containers join, and do nothing else, until SIGTERM
    ///
    /// For a container that owns the network, so that sidecar and application come and go without losing it.
    Pause(PauseFlags),
    /// Return when the sidecar of this machine is ready
    ///
    /// For an application that is started beside its sidecar, and not by it: asks /ready at the address of --metrics
    /// (WEFT_METRICS). Status 0: it is ready; 1: it was not in time, and standard error says what is missing.
    Wait {
        /// How long to wait at most
        #[arg(long, default_value = "60s", value_name = "TIME")]
        timeout: String,
    },
}

const LONG_ABOUT: &str = "\
The proxy beside a service. It takes the application's calls on the outbound port and carries them, over mutual TLS, to \
the sidecar of the service that is called; and it takes the mesh's calls on the inbound port and hands them to the \
application on loopback. Every flag is also a variable.

The first start needs a join token (`weft token create`), in WEFT_JOIN_TOKEN or in a file; with it the sidecar obtains \
a certificate, which it then renews by itself. In Kubernetes a service-account token stands for it, with --ca-file.";

const EXAMPLES: &str = "\
Examples:
  # Beside an application that listens on 127.0.0.1:8080, known to the mesh as orders:80
  WEFT_JOIN_TOKEN=weft1.… weft-sidecar --control-plane mesh.example:15010 --service orders --port 80:8080/http

  # Start the application, too
  weft-sidecar --service orders --port 80:8080/http run -- python3 app.py

  # Start the application once the sidecar beside it is ready
  weft-sidecar wait && exec ./worker

  # A caller without ports of its own, with a local port for a TCP service
  weft-sidecar --service worker --upstream 127.0.0.1:5432=database:5432 run -- ./worker

Calls to the mesh:  curl -x http://127.0.0.1:15001 http://orders/    or    curl -H 'Host: orders' http://127.0.0.1:15001/
Pages of the admin port:  curl http://127.0.0.1:15000/ready   /live /config_dump /clusters /certs /stats /logging";

const INIT_EXAMPLES: &str = "\
Examples:
  # In a container or pod, whose sidecar runs as user 15001
  weft-sidecar init

  # What would it do?
  weft-sidecar init --dry-run

  # Databases and SSH directly, and a port of ours that a load balancer probes
  weft-sidecar init --exclude-outbound-ports 22,5432 --exclude-inbound-ports 8086

  # On a host: one application's user and port alone
  weft-sidecar init --only-uid 1000 --include-inbound-ports 8080

  # Where there is no nft
  weft-sidecar init --backend iptables

  # Back to how it was
  weft-sidecar init --remove";
