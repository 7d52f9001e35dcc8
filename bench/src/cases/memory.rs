//! Memory, as proportional set size, and how fast a sidecar is there.

use std::time::Duration;

use anyhow::Result;

use super::{Turn, flows::BUSY};
use crate::{
    contestants::Kind,
    load::{closed_loop, http1},
    proc,
};

impl Turn<'_> {
    pub(super) async fn idle(&mut self, case: &str) -> Result<bool> {
        // One request has been through, so what is loaded at first use is there.
        let idle = self.memory()?;
        self.note(case, "idle_mb", idle.iter().sum::<f64>() / 1e6 / idle.len() as f64);
        let count = self.effort.idle;
        let mut held = Vec::with_capacity(count);
        for _ in 0..count {
            let mut connection = http1::Connection::open(&self.pair.http1).await?;
            connection.get().await?;
            held.push(connection);
        }
        let each: Vec<f64> =
            self.memory()?.iter().zip(&idle).map(|(now, before)| (now - before) / 1e3 / count as f64).collect();
        self.note(case, "connection_kb", each.iter().sum());
        if let [outbound, inbound] = each[..] {
            self.note(case, "connection_outbound_kb", outbound);
            self.note(case, "connection_inbound_kb", inbound);
        }
        drop(held);
        Ok(true)
    }

    pub(super) async fn start(&mut self, case: &str) -> Result<bool> {
        let Some(cold) = self.pair.cold() else { return Ok(false) };
        let [new, again] = cold.start(&format!("timed-{}", self.round)).await?;
        self.note(case, "ready_ms", new.as_secs_f64() * 1e3);
        self.note(case, "ready_again_ms", again.as_secs_f64() * 1e3);
        Ok(true)
    }

    pub(super) async fn million(&mut self, case: &str) -> Result<bool> {
        if self.kind != Kind::Weft {
            return Ok(false);
        }
        let mut callers = http1::connections(&self.pair.http1, BUSY).await?;
        // Buffers and pools have their size after this.
        closed_loop(&mut callers, Duration::from_secs(3)).await?;
        let before: f64 = self.memory()?.iter().sum();
        let mut requests = 0;
        while requests < 1_000_000 {
            requests += closed_loop(&mut callers, Duration::from_secs(2)).await?.requests;
        }
        let after: f64 = self.memory()?.iter().sum();
        self.note(case, "growth_mb", (after - before) / 1e6);
        Ok(true)
    }

    /// Bytes of each proxy.
    fn memory(&self) -> Result<Vec<f64>> {
        let of = |pids: Vec<u32>| pids.into_iter().map(proc::memory).sum::<Result<u64>>();
        self.pair.proxies()?.into_iter().map(|pids| Ok(of(pids)? as f64)).collect()
    }
}
