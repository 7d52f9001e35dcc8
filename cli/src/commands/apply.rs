//! `weft apply`.

use std::path::PathBuf;

use clap::Args;
use weft_proto::weft::v1::{ApplyRequest, ApplyResponse, ChangeKind, Rollout};

use super::sources;
use crate::{
    credential::Client,
    failure::Failure,
    output::{self, Format},
};

/// Apply resources: all of them or none.
///
/// Examples:
///   weft apply -f orders.yaml
///   weft apply -f config/ --dry-run
///   weft apply -f orders.yaml --wait 10s -m "orders: half of the traffic to v2"
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// File, folder or - for standard input; may be given several times.
    #[arg(short, long = "file", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Namespace of resources that name none.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    change: ChangeOptions,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What every command that changes the log takes.
#[derive(Args)]
pub struct ChangeOptions {
    /// Why, for the history.
    #[arg(short, long, default_value = "")]
    pub message: String,
    /// Refuse unless the log stands at this revision.
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    pub expect_revision: u64,
    /// Wait until every affected sidecar has acknowledged, at most this long.
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "30s", value_parser = seconds)]
    pub wait: Option<u32>,
}

fn seconds(text: &str) -> Result<u32, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 10s or 1m"))?;
    u32::try_from(time.as_secs().max(1)).map_err(|_| "too long".to_owned())
}

/// Applies.
///
/// # Errors
/// As the exit codes of `weft --help` say.
pub async fn run(mut client: Client, options: Options) -> Result<(), Failure> {
    let request = ApplyRequest {
        sources: sources::read(&options.files)?,
        expected_revision: options.change.expect_revision,
        dry_run: options.dry_run,
        message: options.change.message,
        namespace: options.namespace,
        wait_seconds: options.change.wait.unwrap_or(0),
    };
    let response = client.apply(request).await?.into_inner();
    report(&response, options.dry_run, options.output)
}

/// Prints what a change did, and fails when a rollout was waited for and did not come about.
///
/// # Errors
/// [`Failure::NotAcknowledged`].
pub fn report(response: &ApplyResponse, dry_run: bool, format: Format) -> Result<(), Failure> {
    output::print_findings("warning", &response.warnings);
    match format {
        Format::Table => output::print(&text(response, dry_run))?,
        format => output::print_value(
            format,
            &serde_json::json!({
                "revision": response.revision,
                "changes": output::changes_json(&response.changes),
                "rollout": response.rollout.as_ref().map(rollout_json),
            }),
        )?,
    }
    match &response.rollout {
        Some(rollout) if !rollout.nacks.is_empty() => Err(Failure::NotAcknowledged(format!(
            "{} refused it; the last good configuration stays there",
            rollout.nacks.len()
        ))),
        Some(rollout) if !rollout.pending.is_empty() => Err(Failure::NotAcknowledged(format!(
            "not acknowledged in time by {}: applied, and on its way",
            rollout.pending.join(", ")
        ))),
        _ => Ok(()),
    }
}

fn text(response: &ApplyResponse, dry_run: bool) -> String {
    let mut text = String::new();
    let suffix = if dry_run { " (dry run)" } else { "" };
    for change in &response.changes {
        text.push_str(&format!("{} {}{suffix}\n", output::key(change.key.as_ref()), output::change_word(change.kind)));
    }
    let changed = response.changes.iter().any(|change| change.kind != ChangeKind::Unchanged as i32);
    text.push_str(&match (dry_run, changed) {
        (true, _) => format!("nothing was changed; the log stands at revision {}\n", response.revision),
        (false, true) => format!("revision {}\n", response.revision),
        (false, false) => format!("nothing to change; the log stands at revision {}\n", response.revision),
    });
    if let Some(rollout) = &response.rollout {
        text.push_str(&format!("acknowledged by {} of {} sidecars\n", rollout.acked, rollout.affected));
        for nack in &rollout.nacks {
            text.push_str(&format!("refused by {}: {}\n", nack.sidecar, nack.message));
        }
    }
    text
}

fn rollout_json(rollout: &Rollout) -> serde_json::Value {
    serde_json::json!({
        "affected": rollout.affected,
        "acked": rollout.acked,
        "pending": rollout.pending,
        "nacks": rollout.nacks.iter().map(super::status::nack_json).collect::<Vec<_>>(),
    })
}
