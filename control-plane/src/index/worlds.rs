//! Publishes worlds: the current one at any time, and each change to whoever subscribed.

use std::{collections::BTreeSet, sync::Arc};

use arc_swap::ArcSwap;
use tokio::sync::broadcast;

use super::world::{Dirty, Update, World};

/// The current world and its changes. One writer, any number of readers.
#[derive(Debug)]
pub struct Worlds {
    current: ArcSwap<World>,
    updates: broadcast::Sender<Update>,
}

impl Worlds {
    /// Starts with `world`.
    pub fn new(world: World) -> Self {
        let (updates, _) = broadcast::channel(BACKLOG);
        Self { current: ArcSwap::from_pointee(world), updates }
    }

    /// The world as it is now.
    pub fn current(&self) -> Arc<World> {
        self.current.load_full()
    }

    /// Every change from now on.
    pub fn subscribe(&self) -> Subscription {
        Subscription { updates: self.updates.subscribe() }
    }

    /// Publishes the next world. For the index and for tests: there is one writer.
    pub fn publish(&self, world: World, dirty: BTreeSet<Dirty>) {
        let world = Arc::new(world);
        self.current.store(world.clone());
        if self.updates.send(Update { world, dirty: Arc::new(dirty) }).is_err() {
            tracing::trace!("nobody is subscribed to the world");
        }
    }
}

/// A reader of changes that may fall behind without slowing the writer down.
#[derive(Debug)]
pub struct Subscription {
    updates: broadcast::Receiver<Update>,
}

/// What a subscriber hears.
#[derive(Debug, Clone)]
pub enum Change {
    /// The next change.
    Update(Update),
    /// Changes were missed: take [`Worlds::current`] and treat everything as dirty.
    Lagged,
}

impl Subscription {
    /// Waits for the next change; `None` when the control plane shuts down.
    pub async fn next(&mut self) -> Option<Change> {
        match self.updates.recv().await {
            Ok(update) => Some(Change::Update(update)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Change::Lagged),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Changes kept for slow subscribers. A subscriber that misses more rebuilds its view from the current world.
const BACKLOG: usize = 256;

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use weft_identity::{TrustDomain, ca::Authority};

    use super::*;
    use crate::index::Fold;

    #[tokio::test]
    async fn a_slow_reader_is_told_that_it_missed_something() {
        let authority = Authority::create(TrustDomain::parse("weft.local").unwrap(), SystemTime::now()).unwrap();
        let mut fold = Fold::new(&authority.bundle());
        let worlds = Worlds::new(fold.publish().0);
        let mut reader = worlds.subscribe();
        for _ in 0..=BACKLOG {
            worlds.publish(fold.publish().0, BTreeSet::from([Dirty::Mesh]));
        }
        assert!(matches!(reader.next().await, Some(Change::Lagged)));
        let next = reader.next().await;
        assert!(matches!(next, Some(Change::Update(update)) if update.dirty.contains(&Dirty::Mesh)));
        assert_eq!(worlds.current().generation, BACKLOG as u64 + 2);
    }
}
