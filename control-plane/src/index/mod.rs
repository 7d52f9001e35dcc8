//! The index: folds the configuration log and the registered workloads into the [`World`], and says what each change
//! touched.
//!
//! [`fold`] decides what a change means, [`debounce`] when it is told; this shell listens to the log, the registry and
//! the authority, and is the one writer of [`Worlds`].

mod addresses;
mod cluster;
mod debounce;
mod document;
mod endpoints;
mod fold;
#[cfg(test)]
mod tests;
mod world;
mod worlds;

use std::{sync::Arc, time::Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_identity::TrustBundle;

use self::debounce::Debounce;
pub use self::{
    addresses::of as addresses_of,
    cluster::PodEntry,
    document::{read, write},
    fold::{DocumentError, Fold},
    world::{
        Dirty, EndpointEntry, EndpointPort, HOSTNAME, Map, ObjectKey, Owner, Place, ServiceEntry, ServiceKey, Set,
        Update, Versioned, WorkloadEntry, WorkloadPort, World,
    },
    worlds::{Change, Subscription, Worlds},
};
use crate::{kubernetes::Discovery, registry::Registry, store::Store};

/// The index and what it reads.
#[derive(Debug)]
pub struct Index {
    store: Store,
    registry: Registry,
    /// Pods and EndpointSlices, in a cluster.
    discovery: Option<Discovery>,
    bundle: watch::Receiver<Arc<TrustBundle>>,
    fold: Fold,
    worlds: Arc<Worlds>,
    applied: watch::Sender<u64>,
}

impl Index {
    /// Folds everything there is. What changes from now on is published once [`Index::run`] runs.
    /// # Errors
    /// A stored document cannot be read.
    pub fn open(
        store: Store,
        registry: Registry,
        discovery: Option<Discovery>,
        mut bundle: watch::Receiver<Arc<TrustBundle>>,
    ) -> Result<Self, DocumentError> {
        let mut fold = Fold::new(&bundle.borrow_and_update());
        if let Some(discovery) = &discovery {
            fold = fold.in_cluster();
            take_discovery(discovery, &mut fold);
        }
        fold.reset(&store.log())?;
        let changes = registry.take_changes();
        for (id, workload) in changes.workloads {
            fold.workload(&id, workload);
        }
        let (world, _) = fold.publish();
        let (applied, _) = watch::channel(changes.sequence);
        Ok(Self { store, registry, discovery, bundle, fold, worlds: Arc::new(Worlds::new(world)), applied })
    }

    /// Where it publishes.
    pub fn worlds(&self) -> Arc<Worlds> {
        self.worlds.clone()
    }

    /// Sequence of the registry's changes that the current world has.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Publishes until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut head = self.store.watch();
        let mut debounce = Debounce::default();
        let mut sequence = *self.applied.borrow();
        // What came between `open` and here.
        let mut urgent = self.take(&mut sequence);
        let mut changed = true;
        loop {
            let now = Instant::now();
            if std::mem::take(&mut changed) {
                debounce.on_change(std::mem::take(&mut urgent), now);
            }
            if debounce.due().is_some_and(|due| due <= now) {
                self.publish(sequence);
                debounce.on_publish(now);
            }
            let due = debounce.due();
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = wait => continue,
                moved = head.changed() => if moved.is_err() { return },
                moved = self.bundle.changed() => if moved.is_err() { return },
                () = self.registry.changed() => {}
                () = discovered(self.discovery.as_ref()) => {}
            }
            urgent |= self.take(&mut sequence);
            changed = true;
        }
    }

    /// Takes in everything that is new; whether it is urgent.
    fn take(&mut self, sequence: &mut u64) -> bool {
        self.take_log();
        let bundle = self.bundle.borrow_and_update().clone();
        self.fold.bundle(&bundle);
        let gone = self.discovery.as_ref().is_some_and(|discovery| take_discovery(discovery, &mut self.fold));
        let changes = self.registry.take_changes();
        *sequence = changes.sequence;
        for (id, workload) in changes.workloads {
            self.fold.workload(&id, workload);
        }
        changes.urgent || gone
    }

    fn take_log(&mut self) {
        let log = self.store.log();
        let folded = match log.after(self.fold.world().revision) {
            Ok(entries) => entries.iter().try_for_each(|entry| self.fold.apply(entry)),
            // So far behind that the log has been compacted: begin anew.
            Err(error) => {
                tracing::warn!(%error, "the index starts over");
                self.fold.reset(&log)
            }
        };
        if let Err(error) = folded {
            // Every document was read by this very version when it was applied.
            tracing::error!(%error, "a change of configuration is left out of the mesh");
        }
    }

    fn publish(&mut self, sequence: u64) {
        let (world, dirty) = self.fold.publish();
        tracing::debug!(revision = world.revision, generation = world.generation, dirty = dirty.len(), "published");
        if !dirty.is_empty() || world.revision != self.worlds.current().revision {
            self.worlds.publish(world, dirty);
        }
        self.applied.send_replace(sequence);
    }
}

/// Takes in pods and EndpointSlices; whether an endpoint may have gone.
fn take_discovery(discovery: &Discovery, fold: &mut Fold) -> bool {
    let changes = discovery.take_changes();
    for (key, pod) in changes.pods {
        fold.pod(&key, pod);
    }
    for (key, slice) in changes.slices {
        fold.slice(&key, slice);
    }
    changes.urgent
}

async fn discovered(discovery: Option<&Discovery>) {
    match discovery {
        Some(discovery) => discovery.changed().await,
        None => std::future::pending().await,
    }
}
