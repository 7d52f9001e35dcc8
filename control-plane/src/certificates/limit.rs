//! The rate limit on signing: a token bucket. No clock of its own.

use std::time::{Duration, Instant};

/// Lets `rate` requests a second pass, and a second's worth at once.
#[derive(Debug)]
pub struct Bucket {
    rate: f64,
    level: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: f64, now: Instant) -> Self {
        Self { rate, level: rate, filled: now }
    }

    /// Takes one. `Err`: when to come again, spread by `random` (0..1) over a second so that those who were shed do not
    /// come back together.
    pub fn take(&mut self, now: Instant, random: f64) -> Result<(), Duration> {
        let since = now.saturating_duration_since(self.filled);
        self.level = (self.level + since.as_secs_f64() * self.rate).min(self.rate);
        self.filled = now.max(self.filled);
        if self.level >= 1.0 {
            self.level -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.level) / self.rate + random.clamp(0.0, 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_more_than_a_burst_and_the_rate(steps in proptest::collection::vec(0u64..50, 1..2000), rate in 1.0..200.0f64) {
            let start = Instant::now();
            let (mut now, mut bucket, mut passed) = (start, Bucket::new(rate, start), 0u32);
            for step in steps {
                now += Duration::from_millis(step);
                match bucket.take(now, 0.5) {
                    Ok(()) => passed += 1,
                    Err(wait) => prop_assert!(wait > Duration::ZERO && wait < Duration::from_secs(3)),
                }
                let most = rate + (now - start).as_secs_f64() * rate;
                prop_assert!(f64::from(passed) <= most + 1e-6, "{} of {}", passed, most);
            }
        }
    }

    #[test]
    fn it_fills_again() {
        let start = Instant::now();
        let mut bucket = Bucket::new(2.0, start);
        assert_eq!((bucket.take(start, 0.0), bucket.take(start, 0.0)), (Ok(()), Ok(())));
        assert_eq!(bucket.take(start, 0.25), Err(Duration::from_millis(750)));
        assert_eq!(bucket.take(start + Duration::from_millis(500), 0.0), Ok(()));
        assert!(bucket.take(start + Duration::from_millis(500), 0.0).is_err());
    }
}
