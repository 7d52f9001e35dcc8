//! Counters and histograms of one worker, read by the scrape.
//!
//! Each has a single writer, so that adding is a load and a store without a lock on the bus; two workers never write to
//! one of them, nor to one line of the cache.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// A counter. Only its worker adds.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds. To be called by one thread alone: of two at one time one would be lost.
    pub fn add(&self, more: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(more), Relaxed);
    }

    /// What was added so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of a histogram's buckets in nanoseconds, ascending; one more bucket takes what is above.
pub(super) type Bounds = &'static [u64];

/// The most bounds that a histogram has.
const MOST: usize = 14;

/// Of a request's whole time.
pub(super) const SECONDS: Bounds = &[
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Of the time inside the sidecar.
pub(super) const OVERHEAD: Bounds = &[
    20_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    50_000_000,
    100_000_000,
    500_000_000,
];

/// Bounds in seconds, as the exposition has them.
pub(super) fn seconds(bounds: Bounds) -> impl Iterator<Item = f64> {
    bounds.iter().map(|&nanos| nanos as f64 / 1e9)
}

/// A histogram of times. Only its worker adds.
#[derive(Debug)]
pub(super) struct Spread {
    bounds: Bounds,
    counts: [Count; MOST + 1],
    nanos: Count,
}

impl Spread {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, counts: std::array::from_fn(|_| Count::default()), nanos: Count::default() }
    }

    pub fn observe(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[self.bounds.partition_point(|&bound| bound < nanos)].add(1);
        self.nanos.add(nanos);
    }

    /// Adds what it has to `sums`. A time that is just being added may show in its bucket and not yet in the sum.
    pub fn add_to(&self, sums: &mut Sums) {
        sums.counts.iter_mut().zip(&self.counts).for_each(|(sum, count)| *sum += count.get());
        sums.nanos += u128::from(self.nanos.get());
    }
}

/// What several histograms with the same bounds come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// By bucket, not cumulative.
    pub counts: [u64; MOST + 1],
    pub nanos: u128,
}

impl Sums {
    pub fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.nanos += other.nanos;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        for bounds in [SECONDS, OVERHEAD] {
            for (index, &bound) in bounds.iter().enumerate() {
                for (nanos, bucket) in [(bound - 1, index), (bound, index), (bound + 1, index + 1)] {
                    let spread = Spread::new(bounds);
                    spread.observe(Duration::from_nanos(nanos));
                    let mut sums = Sums::default();
                    spread.add_to(&mut sums);
                    assert_eq!(sums.counts.iter().position(|&count| count == 1), Some(bucket), "{nanos}");
                    assert_eq!(sums.nanos, u128::from(nanos));
                }
            }
        }
    }

    #[test]
    fn bounds_in_seconds_are_the_documented_ones() {
        let text = |bounds| seconds(bounds).map(|bound| bound.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(text(SECONDS), "0.0005 0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10");
        assert_eq!(text(OVERHEAD), "0.00002 0.00005 0.0001 0.00025 0.0005 0.001 0.0025 0.005 0.01 0.05 0.1 0.5");
    }
}
