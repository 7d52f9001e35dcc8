//! One look at the clock for each time that a connection's task is woken.
//!
//! What a task does between two waits takes microseconds; a request asks for the time a dozen times meanwhile. Within
//! [`steady`] the first answer serves all; outside, each question is a look at the clock, so nobody is ever told a time
//! that has long passed.

use std::{
    cell::Cell,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Instant,
};

#[derive(Clone, Copy)]
enum Seen {
    /// Nobody holds the time still.
    Moving,
    /// It was not asked for yet.
    Unread,
    At(Instant),
}

thread_local! {
    static SEEN: Cell<Seen> = const { Cell::new(Seen::Moving) };
}

/// The time.
pub fn now() -> Instant {
    SEEN.with(|seen| match seen.get() {
        Seen::At(now) => now,
        Seen::Moving => Instant::now(),
        Seen::Unread => {
            let now = Instant::now();
            seen.set(Seen::At(now));
            now
        }
    })
}

/// Runs `task`; the time stands still whenever it is polled.
pub async fn steady<T>(task: impl Future<Output = T>) -> T {
    Steady(pin!(task)).await
}

/// [`steady`] for a task that is in its box already, where it stays.
#[derive(Debug)]
pub struct Steady<F>(pub F);

impl<F: Future + Unpin> Future for Steady<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _still = Still::new();
        Pin::new(&mut self.0).poll(cx)
    }
}

struct Still {
    before: Seen,
}

impl Still {
    fn new() -> Self {
        Self { before: SEEN.replace(Seen::Unread) }
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        SEEN.set(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later(than: Instant) -> Instant {
        loop {
            let next = Instant::now();
            if next > than {
                return next;
            }
        }
    }

    #[tokio::test]
    async fn the_time_moves_at_each_wait_and_not_within() {
        let (first, waited) = steady(async {
            let first = now();
            later(first);
            assert_eq!(now(), first);
            tokio::task::yield_now().await;
            (first, now())
        })
        .await;
        assert!(waited > first);
        let outside = now();
        later(outside);
        assert!(now() > outside);
    }

    #[tokio::test]
    async fn it_moves_again_after_a_panic_within() {
        let task = tokio::spawn(steady(async { panic!("within") }));
        assert!(task.await.is_err());
        let outside = now();
        later(outside);
        assert!(now() > outside);
    }
}
