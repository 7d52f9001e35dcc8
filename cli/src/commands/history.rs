//! `weft history`.

use clap::Args;
use weft_proto::weft::v1::{HistoryEntry, HistoryRequest};

use super::kinds;
use crate::{
    credential::Client,
    failure::Failure,
    output::{self, Format, Table},
};

/// Show the log of changes, newest first.
///
/// Examples:
///   weft history
///   weft history httproute orders --diff
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Only changes to this resource: KIND NAME, or KIND/NAME.
    resource: Vec<String>,
    /// Namespace of the resource.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// At most this many.
    #[arg(long, default_value_t = 20)]
    limit: u32,
    /// Only entries before this revision.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    before: u64,
    /// Show each change whole.
    #[arg(long)]
    diff: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Shows.
///
/// # Errors
/// As the exit codes of `weft --help` say.
pub async fn run(mut client: Client, options: Options) -> Result<(), Failure> {
    let key = match options.resource.as_slice() {
        [] => None,
        words => kinds::keys(words, &options.namespace)?.into_iter().next(),
    };
    let request = HistoryRequest { limit: options.limit, before_revision: options.before, key };
    let entries = client.history(request).await?.into_inner().entries;
    match options.output {
        Format::Table if entries.is_empty() => output::print("no changes yet\n"),
        Format::Table if options.diff => output::print(&entries.iter().map(with_diff).collect::<String>()),
        Format::Table => output::print(&table(&entries)),
        format => output::print_value(format, &entries.iter().map(json).collect::<Vec<_>>()),
    }
}

fn table(entries: &[HistoryEntry]) -> String {
    let mut table = Table::new(&["REVISION", "TIME", "AUTHOR", "CHANGES", "MESSAGE"]);
    for entry in entries {
        table.row([
            entry.revision.to_string(),
            entry.time.clone(),
            entry.author.clone(),
            summary(entry),
            entry.message.clone(),
        ]);
    }
    table.render()
}

/// Up to three changes by name, the rest counted.
fn summary(entry: &HistoryEntry) -> String {
    let mut names: Vec<String> = entry
        .changes
        .iter()
        .take(3)
        .map(|change| format!("{} {}", output::change_word(change.kind), output::key(change.key.as_ref())))
        .collect();
    if entry.changes.len() > names.len() {
        names.push(format!("{} more", entry.changes.len() - names.len()));
    }
    names.join(", ")
}

fn with_diff(entry: &HistoryEntry) -> String {
    format!(
        "revision {}  {}  {}\n{}\n{}\n",
        entry.revision,
        entry.time,
        entry.author,
        entry.message,
        output::diff_text(&entry.changes)
    )
}

fn json(entry: &HistoryEntry) -> serde_json::Value {
    serde_json::json!({
        "revision": entry.revision,
        "time": entry.time,
        "author": entry.author,
        "message": entry.message,
        "changes": output::changes_json(&entry.changes),
    })
}
