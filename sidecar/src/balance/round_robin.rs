//! Round robin, plain and smoothly weighted.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

/// In turn. Those that can be used share evenly, whichever cannot.
#[derive(Debug, Default)]
pub struct RoundRobin {
    turn: AtomicUsize,
}

impl RoundRobin {
    /// Goes on where `previous` was.
    pub fn after(previous: &Self) -> Self {
        Self { turn: AtomicUsize::new(previous.turn.load(Relaxed)) }
    }

    /// Starts anywhere: sidecars that start together should not all begin with the first.
    pub fn starting_at(turn: usize) -> Self {
        Self { turn: AtomicUsize::new(turn) }
    }

    /// Of `count` endpoints, the next that `usable` takes. `all`: the caller knows that every one can be used.
    pub fn pick(&self, count: usize, all: bool, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let turn = self.turn.fetch_add(1, Relaxed);
        if all {
            return turn.checked_rem(count);
        }
        // The turn-th of those that can be used: passing on to the neighbour would give it a double share.
        let able = (0..count).filter(|&index| usable(index)).count();
        let nth = turn.checked_rem(able)?;
        (0..count).filter(|&index| usable(index)).nth(nth)
    }
}

/// Smooth weighted round robin: weights 5/3/2 give 5, 3 and 2 in every ten, interleaved.
///
/// Each pick adds every usable endpoint's weight to its credit and takes the sum from the one with the most, which is
/// picked. Those that cannot be used neither gain nor count, so that the rest keep their proportions. Exact from any
/// number of threads: one lock for a pass over the endpoints.
/// Source: nginx, "Upstream: smooth weighted round-robin balancing", 2012.
#[derive(Debug)]
pub struct Smooth {
    credit: Mutex<Box<[i64]>>,
}

impl Smooth {
    /// `credit`: what each endpoint had before, 0 for a new one.
    pub fn new(credit: impl IntoIterator<Item = i64>) -> Self {
        Self { credit: Mutex::new(credit.into_iter().collect()) }
    }

    /// Credit of each endpoint, to go on with.
    pub fn credit(&self) -> Box<[i64]> {
        self.credit.lock().clone()
    }

    /// `weights`: one for each endpoint, in the order of construction.
    pub fn pick(&self, weights: &[u32], usable: impl Fn(usize) -> bool) -> Option<usize> {
        let mut credit = self.credit.lock();
        let mut best: Option<usize> = None;
        let mut sum = 0;
        for (index, &weight) in weights.iter().enumerate().filter(|&(index, _)| usable(index)) {
            credit[index] += i64::from(weight);
            sum += i64::from(weight);
            if best.is_none_or(|best| credit[index] > credit[best]) {
                best = Some(index);
            }
        }
        credit[best?] -= sum;
        best
    }
}
