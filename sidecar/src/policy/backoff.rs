//! How long to wait before a further try.

use std::time::Duration;

/// The longest `retry-after` that is waited for.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Full jitter: anything from nothing to `base` doubled with each retry, at most `max`. `retry`: 0 for the first;
/// `random` is uniform over all of `u64`.
/// Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
pub fn backoff(base: Duration, max: Duration, retry: u32, random: u64) -> Duration {
    let bound = base.saturating_mul(1 << retry.min(20)).min(max);
    let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(((u128::from(random) * u128::from(nanos)) >> 64) as u64)
}

/// Reads `retry-after` in its form as seconds. `None`: a date, or not valid.
pub fn parse_retry_after(value: &[u8]) -> Option<Duration> {
    let seconds: u64 = std::str::from_utf8(value).ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
