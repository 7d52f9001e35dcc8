//! Timers that hardly ever ring.
//!
//! A deadline that is met moves on with every message; to move a timer each time costs more than to let it ring early
//! now and then, and to look at the deadline then.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::time::Sleep;

/// Unused alarms that a worker keeps.
const KEPT: usize = 256;

/// Rings at a deadline that may be another at every poll.
#[derive(Debug, Default)]
pub struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Ready once `deadline` has passed.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let deadline = deadline.into();
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            if sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            // It rang for an earlier deadline, which was met.
            sleep.as_mut().reset(deadline);
        }
    }
}

/// A worker's alarms: what one request has set serves the next.
#[derive(Debug, Default, Clone)]
pub struct Alarms(Rc<RefCell<Vec<Alarm>>>);

impl Alarms {
    /// One to use until it is dropped.
    pub fn take(&self) -> Borrowed {
        let alarm = self.0.borrow_mut().pop().unwrap_or_default();
        Borrowed { alarm, home: self.clone() }
    }
}

/// See [`Alarms::take`].
#[derive(Debug)]
pub struct Borrowed {
    alarm: Alarm,
    home: Alarms,
}

impl Borrowed {
    /// See [`Alarm::poll`].
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.alarm.poll(cx, deadline)
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let mut kept = self.home.0.borrow_mut();
        if self.alarm.sleep.is_some() && kept.len() < KEPT {
            kept.push(std::mem::take(&mut self.alarm));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    /// Waits as a request does whose deadline is `after` from now; how long it took.
    async fn wait(alarm: &mut Borrowed, after: Duration) -> Duration {
        let began = tokio::time::Instant::now();
        let deadline = began.into_std() + after;
        poll_fn(|cx| alarm.poll(cx, deadline)).await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn rings_at_the_deadline_whatever_it_was_set_to_before() {
        let alarms = Alarms::default();
        for seconds in [10, 3, 3, 20, 1] {
            let after = Duration::from_secs(seconds);
            let took = wait(&mut alarms.take(), after).await;
            assert!(took >= after && took < after + Duration::from_millis(5), "{took:?} for {after:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_moves_is_rung_for_once() {
        let alarms = Alarms::default();
        let mut alarm = alarms.take();
        let second = Duration::from_secs(1);
        let mut deadline = tokio::time::Instant::now() + 5 * second;
        let end = deadline + 4 * second;
        let ringing = poll_fn(|cx| {
            // Each poll before the end moves it on, as traffic does.
            if deadline < end {
                deadline += second;
            }
            alarm.poll(cx, deadline.into_std())
        });
        ringing.await;
        assert_eq!(tokio::time::Instant::now().duration_since(end).as_secs(), 0);
        assert!(tokio::time::Instant::now() >= end);
    }
}
