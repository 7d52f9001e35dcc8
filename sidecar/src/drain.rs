//! Leaving in order: what is told to whom, when the sidecar is asked to stop.
//!
//! ```text
//! leave the registry, wait until callers know (≤ 1 s)
//!   → inbound: no more connections, GOAWAY or `connection: close`, requests end
//!     → the application ends (wrapper), has left (beside, transparent mode), or nothing (beside)
//!       → outbound: the same
//! ```
//!
//! One deadline bounds the whole; what still runs then is cut off. Nothing here depends on the control plane being there.

use std::{
    future::Future,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, timeout_at};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// How long callers may take to hear that this workload leaves.
pub const PROPAGATION: Duration = Duration::from_secs(1);

/// Both sides' state of draining; the data path looks at it.
#[derive(Debug, Default)]
pub struct Drain {
    /// From the mesh to the application.
    pub inbound: Side,
    /// From the application to the mesh.
    pub outbound: Side,
    /// Everything ends now, finished or not.
    pub abort: CancellationToken,
}

/// One side.
#[derive(Debug, Default)]
pub struct Side {
    stop: CancellationToken,
    /// What `stop` says, to be read without a lock.
    stopping: AtomicBool,
    connections: TaskTracker,
}

impl Side {
    /// A connection begins; it has ended when the token is dropped.
    pub fn enter(&self) -> TaskTrackerToken {
        self.connections.token()
    }

    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.connections.len()
    }

    /// Whether this side ends: answer with GOAWAY or `connection: close`, accept nothing new.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Waits until this side is asked to end.
    pub async fn draining(&self) {
        self.stop.cancelled().await;
    }

    /// Asks it to end.
    pub fn drain(&self) {
        self.stopping.store(true, Relaxed);
        self.stop.cancel();
    }

    /// Waits until all connections have ended, once [`Self::drain`] was called.
    async fn ended(&self) {
        self.connections.close();
        self.connections.wait().await;
    }
}

/// Waits until the application has left the outbound side: no connection of its is open, and none came for a moment.
///
/// Where connections are redirected there is no other way out: closing that side while the application still runs would cut
/// it off from everything.
pub async fn left(side: &Side) {
    const LOOK: Duration = Duration::from_millis(50);
    const CALM: u32 = 10;
    let mut calm = 0;
    while calm < CALM {
        tokio::time::sleep(LOOK).await;
        calm = if side.open() == 0 { calm + 1 } else { 0 };
    }
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything that ran came to its end.
    Complete,
    /// The time was over, or a second signal came; this many connections were cut off.
    CutOff {
        /// Connections of both sides.
        connections: usize,
    },
}

/// Drains in order.
///
/// `leave`: leaves the registry and waits for the answer. `application`: passes the signal on and waits for the
/// application's end; its output is returned. `now`: a second signal.
pub async fn drain<A>(
    drain: &Drain,
    limit: Duration,
    now: &CancellationToken,
    leave: impl Future<Output = ()>,
    application: impl Future<Output = A>,
) -> (Option<A>, Ended) {
    let deadline = Instant::now() + limit;
    let mut status = None;
    let orderly = async {
        // The limit does not stretch this: leaving a mesh that does not answer costs a second at most.
        if timeout_at(deadline.min(Instant::now() + PROPAGATION), leave).await.is_err() {
            tracing::warn!("the control plane did not confirm that this workload leaves; draining all the same");
        }
        drain.inbound.drain();
        drain.inbound.ended().await;
        status = Some(application.await);
        drain.outbound.drain();
        drain.outbound.ended().await;
    };
    let ended = tokio::select! {
        done = timeout_at(deadline, orderly) => done.is_ok(),
        () = now.cancelled() => false,
    };
    if ended {
        return (status, Ended::Complete);
    }
    let connections = drain.inbound.open() + drain.outbound.open();
    drain.inbound.drain();
    drain.outbound.drain();
    drain.abort.cancel();
    (status, Ended::CutOff { connections })
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{Arc, Mutex},
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn in_order() {
        let state = Arc::new(Drain::default());
        let told = Arc::new(Mutex::new(Vec::new()));
        let say = |what: &'static str| told.lock().unwrap().push(what);
        let (inbound, outbound) = (state.inbound.enter(), state.outbound.enter());
        let data_path = {
            let (state, told) = (state.clone(), told.clone());
            tokio::spawn(async move {
                state.inbound.draining().await;
                told.lock().unwrap().push("inbound");
                assert!(!state.outbound.is_draining());
                tokio::time::sleep(Duration::from_secs(5)).await;
                drop(inbound);
                state.outbound.draining().await;
                told.lock().unwrap().push("outbound");
                drop(outbound);
            })
        };
        let leave = async { say("leave") };
        let application = async {
            say("application");
            7
        };
        let ended = drain(&state, LIMIT, &CancellationToken::new(), leave, application).await;
        data_path.await.unwrap();
        assert_eq!(ended, (Some(7), Ended::Complete));
        assert_eq!(*told.lock().unwrap(), ["leave", "inbound", "application", "outbound"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_outbound_side_stays_until_the_application_has_left() {
        let state = Arc::new(Drain::default());
        let first = state.outbound.enter();
        let application = {
            let state = state.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(3)).await;
                assert!(state.inbound.is_draining() && !state.outbound.is_draining());
                // The next one comes at once.
                drop(first);
                tokio::time::sleep(Duration::from_millis(200)).await;
                let second = state.outbound.enter();
                assert!(!state.outbound.is_draining());
                tokio::time::sleep(Duration::from_secs(3)).await;
                drop(second);
            })
        };
        let ended = drain(&state, LIMIT, &CancellationToken::new(), async {}, left(&state.outbound)).await;
        application.await.unwrap();
        assert_eq!(ended, (Some(()), Ended::Complete));
        // An application that stays is cut off in the end.
        let state = Drain::default();
        let _stays = state.outbound.enter();
        let ended = drain(&state, LIMIT, &CancellationToken::new(), async {}, left(&state.outbound)).await;
        assert_eq!(ended, (None, Ended::CutOff { connections: 1 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_control_plane_costs_one_second() {
        let started = Instant::now();
        let ended = drain(&Drain::default(), LIMIT, &CancellationToken::new(), pending(), async {}).await;
        assert_eq!(ended, (Some(()), Ended::Complete));
        assert_eq!(started.elapsed(), PROPAGATION);
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_bounded() {
        let state = Drain::default();
        let _stuck = state.inbound.enter();
        let started = Instant::now();
        let ended = drain(&state, LIMIT, &CancellationToken::new(), async {}, async {}).await;
        assert_eq!(ended, (None, Ended::CutOff { connections: 1 }));
        assert_eq!(started.elapsed(), LIMIT);
        assert!(state.abort.is_cancelled() && state.outbound.is_draining());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_ends_it_at_once() {
        let state = Drain::default();
        let _stuck = state.outbound.enter();
        let now = CancellationToken::new();
        now.cancel();
        let ended = drain(&state, LIMIT, &now, async {}, async {}).await;
        assert!(matches!(ended.1, Ended::CutOff { connections: 1 }));
        assert!(state.abort.is_cancelled());
    }
}
