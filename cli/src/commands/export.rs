//! `weft export`.

use clap::Args;
use weft_proto::weft::v1::ExportRequest;

use crate::{credential::Client, failure::Failure, output};

/// Print every resource as YAML, ready for `weft apply -f -`.
#[derive(Args)]
pub struct Options {
    /// As it was at this revision [default: now].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    revision: u64,
}

/// Exports.
///
/// # Errors
/// As the exit codes of `weft --help` say.
pub async fn run(mut client: Client, options: Options) -> Result<(), Failure> {
    let response = client.export(ExportRequest { revision: options.revision }).await?.into_inner();
    output::print(&response.yaml)
}
