//! One contestant's turn.

use std::{fmt, time::Duration};

use anyhow::Result;
use serde::Serialize;

use crate::{
    backend::BULK,
    contestants::Pair,
    load::{self, Connection},
    proc,
};

/// How long each part takes.
pub struct Effort {
    warm: Duration,
    busy: Duration,
    single: Duration,
    bulks: u32,
    idle_connections: usize,
}

impl Effort {
    /// For a figure to quote.
    pub fn full() -> Self {
        Self {
            warm: Duration::from_secs(1),
            busy: Duration::from_secs(6),
            single: Duration::from_secs(3),
            bulks: 6,
            idle_connections: 1000,
        }
    }

    /// For a look.
    pub fn quick() -> Self {
        Self {
            warm: Duration::from_millis(500),
            busy: Duration::from_secs(2),
            single: Duration::from_secs(1),
            bulks: 2,
            idle_connections: 500,
        }
    }
}

/// What was measured in one turn.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Figures {
    /// Processor time of both proxies for a request, microseconds, 64 connections.
    pub cpu_micros: f64,
    /// Requests a second, 64 connections.
    pub rate: f64,
    /// Median of one connection, microseconds.
    pub p50_micros: f64,
    /// 99th percentile of one connection, microseconds.
    pub p99_micros: f64,
    /// Megabytes a second of one large answer.
    pub bulk: f64,
    /// Both proxies when idle, megabytes (proportional set size).
    pub idle_mb: f64,
    /// Kilobytes of both proxies for each idle connection of the caller.
    pub connection_kb: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} us CPU/request, {:.0}/s, p50 {:.0} us, p99 {:.0} us, {:.0} MB/s, idle {:.1} MB, {:.1} kB/connection",
            self.cpu_micros, self.rate, self.p50_micros, self.p99_micros, self.bulk, self.idle_mb, self.connection_kb
        )
    }
}

/// Everything, in order: idle first, busy last.
///
/// # Errors
/// When a request fails.
pub async fn all(pair: &Pair, effort: &Effort) -> Result<Figures> {
    let mut figures = Figures::default();
    // One request, so that what is loaded at first use is there.
    Connection::open(pair.entry).await?.get("/").await?;
    let idle = memory(pair)?;
    figures.idle_mb = idle as f64 / 1e6;

    let mut held = Vec::new();
    for _ in 0..effort.idle_connections {
        let mut connection = Connection::open(pair.entry).await?;
        connection.get("/").await?;
        held.push(connection);
    }
    figures.connection_kb = memory(pair)?.saturating_sub(idle) as f64 / 1e3 / effort.idle_connections as f64;
    drop(held);

    load::closed_loop(pair.entry, 64, effort.warm).await?;
    let before = cpu(pair)?;
    let busy = load::closed_loop(pair.entry, 64, effort.busy).await?;
    let spent = cpu(pair)?.saturating_sub(before);
    figures.cpu_micros = spent.as_secs_f64() * 1e6 / busy.requests as f64;
    figures.rate = busy.requests as f64 / busy.elapsed.as_secs_f64();

    let single = load::closed_loop(pair.entry, 1, effort.single).await?;
    figures.p50_micros = single.latency.value_at_quantile(0.5) as f64;
    figures.p99_micros = single.latency.value_at_quantile(0.99) as f64;

    let mut connection = Connection::open(pair.entry).await?;
    let began = std::time::Instant::now();
    for _ in 0..effort.bulks {
        connection.get("/bulk").await?;
    }
    figures.bulk = BULK as f64 * f64::from(effort.bulks) / 1e6 / began.elapsed().as_secs_f64();
    Ok(figures)
}

fn cpu(pair: &Pair) -> Result<Duration> {
    pair.processes().map(proc::cpu).sum()
}

fn memory(pair: &Pair) -> Result<u64> {
    pair.processes().map(proc::memory).sum()
}
