//! How contestants, metrics and figures are called in tables and plots.

use super::stats::Spread;

/// A contestant's name as its makers write it.
pub fn contestant(name: &str) -> &str {
    match name {
        "weft" => "Weft",
        "envoy" => "Envoy",
        "haproxy" => "HAProxy",
        "relay" => "TCP relay",
        other => other,
    }
}

/// A metric with its unit; one that has no words yet stands as it is.
pub fn metric(name: &str) -> &str {
    METRICS.iter().find(|(it, _)| *it == name).map_or(name, |(_, words)| words)
}

/// `median (least–most)`, or `–` when nothing was measured.
pub fn spread(spread: Option<Spread>, write: fn(f64) -> String) -> String {
    let Some(spread) = spread else { return "–".to_owned() };
    let [median, low, high] = [spread.median, spread.low, spread.high].map(write);
    if low == high { median } else { format!("{median} ({low}–{high})") }
}

/// Three digits that count; whole from 100 on.
pub fn figure(value: f64) -> String {
    match value.abs() {
        it if it >= 99.95 => format!("{value:.0}"),
        it if it >= 9.995 => format!("{value:.1}"),
        it if it >= 0.0995 || it == 0.0 => format!("{value:.2}"),
        it if it >= 0.00995 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// Two places: what a ratio of noisy figures bears.
pub fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

const METRICS: &[(&str, &str)] = &[
    ("cpu_us", "CPU µs/request"),
    ("rate", "requests/s"),
    ("p50_us", "p50 µs"),
    ("p90_us", "p90 µs"),
    ("p99_us", "p99 µs"),
    ("p999_us", "p99.9 µs"),
    ("max_us", "longest µs"),
    ("mb_s", "MB/s"),
    ("cpu_s_per_gb", "CPU s/GB"),
    ("conn_s", "connections/s"),
    ("conn_per_cpu_s", "connections/CPU s"),
    ("late_p99_us", "sent late, p99 µs"),
    ("unanswered", "unanswered"),
    ("idle_mb", "idle MB/proxy"),
    ("connection_kb", "kB/connection, pair"),
    ("connection_outbound_kb", "kB/connection, caller's proxy"),
    ("connection_inbound_kb", "kB/connection, callee's proxy"),
    ("ready_ms", "start to ready ms"),
    ("ready_again_ms", "start to ready ms, from what it left on disk"),
    ("growth_mb", "growth MB"),
    ("ack_p50_ms", "last ACK p50 ms, all call it"),
    ("ack_p99_ms", "last ACK p99 ms, all call it"),
    ("ack_max_ms", "last ACK longest ms, all call it"),
    ("one_ack_p50_ms", "last ACK p50 ms, one calls it"),
    ("one_ack_p99_ms", "last ACK p99 ms, one calls it"),
    ("kb_per_sidecar", "kB/idle sidecar"),
    ("cpu_percent_per_sidecar", "CPU %/idle sidecar"),
    ("cpu_ms_per_change", "CPU ms/change, all call it"),
    ("one_cpu_ms_per_change", "CPU ms/change, one calls it"),
    ("nobody_cpu_ms_per_change", "CPU ms/change, nobody calls it"),
    ("bytes_per_change", "bytes/change, all call it"),
    ("one_bytes_per_change", "bytes/change, one calls it"),
    ("nobody_bytes_per_change", "bytes/change, nobody calls it"),
    ("herd_s", "restart to all in step s"),
    ("herd_cpu_s", "restart to all in step, CPU s"),
    ("herd_mb", "memory after the restart MB"),
    ("herd_lost_streams", "streams lost by the restart"),
    ("restart_s", "restart to listening s"),
    ("start_s", "start of the control plane s"),
    ("alone_mb", "memory without sidecars MB"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_three_digits() {
        let figures = [21657.4, 99.97, 58.46, 9.999, 1.234, 0.1, 0.0567, 0.00123, 0.0].map(figure);
        assert_eq!(figures, ["21657", "100", "58.5", "10.0", "1.23", "0.10", "0.057", "0.0012", "0.00"]);
    }

    #[test]
    fn one_round_has_no_spread() {
        assert_eq!(spread(Spread::of([2.0]), figure), "2.00");
        assert_eq!(spread(Spread::of([1.0, 2.0, 4.0]), figure), "2.00 (1.00–4.00)");
        assert_eq!(spread(None, figure), "–");
        assert_eq!((metric("cpu_us"), metric("new_thing")), ("CPU µs/request", "new_thing"));
    }
}
