//! What is done to each contestant, and what comes of it: one case, some figures.

mod flows;
mod memory;
mod rates;

use std::time::{Duration, Instant};

use anyhow::Result;

pub use self::rates::highest;
use crate::{
    contestants::{Kind, Pair, Scene, Shape},
    load::{Caller, Outcome, closed_loop},
    proc,
    sample::Sample,
};

/// One case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// As `--case` and samples name it.
    pub name: &'static str,
    /// What is done and measured, for `--list`.
    pub what: &'static str,
    /// Before what it is done.
    pub scene: Scene,
    /// In which rounds.
    pub when: When,
    /// How.
    work: Work,
}

/// In which rounds a case is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// In all, `--quick` ones included.
    Always,
    /// In the rounds of a full run.
    Full,
    /// Once in a full run: it takes long.
    Once,
}

#[derive(Clone, Copy, Debug)]
enum Work {
    Idle,
    Start,
    Http1,
    Http1One,
    /// Percent of HAProxy's highest rate.
    Rate(u32),
    HalfRate,
    Http2,
    Unary,
    Stream,
    Tcp,
    TcpBulk,
    Download,
    Upload,
    Handshakes,
    Churn,
    Many,
    Million,
}

const PAIR: Scene = Scene { shape: Shape::Pair, workers: 1 };

const fn case(name: &'static str, work: Work, when: When, what: &'static str) -> Case {
    Case { name, what, scene: PAIR, when, work }
}

const fn shaped(name: &'static str, shape: Shape, what: &'static str) -> Case {
    Case { name, what, scene: Scene { shape, workers: 1 }, when: When::Once, work: Work::Many }
}

/// All of them, in the order in which they are done: memory before anything has been busy, what leaves traces last.
pub const ALL: &[Case] = &[
    case("idle", Work::Idle, When::Always, "memory (PSS) of an idle proxy, and for each idle HTTP/1.1 connection"),
    case(
        "start",
        Work::Start,
        When::Always,
        "Weft alone: start of a sidecar to ready, new and with what it left on disk",
    ),
    case("http1", Work::Http1, When::Always, "HTTP/1.1, 64 connections, closed loop: CPU per request, highest rate"),
    case("http1-one", Work::Http1One, When::Always, "HTTP/1.1, one connection, closed loop: latency"),
    case("rate-25", Work::Rate(25), When::Full, "HTTP/1.1, open loop at 25 % of HAProxy's highest rate: latency, CPU"),
    case("rate-50", Work::Rate(50), When::Always, "the same at 50 %"),
    case("rate-75", Work::Rate(75), When::Full, "the same at 75 %"),
    case("rate-half", Work::HalfRate, When::Full, "the same at half of the contestant's own highest rate"),
    case(
        "http2",
        Work::Http2,
        When::Full,
        "HTTP/2, 8 connections with 8 streams each: CPU per request, rate; latency of one",
    ),
    case("grpc-unary", Work::Unary, When::Always, "gRPC, unary calls of 64 bytes, likewise"),
    case("grpc-stream", Work::Stream, When::Full, "gRPC, bidirectional calls, messages there and back, likewise"),
    case("tcp", Work::Tcp, When::Full, "raw TCP, 64 connections, 64 bytes there and back; latency of one"),
    case("tcp-bulk", Work::TcpBulk, When::Full, "raw TCP, 64 MiB down: MB/s, CPU per GB"),
    case("bulk-down", Work::Download, When::Always, "HTTP/1.1, answers of 64 MiB: MB/s, CPU per GB"),
    case("bulk-up", Work::Upload, When::Always, "HTTP/1.1, bodies of 64 MiB: MB/s, CPU per GB"),
    case(
        "handshakes",
        Work::Handshakes,
        When::Always,
        "raw TCP, a new connection and full mTLS handshake for each echo",
    ),
    case("churn", Work::Churn, When::Full, "HTTP/1.1, a new connection of the caller for each request, pooled between"),
    case("million", Work::Million, When::Once, "Weft alone: growth of its memory over a million requests"),
    Case {
        name: "http1-2workers",
        what: "HTTP/1.1, 64 connections, two workers a proxy: CPU per request, highest rate",
        scene: Scene { shape: Shape::Pair, workers: 2 },
        when: When::Full,
        work: Work::Http1,
    },
    shaped("routes-10", Shape::Routes(10), "HTTP/1.1 with so many routes, the last one taken (Weft, Envoy)"),
    shaped("routes-1000", Shape::Routes(1000), "the same"),
    shaped("routes-10000", Shape::Routes(10_000), "the same"),
    shaped("endpoints-10", Shape::Endpoints(10), "HTTP/1.1 by one proxy to so many endpoints, no TLS (Weft, Envoy)"),
    shaped("endpoints-1000", Shape::Endpoints(1000), "the same"),
    shaped("endpoints-10000", Shape::Endpoints(10_000), "the same"),
];

impl Case {
    /// Whether its rate is a part of one that all contestants share.
    pub fn needs_common_rate(&self) -> bool {
        matches!(self.work, Work::Rate(_))
    }
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Before what is measured.
    pub warm: Duration,
    /// Of what is measured.
    pub busy: Duration,
    /// Of a single caller.
    pub single: Duration,
    /// Idle connections.
    pub idle: usize,
}

impl Effort {
    /// For a figure to quote.
    pub const FULL: Self = Self {
        warm: Duration::from_millis(500),
        busy: Duration::from_millis(2500),
        single: Duration::from_millis(1200),
        idle: 1500,
    };

    /// For a look.
    pub const QUICK: Self = Self {
        warm: Duration::from_millis(200),
        busy: Duration::from_millis(1000),
        single: Duration::from_millis(500),
        idle: 500,
    };
}

/// A contestant's turn: what is known and what has been measured.
pub struct Turn<'a> {
    /// Who.
    pub kind: Kind,
    /// Running.
    pub pair: &'a Pair,
    /// How long.
    pub effort: Effort,
    /// From 1.
    pub round: u32,
    /// HAProxy's highest rate in this run.
    pub common_rate: Option<f64>,
    /// The contestant's own, once it is known.
    pub own_rate: Option<f64>,
    /// What came of it.
    pub samples: Vec<Sample>,
}

impl Turn<'_> {
    /// Does one case; `false`: the contestant cannot.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn carry_out(&mut self, case: &Case) -> Result<bool> {
        let name = case.name;
        match case.work {
            Work::Idle => self.idle(name).await,
            Work::Start => self.start(name).await,
            Work::Http1 => self.http1(name).await,
            Work::Http1One => self.http1_one(name).await,
            Work::Rate(percent) => self.rate(name, percent).await,
            Work::HalfRate => self.half_rate(name).await,
            Work::Http2 => self.http2(name, crate::load::http2::Kind::Get).await,
            Work::Unary => self.http2(name, crate::load::http2::Kind::Unary).await,
            Work::Stream => self.http2(name, crate::load::http2::Kind::Stream).await,
            Work::Tcp => self.tcp(name).await,
            Work::TcpBulk => self.tcp_bulk(name).await,
            Work::Download => self.download(name).await,
            Work::Upload => self.upload(name).await,
            Work::Handshakes => self.handshakes(name).await,
            Work::Churn => self.churn(name).await,
            Work::Many => self.many(name, case.scene.shape).await,
            Work::Million => self.million(name).await,
        }
    }

    fn note(&mut self, case: &str, metric: &str, value: f64) {
        self.samples.push(Sample::new(case, self.kind.name(), metric, self.round, value));
    }

    /// Runs callers in a closed loop, warm; also what it cost both proxies.
    async fn measured<C: Caller>(&self, callers: &mut Vec<C>, time: Duration) -> Result<(Outcome, Duration)> {
        closed_loop(callers, self.effort.warm).await?;
        let before = cpu(self.pair)?;
        let outcome = closed_loop(callers, time).await?;
        Ok((outcome, cpu(self.pair)?.saturating_sub(before)))
    }
}

/// Processor time of both proxies so far.
fn cpu(pair: &Pair) -> Result<Duration> {
    pair.proxies()?.concat().into_iter().map(proc::cpu).sum()
}

/// Microseconds of processor time for each.
fn micros_each(spent: Duration, count: u64) -> f64 {
    spent.as_secs_f64() * 1e6 / count.max(1) as f64
}

/// For progress.
pub fn seconds(since: Instant) -> String {
    format!("{:.0} s", since.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_cases_have_one_name() {
        let names: BTreeSet<&str> = ALL.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
