//! The Prometheus registry and its text exposition.

pub use prometheus::{self, Registry};
use prometheus::{Encoder, IntGauge, Opts, TextEncoder};

/// Content type of the exposition.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything in the registry, as Prometheus scrapes it.
#[must_use]
pub fn render(registry: &Registry) -> String {
    let mut out = Vec::with_capacity(16 * 1024);
    if let Err(error) = TextEncoder::new().encode(&registry.gather(), &mut out) {
        // Writing to memory cannot fail; what can is a family without metrics, and what was written before it stands.
        tracing::error!(%error, "metrics could not be encoded whole");
    }
    String::from_utf8(out).expect("the text encoder writes UTF-8")
}

/// A registry with what every process shows: its start time and its version.
///
/// `prefix`: first part of the names, as in `prefix_build_info`.
///
/// # Panics
/// When `prefix` is not a metric name.
#[must_use]
pub fn registry(prefix: &str) -> Registry {
    let registry = Registry::new();
    let info = Opts::new(format!("{prefix}_build_info"), "The version that runs; always 1.")
        .const_label("version", crate::VERSION);
    gauge(&registry, info).set(1);
    let started = Opts::new(format!("{prefix}_start_time_seconds"), "When the process started, in Unix time.");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    gauge(&registry, started).set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    registry
}

fn gauge(registry: &Registry, opts: Opts) -> IntGauge {
    let gauge = IntGauge::with_opts(opts).expect("the names are valid");
    registry.register(Box::new(gauge.clone())).expect("the registry is new");
    gauge
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposition_names_version_and_start() {
        let text = render(&registry("thing"));
        assert!(text.contains(&format!("thing_build_info{{version=\"{}\"}} 1", crate::VERSION)), "{text}");
        assert!(text.contains("# TYPE thing_start_time_seconds gauge"), "{text}");
    }
}
