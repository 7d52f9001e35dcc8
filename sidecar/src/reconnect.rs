//! When to call the control plane again. No clock: the caller gives a random number and sleeps.

use std::time::Duration;

/// The longest first pause.
const BASE: Duration = Duration::from_secs(1);

/// Full jitter: a pause is uniform between nothing and a bound that doubles, so that a fleet that lost its control plane
/// together comes back spread out.
#[derive(Debug)]
pub struct Reconnect {
    cap: Duration,
    failures: u32,
}

impl Reconnect {
    /// `cap`: the longest pause.
    #[must_use]
    pub fn new(cap: Duration) -> Self {
        Self { cap, failures: 0 }
    }

    /// It worked: the next loss is answered within a second.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// It failed, or was lost: how long to wait. `random`: uniform in 0..1.
    pub fn pause(&mut self, random: f64) -> Duration {
        let bound = BASE.saturating_mul(1 << self.failures.min(16)).min(self.cap);
        self.failures += 1;
        bound.mul_f64(random.clamp(0.0, 1.0))
    }
}

/// The text of a failed call with its causes, which is where the interesting part stands.
#[must_use]
pub fn explain(status: &tonic::Status) -> String {
    let mut text = match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    };
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_start_over() {
        let mut reconnect = Reconnect::new(Duration::from_secs(30));
        let bounds: Vec<_> = (0..7).map(|_| reconnect.pause(1.0).as_secs()).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(reconnect.pause(0.5), Duration::from_secs(15));
        assert_eq!(reconnect.pause(0.0), Duration::ZERO);
        reconnect.succeeded();
        assert!(reconnect.pause(0.999) < Duration::from_secs(1));
    }
}
