//! Tells a task what it was woken for, so that it looks at that alone.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicU8,
            Ordering::{AcqRel, Acquire},
        },
    },
    task::{Context, Wake, Waker},
};

use parking_lot::Mutex;

/// The task runs: it looks at its bells before it rests, and need not be woken.
const AWAKE: u8 = 1 << 7;

/// Wakers of one task that keep in mind which of them was used. All have rung at first: nothing was looked at yet.
#[derive(Debug)]
pub(super) struct Bells<const N: usize> {
    tower: Arc<Tower>,
    wakers: [Waker; N],
}

#[derive(Debug)]
struct Tower {
    /// A bit for each bell that has rung, and [`AWAKE`].
    state: AtomicU8,
    task: Mutex<Option<Waker>>,
}

#[derive(Debug)]
struct Rope {
    tower: Arc<Tower>,
    bit: u8,
}

impl<const N: usize> Bells<N> {
    pub(super) fn new() -> Self {
        const { assert!(N < 7, "one bit is the task's own") };
        let tower = Arc::new(Tower { state: AtomicU8::new((1 << N) - 1), task: Mutex::new(None) });
        let wakers =
            std::array::from_fn(|bell| Waker::from(Arc::new(Rope { tower: Arc::clone(&tower), bit: 1 << bell })));
        Self { tower, wakers }
    }

    /// For what is to ring a bell.
    pub(super) fn context(&self, bell: usize) -> Context<'_> {
        Context::from_waker(&self.wakers[bell])
    }

    /// Rings it.
    pub(super) fn ring(&self, bell: usize) {
        self.wakers[bell].wake_by_ref();
    }

    /// Whether it has rung since this was last asked.
    pub(super) fn heard(&self, bell: usize) -> bool {
        self.tower.state.fetch_and(!(1 << bell), AcqRel) & 1 << bell != 0
    }

    /// The task runs.
    pub(super) fn awake(&self) {
        self.tower.state.fetch_or(AWAKE, AcqRel);
    }

    /// The task rests until a bell rings. False: one has rung, and the task has to look at it first.
    pub(super) fn rest(&self, cx: &Context<'_>) -> bool {
        {
            let mut task = self.tower.task.lock();
            if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
                *task = Some(cx.waker().clone());
            }
        }
        self.tower.state.compare_exchange(AWAKE, 0, AcqRel, Acquire).is_ok()
    }
}

impl Wake for Rope {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Who is awake looks before it rests; who was woken before is about to.
        if self.tower.state.fetch_or(self.bit, AcqRel) == 0
            && let Some(task) = &*self.tower.task.lock()
        {
            task.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn a_bell_wakes_who_rests_and_is_heard_once() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        let bells = Bells::<2>::new();
        bells.awake();
        assert!(bells.heard(0) && bells.heard(1) && !bells.heard(0));
        // Who is awake is not woken, and does not rest.
        bells.ring(1);
        assert!(!bells.rest(&cx));
        assert!(!bells.heard(0) && bells.heard(1));
        assert!(bells.rest(&cx));
        assert_eq!(woken.0.load(Relaxed), 0);
        // Who rests is woken once, however often they ring.
        bells.context(0).waker().wake_by_ref();
        bells.ring(0);
        bells.ring(1);
        assert_eq!(woken.0.load(Relaxed), 1);
        bells.awake();
        assert!(bells.heard(0) && bells.heard(1) && bells.rest(&cx));
    }
}
