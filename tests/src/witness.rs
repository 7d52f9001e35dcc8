//! What a sidecar says of one request in its access log and its metrics.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use weft::launch::{Workload, metrics, wait_for};

/// Longer than the access log takes to be written.
const SOON: Duration = Duration::from_secs(10);

/// The access-log line of `workload` for the request with this path, in this direction (`outbound`, `inbound`).
///
/// # Errors
/// When no such line is written.
pub async fn line(workload: &Workload, direction: &str, path: &str) -> Result<Value> {
    let process = workload.process().context("it runs")?;
    wait_for(&format!("the {direction} line of {path}"), SOON, async || {
        process
            .log()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["direction"] == direction && line["path"] == path && line["attempts"].is_array())
    })
    .await
}

/// The value of a metric of `workload`: the sum of the samples that have these labels.
///
/// # Errors
/// When its metrics cannot be had.
pub async fn metric(workload: &Workload, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    Ok(metrics::scrape(workload.ports()?.metrics).await?.sum(name, labels))
}

/// Waits until the metric has at least this value.
///
/// # Errors
/// When it does not come so far.
pub async fn metric_reaches(workload: &Workload, name: &str, labels: &[(&str, &str)], value: f64) -> Result<()> {
    wait_for(&format!("{name}{labels:?} to reach {value}"), SOON, async || {
        (metric(workload, name, labels).await.ok()? >= value).then_some(())
    })
    .await
}

/// Asserts that `workload`, as caller, gives the request with this path one reason in log and metric.
///
/// # Errors
/// When log or metric lack it.
///
/// # Panics
/// When they name another reason.
pub async fn assert_reason(workload: &Workload, path: &str, status: u16, reason: &str) -> Result<()> {
    let line = line(workload, "outbound", path).await?;
    assert_eq!((line["reason"].as_str(), line["status"].as_u64()), (Some(reason), Some(status.into())), "{line}");
    assert!(line["side"].is_string() && line["flags"].is_string(), "{line}");
    let code = status.to_string();
    metric_reaches(
        workload,
        "weft_requests_total",
        &[("direction", "outbound"), ("reason", reason), ("code", &code)],
        1.0,
    )
    .await
}
