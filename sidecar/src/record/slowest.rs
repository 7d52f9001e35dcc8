//! Tells the slowest 1 % of requests: a histogram with two buckets an octave, of the last few thousand requests.

use std::time::Duration;

/// Latencies seen. One worker's.
#[derive(Debug)]
pub struct Slowest {
    buckets: [u32; BUCKETS],
    seen: u32,
}

const BUCKETS: usize = 128;
/// Before so many, nothing counts as slow.
const FEW: u32 = 100;
/// After so many, what was seen counts half.
const MANY: u32 = 8192;

impl Default for Slowest {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], seen: 0 }
    }
}

impl Slowest {
    /// Takes note of a latency, and tells whether at most 1 % of those before were as slow or slower.
    pub fn is_among(&mut self, took: Duration) -> bool {
        let bucket = bucket(took);
        let as_slow: u32 = self.buckets[bucket..].iter().sum();
        let slow = self.seen >= FEW && as_slow * 100 <= self.seen;
        self.buckets[bucket] += 1;
        self.seen += 1;
        if self.seen >= MANY {
            self.buckets.iter_mut().for_each(|count| *count /= 2);
            self.seen = self.buckets.iter().sum();
        }
        slow
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    let octave = micros.ilog2() as usize;
    let half = if octave == 0 { 0 } else { usize::from(micros >> (octave - 1) & 1 == 1) };
    (octave * 2 + half).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_stand_out() {
        let mut slowest = Slowest::default();
        let mut slow = 0;
        for n in 0..10_000u32 {
            let took = if n % 200 == 199 { Duration::from_millis(50) } else { Duration::from_millis(1) };
            slow += u32::from(slowest.is_among(took));
        }
        assert!((40..=50).contains(&slow), "{slow} of 50 slow ones were told");
    }

    #[test]
    fn equals_are_not_slow() {
        let mut slowest = Slowest::default();
        assert!((0..10_000).all(|_| !slowest.is_among(Duration::from_millis(1))));
    }
}
