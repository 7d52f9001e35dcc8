//! The tables: plain Markdown that reads well in a terminal too.

use super::{
    stats::Figures,
    targets::{Of, TARGETS, Verdict},
    words::{self, contestant, figure, metric, ratio, spread},
};

/// A heading, how to read it, and the table.
pub struct Table {
    pub heading: &'static str,
    pub reading: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Cells of one column have one width.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                text.push_str(&format!("| {cell:width$} "));
            }
            text.push_str("|\n");
            if index == 0 {
                widths.iter().for_each(|width| text.push_str(&format!("|{}", "-".repeat(width + 2))));
                text.push_str("|\n");
            }
        }
        text
    }
}

/// Every table that the figures fill.
pub fn all(figures: &Figures<'_>) -> Vec<Table> {
    let tables = [targets(figures), ratios(figures), contest(figures), alone(figures), fleet(figures)];
    tables.into_iter().filter(|table| table.rows.len() > 1).collect()
}

/// Each target beside what was measured.
pub fn targets(figures: &Figures<'_>) -> Table {
    let mut rows = vec![row(["", "target", "measured", ""])];
    let mut verdicts = Vec::new();
    for target in TARGETS {
        let (measured, verdict) = target.judge(figures);
        verdicts.push(verdict);
        let write = match target.of {
            Of::Figure(_) => figure,
            Of::Ratio(_) => ratio,
        };
        rows.push(vec![target.what.to_owned(), target.edge(), spread(measured, write), verdict.word().to_owned()]);
    }
    let count = |verdict| verdicts.iter().filter(|it| **it == verdict).count();
    let reading = format!(
        "{} met, {} missed, {} not measured. Medians over the rounds (least–most); a ratio is Weft's figure divided by the \
         peer's of the same round. The median decides.",
        count(Verdict::Met),
        count(Verdict::Missed),
        count(Verdict::NotMeasured)
    );
    Table { heading: "Targets", reading, rows }
}

fn ratios(figures: &Figures<'_>) -> Table {
    let peers: Vec<&str> = figures.peers().collect();
    let mut rows = vec![row(["case", "metric", "Weft"])];
    rows[0].extend(peers.iter().map(|peer| format!("÷ {}", contestant(peer))));
    let compared = |(case, name): &&(&str, &str)| figures.is_contest(case) && !OF_THE_LOAD.contains(name);
    for (case, name) in figures.rows().iter().filter(compared) {
        let mut cells = vec![(*case).to_owned(), metric(name).to_owned()];
        cells.push(figures.spread(case, name, super::stats::SUBJECT).map_or("–".to_owned(), |it| figure(it.median)));
        cells.extend(peers.iter().map(|peer| spread(figures.ratio(case, name, peer), ratio)));
        rows.push(cells);
    }
    let reading = "Weft's median, and Weft divided by each peer, round by round: median (least–most).";
    Table { heading: "Ratios", reading: reading.to_owned(), rows }
}

fn contest(figures: &Figures<'_>) -> Table {
    let mut rows = vec![row(["case", "metric"])];
    rows[0].extend(figures.contestants().iter().map(|name| contestant(name).to_owned()));
    for (case, name) in figures.rows().iter().filter(|(case, _)| figures.is_contest(case)) {
        let mut cells = vec![(*case).to_owned(), metric(name).to_owned()];
        cells.extend(figures.contestants().iter().map(|who| spread(figures.spread(case, name, who), figure)));
        rows.push(cells);
    }
    Table { heading: "Figures", reading: MEDIANS.to_owned(), rows }
}

/// What no peer has a counterpart of.
fn alone(figures: &Figures<'_>) -> Table {
    let mut rows = vec![row(["case", "metric", "Weft"])];
    for (case, name) in
        figures.rows().iter().filter(|(case, _)| !figures.is_contest(case) && fleet_size(case).is_none())
    {
        let cell = spread(figures.spread(case, name, super::stats::SUBJECT), figure);
        rows.push(vec![(*case).to_owned(), metric(name).to_owned(), cell]);
    }
    Table { heading: "Weft alone", reading: MEDIANS.to_owned(), rows }
}

/// A column for each fleet: the metrics are many, the sizes few.
fn fleet(figures: &Figures<'_>) -> Table {
    let mut cases: Vec<(u32, u32, &str)> = Vec::new();
    let mut metrics: Vec<&str> = Vec::new();
    for (case, metric) in figures.rows() {
        let Some((sidecars, services)) = fleet_size(case) else { continue };
        if !cases.contains(&(sidecars, services, case)) {
            cases.push((sidecars, services, case));
        }
        if !metrics.contains(metric) {
            metrics.push(metric);
        }
    }
    cases.sort_unstable();
    let mut rows = vec![row(["sidecars × services"])];
    rows[0].extend(cases.iter().map(|(sidecars, services, _)| format!("{sidecars} × {services}")));
    for name in metrics {
        let mut cells = vec![words::metric(name).to_owned()];
        cells.extend(cases.iter().map(|(_, _, case)| spread(figures.spread(case, name, "weft"), figure)));
        rows.push(cells);
    }
    let reading = "The control plane under a simulated fleet, one column for each mesh: medians (least–most).";
    let reading = reading.to_owned();
    Table { heading: "Control plane", reading, rows: if cases.is_empty() { Vec::new() } else { rows } }
}

/// Sidecars and services of a case `fleet-SIDECARSxSERVICES`.
pub fn fleet_size(case: &str) -> Option<(u32, u32)> {
    let (sidecars, services) = case.strip_prefix("fleet-")?.split_once('x')?;
    Some((sidecars.parse().ok()?, services.parse().ok()?))
}

const MEDIANS: &str = "Medians (least–most over the rounds).";

/// Metrics that tell how far the load can be trusted, and nothing of who carried it.
const OF_THE_LOAD: [&str; 2] = ["late_p99_us", "unanswered"];

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    #[test]
    fn a_missing_figure_is_a_dash() {
        let samples = [
            Sample::new("http1", "weft", "cpu_us", 1, 50.0),
            Sample::new("http1", "envoy", "cpu_us", 1, 100.0),
            Sample::new("http2", "envoy", "cpu_us", 1, 70.0),
        ];
        let figures = Figures::new(&samples);
        assert_eq!(ratios(&figures).rows[1], ["http1", "CPU µs/request", "50.0", "0.50"]);
        assert_eq!(ratios(&figures).rows[2], ["http2", "CPU µs/request", "–", "–"]);
        assert_eq!(contest(&figures).rows[2], ["http2", "CPU µs/request", "–", "70.0"]);
    }

    #[test]
    fn fleets_stand_in_columns_by_size() {
        let sample = |case: &str, metric: &str, value| Sample::new(case, "weft", metric, 1, value);
        let samples = [
            sample("fleet-1000x10", "herd_s", 2.0),
            sample("fleet-100x1000", "herd_s", 1.0),
            sample("start", "ready_ms", 90.0),
        ];
        let figures = Figures::new(&samples);
        assert_eq!(fleet(&figures).rows[0], ["sidecars × services", "100 × 1000", "1000 × 10"]);
        assert_eq!(fleet(&figures).rows[1], ["restart to all in step s", "1.00", "2.00"]);
        assert_eq!(alone(&figures).rows[1], ["start", "start to ready ms", "90.0"]);
        let headings: Vec<&str> = all(&figures).iter().map(|table| table.heading).collect();
        assert!(targets(&figures).reading.starts_with("1 met, 0 missed, "), "{}", targets(&figures).reading);
        assert_eq!(headings, ["Targets", "Weft alone", "Control plane"]);
    }

    #[test]
    fn columns_are_aligned() {
        let table = Table { heading: "", reading: String::new(), rows: vec![row(["a", "µ"]), row(["long", "1"])] };
        assert_eq!(table.text(), "| a    | µ |\n|------|---|\n| long | 1 |\n");
    }
}
