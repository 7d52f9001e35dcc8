//! What samples come to: tables with ratios and targets, JSON, and the page docs/performance.md with its plots.
//!
//! Owns words, medians, verdicts and drawings. Measures nothing: everything here is made of [`Sample`]s, so that a run can
//! be shown again, or together with another, from its JSON.

mod chart;
mod document;
mod page;
mod plots;
mod stats;
mod tables;
mod targets;
mod words;

pub use self::{
    document::{Document, Meta, json, load},
    page::publish,
};
use crate::sample::Sample;

/// Everything as tables for a terminal: targets, ratios with their spread, figures. It is Markdown as well.
pub fn render(samples: &[Sample]) -> String {
    let tables = tables::all(&stats::Figures::new(samples));
    let parts: Vec<String> =
        tables.iter().map(|table| format!("{}\n{}\n\n{}", table.heading, table.reading, table.text())).collect();
    parts.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_reads_as_tables() {
        let mut samples = Vec::new();
        for round in 1..=3 {
            let noise = f64::from(round);
            samples.push(Sample::new("http1", "weft", "cpu_us", round, 50.0 * noise));
            samples.push(Sample::new("http1", "envoy", "cpu_us", round, 125.0 * noise));
            samples.push(Sample::new("http1", "haproxy", "cpu_us", round, 50.0 * noise));
        }
        let text = render(&samples);
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            words(line("| CPU per request, HTTP/1.1")),
            "| CPU per request, HTTP/1.1 | ≤ 0.42 × Envoy | 0.40 | met |"
        );
        assert!(words(&text).contains("| ≤ 0.95 × HAProxy | 1.00 | MISSED |"), "{text}");
        assert_eq!(words(line("| http1")), "| http1 | CPU µs/request | 100 | 0.40 | 1.00 |");
        assert!(text.contains("| 100 (50.0–150) | 250 (125–375) | 100 (50.0–150) |"), "{text}");
    }

    #[test]
    fn without_samples_every_target_is_open() {
        let text = render(&[]);
        assert!(text.contains("not measured") && !text.contains("MISSED") && !text.contains("| met"), "{text}");
    }
}
