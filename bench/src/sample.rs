//! One measured figure: what the cases hand over and what the report is made of.

use serde::{Deserialize, Serialize};

/// One figure of one contestant in one case and round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What was done, as `--case` names it: `http1`, `http1-2workers`, `http2`, `grpc-unary`, `grpc-stream`, `tcp`,
    /// `bulk-down`, `bulk-up`, `handshakes`, `churn`, `idle`, `rate-25`, `routes-1000` …
    pub case: String,
    /// Who did it: `weft`, `envoy`, `haproxy`, `nginx` or `relay`.
    pub contestant: String,
    /// What was measured, with its unit: `cpu_us` (a request, both proxies), `rate` (requests a second), `p50_us`,
    /// `p99_us`, `p999_us`, `mb_s`, `cpu_s_per_gb`, `conn_per_cpu_s`, `idle_mb` (a proxy), `connection_kb` (both
    /// proxies), `ready_ms`, `growth_mb` …
    pub metric: String,
    /// Round, from 1.
    pub round: u32,
    /// The figure, in the metric's unit.
    pub value: f64,
}

impl Sample {
    /// One figure.
    #[must_use]
    pub fn new(case: &str, contestant: &str, metric: &str, round: u32, value: f64) -> Self {
        Self { case: case.to_owned(), contestant: contestant.to_owned(), metric: metric.to_owned(), round, value }
    }
}
