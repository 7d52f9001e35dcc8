//! Deadline arithmetic: the whole request, each try, and what the caller of a gRPC method allows.

use std::time::{Duration, Instant};

use http::HeaderValue;

/// Bounds of one request. Fixed when it starts; nothing makes it longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deadline {
    overall: Option<Instant>,
    per_try: Option<Duration>,
}

/// Which bound ends a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The whole request's: no further try.
    Overall,
    /// The try's.
    Try,
}

impl Deadline {
    /// `request`: the route's timeout; `asked`: the caller's own ([`parse_grpc_timeout`]); the shorter holds.
    /// `per_try`: for each try.
    pub fn new(start: Instant, request: Option<Duration>, asked: Option<Duration>, per_try: Option<Duration>) -> Self {
        let whole = [request, asked].into_iter().flatten().min();
        // A timeout too far away for the clock is none.
        Self { overall: whole.and_then(|whole| start.checked_add(whole)), per_try }
    }

    /// When the request ends. `None`: never by itself.
    pub fn overall(&self) -> Option<Instant> {
        self.overall
    }

    /// What is left of the whole request. `None`: it has no end.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.overall.map(|overall| overall.saturating_duration_since(now))
    }

    /// The whole request's time is over.
    pub fn passed(&self, now: Instant) -> bool {
        self.left(now).is_some_and(|left| left.is_zero())
    }

    /// When a try that starts now ends, and by which bound.
    pub fn try_until(&self, now: Instant) -> Option<(Instant, Bound)> {
        let by_try = self.per_try.and_then(|per_try| now.checked_add(per_try));
        match (self.overall, by_try) {
            (None, None) => None,
            (Some(overall), Some(by_try)) if by_try < overall => Some((by_try, Bound::Try)),
            (Some(overall), _) => Some((overall, Bound::Overall)),
            (None, Some(by_try)) => Some((by_try, Bound::Try)),
        }
    }

    /// `grpc-timeout` for a try that starts now: what the try has left, never more. `None`: it has no end.
    pub fn grpc_timeout(&self, now: Instant) -> Option<HeaderValue> {
        self.try_until(now).map(|(until, _)| format_grpc_timeout(until.saturating_duration_since(now)))
    }
}

/// Reads `grpc-timeout`: up to eight digits and one of `H M S m u n`. `None`: not valid.
pub fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (&unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits.iter().fold(0, |amount: u64, digit| amount * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(amount * 3600)),
        b'M' => Some(Duration::from_secs(amount * 60)),
        b'S' => Some(Duration::from_secs(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// Writes `grpc-timeout` in the finest unit that eight digits can hold, rounded down.
pub fn format_grpc_timeout(time: Duration) -> HeaderValue {
    const LIMIT: u128 = 100_000_000;
    let nanos = time.as_nanos();
    let units = [(1, 'n'), (1_000, 'u'), (1_000_000, 'm'), (1_000_000_000, 'S'), (60_000_000_000, 'M')];
    let fits = units.into_iter().find(|&(size, _)| nanos / size < LIMIT);
    let (size, unit) = fits.unwrap_or((3_600_000_000_000, 'H'));
    let text = format!("{}{unit}", (nanos / size).min(LIMIT - 1));
    HeaderValue::try_from(text).expect("digits and a letter are a header value")
}
