//! `weft delete`.

use std::path::PathBuf;

use clap::Args;
use weft_proto::weft::v1::{DeleteRequest, ResourceKey};

use super::{apply, kinds, sources};
use crate::{credential::Client, failure::Failure, output::Format};

/// Delete resources.
///
/// Examples:
///   weft delete httproute orders
///   weft delete -f orders.yaml
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// KIND NAME…, or KIND/NAME….
    #[arg(required_unless_present = "files")]
    resources: Vec<String>,
    /// Delete what these files name.
    #[arg(short, long = "file", value_name = "FILE", conflicts_with = "resources")]
    files: Vec<PathBuf>,
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    change: apply::ChangeOptions,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Deletes.
///
/// # Errors
/// As the exit codes of `weft --help` say.
pub async fn run(mut client: Client, options: Options) -> Result<(), Failure> {
    let keys = if options.files.is_empty() {
        kinds::keys(&options.resources, &options.namespace)?
    } else {
        keys_of_files(&options)?
    };
    let request = DeleteRequest {
        keys,
        expected_revision: options.change.expect_revision,
        dry_run: options.dry_run,
        message: options.change.message,
        wait_seconds: options.change.wait.unwrap_or(0),
    };
    let response = client.delete(request).await?.into_inner();
    apply::report(&response, options.dry_run, options.output)
}

fn keys_of_files(options: &Options) -> Result<Vec<ResourceKey>, Failure> {
    let mut keys = Vec::new();
    for source in sources::read(&options.files)? {
        let parsed = super::validate::parse(&source, &options.namespace)?;
        keys.extend(parsed.into_iter().map(|key| ResourceKey {
            kind: key.kind.to_string(),
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
        }));
    }
    Ok(keys)
}
