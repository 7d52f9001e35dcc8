//! What the simulated sidecars tell the measurement: shared counters, and the acknowledgements that it waits for.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::mesh::Watched;

/// Shared by all.
#[derive(Debug)]
pub struct Board {
    in_step: AtomicUsize,
    messages: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
    changes: BTreeMap<Watched, Change>,
    moved: Notify,
}

/// Where a change of a watched service stands.
#[derive(Debug, Default)]
struct Change {
    healthy: AtomicBool,
    acks: AtomicUsize,
    last: Mutex<Option<Instant>>,
}

/// Counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Responses that came.
    pub messages: u64,
    /// Their bytes, in gRPC's frames.
    pub bytes: u64,
    /// Streams that were lost or refused.
    pub lost: u64,
}

impl Board {
    /// Nobody there yet.
    pub fn new() -> Self {
        Self {
            in_step: AtomicUsize::new(0),
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            changes: Watched::ALL.into_iter().map(|watched| (watched, Change::default())).collect(),
            moved: Notify::new(),
        }
    }

    /// A response came.
    pub fn response(&self, bytes: usize) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A stream was lost.
    pub fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters now.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts { messages: read(&self.messages), bytes: read(&self.bytes), lost: read(&self.lost) }
    }

    /// A sidecar came into step, or fell out of it.
    pub fn step(&self, came: bool) {
        if came {
            self.in_step.fetch_add(1, Ordering::Relaxed);
        } else {
            self.in_step.fetch_sub(1, Ordering::Relaxed);
        }
        self.moved.notify_waiters();
    }

    /// Sidecars whose stream and registration are up and which have all they asked for.
    pub fn in_step(&self) -> usize {
        self.in_step.load(Ordering::Relaxed)
    }

    /// A change of a watched service begins: its workload will be so.
    pub fn begin(&self, watched: Watched, healthy: bool) {
        let change = &self.changes[&watched];
        change.acks.store(0, Ordering::Relaxed);
        *change.last.lock() = None;
        change.healthy.store(healthy, Ordering::Relaxed);
    }

    /// A sidecar acknowledged a state of a watched service.
    pub fn acked(&self, watched: Watched, healthy: bool) {
        let change = &self.changes[&watched];
        if change.healthy.load(Ordering::Relaxed) == healthy {
            change.acks.fetch_add(1, Ordering::Relaxed);
            *change.last.lock() = Some(Instant::now());
            self.moved.notify_waiters();
        }
    }

    /// Waits until so many have acknowledged the change; when the last one did.
    pub async fn all_acked(&self, watched: Watched, need: usize, within: Duration) -> Option<Instant> {
        let change = &self.changes[&watched];
        let done = self.until(within, || change.acks.load(Ordering::Relaxed) >= need).await;
        if done { *change.last.lock() } else { None }
    }

    /// How many have acknowledged the change so far.
    pub fn acks(&self, watched: Watched) -> usize {
        self.changes[&watched].acks.load(Ordering::Relaxed)
    }

    /// Waits until so many are in step; whether that came about.
    pub async fn all_in_step(&self, need: usize, within: Duration) -> bool {
        self.until(within, || self.in_step() >= need).await
    }

    async fn until(&self, within: Duration, done: impl Fn() -> bool) -> bool {
        let waiting = async {
            loop {
                let moved = self.moved.notified();
                if done() {
                    return;
                }
                moved.await;
            }
        };
        tokio::time::timeout(within, waiting).await.is_ok()
    }
}
