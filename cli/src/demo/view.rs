//! What a person sees: lines where there is no terminal, a picture that renews itself where there is one.

use std::{collections::BTreeMap, io::Write, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{task::JoinHandle, time::Instant};

use super::{
    claim::{Claim, Claims, EXPECTED},
    mesh::Watched,
    traffic::Traffic,
};
use crate::launch::metrics::{self, Scrape};

/// How often the picture is drawn.
const FRAME: Duration = Duration::from_millis(500);

/// What a person sees.
pub struct View {
    live: bool,
    json: bool,
    claims: Claims,
    lines: Arc<Mutex<Vec<String>>>,
}

/// The picture; it stops when dropped.
pub struct Drawing(Option<JoinHandle<()>>);

impl Drop for Drawing {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl View {
    /// `live`: a picture in place of lines. `json`: nothing before the end.
    pub fn new(live: bool, json: bool, claims: Claims) -> Self {
        Self { live, json, claims, lines: Arc::default() }
    }

    /// Something worth saying.
    pub fn note(&self, text: &str) {
        self.line(text);
    }

    /// A scene begins.
    pub fn scene(&self, name: &str, proves: &str) {
        self.line(&format!("\n{name}: {proves}"));
    }

    /// A claim was measured.
    pub fn claim(&self, claim: &Claim) {
        self.line(&claim_line(claim));
    }

    fn line(&self, text: &str) {
        if self.json {
            return;
        }
        self.lines.lock().extend(text.lines().map(str::to_owned));
        if !self.live {
            println!("{text}");
        }
    }

    /// The result, whole.
    pub fn finish(&self) {
        let claims = self.claims.list();
        let observed = claims.iter().filter(|claim| claim.observed).count();
        if self.json {
            let report = serde_json::json!({
                "claims": claims,
                "expected": EXPECTED,
                "observed": observed,
                "ok": self.claims.all_observed(),
            });
            println!("{report:#}");
            return;
        }
        if self.live {
            print!("\x1b[2J\x1b[H");
            for claim in &claims {
                println!("{:<26}{}", claim.scene, claim_line(claim));
            }
        }
        println!("\n{observed} of {EXPECTED} claims observed");
    }

    /// Draws the edges, breakers and certificates until dropped; nothing where there is no terminal.
    pub fn draw(&self, watched: Vec<Watched>, traffic: Arc<Traffic>) -> Drawing {
        if !self.live {
            return Drawing(None);
        }
        let lines = self.lines.clone();
        Drawing(Some(tokio::spawn(async move {
            let mut board = Board::default();
            let mut tick = tokio::time::interval(FRAME);
            loop {
                tick.tick().await;
                for workload in &watched {
                    // One that has been killed does not answer; the board says so.
                    board.take(workload.name, metrics::scrape(workload.metrics).await.ok());
                }
                board.print(&traffic, &lines.lock());
            }
        })))
    }
}

/// The last two scrapes of each workload, and when they were taken.
#[derive(Default)]
struct Board {
    scrapes: BTreeMap<&'static str, Seen>,
}

#[derive(Default)]
struct Seen {
    now: Option<(Instant, Scrape)>,
    before: Option<(Instant, Scrape)>,
}

/// One edge of the picture: who calls whom.
#[derive(Default)]
struct Edge {
    rate: f64,
    failed: f64,
    buckets: BTreeMap<u64, f64>,
    encrypted: bool,
}

impl Board {
    fn take(&mut self, name: &'static str, scrape: Option<Scrape>) {
        let seen = self.scrapes.entry(name).or_default();
        match scrape {
            Some(scrape) => seen.before = seen.now.replace((Instant::now(), scrape)),
            None => *seen = Seen::default(),
        }
    }

    fn print(&self, traffic: &Traffic, lines: &[String]) {
        let counts = traffic.counts();
        let mut out = String::from("\x1b[H\x1b[2J\x1b[1mweft demo\x1b[0m   ");
        out.push_str(&format!("{} requests from outside, {} failed", counts.total, counts.failed));
        out.push_str(&traffic.last_failure().map_or_else(String::new, |failure| format!("   last: {failure:.60}")));
        out.push_str("\n\n\x1b[2mEDGE                                      REQ/S  SUCCESS    P50    P99  TLS\x1b[0m\n");
        for ((source, destination), edge) in self.edges() {
            let success = 100.0 * (1.0 - edge.failed / edge.rate.max(f64::MIN_POSITIVE));
            out.push_str(&format!(
                "{:<40} {:>6.0}  {success:>6.1}%  {:>5}  {:>5}  {}\n",
                format!("{source} -> {destination}"),
                edge.rate,
                quantile(&edge.buckets, 0.5),
                quantile(&edge.buckets, 0.99),
                if edge.encrypted { "mutual" } else { "-" },
            ));
        }
        out.push_str("\n\x1b[2mSIDECAR       BREAKERS                        CERTIFICATE\x1b[0m\n");
        for (name, seen) in &self.scrapes {
            out.push_str(&format!("{name:<12}  {}\n", sidecar_line(seen)));
        }
        out.push('\n');
        let shown = lines.len().saturating_sub(16);
        for line in &lines[shown..] {
            out.push_str(line);
            out.push('\n');
        }
        let mut stdout = std::io::stdout().lock();
        // A terminal that is gone ends the demo by its own signal.
        let _ = stdout.write_all(out.as_bytes()).and_then(|()| stdout.flush());
    }

    /// Rates between the last two scrapes, as the callers' sidecars count them.
    fn edges(&self) -> BTreeMap<(String, String), Edge> {
        let mut edges: BTreeMap<(String, String), Edge> = BTreeMap::new();
        for seen in self.scrapes.values() {
            let (Some((then, before)), Some((at, now))) = (&seen.before, &seen.now) else { continue };
            let seconds = at.duration_since(*then).as_secs_f64().max(0.001);
            for sample in now.find("weft_requests_total", &[("direction", "outbound")]) {
                let rate = (sample.value - same(before, sample)).max(0.0) / seconds;
                let edge = edges.entry(pair(sample)).or_default();
                edge.rate += rate;
                edge.encrypted |= sample.labels.get("tls").is_some_and(|tls| tls == "mutual");
                if sample.labels.get("code").is_some_and(|code| code.starts_with('5')) {
                    edge.failed += rate;
                }
            }
            for sample in now.find("weft_request_duration_seconds_bucket", &[("direction", "outbound")]) {
                let bound = sample.labels.get("le").and_then(|le| le.parse::<f64>().ok()).unwrap_or(f64::INFINITY);
                let micros = if bound.is_finite() { (bound * 1e6) as u64 } else { u64::MAX };
                let edge = edges.entry(pair(sample)).or_default();
                *edge.buckets.entry(micros).or_default() += (sample.value - same(before, sample)).max(0.0);
            }
        }
        edges
    }
}

fn pair(sample: &metrics::Sample) -> (String, String) {
    let label = |name: &str| sample.labels.get(name).cloned().unwrap_or_default();
    (label("source"), label("destination"))
}

/// The value that the same series had before; 0 when it is new.
fn same(before: &Scrape, sample: &metrics::Sample) -> f64 {
    before.0.iter().find(|old| old.name == sample.name && old.labels == sample.labels).map_or(0.0, |old| old.value)
}

/// The bound of the bucket in which the quantile lies.
fn quantile(buckets: &BTreeMap<u64, f64>, share: f64) -> String {
    let all = buckets.values().next_back().copied().unwrap_or(0.0);
    if all == 0.0 {
        return "-".to_owned();
    }
    match buckets.iter().find(|(_, count)| **count >= all * share) {
        Some((micros, _)) if *micros < 1000 => format!("{micros}us"),
        Some((micros, _)) if *micros < u64::MAX => format!("{}ms", micros / 1000),
        _ => ">10s".to_owned(),
    }
}

fn sidecar_line(seen: &Seen) -> String {
    let Some((_, scrape)) = &seen.now else { return "\x1b[31mdown\x1b[0m".to_owned() };
    let endpoints = |state| scrape.sum("weft_endpoints", &[("state", state)]);
    let open = endpoints("open") + endpoints("ejected");
    let breakers = format!("{} ready, {open} open, {} half-open", endpoints("ready"), endpoints("half_open"));
    let expiry = scrape.sum("weft_certificate_expiry_timestamp_seconds", &[("kind", "leaf")]);
    let left = std::time::UNIX_EPOCH + Duration::from_secs_f64(expiry.max(0.0));
    let left = left.duration_since(std::time::SystemTime::now()).unwrap_or_default();
    format!("{breakers:<32}{}h{:02}m left", left.as_secs() / 3600, left.as_secs() / 60 % 60)
}

/// `observed   time until it closed, seconds: 1.2 (required <= 30)`.
fn claim_line(claim: &Claim) -> String {
    let word = if claim.observed { "observed" } else { "NOT OBSERVED" };
    format!("  {word:<12}  {}: {} (required {})", claim.claim, claim.measured, claim.required)
}
