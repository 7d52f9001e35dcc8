//! Cases in a closed loop: what a request, a message, a byte or a connection costs, and how many there can be.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Turn, micros_each};
use crate::{
    backend::BULK,
    contestants::{Kind, Shape},
    load::{Caller, closed_loop, http1, http2, tcp},
};

/// Connections that keep a pair busy.
pub const BUSY: usize = 64;

/// Callers that come and go at one time.
const PASSERS: usize = 16;

impl Turn<'_> {
    pub(super) async fn http1(&mut self, case: &str) -> Result<bool> {
        let mut callers = http1::connections(&self.pair.http1, BUSY).await?;
        let rate = self.busy(case, &mut callers).await?;
        self.own_rate = Some(rate);
        Ok(true)
    }

    pub(super) async fn http1_one(&mut self, case: &str) -> Result<bool> {
        let mut callers = http1::connections(&self.pair.http1, 1).await?;
        self.lone(case, &mut callers).await?;
        Ok(true)
    }

    pub(super) async fn http2(&mut self, case: &str, kind: http2::Kind) -> Result<bool> {
        let Some(target) = &self.pair.http2 else { return Ok(false) };
        let mut callers = http2::callers(target, kind, 8, BUSY / 8).await?;
        self.busy(case, &mut callers).await?;
        drop(callers);
        self.lone(case, &mut http2::callers(target, kind, 1, 1).await?).await?;
        Ok(true)
    }

    pub(super) async fn tcp(&mut self, case: &str) -> Result<bool> {
        let Some(address) = self.pair.tcp else { return Ok(false) };
        let mut callers = Vec::new();
        for _ in 0..BUSY {
            callers.push(tcp::Echo::open(address).await?);
        }
        self.busy(case, &mut callers).await?;
        drop(callers);
        self.lone(case, &mut vec![tcp::Echo::open(address).await?]).await?;
        Ok(true)
    }

    /// CPU for each and highest rate, which is returned.
    async fn busy<C: Caller>(&mut self, case: &str, callers: &mut Vec<C>) -> Result<f64> {
        let (outcome, spent) = self.measured(callers, self.effort.busy).await?;
        self.note(case, "cpu_us", micros_each(spent, outcome.requests));
        self.note(case, "rate", outcome.rate());
        Ok(outcome.rate())
    }

    /// Latency of one that waits for each answer.
    async fn lone<C: Caller>(&mut self, case: &str, callers: &mut Vec<C>) -> Result<()> {
        closed_loop(callers, self.effort.warm / 2).await?;
        let outcome = closed_loop(callers, self.effort.single).await?;
        self.note(case, "p50_us", outcome.micros(0.5));
        self.note(case, "p99_us", outcome.micros(0.99));
        Ok(())
    }

    pub(super) async fn tcp_bulk(&mut self, case: &str) -> Result<bool> {
        let Some(address) = self.pair.tcp else { return Ok(false) };
        self.bulk(case, tcp::Download::new(address)).await
    }

    pub(super) async fn download(&mut self, case: &str) -> Result<bool> {
        self.bulk(case, http1::Download::open(&self.pair.http1).await?).await
    }

    pub(super) async fn upload(&mut self, case: &str) -> Result<bool> {
        self.bulk(case, http1::Upload::open(&self.pair.http1).await?).await
    }

    async fn bulk(&mut self, case: &str, caller: impl Caller) -> Result<bool> {
        let (outcome, spent) = self.measured(&mut vec![caller], self.effort.single).await?;
        let bytes = outcome.requests as f64 * BULK as f64;
        self.note(case, "mb_s", bytes / 1e6 / outcome.elapsed.as_secs_f64());
        self.note(case, "cpu_s_per_gb", spent.as_secs_f64() / (bytes / 1e9));
        Ok(true)
    }

    pub(super) async fn handshakes(&mut self, case: &str) -> Result<bool> {
        let Some(address) = self.pair.tcp.filter(|_| self.kind != Kind::Relay) else { return Ok(false) };
        let mut callers: Vec<_> = (0..PASSERS).map(|_| tcp::Passer(address)).collect();
        let (outcome, spent) = self.measured(&mut callers, self.effort.single).await?;
        self.note(case, "conn_per_cpu_s", outcome.requests as f64 / spent.as_secs_f64().max(1e-9));
        self.note(case, "conn_s", outcome.rate());
        Ok(true)
    }

    pub(super) async fn churn(&mut self, case: &str) -> Result<bool> {
        let mut callers: Vec<_> = (0..PASSERS).map(|_| http1::Passer::new(&self.pair.http1)).collect();
        let (outcome, spent) = self.measured(&mut callers, self.effort.single).await?;
        self.note(case, "cpu_us", micros_each(spent, outcome.requests));
        self.note(case, "conn_s", outcome.rate());
        Ok(true)
    }

    /// With many endpoints, the first requests open a connection each: they are not what is measured.
    pub(super) async fn many(&mut self, case: &str, shape: Shape) -> Result<bool> {
        let mut callers = http1::connections(&self.pair.http1, BUSY).await?;
        let wanted = if let Shape::Endpoints(count) = shape { 3 * u64::from(count) } else { 0 };
        let began = Instant::now();
        let mut done = 0;
        while done < wanted && began.elapsed() < WARM_MOST {
            done += closed_loop(&mut callers, self.effort.warm).await?.requests;
        }
        self.busy(case, &mut callers).await?;
        Ok(true)
    }
}

/// However slow it is, the others are waiting.
const WARM_MOST: Duration = Duration::from_secs(20);
