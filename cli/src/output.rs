//! What people and scripts read: tables, JSON, YAML, findings, diffs.

use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;
use weft_proto::weft::v1::{Change, ChangeKind, Finding, ResourceKey};

use crate::failure::Failure;

/// Output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For scripts.
    Json,
    /// For files.
    Yaml,
}

/// Prints `value` as JSON or YAML.
///
/// # Errors
/// When standard output is gone.
pub fn print_value(format: Format, value: &impl Serialize) -> Result<(), Failure> {
    let text = match format {
        Format::Yaml => serde_yaml::to_string(value).map_err(anyhow::Error::from)?,
        Format::Json | Format::Table => serde_json::to_string_pretty(value).map_err(anyhow::Error::from)? + "\n",
    };
    print(&text)
}

/// Prints text; a closed pipe is no error worth a message.
///
/// # Errors
/// When standard output cannot be written for another reason.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Columns, padded; two spaces between.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    pub fn new(heads: &[&str]) -> Self {
        Self { rows: vec![heads.iter().map(|head| (*head).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The whole, each line ended.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `Kind namespace/name`.
pub fn key(key: Option<&ResourceKey>) -> String {
    key.map_or_else(String::new, |key| format!("{} {}/{}", key.kind, key.namespace, key.name))
}

/// Findings on standard error: `file:line:column: error: field: message`, the hint below.
pub fn print_findings(severity: &str, findings: &[Finding]) {
    for finding in findings {
        eprintln!("{}", finding_text(severity, finding));
    }
}

fn finding_text(severity: &str, finding: &Finding) -> String {
    let mut text = String::new();
    if finding.file.is_empty() {
        if finding.resource.is_some() {
            text.push_str(&key(finding.resource.as_ref()));
            text.push_str(": ");
        }
    } else {
        text.push_str(if finding.file == "-" { "standard input" } else { &finding.file });
        if finding.line > 0 {
            text.push_str(&format!(":{}:{}", finding.line, finding.column.max(1)));
        }
        text.push_str(": ");
    }
    text.push_str(severity);
    text.push_str(": ");
    if !finding.field.is_empty() {
        text.push_str(&finding.field);
        text.push_str(": ");
    }
    text.push_str(&finding.message);
    if !finding.hint.is_empty() {
        text.push_str("\n    ");
        text.push_str(&finding.hint);
    }
    text
}

/// A word for what a change did.
pub fn change_word(kind: i32) -> &'static str {
    match ChangeKind::try_from(kind) {
        Ok(ChangeKind::Created) => "created",
        Ok(ChangeKind::Updated) => "updated",
        Ok(ChangeKind::Deleted) => "deleted",
        Ok(ChangeKind::Unchanged | ChangeKind::Unspecified) | Err(_) => "unchanged",
    }
}

/// Changes as a unified diff, coloured on a terminal.
pub fn diff_text(changes: &[Change]) -> String {
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut text = String::new();
    for change in changes.iter().filter(|change| change.kind != ChangeKind::Unchanged as i32) {
        text.push_str(&format!("# {} {}\n", key(change.key.as_ref()), change_word(change.kind)));
        for line in change.diff.lines() {
            match (colour, line.as_bytes().first()) {
                (true, Some(b'+')) => text.push_str(&format!("\x1b[32m{line}\x1b[0m\n")),
                (true, Some(b'-')) => text.push_str(&format!("\x1b[31m{line}\x1b[0m\n")),
                _ => text.push_str(&format!("{line}\n")),
            }
        }
    }
    text
}

/// JSON of a key.
pub fn key_json(key: Option<&ResourceKey>) -> serde_json::Value {
    key.map_or(
        serde_json::Value::Null,
        |key| serde_json::json!({"kind": key.kind, "namespace": key.namespace, "name": key.name}),
    )
}

/// JSON of changes.
pub fn changes_json(changes: &[Change]) -> serde_json::Value {
    changes
        .iter()
        .map(|change| {
            serde_json::json!({
                "resource": key_json(change.key.as_ref()),
                "change": change_word(change.kind),
                "diff": change.diff,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_place_field_and_remedy() {
        let finding = Finding {
            file: "orders.yaml".into(),
            line: 7,
            column: 3,
            field: "spec.hostname".into(),
            message: "unknown field".into(),
            hint: "did you mean `hostnames`?".into(),
            ..Finding::default()
        };
        assert_eq!(
            finding_text("error", &finding),
            "orders.yaml:7:3: error: spec.hostname: unknown field\n    did you mean `hostnames`?"
        );
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(["default/orders".to_owned(), "ready".to_owned()]);
        assert_eq!(table.render(), "NAME            STATE\ndefault/orders  ready\n");
    }
}
