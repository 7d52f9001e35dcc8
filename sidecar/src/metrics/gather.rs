//! From the workers' cells to series: added up when somebody scrapes, and when a worker lets go of them.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
    sync::Arc,
};

use parking_lot::Mutex;
use prometheus::{
    core::{Collector, Desc},
    proto::{Bucket, Counter, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use super::{
    cell::{Bounds, Count, OVERHEAD, SECONDS, Sums, seconds},
    flow::{Flow, FlowCells},
    labels::{Direction, FlowKey, RequestKey, Speaks},
};
use crate::reason::Reason;

/// Flows that have series of their own; of the ones beyond, all share those named `__overflow__`.
pub(super) const MAX_FLOWS: usize = 400;
pub(super) const OVERFLOW: &str = "__overflow__";

/// What a worker writes to, and what it comes to.
pub(super) trait Cells {
    /// Sums of several.
    type Totals: Default + Clone;

    /// Adds what is in them.
    fn add_to(&self, totals: &mut Self::Totals);
}

impl Cells for Count {
    type Totals = u64;

    fn add_to(&self, totals: &mut u64) {
        *totals += self.get();
    }
}

/// All cells of one thing: those that workers still write to, and the sum of those that they let go of.
#[derive(Debug)]
struct Held<C: Cells> {
    live: Vec<Arc<C>>,
    ended: C::Totals,
}

impl<C: Cells> Default for Held<C> {
    fn default() -> Self {
        Self { live: Vec::new(), ended: C::Totals::default() }
    }
}

impl<C: Cells> Held<C> {
    /// Moves what no worker holds any more to the sum. To own the cells alone is to see all that was written.
    fn fold(&mut self) {
        let ended = &mut self.ended;
        self.live.retain_mut(|cells| match Arc::get_mut(cells) {
            Some(cells) => {
                cells.add_to(ended);
                false
            }
            None => true,
        });
    }

    fn totals(&self) -> C::Totals {
        let mut totals = self.ended.clone();
        self.live.iter().for_each(|cells| cells.add_to(&mut totals));
        totals
    }
}

/// What a flow's cells come to.
#[derive(Debug, Default, Clone)]
pub(super) struct Totals {
    /// What is not told apart by route.
    pub pair: PairTotals,
    pub requests: BTreeMap<RequestKey, u64>,
    /// By class of status: 2 for 2xx.
    pub durations: BTreeMap<(Speaks, u16), Sums>,
}

/// The part of it whose series the flows of one source and destination share.
#[derive(Debug, Default, Clone)]
pub(super) struct PairTotals {
    pub overhead: Sums,
    pub received: u64,
    pub sent: u64,
    pub attempts: BTreeMap<(&'static str, &'static str), u64>,
    pub suppressed: BTreeMap<&'static str, u64>,
}

impl PairTotals {
    fn add(&mut self, other: &Self) {
        self.overhead.add(&other.overhead);
        self.received += other.received;
        self.sent += other.sent;
        other.attempts.iter().for_each(|(key, count)| *self.attempts.entry(*key).or_default() += count);
        other.suppressed.iter().for_each(|(key, count)| *self.suppressed.entry(*key).or_default() += count);
    }
}

type Pair = (Direction, Box<str>, Box<str>);

fn pair(key: &FlowKey) -> Pair {
    (key.direction, key.source.clone(), key.destination.clone())
}

/// All flows, and all decisions of access policies. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Gathered(Arc<Inner>);

/// Decision, policy and rule.
type Decision = (&'static str, Box<str>, Box<str>);

#[derive(Debug)]
struct Inner {
    flows: Mutex<Flows>,
    decisions: Mutex<BTreeMap<Decision, Held<Count>>>,
    families: Families,
}

#[derive(Debug, Default)]
struct Flows {
    held: HashMap<FlowKey, Held<FlowCells>>,
    /// Of flows that are gone, while others of the same source and destination are there: counters do not fall.
    left: HashMap<Pair, PairTotals>,
}

impl Gathered {
    pub fn new() -> Self {
        Self(Arc::new(Inner { flows: Mutex::default(), decisions: Mutex::default(), families: Families::new() }))
    }

    /// The handles of a flow, for one worker to keep.
    pub fn flow(&self, key: FlowKey) -> Rc<Flow> {
        let mut flows = self.0.flows.lock();
        let room = flows.held.len() < MAX_FLOWS || flows.held.contains_key(&key);
        let overflow = || OVERFLOW.into();
        let key = if room {
            key
        } else {
            FlowKey { direction: key.direction, source: overflow(), destination: overflow(), route: overflow() }
        };
        let cells = Arc::<FlowCells>::default();
        flows.held.entry(key.clone()).or_default().live.push(Arc::clone(&cells));
        drop(flows);
        Rc::new(Flow::new(key, cells))
    }

    /// Removes the series of flows that no worker holds any more.
    pub fn evict(&self) {
        let mut flows = self.0.flows.lock();
        let Flows { held, left } = &mut *flows;
        held.values_mut().for_each(Held::fold);
        let gone: Vec<_> = held.extract_if(|_, held| held.live.is_empty()).collect();
        for (key, held) in &gone {
            left.entry(pair(key)).or_default().add(&held.ended.pair);
        }
        if !gone.is_empty() {
            left.retain(|left, _| held.keys().any(|key| pair(key) == *left));
        }
        drop(flows);
        self.0.decisions.lock().values_mut().for_each(Held::fold);
    }

    /// Counter of an access policy's decisions, for one worker to keep.
    pub fn decisions(&self, decision: &'static str, policy: &str, rule: &str) -> Arc<Count> {
        let count = Arc::<Count>::default();
        let key = (decision, policy.into(), rule.into());
        self.0.decisions.lock().entry(key).or_default().live.push(Arc::clone(&count));
        count
    }
}

impl Collector for Gathered {
    fn desc(&self) -> Vec<&Desc> {
        self.0.families.0.iter().map(|family| &family.desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut out: [Vec<Metric>; FAMILIES] = Default::default();
        let flows = self.0.flows.lock();
        let mut pairs: BTreeMap<Pair, PairTotals> =
            flows.left.iter().map(|(pair, totals)| (pair.clone(), totals.clone())).collect();
        for (key, held) in &flows.held {
            let totals = held.totals();
            pairs.entry(pair(key)).or_default().add(&totals.pair);
            totals.of_route(key, &mut out);
        }
        drop(flows);
        pairs.iter().for_each(|(pair, totals)| totals.of_pair(pair, &mut out));
        for ((decision, policy, rule), held) in &*self.0.decisions.lock() {
            let labels = [("decision", *decision), ("policy", policy), ("rule", rule)];
            out[DECISIONS].push(counter(labels, held.totals()));
        }
        self.0.families.0.iter().zip(out).map(|(family, metrics)| family.with(metrics)).collect()
    }
}

impl Totals {
    fn of_route(&self, key: &FlowKey, out: &mut [Vec<Metric>; FAMILIES]) {
        let flow = [
            ("direction", key.direction.label()),
            ("source", &key.source),
            ("destination", &key.destination),
            ("route", &key.route),
        ];
        for (key, &count) in &self.requests {
            let code = key.code.to_string();
            let grpc = key.grpc.map(|status| status.to_string()).unwrap_or_default();
            let more = [
                ("protocol", key.protocol.label()),
                ("code", &code),
                ("grpc_status", &grpc),
                ("reason", key.reason.map_or("", Reason::code)),
                ("tls", if key.tls { "mutual" } else { "none" }),
            ];
            out[REQUESTS].push(counter(flow.into_iter().chain(more), count));
        }
        for ((speaks, class), sums) in &self.durations {
            let class = ["", "1xx", "2xx", "3xx", "4xx", "5xx"].get(usize::from(*class)).copied().unwrap_or("");
            let more = [("protocol", speaks.label()), ("code_class", class)];
            out[DURATION].push(histogram(flow.into_iter().chain(more), SECONDS, sums));
        }
    }
}

impl PairTotals {
    fn of_pair(&self, (direction, source, destination): &Pair, out: &mut [Vec<Metric>; FAMILIES]) {
        let pair = [("direction", direction.label()), ("source", &**source), ("destination", &**destination)];
        out[OVERHEADS].push(histogram(pair, OVERHEAD, &self.overhead));
        for (io, bytes) in [("received", self.received), ("sent", self.sent)] {
            out[BYTES].push(counter(pair.into_iter().chain([("io", io)]), bytes));
        }
        for (&(kind, result), &count) in &self.attempts {
            out[ATTEMPTS].push(counter(pair.into_iter().chain([("kind", kind), ("result", result)]), count));
        }
        for (&why, &count) in &self.suppressed {
            out[SUPPRESSED].push(counter(pair.into_iter().chain([("why", why)]), count));
        }
    }
}

fn labelled<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Metric {
    let mut labels: Vec<_> = labels.into_iter().collect();
    labels.sort_unstable_by_key(|(name, _)| *name);
    let pairs = labels.into_iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    });
    Metric::from_label(pairs.collect())
}

fn counter<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>, value: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value as f64);
    let mut metric = labelled(labels);
    metric.set_counter(counter);
    metric
}

fn histogram<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>, bounds: Bounds, sums: &Sums) -> Metric {
    let mut below = 0;
    let buckets = seconds(bounds).zip(sums.counts).map(|(bound, count)| {
        below += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(below);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(sums.counts.iter().sum());
    histogram.set_sample_sum(sums.nanos as f64 / 1e9);
    let mut metric = labelled(labels);
    metric.set_histogram(histogram);
    metric
}

const REQUESTS: usize = 0;
const DURATION: usize = 1;
const OVERHEADS: usize = 2;
const ATTEMPTS: usize = 3;
const SUPPRESSED: usize = 4;
const BYTES: usize = 5;
const DECISIONS: usize = 6;
const FAMILIES: usize = 7;

/// Names and help, in the order of the numbers above.
#[derive(Debug)]
struct Families([Family; FAMILIES]);

#[derive(Debug)]
struct Family {
    desc: Desc,
    kind: MetricType,
}

impl Families {
    fn new() -> Self {
        let flow = ["direction", "source", "destination"];
        let with = |more: &[&'static str]| -> Vec<&'static str> { flow.iter().chain(more).copied().collect() };
        let counters = |name, help, labels: &[&str]| Family::new(name, help, labels, MetricType::COUNTER);
        let histograms = |name, help, labels: &[&str]| Family::new(name, help, labels, MetricType::HISTOGRAM);
        Self([
            counters(
                "weft_requests_total",
                "Requests, one each as the caller saw it.",
                &with(&["route", "protocol", "code", "grpc_status", "reason", "tls"]),
            ),
            histograms(
                "weft_request_duration_seconds",
                "From the request's head to the answer's last byte.",
                &with(&["route", "protocol", "code_class"]),
            ),
            histograms(
                "weft_proxy_overhead_seconds",
                "Time to the answer's head that was spent inside this sidecar.",
                &flow,
            ),
            counters(
                "weft_attempts_total",
                "Tries; retries are those whose kind is not first.",
                &with(&["kind", "result"]),
            ),
            counters("weft_retries_suppressed_total", "Retries that were wanted and not made.", &with(&["why"])),
            counters("weft_bytes_total", "Bytes of bodies and TCP streams, counted as they pass.", &with(&["io"])),
            counters("weft_access_decisions_total", "Decisions of access policies.", &["decision", "policy", "rule"]),
        ])
    }
}

impl Family {
    fn new(name: &str, help: &str, labels: &[&str], kind: MetricType) -> Self {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new());
        Self { desc: desc.expect("the names and labels are valid"), kind }
    }

    fn with(&self, metrics: Vec<Metric>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(self.kind);
        family.set_metric(metrics);
        family
    }
}
