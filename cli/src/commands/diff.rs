//! `weft diff`.

use std::path::PathBuf;

use clap::Args;
use weft_proto::weft::v1::{ChangeKind, DiffRequest};

use super::sources;
use crate::{
    credential::Client,
    failure::Failure,
    output::{self, Format},
};

/// Show what applying files would change, or the difference between two revisions.
///
/// Examples:
///   weft diff -f orders.yaml
///   weft diff --from 12             what has changed since revision 12
///   weft diff --from 12 --to 14
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// File, folder or - for standard input.
    #[arg(short, long = "file", value_name = "FILE", required_unless_present = "from", conflicts_with = "from")]
    files: Vec<PathBuf>,
    /// Revision to start from.
    #[arg(long)]
    from: Option<u64>,
    /// Revision to compare with [default: now].
    #[arg(long, requires = "from", default_value_t = 0, hide_default_value = true)]
    to: u64,
    /// Namespace of resources that name none.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Exit with 1 when there are differences.
    #[arg(long)]
    exit_code: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Compares.
///
/// # Errors
/// As the exit codes of `weft --help` say; [`Failure::Differences`] with `--exit-code`.
pub async fn run(mut client: Client, options: Options) -> Result<(), Failure> {
    let request = DiffRequest {
        sources: sources::read(&options.files)?,
        namespace: options.namespace,
        from_revision: options.from.unwrap_or(0),
        to_revision: options.to,
    };
    let response = client.diff(request).await?.into_inner();
    output::print_findings("warning", &response.warnings);
    let different = response.changes.iter().any(|change| change.kind != ChangeKind::Unchanged as i32);
    match options.output {
        Format::Table if !different => output::print("no differences\n")?,
        Format::Table => output::print(&output::diff_text(&response.changes))?,
        format => output::print_value(format, &output::changes_json(&response.changes))?,
    }
    if different && options.exit_code { Err(Failure::Differences) } else { Ok(()) }
}
