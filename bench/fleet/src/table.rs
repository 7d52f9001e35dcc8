//! The figures as a table, one line for each mesh: medians over the rounds.

use std::collections::BTreeMap;

use serde::Serialize;

/// One figure of one round.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// `fleet-SIDECARSxSERVICES`.
    pub case: String,
    /// Always `weft`.
    pub contestant: String,
    /// With its unit.
    pub metric: String,
    /// From 1.
    pub round: u32,
    /// In that unit.
    pub value: f64,
}

/// Columns: head, and the metrics that stand in it.
const COLUMNS: [(&str, &[&str]); 9] = [
    ("ack ms p50 / p99 / max, all", &["ack_p50_ms", "ack_p99_ms", "ack_max_ms"]),
    ("one: p50 / p99", &["one_ack_p50_ms", "one_ack_p99_ms"]),
    ("kB a sidecar", &["kb_per_sidecar"]),
    ("CPU % a sidecar", &["cpu_percent_per_sidecar"]),
    (
        "CPU ms a change: all / one / nobody",
        &["cpu_ms_per_change", "one_cpu_ms_per_change", "nobody_cpu_ms_per_change"],
    ),
    ("bytes a change: all / one / nobody", &["bytes_per_change", "one_bytes_per_change", "nobody_bytes_per_change"]),
    ("herd s", &["herd_s"]),
    ("herd CPU s", &["herd_cpu_s"]),
    ("start s", &["start_s"]),
];

/// A table for people (it is Markdown as well).
pub fn render(samples: &[Sample]) -> String {
    let mut cases: Vec<&str> = Vec::new();
    let mut values: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for sample in samples {
        if !cases.contains(&&*sample.case) {
            cases.push(&sample.case);
        }
        values.entry((&sample.case, &sample.metric)).or_default().push(sample.value);
    }
    let heads: Vec<&str> = COLUMNS.iter().map(|(head, _)| *head).collect();
    let mut text = format!("| mesh | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for case in cases {
        let cells = COLUMNS.iter().map(|(_, metrics)| {
            let figures = metrics
                .iter()
                .map(|metric| values.get(&(case, *metric)).map_or("-".to_owned(), |it| short(median(it))));
            figures.collect::<Vec<_>>().join(" / ")
        });
        text.push_str(&format!("| {case} | {} |\n", cells.collect::<Vec<_>>().join(" | ")));
    }
    text
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Three digits that count, whole from 100 on.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_for_a_mesh_with_medians() {
        let sample = |metric: &str, round, value| Sample {
            case: "fleet-1x2".to_owned(),
            contestant: "weft".to_owned(),
            metric: metric.to_owned(),
            round,
            value,
        };
        let samples =
            [sample("herd_s", 1, 3.0), sample("herd_s", 2, 1.0), sample("herd_s", 3, 2.0), sample("x", 1, 9.0)];
        let text = render(&samples);
        let line = text.lines().last().unwrap();
        assert!(line.starts_with("| fleet-1x2 | - / - / - |"), "{line}");
        assert!(line.contains("| 2.0 |"), "{line}");
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([1234.5, 12.34, 0.123, 0.0123].map(short), ["1234", "12.3", "0.12", "0.0123"].map(str::to_owned));
    }
}
