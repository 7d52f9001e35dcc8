//! When a change is published: the first at once, a burst in a few steps, a removal never late. Pure.
//!
//! A publication costs what changed in it, not the mesh; and a client that is still busy with the one before finds what
//! came since merged in its mailbox. So there is little to be gained by waiting: it saves a rolling update some messages.

use std::time::{Duration, Instant};

/// Gathers changes. After a pause the first change goes out at once; those that follow wait until nothing came for
/// [`QUIET`], but no longer than [`CAP`].
#[derive(Debug, Default)]
pub struct Debounce {
    burst: Option<Burst>,
    published: Option<Instant>,
}

#[derive(Debug)]
struct Burst {
    first: Instant,
    last: Instant,
    urgent: bool,
}

impl Debounce {
    /// A change came. `urgent`: an endpoint went.
    pub fn on_change(&mut self, urgent: bool, now: Instant) {
        let burst = self.burst.get_or_insert(Burst { first: now, last: now, urgent });
        burst.last = now;
        burst.urgent |= urgent;
    }

    /// When to publish; `None` when nothing waits.
    pub fn due(&self) -> Option<Instant> {
        let burst = self.burst.as_ref()?;
        let settled = self.published.is_none_or(|published| burst.first >= published + QUIET);
        Some(if burst.urgent || settled { burst.first } else { (burst.last + QUIET).min(burst.first + CAP) })
    }

    /// What waited went out.
    pub fn on_publish(&mut self, now: Instant) {
        self.burst = None;
        self.published = Some(now);
    }
}

/// A burst is over when nothing came for so long.
const QUIET: Duration = Duration::from_millis(20);
/// The longest that a change waits.
const CAP: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn the_first_change_goes_out_at_once() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        assert_eq!(debounce.due(), None);
        debounce.on_change(false, start);
        assert_eq!(debounce.due(), Some(start));
        debounce.on_publish(start);
        debounce.on_change(false, at(start, 500));
        assert_eq!(debounce.due(), Some(at(start, 500)), "after a pause again");
    }

    #[test]
    fn a_burst_waits_until_it_is_over() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        debounce.on_publish(start);
        debounce.on_change(false, at(start, 10));
        assert_eq!(debounce.due(), Some(at(start, 30)));
        debounce.on_change(false, at(start, 25));
        assert_eq!(debounce.due(), Some(at(start, 45)));
    }

    #[test]
    fn an_endless_burst_is_cut() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        debounce.on_publish(start);
        for ms in (10..3000).step_by(15) {
            debounce.on_change(false, at(start, ms));
            assert!(debounce.due().unwrap() <= at(start, 110));
        }
    }

    #[test]
    fn a_removal_does_not_wait_and_takes_the_rest_along() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        debounce.on_publish(start);
        debounce.on_change(false, at(start, 10));
        debounce.on_change(true, at(start, 20));
        assert!(debounce.due().unwrap() <= at(start, 20));
        debounce.on_change(false, at(start, 30));
        assert!(debounce.due().unwrap() <= at(start, 30), "still due");
    }
}
