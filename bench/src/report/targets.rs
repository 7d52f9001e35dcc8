//! What the mesh is to reach, as data, and the verdict on it.

use super::{
    stats::{Figures, Spread},
    words,
};

/// One thing to reach.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// In words.
    pub what: &'static str,
    /// The case that decides.
    pub case: &'static str,
    /// The metric that decides.
    pub metric: &'static str,
    /// What is compared.
    pub of: Of,
    /// With what.
    pub bound: Bound,
}

/// What is compared with a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The figure, in this unit.
    Figure(&'static str),
    /// The figure divided by this peer's.
    Ratio(&'static str),
}

/// The edge of a target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Less is better.
    AtMost(f64),
    /// More is better.
    AtLeast(f64),
}

/// How a target stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The median reaches it.
    Met,
    /// The median does not.
    Missed,
    /// No sample decides.
    NotMeasured,
}

impl Target {
    /// What the samples say: the median over the rounds decides.
    pub fn judge(&self, figures: &Figures<'_>) -> (Option<Spread>, Verdict) {
        let measured = match self.of {
            Of::Figure(_) => figures.spread(self.case, self.metric, super::stats::SUBJECT),
            Of::Ratio(peer) => figures.ratio(self.case, self.metric, peer),
        };
        let verdict = match (measured, self.bound) {
            (None, _) => Verdict::NotMeasured,
            (Some(spread), Bound::AtMost(most)) if spread.median <= most => Verdict::Met,
            (Some(spread), Bound::AtLeast(least)) if spread.median >= least => Verdict::Met,
            (Some(_), Bound::AtMost(_) | Bound::AtLeast(_)) => Verdict::Missed,
        };
        (measured, verdict)
    }

    /// `≤ 0.42 × Envoy`, `≤ 8 MB`.
    pub fn edge(&self) -> String {
        let (sign, value) = match self.bound {
            Bound::AtMost(most) => ("≤", most),
            Bound::AtLeast(least) => ("≥", least),
        };
        match self.of {
            Of::Figure(unit) => format!("{sign} {value} {unit}"),
            Of::Ratio(peer) => format!("{sign} {value} × {}", words::contestant(peer)),
        }
    }
}

impl Verdict {
    /// For the table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::NotMeasured => "not measured",
        }
    }
}

const fn ratio(
    what: &'static str,
    case: &'static str,
    metric: &'static str,
    peer: &'static str,
    bound: Bound,
) -> Target {
    Target { what, case, metric, of: Of::Ratio(peer), bound }
}

const fn most(what: &'static str, case: &'static str, metric: &'static str, bound: f64, unit: &'static str) -> Target {
    Target { what, case, metric, of: Of::Figure(unit), bound: Bound::AtMost(bound) }
}

use Bound::{AtLeast, AtMost};

/// All of them, with mutual TLS, metrics, an access policy of ten rules, breaker, retries and outlier detection on.
pub const TARGETS: &[Target] = &[
    ratio("CPU per request, HTTP/1.1", "http1", "cpu_us", "envoy", AtMost(0.42)),
    ratio("CPU per request, HTTP/1.1", "http1", "cpu_us", "haproxy", AtMost(0.95)),
    ratio("CPU per request, HTTP/1.1", "http1", "cpu_us", "relay", AtMost(1.6)),
    ratio("CPU per request, gRPC unary", "grpc-unary", "cpu_us", "envoy", AtMost(0.5)),
    ratio("one-connection p50", "http1-one", "p50_us", "envoy", AtMost(0.6)),
    ratio("one-connection p50", "http1-one", "p50_us", "haproxy", AtMost(1.0)),
    ratio("p99 at half of HAProxy's highest rate", "rate-50", "p99_us", "haproxy", AtMost(1.0)),
    ratio("p99 at half of its own highest rate", "rate-half", "p99_us", "haproxy", AtMost(1.0)),
    ratio("highest rate", "http1", "rate", "envoy", AtLeast(2.2)),
    ratio("highest rate", "http1", "rate", "haproxy", AtLeast(1.1)),
    ratio("bulk, down", "bulk-down", "mb_s", "envoy", AtLeast(1.5)),
    ratio("bulk, up", "bulk-up", "mb_s", "envoy", AtLeast(1.5)),
    ratio("CPU per GB, down", "bulk-down", "cpu_s_per_gb", "envoy", AtMost(0.7)),
    ratio("CPU per GB, up", "bulk-up", "cpu_s_per_gb", "envoy", AtMost(0.7)),
    ratio("new mTLS connections a second, per CPU", "handshakes", "conn_per_cpu_s", "envoy", AtLeast(1.0)),
    ratio("new mTLS connections a second, per CPU", "handshakes", "conn_per_cpu_s", "haproxy", AtLeast(1.0)),
    most("memory of an idle sidecar", "idle", "idle_mb", 8.0, "MB"),
    most("memory of an idle HTTP/1.1 connection", "idle", "connection_kb", 8.0, "kB"),
    most("memory growth over a million requests", "million", "growth_mb", FLAT_MB, "MB"),
    most("sidecar start to ready", "start", "ready_ms", 100.0, "ms"),
    most("endpoint change to the last ACK of 1,000 sidecars, p99", "fleet-1000x1000", "ack_p99_ms", 250.0, "ms"),
    most("control plane, memory of an idle sidecar", "fleet-1000x1000", "kb_per_sidecar", 60.0, "kB"),
    most("control plane, CPU of an idle sidecar", "fleet-1000x1000", "cpu_percent_per_sidecar", 0.05, "%"),
];

/// What counts as flat: an allocator's noise, a byte a request.
const FLAT_MB: f64 = 1.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    fn judge(target: &Target, samples: &[Sample]) -> Verdict {
        target.judge(&Figures::new(samples)).1
    }

    /// Samples that put a target at `value`.
    fn made_up(target: &Target, value: f64) -> Vec<Sample> {
        let sample = |name: &str, value| Sample::new(target.case, name, target.metric, 1, value);
        match target.of {
            Of::Figure(_) => vec![sample("weft", value)],
            Of::Ratio(peer) => vec![sample("weft", value * 8.0), sample(peer, 8.0)],
        }
    }

    #[test]
    fn every_target_can_be_met_and_missed() {
        for target in TARGETS {
            let (edge, better, worse) = match target.bound {
                AtMost(edge) => (edge, edge * 0.9, edge * 1.1),
                AtLeast(edge) => (edge, edge * 1.1, edge * 0.9),
            };
            assert_eq!(judge(target, &made_up(target, better)), Verdict::Met, "{target:?}");
            assert_eq!(judge(target, &made_up(target, edge)), Verdict::Met, "{target:?}");
            assert_eq!(judge(target, &made_up(target, worse)), Verdict::Missed, "{target:?}");
            assert_eq!(judge(target, &[]), Verdict::NotMeasured, "{target:?}");
        }
    }

    #[test]
    fn the_median_decides_and_the_peer_must_have_run() {
        let target = &TARGETS[0];
        let sample = |name: &str, round, value| Sample::new("http1", name, "cpu_us", round, value);
        let mut samples: Vec<Sample> = (1..=3).map(|round| sample("envoy", round, 100.0)).collect();
        samples.extend([sample("weft", 1, 40.0), sample("weft", 2, 41.0), sample("weft", 3, 90.0)]);
        assert_eq!(judge(target, &samples), Verdict::Met);
        assert_eq!(judge(target, &samples[3..]), Verdict::NotMeasured);
    }

    #[test]
    fn edges_read_as_the_issue_writes_them() {
        assert_eq!(TARGETS[0].edge(), "≤ 0.42 × Envoy");
        let edges: Vec<String> = TARGETS.iter().map(Target::edge).collect();
        assert!(edges.contains(&"≥ 1.1 × HAProxy".to_owned()) && edges.contains(&"≤ 0.05 %".to_owned()), "{edges:?}");
    }
}
