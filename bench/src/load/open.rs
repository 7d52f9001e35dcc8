//! An open loop: each request has its time, whatever became of those before it, and its latency counts from that time.
//!
//! A closed loop sends less while the proxy stalls, and so never sees most of what the stall does to callers who do not
//! wait for each other ("coordinated omission"). Here a request that finds every connection busy waits in the queue, and
//! that wait is part of its latency; what has no answer when patience ends counts with the time it has waited so far.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::{io::unix::AsyncFd, sync::Notify, task::JoinSet};

use super::{Caller, Outcome, histogram, nanos};

/// When each request is due.
#[derive(Clone, Debug)]
pub struct Schedule {
    rate: u32,
    total: u64,
    next: u64,
}

impl Schedule {
    /// `rate` requests a second, evenly spaced, for `time`.
    pub fn new(rate: u32, time: Duration) -> Self {
        let total = u128::from(rate) * time.as_nanos() / NANOS;
        Self { rate, total: u64::try_from(total).unwrap_or(u64::MAX), next: 0 }
    }

    /// When a request is due, from the beginning. Counted from the first: rounding does not add up.
    fn time(&self, index: u64) -> Duration {
        let nanos = u128::from(index) * NANOS / u128::from(self.rate.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The next one, when it is due by now.
    pub fn due(&mut self, now: Duration) -> Option<Duration> {
        let at = self.upcoming()?;
        if at > now {
            return None;
        }
        self.next += 1;
        Some(at)
    }

    /// When the next one will be due; `None` at the end.
    pub fn upcoming(&self) -> Option<Duration> {
        (self.next < self.total).then(|| self.time(self.next))
    }
}

const NANOS: u128 = 1_000_000_000;

/// What an open loop came to.
pub struct Opened {
    /// Every scheduled request, those without an answer included.
    pub outcome: Outcome,
    /// Requests that had no answer when patience ended.
    pub unanswered: usize,
    /// Nanoseconds by which the generator itself was late.
    pub late: Histogram<u64>,
}

/// Sends by the schedule over the callers, and waits until all is answered or patience ends.
///
/// # Errors
/// When a request is answered badly.
pub async fn run<C: Caller>(callers: Vec<C>, mut schedule: Schedule, patience: Duration) -> Result<Opened> {
    ensure!(schedule.total > 0, "a rate of {} a second leaves nothing to send", schedule.rate);
    let queue = Arc::new(Queue::new(callers.len()));
    let timer = Timer::new()?;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for (index, caller) in callers.into_iter().enumerate() {
        tasks.spawn(work(Arc::clone(&queue), caller, index, began));
    }
    let mut late = histogram();
    loop {
        let now = began.elapsed();
        while let Some(at) = schedule.due(now) {
            late.record(nanos(now.saturating_sub(at)))?;
            queue.push(at);
        }
        let Some(next) = schedule.upcoming() else { break };
        match next.checked_sub(began.elapsed()) {
            Some(wait) if !wait.is_zero() => timer.wait(wait).await?,
            // Due already: only let the others have their turn.
            _ => tokio::task::yield_now().await,
        }
    }
    queue.close();
    let answered = tokio::time::timeout(patience, async {
        while let Some(joined) = tasks.join_next().await {
            joined??;
        }
        anyhow::Ok(())
    });
    // Patience that has ended shows itself in what is left.
    if let Ok(worked) = answered.await {
        worked?;
    }
    tasks.abort_all();
    let elapsed = began.elapsed();
    let (mut latency, left) = queue.take();
    let requests = latency.len();
    for at in &left {
        latency.record(nanos(elapsed.saturating_sub(*at)))?;
    }
    Ok(Opened { outcome: Outcome { requests, elapsed, latency }, unanswered: left.len(), late })
}

async fn work<C: Caller>(queue: Arc<Queue>, mut caller: C, index: usize, began: Instant) -> Result<()> {
    while let Some(at) = queue.next(index).await {
        caller.call().await?;
        queue.answered(index, began.elapsed().saturating_sub(at))?;
    }
    Ok(())
}

/// Requests that are due and not yet sent, and what became of the others. One thread uses it: no lock is ever waited for.
struct Queue {
    state: Mutex<State>,
    wake: Notify,
}

struct State {
    due: VecDeque<Duration>,
    /// For each caller, when the request was due that it waits for.
    sent: Vec<Option<Duration>>,
    latency: Histogram<u64>,
    closed: bool,
}

impl Queue {
    fn new(callers: usize) -> Self {
        let state = State { due: VecDeque::new(), sent: vec![None; callers], latency: histogram(), closed: false };
        Self { state: Mutex::new(state), wake: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the lock")
    }

    fn push(&self, at: Duration) {
        self.lock().due.push_back(at);
        self.wake.notify_one();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_waiters();
    }

    /// The next request for this caller; `None` at the end.
    async fn next(&self, caller: usize) -> Option<Duration> {
        loop {
            let mut woken = std::pin::pin!(self.wake.notified());
            // From here on a wake-up is not missed.
            woken.as_mut().enable();
            {
                let mut state = self.lock();
                if let Some(at) = state.due.pop_front() {
                    state.sent[caller] = Some(at);
                    return Some(at);
                }
                if state.closed {
                    return None;
                }
            }
            woken.await;
        }
    }

    fn answered(&self, caller: usize, latency: Duration) -> Result<()> {
        let mut state = self.lock();
        state.sent[caller] = None;
        state.latency.record(nanos(latency)).context("a latency beyond the histogram")
    }

    /// Latencies of what was answered, and when the rest was due.
    fn take(&self) -> (Histogram<u64>, Vec<Duration>) {
        let mut state = self.lock();
        let sent = std::mem::take(&mut state.sent).into_iter().flatten();
        let left = sent.chain(std::mem::take(&mut state.due)).collect();
        (std::mem::replace(&mut state.latency, histogram()), left)
    }
}

/// A timer finer than the runtime's, whose ticks are milliseconds.
struct Timer(AsyncFd<Fd>);

struct Fd(TimerFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    fn new() -> Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        #[expect(deprecated, reason = "its successor is unsafe; the file here is owned and never another one")]
        let watched = AsyncFd::new(Fd(timer))?;
        Ok(Self(watched))
    }

    async fn wait(&self, time: Duration) -> Result<()> {
        let once = Expiration::OneShot(TimeSpec::from_duration(time));
        self.0.get_ref().0.set(once, TimerSetTimeFlags::empty())?;
        loop {
            let mut ready = self.0.readable().await?;
            // An error here is the answer that it is not yet time: then wait again.
            if let Ok(done) = ready.try_io(|timer| timer.get_ref().0.wait().map_err(std::io::Error::from)) {
                return Ok(done?);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::load::STALL;

    proptest! {
        #[test]
        fn the_schedule_is_even_and_ends(rate in 1_u32..200_000, millis in 1_u64..5_000) {
            let time = Duration::from_millis(millis);
            let mut schedule = Schedule::new(rate, time);
            let mut times = Vec::new();
            // Late, all at once: what is due does not depend on when it is asked for.
            while let Some(at) = schedule.due(time) {
                times.push(at);
                if times.len() > 20_000 { break; }
            }
            let step = 1e9 / f64::from(rate);
            for (index, at) in times.iter().enumerate() {
                prop_assert!((at.as_nanos() as f64 - step * index as f64).abs() < 2.0);
            }
            if schedule.upcoming().is_none() {
                prop_assert_eq!(times.len() as u64, u64::from(rate) * millis / 1000);
            }
        }
    }

    #[test]
    fn nothing_is_sent_before_its_time() {
        let mut schedule = Schedule::new(1000, Duration::from_millis(3));
        assert_eq!(schedule.due(Duration::ZERO), Some(Duration::ZERO));
        assert_eq!(schedule.due(Duration::from_micros(999)), None);
        assert_eq!(schedule.upcoming(), Some(Duration::from_millis(1)));
        assert_eq!(schedule.due(Duration::from_millis(2)), Some(Duration::from_millis(1)));
        assert_eq!(schedule.due(Duration::from_millis(2)), Some(Duration::from_millis(2)));
        assert_eq!(schedule.upcoming(), None);
    }

    /// Stalls once, for as long as the schedule lasts, and is quick ever after.
    struct Stalls(Option<Duration>);

    impl Caller for Stalls {
        async fn call(&mut self) -> Result<()> {
            if let Some(stall) = self.0.take() {
                tokio::time::sleep(stall).await;
            }
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_stall_is_felt_by_all_who_would_have_called_meanwhile() {
        let stall = Duration::from_millis(200);
        let opened = run(vec![Stalls(Some(stall))], Schedule::new(1000, stall), STALL).await.expect("a run");
        assert_eq!((opened.outcome.requests, opened.unanswered), (200, 0));
        // A closed loop would have seen one slow request. Here half of them waited half of the stall, at least.
        assert!(opened.outcome.latency.value_at_quantile(0.5) >= nanos(stall / 2) * 99 / 100);
    }

    #[tokio::test]
    async fn what_is_never_answered_counts() {
        let forever = Stalls(Some(Duration::from_secs(3600)));
        let patience = Duration::from_millis(50);
        let opened = run(vec![forever], Schedule::new(1000, Duration::from_millis(20)), patience).await.expect("a run");
        assert_eq!((opened.outcome.requests, opened.unanswered), (0, 20));
        assert_eq!(opened.outcome.latency.len(), 20);
        assert!(opened.outcome.latency.min() >= nanos(patience) * 99 / 100);
    }
}
