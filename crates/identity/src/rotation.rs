//! When a certificate is renewed. No clock, no I/O: the caller gives the time and a random number.
//!
//! First at half of its life, give or take a tenth, so that a fleet does not come at once; then, as long as that fails,
//! with a growing pause for the other half. An expired certificate is still renewed, at least every ten seconds.

use std::time::{Duration, SystemTime};

/// The schedule of one certificate's renewal.
#[derive(Debug, Clone)]
pub struct Renewal {
    next: SystemTime,
    not_after: SystemTime,
    backoff: Duration,
}

impl Renewal {
    /// Plans the renewal of a certificate. `random` is uniform in 0..1: it moves the time within 40 % to 60 % of life.
    pub fn new(not_before: SystemTime, not_after: SystemTime, random: f64) -> Self {
        let life = not_after.duration_since(not_before).unwrap_or_default();
        let share = EARLIEST + (LATEST - EARLIEST) * random.clamp(0.0, 1.0);
        Self { next: not_before + life.mul_f64(share), not_after, backoff: BACKOFF_FIRST }
    }

    /// When to try (again). In the past when it is time.
    pub fn next(&self) -> SystemTime {
        self.next
    }

    /// Whether it is time.
    pub fn due(&self, now: SystemTime) -> bool {
        now >= self.next
    }

    /// How long to sleep before asking [`Renewal::due`] again: never more than a minute, since the clock that sleeps are
    /// measured with stops while a machine is suspended and does not notice when the time is set.
    pub fn wait(&self, now: SystemTime) -> Duration {
        self.next.duration_since(now).unwrap_or_default().min(LONGEST_SLEEP)
    }

    /// A try failed: plans the next one. `retry_after` is the control plane's wish, obeyed up to a minute; `random` is
    /// uniform in 0..1.
    pub fn failed(&mut self, now: SystemTime, retry_after: Option<Duration>, random: f64) {
        let jittered = self.backoff.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0));
        let mut pause = jittered.max(retry_after.unwrap_or_default()).min(BACKOFF_LAST);
        pause = match self.not_after.duration_since(now) {
            Ok(left) if !left.is_zero() => pause.min((left / 2).max(BACKOFF_FIRST / 2)),
            Ok(_) | Err(_) => pause.min(BACKOFF_EXPIRED),
        };
        self.next = now + pause;
        self.backoff = (self.backoff * 2).min(BACKOFF_LAST);
    }
}

/// Shares of a certificate's life between which it is renewed. Source: DEFAULTS 1.2, 50 % ± 10 %.
const EARLIEST: f64 = 0.4;
const LATEST: f64 = 0.6;
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_LAST: Duration = Duration::from_secs(60);
const BACKOFF_EXPIRED: Duration = Duration::from_secs(8);
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn first_try_is_at_half_of_life(life in 2u64..100_000_000, random in 0.0..1.0f64) {
            let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
            let renewal = Renewal::new(start, start + Duration::from_secs(life), random);
            let share = renewal.next().duration_since(start).unwrap().as_secs_f64() / life as f64;
            prop_assert!((0.3999..=0.6001).contains(&share), "{}", share);
            prop_assert!(!renewal.due(start));
            prop_assert!(renewal.wait(start) <= Duration::from_secs(60));
            prop_assert!(renewal.due(renewal.next()));
        }

        #[test]
        fn failures_are_retried_until_and_after_expiry(
            life in 20u64..200_000,
            randoms in proptest::collection::vec(0.0..1.0f64, 1..400),
            retry_after in proptest::option::of(0u64..500),
        ) {
            let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
            let end = start + Duration::from_secs(life);
            let mut renewal = Renewal::new(start, end, randoms[0]);
            let mut last_backoff = Duration::from_millis(500);
            for random in randoms {
                let now = renewal.next();
                renewal.failed(now, retry_after.map(Duration::from_secs), random);
                let pause = renewal.next().duration_since(now).unwrap();
                prop_assert!(pause >= Duration::from_millis(500) && pause <= Duration::from_secs(60));
                match end.duration_since(now) {
                    // There is always one more try before the end.
                    Ok(left) if left > Duration::from_secs(1) => prop_assert!(renewal.next() < end),
                    Ok(left) if !left.is_zero() => {}
                    _ => prop_assert!(pause <= Duration::from_secs(10)),
                }
                last_backoff = last_backoff.max(pause);
            }
            prop_assert!(last_backoff <= Duration::from_secs(60));
        }
    }

    #[test]
    fn a_clock_set_forward_makes_it_due() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let renewal = Renewal::new(start, start + Duration::from_secs(86_400), 0.5);
        assert_eq!(renewal.next(), start + Duration::from_secs(43_200));
        assert_eq!(renewal.wait(start + Duration::from_secs(90_000)), Duration::ZERO);
        assert!(renewal.due(start + Duration::from_secs(90_000)));
    }
}
