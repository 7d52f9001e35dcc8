//! `weft validate`.

use std::path::PathBuf;

use clap::Args;
use weft_model::{KnownServices, ResourceKey, ResourceSet};
use weft_proto::weft::v1::{self, Source};

use super::sources;
use crate::{
    failure::Failure,
    output::{self, Format},
};

/// Check files without a control plane.
///
/// Checks each resource, and all of them together: what they refer to must be among them. Services that only the
/// registry knows are not; to check against a running mesh, use `weft apply --dry-run`.
///
/// Example:
///   weft validate -f config/
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// File, folder or - for standard input; may be given several times.
    #[arg(short, long = "file", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Namespace of resources that name none.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Validates.
///
/// # Errors
/// [`Failure::Refused`] when anything is wrong.
pub fn run(options: &Options) -> Result<(), Failure> {
    let mut set = ResourceSet::default();
    let mut findings = Vec::new();
    for source in sources::read(&options.files)? {
        let parsed = weft_model::parse(&source.file, &source.content, &options.namespace);
        findings.extend(parsed.errors);
        for document in parsed.documents {
            if let Some(before) = set.insert_document(document.clone()) {
                findings.push(twice(&document, &before));
            }
        }
    }
    findings.extend(weft_model::validate(&set, &KnownServices::default()));
    let (errors, warnings): (Vec<_>, Vec<_>) = findings.into_iter().partition(weft_model::Finding::is_error);
    let (errors, warnings) = (wire(errors), wire(warnings));
    if options.output == Format::Table {
        output::print_findings("warning", &warnings);
        output::print_findings("error", &errors);
        if errors.is_empty() {
            output::print(&format!("{} resources are valid\n", set.len()))?;
        }
    } else {
        let list = |findings: &[v1::Finding]| findings.iter().map(finding_json).collect::<Vec<_>>();
        output::print_value(
            options.output,
            &serde_json::json!({"resources": set.len(), "errors": list(&errors), "warnings": list(&warnings)}),
        )?;
    }
    match errors.len() {
        0 => Ok(()),
        1 => Err(Failure::Refused("1 error".to_owned())),
        count => Err(Failure::Refused(format!("{count} errors"))),
    }
}

fn twice(document: &weft_model::Document, before: &weft_model::Member) -> weft_model::Finding {
    let position = document.origin.position();
    let first = before.origin.as_ref().map(|origin| format!("{}:{}", origin.file(), origin.position().line));
    weft_model::Finding {
        file: document.origin.file().to_owned(),
        line: position.line,
        column: position.column,
        message: format!("{} stands there twice", document.resource.key()),
        hint: format!("the first is at {}", first.unwrap_or_default()),
        resource: Some(document.resource.key()),
        ..weft_model::Finding::default()
    }
}

/// The keys of the resources in a source.
///
/// # Errors
/// [`Failure::Refused`] when it cannot be read as resources; what is wrong has been printed.
pub fn parse(source: &Source, namespace: &str) -> Result<Vec<ResourceKey>, Failure> {
    let parsed = weft_model::parse(&source.file, &source.content, namespace);
    if parsed.errors.is_empty() {
        return Ok(parsed.documents.iter().map(|document| document.resource.key()).collect());
    }
    output::print_findings("error", &wire(parsed.errors));
    Err(Failure::Refused(format!("{} cannot be read", source.file)))
}

fn wire(findings: Vec<weft_model::Finding>) -> Vec<v1::Finding> {
    findings
        .into_iter()
        .map(|finding| v1::Finding {
            file: finding.file,
            line: finding.line,
            column: finding.column,
            field: finding.field,
            resource: finding.resource.map(|key| v1::ResourceKey {
                kind: key.kind.to_string(),
                namespace: key.namespace,
                name: key.name,
            }),
            message: finding.message,
            hint: finding.hint,
        })
        .collect()
}

fn finding_json(finding: &v1::Finding) -> serde_json::Value {
    serde_json::json!({
        "file": finding.file,
        "line": finding.line,
        "column": finding.column,
        "field": finding.field,
        "resource": output::key_json(finding.resource.as_ref()),
        "message": finding.message,
        "hint": finding.hint,
    })
}
