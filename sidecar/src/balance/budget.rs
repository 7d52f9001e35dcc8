//! The retry budget of a cluster: a share of the requests of the last ten seconds, and a few a second besides.
//!
//! Rate-based, because rates are what people graph. Two purses: the free one (10 in every second, not saved up) keeps
//! retries possible at low traffic; the earned one (20 % of the requests of the last ten seconds) grows with traffic.
//! Ten buckets of one second each; nothing else is kept.

use std::time::Instant;

use parking_lot::Mutex;
use weft_xds::resource::RetryBudget;

/// Seconds looked back.
const WINDOW: usize = 10;

/// A cluster's retry budget, shared by all workers.
#[derive(Debug)]
pub struct Budget {
    core: Mutex<Core>,
}

impl Budget {
    /// A budget; time is counted from `start`.
    pub fn new(config: RetryBudget, start: Instant) -> Self {
        let core = Core { config, start, second: 0, buckets: [Bucket::default(); WINDOW] };
        Self { core: Mutex::new(core) }
    }

    /// Takes new numbers; what was counted stays.
    pub fn configure(&self, config: RetryBudget) {
        self.core.lock().config = config;
    }

    /// A request (not a retry) was sent.
    pub fn deposit(&self, now: Instant) {
        self.core.lock().bucket(now).requests += 1;
    }

    /// Takes one retry out, if there is one.
    pub fn withdraw(&self, now: Instant) -> bool {
        let mut core = self.core.lock();
        let free = core.config.min_per_second;
        if core.bucket(now).free < free {
            core.bucket(now).free += 1;
            return true;
        }
        if core.earned_left() == 0 {
            return false;
        }
        core.bucket(now).earned += 1;
        true
    }

    /// Retries that could be taken out now.
    pub fn available(&self, now: Instant) -> u64 {
        let mut core = self.core.lock();
        let free = core.config.min_per_second.saturating_sub(core.bucket(now).free);
        u64::from(free) + core.earned_left()
    }
}

#[derive(Debug)]
struct Core {
    config: RetryBudget,
    start: Instant,
    /// The second of the newest bucket.
    second: u64,
    buckets: [Bucket; WINDOW],
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    requests: u64,
    free: u32,
    earned: u64,
}

impl Core {
    /// The bucket of this second; those that time has passed over are emptied. A `now` from the past counts as newest.
    fn bucket(&mut self, now: Instant) -> &mut Bucket {
        let second = now.saturating_duration_since(self.start).as_secs().max(self.second);
        for passed in (self.second + 1..=second).take(WINDOW) {
            self.buckets[passed as usize % WINDOW] = Bucket::default();
        }
        // More than a window away: the loop has emptied all of them, whichever seconds it named.
        self.second = second;
        &mut self.buckets[second as usize % WINDOW]
    }

    fn earned_left(&self) -> u64 {
        let requests: u64 = self.buckets.iter().map(|bucket| bucket.requests).sum();
        let taken: u64 = self.buckets.iter().map(|bucket| bucket.earned).sum();
        (requests * u64::from(self.config.percent) / 100).saturating_sub(taken)
    }
}
