//! Buffers that a thread lends to whoever moves bytes at the moment: a connection that waits holds none.

use std::{
    cell::RefCell,
    fmt,
    ops::{Deref, DerefMut},
};

/// Length of a lent buffer: four TLS records' worth of bytes, and as much as rustls takes before it wants to write.
pub const LENGTH: usize = 64 * 1024;
/// Free buffers that a thread keeps. More than a few are in use only while receivers are slow.
const KEPT: usize = 4;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`LENGTH`] bytes; goes back to the thread when dropped. What is in it is left from before.
pub struct Lent(Box<[u8]>);

impl Lent {
    /// Borrows one.
    pub fn new() -> Self {
        Self(FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; LENGTH].into_boxed_slice()))
    }
}

impl Default for Lent {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // A thread that is ending has no list any more; the buffer is freed like any other memory.
        let kept = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(bytes);
            }
        });
        if kept.is_err() {
            tracing::trace!("a buffer outlived its thread's list");
        }
    }
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_few_are_kept() {
        let held: Vec<Lent> = (0..KEPT + 3).map(|_| Lent::new()).collect();
        let first = held[0].as_ptr();
        assert!(held.iter().all(|buffer| buffer.len() == LENGTH));
        drop(held);
        assert_eq!(FREE.with_borrow(Vec::len), KEPT);
        let again: Vec<Lent> = (0..KEPT).map(|_| Lent::new()).collect();
        assert!(again.iter().any(|buffer| buffer.as_ptr() == first), "a buffer is used again");
    }
}
