//! How the watches are doing, for metrics, status and logs.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use weft_proto::weft::v1;

use super::state::{Scope, State};

/// How the watches are doing. Shared.
#[derive(Debug)]
pub struct Health {
    scopes: Mutex<BTreeMap<Scope, Watch>>,
    metrics: Metrics,
}

#[derive(Debug, Default, Clone)]
struct Watch {
    /// When the last whole list came.
    listed: Option<SystemTime>,
    heard: Option<Instant>,
    failed: Option<(Instant, String)>,
    installed: Option<bool>,
    objects: usize,
    invalid: usize,
}

#[derive(Debug)]
struct Metrics {
    up: IntGaugeVec,
    synced: IntGaugeVec,
    failures: IntCounterVec,
    events: IntCounterVec,
    objects: IntGaugeVec,
    pub status_writes: IntCounterVec,
}

impl Health {
    /// Of these watches.
    /// # Errors
    /// The metrics are registered already.
    pub fn new(scopes: &[Scope], registry: &Registry) -> Result<Arc<Self>, prometheus::Error> {
        let metrics = Metrics::new(registry)?;
        for scope in scopes {
            let kind = scope.subject.as_str();
            metrics.up.with_label_values(&[kind]).set(0);
            metrics.failures.with_label_values(&[kind]);
        }
        let scopes = scopes.iter().map(|scope| (scope.clone(), Watch::default())).collect();
        Ok(Arc::new(Self { scopes: Mutex::new(scopes), metrics }))
    }

    /// The API server said something.
    pub(super) fn heard(&self, scope: &Scope, listed: bool) {
        let kind = scope.subject.as_str();
        self.metrics.events.with_label_values(&[kind]).inc();
        let mut scopes = self.scopes.lock();
        let watch = scopes.entry(scope.clone()).or_default();
        watch.heard = Some(Instant::now());
        watch.installed = Some(true);
        if listed {
            let now = SystemTime::now();
            watch.listed = Some(now);
            let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            self.metrics.synced.with_label_values(&[kind]).set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
    }

    /// The watch failed.
    pub(super) fn failed(&self, scope: &Scope, why: &str) {
        self.metrics.failures.with_label_values(&[scope.subject.as_str()]).inc();
        self.scopes.lock().entry(scope.clone()).or_default().failed = Some((Instant::now(), why.to_owned()));
    }

    /// The watch has to begin anew, as happens.
    pub(super) fn gone(&self, scope: &Scope) {
        self.metrics.failures.with_label_values(&[scope.subject.as_str()]).inc();
    }

    /// There is no such kind.
    pub(super) fn not_installed(&self, scope: &Scope) {
        self.scopes.lock().entry(scope.clone()).or_default().installed = Some(false);
    }

    /// How many objects there are now.
    pub(super) fn count(&self, state: &State) {
        for (scope, watch) in self.scopes.lock().iter_mut() {
            (watch.objects, watch.invalid) = state.count(scope);
        }
    }

    /// A status was written, or was not.
    pub(super) fn status_written(&self, result: &str) {
        self.metrics.status_writes.with_label_values(&[result]).inc();
    }

    /// Brings the gauges up to date, when someone looks.
    pub fn refresh(&self) {
        let now = Instant::now();
        let mut up: BTreeMap<&str, bool> = BTreeMap::new();
        let mut objects: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (scope, watch) in self.scopes.lock().iter() {
            let kind = scope.subject.as_str();
            match watch.state(now) {
                // Nobody has to have the Gateway API. A series that stays 0 would be an alert that never ends.
                NOT_INSTALLED if !scope.subject.ours() => {
                    // An error says that it has none already.
                    let _ = self.metrics.up.remove_label_values(&[kind]);
                }
                state => *up.entry(kind).or_insert(true) &= state == WATCHING,
            }
            *objects.entry((kind, "obeyed")).or_default() += watch.objects;
            *objects.entry((kind, "invalid")).or_default() += watch.invalid;
        }
        for (kind, up) in up {
            self.metrics.up.with_label_values(&[kind]).set(up.into());
        }
        for ((kind, state), count) in objects {
            self.metrics.objects.with_label_values(&[kind, state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// For `weft status`.
    pub fn status(&self) -> Vec<v1::WatchStatus> {
        let now = Instant::now();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let scopes = self.scopes.lock();
        let status = scopes.iter().map(|(scope, watch)| v1::WatchStatus {
            kind: scope.subject.as_str().to_owned(),
            namespace: scope.namespace.clone().unwrap_or_default(),
            state: watch.state(now).to_owned(),
            objects: number(watch.objects),
            invalid: number(watch.invalid),
            listed: watch.listed.map_or_else(String::new, |at| humantime::format_rfc3339_seconds(at).to_string()),
            message: match &watch.failed {
                Some((_, why)) if watch.state(now) == FAILING => why.clone(),
                _ => String::new(),
            },
        });
        status.collect()
    }
}

impl Watch {
    fn state(&self, now: Instant) -> &'static str {
        if self.installed == Some(false) {
            return NOT_INSTALLED;
        }
        if let Some((failed, _)) = &self.failed {
            // A watch that goes on where it broke off says nothing until something changes; that it does not fail again
            // is then the sign that it stands.
            let since = self.heard.is_some_and(|heard| heard > *failed);
            let settled = self.listed.is_some() && now.saturating_duration_since(*failed) > SETTLED;
            if !since && !settled {
                return FAILING;
            }
        }
        if self.listed.is_some() { WATCHING } else { LISTING }
    }
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let counter = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let metrics = Self {
            up: gauge(
                "weft_cp_kubernetes_watch_up",
                "Whether the API server is being watched, by kind; kinds of the Gateway API that it does not have are left out.",
                &["kind"],
            )?,
            synced: gauge(
                "weft_cp_kubernetes_watch_synced_timestamp_seconds",
                "When the last whole list of a kind came, in Unix time.",
                &["kind"],
            )?,
            failures: counter(
                "weft_cp_kubernetes_watch_failures_total",
                "Watches that broke off or could not begin, by kind.",
                &["kind"],
            )?,
            events: counter("weft_cp_kubernetes_watch_events_total", "Events of the watches, by kind.", &["kind"])?,
            objects: gauge(
                "weft_cp_kubernetes_objects",
                "Objects of the API server, by kind and state: obeyed, invalid (the last good version is obeyed).",
                &["kind", "state"],
            )?,
            status_writes: counter(
                "weft_cp_kubernetes_status_writes_total",
                "Statuses written back to the API server, by result: ok, conflict, refused, failed.",
                &["result"],
            )?,
        };
        registry.register(Box::new(metrics.up.clone()))?;
        registry.register(Box::new(metrics.synced.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        registry.register(Box::new(metrics.events.clone()))?;
        registry.register(Box::new(metrics.objects.clone()))?;
        registry.register(Box::new(metrics.status_writes.clone()))?;
        Ok(metrics)
    }
}

const LISTING: &str = "LISTING";
const WATCHING: &str = "WATCHING";
const FAILING: &str = "FAILING";
const NOT_INSTALLED: &str = "NOT_INSTALLED";
/// Longer than the longest pause between two tries (30 s) and a try.
const SETTLED: Duration = Duration::from_secs(45);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_nobody_has_to_have_has_no_series_and_one_of_ours_is_down() {
        let registry = Registry::new();
        let scopes = Scope::all(&[]);
        let health = Health::new(&scopes, &registry).unwrap();
        let up = || {
            health.refresh();
            let family = registry.gather().into_iter().find(|family| family.name() == "weft_cp_kubernetes_watch_up");
            let read = |metric: &prometheus::proto::Metric| {
                (metric.get_label()[0].value().to_owned(), metric.get_gauge().get_value())
            };
            family.iter().flat_map(|family| family.get_metric()).map(read).collect::<BTreeMap<_, _>>()
        };
        let of = |kind: &str| scopes.iter().find(|scope| scope.subject.as_str() == kind).unwrap();
        assert_eq!(up().len(), scopes.len());
        health.not_installed(of("GRPCRoute"));
        health.not_installed(of("AccessPolicy"));
        health.heard(of("Service"), true);
        let seen = up();
        assert_eq!((seen.get("GRPCRoute"), seen["AccessPolicy"], seen["Service"]), (None, 0.0, 1.0));
        health.heard(of("GRPCRoute"), true);
        assert_eq!(up()["GRPCRoute"], 1.0);
    }

    #[test]
    fn a_watch_that_failed_is_up_again_when_it_says_something_or_fails_no_more() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut watch = Watch::default();
        assert_eq!(watch.state(at(0)), LISTING);
        watch.failed = Some((at(1), "connection refused".to_owned()));
        assert_eq!(watch.state(at(600)), FAILING, "nothing was ever listed");
        (watch.heard, watch.listed) = (Some(at(2)), Some(SystemTime::now()));
        assert_eq!(watch.state(at(2)), WATCHING);
        watch.failed = Some((at(10), "connection refused".to_owned()));
        assert_eq!(watch.state(at(11)), FAILING);
        assert_eq!(watch.state(at(70)), WATCHING);
        watch.installed = Some(false);
        assert_eq!(watch.state(at(70)), NOT_INSTALLED);
    }
}
