//! Latency at fixed rates, in an open loop.

use anyhow::{Context, Result};

use super::{Turn, cpu, flows::BUSY, micros_each};
use crate::{
    contestants::Pair,
    load::{
        STALL, closed_loop, http1,
        open::{self, Schedule},
    },
};

impl Turn<'_> {
    pub(super) async fn rate(&mut self, case: &str, percent: u32) -> Result<bool> {
        let highest = self.common_rate.context("nobody's highest rate is known")?;
        self.at(case, highest * f64::from(percent) / 100.0).await
    }

    pub(super) async fn half_rate(&mut self, case: &str) -> Result<bool> {
        let highest = match self.own_rate {
            Some(rate) => rate,
            None => highest(self.pair, self.effort).await?,
        };
        self.own_rate = Some(highest);
        self.at(case, highest / 2.0).await
    }

    async fn at(&mut self, case: &str, rate: f64) -> Result<bool> {
        let mut callers = http1::connections(&self.pair.http1, BUSY).await?;
        closed_loop(&mut callers, self.effort.warm / 2).await?;
        let before = cpu(self.pair)?;
        let opened = open::run(callers, Schedule::new(rate as u32, self.effort.busy), STALL).await?;
        let spent = cpu(self.pair)?.saturating_sub(before);
        let outcome = &opened.outcome;
        self.note(case, "p50_us", outcome.micros(0.5));
        self.note(case, "p99_us", outcome.micros(0.99));
        self.note(case, "p999_us", outcome.micros(0.999));
        self.note(case, "cpu_us", micros_each(spent, outcome.requests));
        self.note(case, "rate", outcome.rate());
        // How far the generator itself can be trusted.
        self.note(case, "late_p99_us", opened.late.value_at_quantile(0.99) as f64 / 1e3);
        self.note(case, "unanswered", opened.unanswered as f64);
        Ok(true)
    }
}

/// The highest rate of a pair, requests a second.
///
/// # Errors
/// When a request fails.
pub async fn highest(pair: &Pair, effort: super::Effort) -> Result<f64> {
    let mut callers = http1::connections(&pair.http1, BUSY).await?;
    closed_loop(&mut callers, effort.warm).await?;
    Ok(closed_loop(&mut callers, effort.busy).await?.rate())
}
