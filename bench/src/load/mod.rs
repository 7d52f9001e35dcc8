//! What sends the load: lean clients on the main thread, in closed loops and in an open one.

pub mod http1;
pub mod http2;
pub mod open;
pub mod tcp;

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

/// What a run came to.
pub struct Outcome {
    /// Requests (or messages, or connections) that were answered well.
    pub requests: u64,
    /// From the first to the last.
    pub elapsed: Duration,
    /// Nanoseconds from request to the end of its answer.
    pub latency: Histogram<u64>,
}

impl Outcome {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// Microseconds within which this share of the answers came.
    pub fn micros(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Nanoseconds, three figures exact, without an upper bound.
///
/// # Panics
/// Never: three figures are within what the histogram allows.
pub fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three significant figures are allowed")
}

/// Nanoseconds of a duration.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// One caller of a closed loop: sends when it has been answered, and not before.
pub trait Caller: Send + 'static {
    /// One request and its answer.
    fn call(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// Keeps every caller busy for `time`.
///
/// # Errors
/// At the first request that is not answered well.
pub async fn closed_loop<C: Caller>(callers: &mut Vec<C>, time: Duration) -> Result<Outcome> {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for mut caller in callers.drain(..) {
        tasks.spawn(async move {
            let mut latency = histogram();
            let mut sent = Instant::now();
            while sent.duration_since(began) < time {
                caller.call().await?;
                let answered = Instant::now();
                latency.record(nanos(answered.duration_since(sent)))?;
                sent = answered;
            }
            anyhow::Ok((caller, latency))
        });
    }
    let mut latency = histogram();
    // A contestant that stops answering must not hold up the others.
    let patience = tokio::time::timeout(time + STALL, async {
        while let Some(joined) = tasks.join_next().await {
            let (caller, part) = joined??;
            callers.push(caller);
            latency.add(part)?;
        }
        anyhow::Ok(())
    });
    patience.await.with_context(|| format!("no answer in {} s", STALL.as_secs()))??;
    Ok(Outcome { requests: latency.len(), elapsed: began.elapsed(), latency })
}

/// How long an answer may be waited for.
pub const STALL: Duration = Duration::from_secs(10);

/// The length that a head names.
///
/// # Errors
/// When it names none.
pub fn content_length(head: &[u8]) -> Result<usize> {
    const NAME: &[u8] = b"content-length:";
    let mut at = 0;
    while let Some(end) = memchr::memchr(b'\n', &head[at..]) {
        let line = &head[at..at + end];
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            let value = std::str::from_utf8(&line[NAME.len()..])?.trim();
            return value.parse().with_context(|| format!("content-length {value:?}"));
        }
        at += end + 1;
    }
    anyhow::bail!("no content-length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_found_whatever_its_case() {
        let head = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 71\r\n\r\n";
        assert_eq!(content_length(head).expect("a length"), 71);
        let head = b"HTTP/1.1 200 OK\r\ncontent-length:5\r\nx: y\r\n\r\n";
        assert_eq!(content_length(head).expect("a length"), 5);
        assert!(content_length(b"HTTP/1.1 200 OK\r\nx: content-length: 4\r\n\r\n").is_err());
        assert!(content_length(b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n").is_err());
    }

    struct Steady(u32);

    impl Caller for Steady {
        async fn call(&mut self) -> Result<()> {
            self.0 += 1;
            tokio::task::yield_now().await;
            anyhow::ensure!(self.0 < 1000, "enough");
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_failed_request_fails_the_run() {
        let mut callers = vec![Steady(0), Steady(0)];
        assert!(closed_loop(&mut callers, Duration::from_secs(3600)).await.is_err());
    }
}
