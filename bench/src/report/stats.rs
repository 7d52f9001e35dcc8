//! Medians and ratios of samples; no words and no drawing.

use std::collections::BTreeMap;

use crate::sample::Sample;

/// Who the ratios are about.
pub const SUBJECT: &str = "weft";

/// The rounds of one figure, or of one ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Of all rounds.
    pub median: f64,
    /// The least.
    pub low: f64,
    /// The most.
    pub high: f64,
}

impl Spread {
    /// Of these values; nothing without any.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Some(Self { median, low, high })
    }
}

/// Case, metric, contestant.
type Key<'a> = (&'a str, &'a str, &'a str);

/// Samples by case, metric and contestant.
pub struct Figures<'a> {
    /// Values by round.
    values: BTreeMap<Key<'a>, BTreeMap<u32, f64>>,
    /// In the order in which they were measured.
    rows: Vec<(&'a str, &'a str)>,
    /// In the order of `KNOWN`, then by name.
    contestants: Vec<&'a str>,
}

impl<'a> Figures<'a> {
    /// Sorts samples. Of two of the same round the later counts; what is no number is left out.
    pub fn new(samples: &'a [Sample]) -> Self {
        let mut values: BTreeMap<Key<'a>, BTreeMap<u32, f64>> = BTreeMap::new();
        let mut rows = Vec::new();
        let mut contestants = Vec::new();
        for sample in samples.iter().filter(|sample| sample.value.is_finite()) {
            let (case, metric, contestant) = (&*sample.case, &*sample.metric, &*sample.contestant);
            if !rows.contains(&(case, metric)) {
                rows.push((case, metric));
            }
            if !contestants.contains(&contestant) {
                contestants.push(contestant);
            }
            values.entry((case, metric, contestant)).or_default().insert(sample.round, sample.value);
        }
        // A case's metrics stay together, even if another contestant brought one more.
        let mut order: Vec<&str> = Vec::new();
        for (case, _) in &rows {
            if !order.contains(case) {
                order.push(case);
            }
        }
        rows.sort_by_key(|(case, _)| order.iter().position(|it| it == case));
        contestants.sort_by_key(|name| (KNOWN.iter().position(|known| known == name).unwrap_or(KNOWN.len()), *name));
        Self { values, rows, contestants }
    }

    /// Every case and metric.
    pub fn rows(&self) -> &[(&'a str, &'a str)] {
        &self.rows
    }

    /// Everyone who has a figure.
    pub fn contestants(&self) -> &[&'a str] {
        &self.contestants
    }

    /// Everyone but the subject.
    pub fn peers(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.contestants.iter().copied().filter(|name| *name != SUBJECT)
    }

    /// Whether a contestant besides the subject has a figure in a case.
    pub fn is_contest(&self, case: &str) -> bool {
        self.values.keys().any(|(it, _, contestant)| *it == case && *contestant != SUBJECT)
    }

    /// One figure over all rounds.
    pub fn spread(&self, case: &str, metric: &str, contestant: &str) -> Option<Spread> {
        Spread::of(self.values.get(&(case, metric, contestant))?.values().copied())
    }

    /// The subject's figure divided by a peer's of the same round, over the rounds that both have.
    pub fn ratio(&self, case: &str, metric: &str, peer: &str) -> Option<Spread> {
        let ours = self.values.get(&(case, metric, SUBJECT))?;
        let theirs = self.values.get(&(case, metric, peer))?;
        let pairs = ours.iter().filter_map(|(round, value)| Some(value / theirs.get(round)?));
        Spread::of(pairs)
    }

    /// Figures of the cases `PREFIX-NUMBER`, by number.
    pub fn series(&self, prefix: &str, metric: &str, contestant: &str) -> Vec<(f64, Spread)> {
        let mut points: Vec<(f64, Spread)> = self
            .rows
            .iter()
            .filter(|(_, it)| *it == metric)
            .filter_map(|(case, _)| {
                let number = case.strip_prefix(prefix)?.strip_prefix('-')?.parse().ok()?;
                Some((number, self.spread(case, metric, contestant)?))
            })
            .collect();
        points.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        points
    }
}

/// The order in which contestants are shown.
pub const KNOWN: [&str; 5] = [SUBJECT, "envoy", "haproxy", "nginx", "relay"];

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(contestant: &str, round: u32, value: f64) -> Sample {
        Sample::new("http1", contestant, "cpu_us", round, value)
    }

    #[test]
    fn a_spread_is_median_and_range() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, low: 1.0, high: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 8.0]).map(|it| it.median), Some(3.0));
        assert_eq!(Spread::of([f64::NAN]), None);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        // The machine was twice as slow in round 2, for both: the ratio does not see it.
        let samples = [
            sample("weft", 1, 50.0),
            sample("envoy", 1, 100.0),
            sample("weft", 2, 100.0),
            sample("envoy", 2, 200.0),
            sample("weft", 3, 60.0),
            sample("envoy", 4, 1.0),
        ];
        let figures = Figures::new(&samples);
        assert_eq!(figures.ratio("http1", "cpu_us", "envoy"), Some(Spread { median: 0.5, low: 0.5, high: 0.5 }));
        assert_eq!(figures.ratio("http1", "cpu_us", "haproxy"), None);
        assert_eq!(figures.ratio("http1", "rate", "envoy"), None);
    }

    #[test]
    fn the_median_of_ratios_is_not_the_ratio_of_medians() {
        let ours = [10.0, 20.0, 60.0];
        let theirs = [40.0, 20.0, 30.0];
        let mut samples = Vec::new();
        for (round, (our, their)) in (1..).zip(ours.into_iter().zip(theirs)) {
            samples.extend([sample("weft", round, our), sample("envoy", round, their)]);
        }
        let ratio = Figures::new(&samples).ratio("http1", "cpu_us", "envoy").unwrap();
        assert_eq!((ratio.low, ratio.median, ratio.high), (0.25, 1.0, 2.0));
    }

    #[test]
    fn a_zero_of_a_peer_is_no_ratio() {
        let samples = [sample("weft", 1, 5.0), sample("envoy", 1, 0.0)];
        assert_eq!(Figures::new(&samples).ratio("http1", "cpu_us", "envoy"), None);
    }

    #[test]
    fn a_series_is_sorted_by_number() {
        let samples: Vec<_> = [1000, 10, 10_000]
            .iter()
            .map(|n| Sample::new(&format!("routes-{n}"), "weft", "rate", 1, f64::from(*n)))
            .chain([Sample::new("routes-x", "weft", "rate", 1, 1.0), Sample::new("routes-5", "weft", "p50", 1, 1.0)])
            .collect();
        let series = Figures::new(&samples).series("routes", "rate", "weft");
        assert_eq!(series.iter().map(|(x, _)| *x).collect::<Vec<_>>(), [10.0, 1000.0, 10_000.0]);
    }

    #[test]
    fn rows_of_a_case_stay_together_and_weft_comes_first() {
        let samples = [
            Sample::new("a", "relay", "rate", 1, 1.0),
            Sample::new("b", "zz", "rate", 1, 1.0),
            Sample::new("a", "weft", "cpu_us", 1, 1.0),
        ];
        let figures = Figures::new(&samples);
        assert_eq!(figures.rows(), [("a", "rate"), ("a", "cpu_us"), ("b", "rate")]);
        assert_eq!(figures.contestants(), ["weft", "relay", "zz"]);
        assert!(figures.is_contest("a") && figures.is_contest("b") && !figures.is_contest("c"));
    }
}
