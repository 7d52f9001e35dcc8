use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use prometheus::Registry;

use super::{
    gather::{MAX_FLOWS, OVERFLOW},
    *,
};

fn key(destination: &str, route: &str) -> FlowKey {
    FlowKey {
        direction: Direction::Outbound,
        source: "default/a".into(),
        destination: destination.into(),
        route: route.into(),
    }
}

const MS: Duration = Duration::from_millis(3);
const OK: RequestKey = RequestKey { protocol: Speaks::Http1, code: 200, grpc: None, reason: None, tls: true };

#[test]
fn series_end_with_their_flow() {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry);
    let flow = metrics.flow(key("default/b", "default"));
    flow.request(OK, Duration::from_millis(3));
    flow.request(OK, Duration::from_millis(3));
    flow.attempt(AttemptKind::First, "ok");
    metrics.evict();
    let text = weft_telemetry::metrics::render(&registry);
    assert!(text.contains("weft_requests_total{code=\"200\",destination=\"default/b\""), "{text}");
    drop(flow);
    metrics.evict();
    assert!(!weft_telemetry::metrics::render(&registry).contains("default/b"));
}

#[test]
fn flows_are_bounded() {
    let metrics = Metrics::new(&Registry::new());
    let flows: Vec<_> = (0..MAX_FLOWS + 10).map(|n| metrics.flow(key(&format!("default/{n}"), "default"))).collect();
    assert_eq!(flows.iter().filter(|flow| &*flow.key.destination == OVERFLOW).count(), 10);
}

/// What a series says, by the beginning of its line.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(series))?;
    Some(line.rsplit_once(' ')?.1.parse().unwrap())
}

#[test]
fn series_look_as_documented() {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry);
    let flow = metrics.flow(key("default/b", "default"));
    flow.request(RequestKey { grpc: Some(14), reason: Some(crate::reason::Reason::UpstreamReset), ..OK }, MS);
    flow.overhead(Duration::from_micros(20));
    flow.attempt(AttemptKind::First, "ok");
    flow.suppressed("budget");
    flow.received(7);
    flow.sent(9);
    metrics.access("allow", "shop/web", "0").add(1);
    let text = weft_telemetry::metrics::render(&registry);
    let flow = "destination=\"default/b\",direction=\"outbound\"";
    for line in [
        format!(
            "weft_requests_total{{code=\"200\",{flow},grpc_status=\"14\",protocol=\"http1\",reason=\"{}\",\
             route=\"default\",source=\"default/a\",tls=\"mutual\"}} 1",
            crate::reason::Reason::UpstreamReset.code()
        ),
        format!(
            "weft_request_duration_seconds_bucket{{code_class=\"2xx\",{flow},protocol=\"http1\",route=\"default\",\
             source=\"default/a\",le=\"0.005\"}} 1"
        ),
        format!(
            "weft_request_duration_seconds_sum{{code_class=\"2xx\",{flow},protocol=\"http1\",route=\"default\",\
             source=\"default/a\"}} 0.003"
        ),
        format!("weft_proxy_overhead_seconds_bucket{{{flow},source=\"default/a\",le=\"0.00002\"}} 1"),
        format!("weft_proxy_overhead_seconds_bucket{{{flow},source=\"default/a\",le=\"+Inf\"}} 1"),
        format!("weft_proxy_overhead_seconds_count{{{flow},source=\"default/a\"}} 1"),
        format!("weft_attempts_total{{{flow},kind=\"first\",result=\"ok\",source=\"default/a\"}} 1"),
        format!("weft_retries_suppressed_total{{{flow},source=\"default/a\",why=\"budget\"}} 1"),
        format!("weft_bytes_total{{{flow},io=\"received\",source=\"default/a\"}} 7"),
        format!("weft_bytes_total{{{flow},io=\"sent\",source=\"default/a\"}} 9"),
        "weft_access_decisions_total{decision=\"allow\",policy=\"shop/web\",rule=\"0\"} 1".into(),
        "# TYPE weft_requests_total counter".into(),
        "# TYPE weft_request_duration_seconds histogram".into(),
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
    }
}

#[test]
fn what_routes_share_outlives_one_of_them() {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry);
    let [one, other] = ["one", "other"].map(|route| metrics.flow(key("default/b", route)));
    one.sent(3);
    one.request(OK, MS);
    other.sent(4);
    let sent = "weft_bytes_total{destination=\"default/b\",direction=\"outbound\",io=\"sent\"";
    drop(one);
    metrics.evict();
    let text = weft_telemetry::metrics::render(&registry);
    assert_eq!(value(&text, sent), Some(7.0));
    assert!(!text.contains("route=\"one\""), "{text}");
    drop(other);
    metrics.evict();
    assert_eq!(value(&weft_telemetry::metrics::render(&registry), sent), None);
}

/// Workers count, come and go; others scrape and evict meanwhile.
#[test]
fn nothing_is_lost_and_no_counter_falls() {
    const WORKERS: u64 = 3;
    const ROUNDS: u64 = 40;
    const EACH: u64 = 500;
    let registry = Registry::new();
    let metrics = Metrics::new(&registry);
    let _kept = metrics.flow(key("default/b", "default"));
    let (requests, times) = ("weft_requests_total{code=\"200\"", "weft_request_duration_seconds_count{");
    let decided = "weft_access_decisions_total{";
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            let mut last = [0.0; 3];
            while !done.load(Relaxed) {
                metrics.evict();
                let text = weft_telemetry::metrics::render(&registry);
                let now = [requests, times, decided].map(|series| value(&text, series).unwrap_or(0.0));
                assert!(now.iter().zip(&last).all(|(now, last)| now >= last), "{now:?} after {last:?}");
                last = now;
            }
        });
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let flow = metrics.flow(key("default/b", "default"));
                        let count = metrics.access("allow", "shop/web", "0");
                        for _ in 0..EACH {
                            flow.request(OK, MS);
                            count.add(1);
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Relaxed);
        assert!(ended.iter().all(Result::is_ok) && scraper.join().is_ok());
    });
    let text = weft_telemetry::metrics::render(&registry);
    let all = (WORKERS * ROUNDS * EACH) as f64;
    assert_eq!([requests, times, decided].map(|series| value(&text, series)), [Some(all); 3]);
}
