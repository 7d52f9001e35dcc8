//! `weft token`.

use clap::{Args, Subcommand};
use weft_proto::weft::v1::CreateTokenRequest;

use crate::{
    credential::Client,
    failure::Failure,
    output::{self, Format},
};

/// Join tokens.
#[derive(Subcommand)]
pub enum Command {
    /// Make a join token: with it a workload proves once who it is and gets its first certificate.
    ///
    /// The token is printed once, on standard output alone; the control plane keeps only a hash of it. Hand it to the
    /// sidecar as WEFT_JOIN_TOKEN or in a file (--join-token-file).
    ///
    /// Example:
    ///   WEFT_JOIN_TOKEN=$(weft token create --service orders) weft-sidecar run -- ./orders
    #[command(verbatim_doc_comment)]
    Create(CreateOptions),
}

/// Options of `weft token create`.
#[derive(Args)]
pub struct CreateOptions {
    /// Service that will join; its identity is spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE.
    #[arg(long)]
    service: String,
    /// Service account, where it is not named as the service.
    #[arg(long)]
    account: Option<String>,
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// How many workloads may join with it.
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// How long it is good for.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: std::time::Duration,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Runs a token command.
///
/// # Errors
/// As the exit codes of `weft --help` say.
pub async fn run(mut client: Client, command: Command) -> Result<(), Failure> {
    let Command::Create(options) = command;
    let request = CreateTokenRequest {
        namespace: options.namespace,
        service_account: options.account.unwrap_or(options.service),
        uses: options.uses,
        ttl_seconds: u32::try_from(options.ttl.as_secs()).map_err(|_| anyhow::anyhow!("--ttl is too long"))?,
    };
    let response = client.create_token(request).await?.into_inner();
    match options.output {
        Format::Table => {
            eprintln!("joins as {}; good until {}", response.identity, response.expires);
            output::print(&format!("{}\n", response.token))
        }
        format => output::print_value(
            format,
            &serde_json::json!({
                "token": response.token,
                "identity": response.identity,
                "expires": response.expires,
            }),
        ),
    }
}
