//! `weft rollback`.

use clap::Args;
use weft_proto::weft::v1::RollbackRequest;

use super::apply;
use crate::{credential::Client, failure::Failure, output::Format};

/// Restore the resources of an earlier revision, as a new change.
///
/// Nothing is lost: the revisions between stay in the history, and a rollback can itself be rolled back.
///
/// Examples:
///   weft rollback 12 --dry-run
///   weft rollback 12 --wait
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Revision to restore (see `weft history`).
    revision: u64,
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    change: apply::ChangeOptions,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Rolls back.
///
/// # Errors
/// As the exit codes of `weft --help` say.
pub async fn run(mut client: Client, options: Options) -> Result<(), Failure> {
    let request = RollbackRequest {
        to_revision: options.revision,
        message: options.change.message,
        dry_run: options.dry_run,
        expected_revision: options.change.expect_revision,
        wait_seconds: options.change.wait.unwrap_or(0),
    };
    let response = client.rollback(request).await?.into_inner();
    apply::report(&response, options.dry_run, options.output)
}
