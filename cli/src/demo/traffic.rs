//! The callers from outside: a steady stream of requests to frontend, each one counted.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{task::JoinHandle, time::Instant};

/// Requests a second.
const RATE: u64 = 160;

/// Callers that share them.
const CALLERS: u64 = 8;

/// What has been counted.
#[derive(Default)]
pub struct Traffic {
    counts: Mutex<Counts>,
    failures: Mutex<VecDeque<String>>,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Requests that ended.
    pub total: u64,
    /// Of these, not answered with 200.
    pub failed: u64,
    /// Answered by orders v1.
    pub v1: u64,
    /// Answered by orders v2.
    pub v2: u64,
}

impl Counts {
    /// What came since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            total: self.total - earlier.total,
            failed: self.failed - earlier.failed,
            v1: self.v1 - earlier.v1,
            v2: self.v2 - earlier.v2,
        }
    }

    /// v2's share of the answered, in percent.
    pub fn v2_percent(self) -> f64 {
        100.0 * self.v2 as f64 / (self.v1 + self.v2).max(1) as f64
    }

    /// Answered with 200, in percent.
    pub fn success_percent(self) -> f64 {
        100.0 * (self.total - self.failed) as f64 / self.total.max(1) as f64
    }
}

/// Callers that stop when dropped.
pub struct Driver(Vec<JoinHandle<()>>);

impl Drop for Driver {
    fn drop(&mut self) {
        for caller in &self.0 {
            caller.abort();
        }
    }
}

impl Traffic {
    /// What has been counted so far.
    pub fn counts(&self) -> Counts {
        *self.counts.lock()
    }

    /// The last failure, for the curious.
    pub fn last_failure(&self) -> Option<String> {
        self.failures.lock().back().cloned()
    }

    /// Lets `time` pass, and says what came in it.
    pub async fn over(&self, time: Duration) -> Counts {
        let before = self.counts();
        tokio::time::sleep(time).await;
        self.counts().since(before)
    }

    /// Starts the callers.
    pub fn start(self: Arc<Self>, frontend: SocketAddr) -> Driver {
        let period = Duration::from_micros(1_000_000 * CALLERS / RATE);
        Driver(
            (0..CALLERS)
                .map(|caller| {
                    let traffic = self.clone();
                    let offset =
                        period * u32::try_from(caller).expect("few callers") / u32::try_from(CALLERS).expect("few");
                    tokio::spawn(async move {
                        let mut tick = tokio::time::interval_at(Instant::now() + offset, period);
                        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                        loop {
                            tick.tick().await;
                            traffic.count(crate::launch::call(frontend, http::Method::GET, "/").await);
                        }
                    })
                })
                .collect(),
        )
    }

    fn count(&self, outcome: anyhow::Result<String>) {
        let mut counts = self.counts.lock();
        counts.total += 1;
        match outcome {
            Ok(body) if body.contains("version=v1") => counts.v1 += 1,
            Ok(body) if body.contains("version=v2") => counts.v2 += 1,
            Ok(body) => {
                counts.failed += 1;
                self.remember(body);
            }
            Err(error) => {
                counts.failed += 1;
                self.remember(format!("{error:#}"));
            }
        }
    }

    fn remember(&self, failure: String) {
        let mut failures = self.failures.lock();
        failures.push_back(failure);
        if failures.len() > 16 {
            failures.pop_front();
        }
    }
}
