//! The figures of all rounds as one table: medians, and ratios to Envoy.

use std::collections::BTreeMap;

use crate::{contestants::Kind, measure::Figures};

/// Columns: head, unit and which figure.
type Column = (&'static str, fn(&Figures) -> f64);

const COLUMNS: &[Column] = &[
    ("CPU us/request", |f| f.cpu_micros),
    ("requests/s", |f| f.rate),
    ("p50 us", |f| f.p50_micros),
    ("p99 us", |f| f.p99_micros),
    ("bulk MB/s", |f| f.bulk),
    ("idle MB", |f| f.idle_mb),
    ("kB/connection", |f| f.connection_kb),
];

/// A table for people (it is Markdown as well).
pub fn render(results: &[(Kind, Figures)]) -> String {
    let mut by_kind: BTreeMap<Kind, Vec<Figures>> = BTreeMap::new();
    for (kind, figures) in results {
        by_kind.entry(*kind).or_default().push(*figures);
    }
    let heads: Vec<&str> = COLUMNS.iter().map(|(head, _)| *head).collect();
    let mut text = format!("| pair | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for (kind, rounds) in &by_kind {
        let cells: Vec<String> = COLUMNS.iter().map(|(_, figure)| spread(rounds, *figure)).collect();
        text.push_str(&format!("| {kind:?} | {} |\n", cells.join(" | ")));
    }
    if let Some(envoy) = by_kind.get(&Kind::Envoy) {
        for (kind, rounds) in by_kind.iter().filter(|(kind, _)| **kind != Kind::Envoy) {
            let ratio = |figure: fn(&Figures) -> f64| median(rounds, figure) / median(envoy, figure);
            let cells: Vec<String> = COLUMNS.iter().map(|(_, figure)| format!("{:.2}", ratio(*figure))).collect();
            text.push_str(&format!("| {kind:?} / Envoy | {} |\n", cells.join(" | ")));
        }
    }
    text
}

/// Every figure of every round.
pub fn json(results: &[(Kind, Figures)]) -> String {
    let rows: Vec<_> = results
        .iter()
        .map(|(kind, figures)| serde_json::json!({"pair": format!("{kind:?}"), "figures": figures}))
        .collect();
    format!("{:#}\n", serde_json::Value::Array(rows))
}

/// `median (minimum to maximum)`.
fn spread(rounds: &[Figures], figure: fn(&Figures) -> f64) -> String {
    let sorted = sorted(rounds, figure);
    match (sorted.first(), sorted.last()) {
        (Some(low), Some(high)) => format!("{} ({} to {})", short(median(rounds, figure)), short(*low), short(*high)),
        _ => "-".to_owned(),
    }
}

fn median(rounds: &[Figures], figure: fn(&Figures) -> f64) -> f64 {
    let sorted = sorted(rounds, figure);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn sorted(rounds: &[Figures], figure: fn(&Figures) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = rounds.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    values
}

fn short(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}
