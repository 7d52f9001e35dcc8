//! The registry: which workloads are there. [`lease`] decides; this shell keeps time, the table and the index informed.
//!
//! Registrations, leavings and changes of health are on disk before they are answered; heartbeats are not, since a
//! restart gives every workload time to come back anyway.

pub mod grpc;
pub mod lease;
mod record;
mod workload;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::lease::{Effect, Leases, State, StreamId, Superseded};
pub use self::workload::SERVICE_LABEL;
use crate::{
    index::WorkloadEntry,
    store::{Store, StoreError},
};

/// The registry. Clones share it.
#[derive(Debug, Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    /// Apart, for the store's thread looks at it, which must never own the store.
    leases: Arc<Mutex<Leases>>,
    /// Told of by [`Registry::take_changes`].
    pending: Mutex<Pending>,
    changed: Notify,
    /// The next expiry may have come nearer.
    rescheduled: Notify,
    streams: AtomicU64,
}

/// What the index has not heard of yet.
#[derive(Debug, Default)]
struct Pending {
    workloads: BTreeMap<Arc<str>, Option<Arc<WorkloadEntry>>>,
    urgent: bool,
    sequence: u64,
}

/// Workloads that changed since the index last asked.
#[derive(Debug, Default)]
pub struct Changes {
    /// `None`: gone.
    pub workloads: BTreeMap<Arc<str>, Option<Arc<WorkloadEntry>>>,
    /// An endpoint went: publish without delay.
    pub urgent: bool,
    /// Every change up to this number is in.
    pub sequence: u64,
}

impl Registry {
    /// Takes up the workloads of the store, each with time to come back.
    /// # Errors
    /// The table cannot be read.
    pub async fn open(store: Store, ttl: Duration) -> Result<Self, StoreError> {
        let known = store.transact(record::read_all).await?;
        let mut leases = Leases::new(ttl);
        let mut pending = Pending::default();
        let now = Instant::now();
        for workload in known.into_iter().map(Arc::new) {
            pending.workloads.insert(workload.id.clone(), Some(workload.clone()));
            leases.restore(workload, now);
        }
        let shared = Shared {
            store,
            leases: Arc::new(Mutex::new(leases)),
            pending: Mutex::new(pending),
            changed: Notify::new(),
            rescheduled: Notify::new(),
            streams: AtomicU64::new(1),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Length of a lease.
    pub fn ttl(&self) -> Duration {
        self.shared.leases.lock().ttl()
    }

    /// A workload speaks for the first time on a stream. Returns the stream's name.
    /// # Errors
    /// The store refused; the workload is served all the same until its lease ends.
    pub async fn register(&self, workload: WorkloadEntry) -> Result<StreamId, StoreError> {
        let stream = StreamId(self.shared.streams.fetch_add(1, Ordering::Relaxed));
        let id = workload.id.clone();
        let known = self.shared.leases.lock().get(&id).is_some();
        let effect = self.shared.leases.lock().register(Arc::new(workload), stream, Instant::now());
        self.shared.rescheduled.notify_one();
        self.announce(&id, effect);
        if !known || effect != Effect::Nothing {
            self.persist(id).await?;
        }
        Ok(stream)
    }

    /// The workload lives.
    /// # Errors
    /// Another stream speaks for it.
    pub fn heartbeat(&self, id: &str, stream: StreamId) -> Result<(), Superseded> {
        self.shared.leases.lock().heartbeat(id, stream, Instant::now())
    }

    /// The workload says how it is. Returns once that is written.
    /// # Errors
    /// Another stream speaks for it.
    pub async fn health(&self, id: &Arc<str>, stream: StreamId, healthy: bool, why: &str) -> Result<(), Superseded> {
        let effect = self.shared.leases.lock().health(id, stream, healthy, why, Instant::now())?;
        self.settle(id, effect).await;
        Ok(())
    }

    /// The workload leaves. Returns the number by which [`Changes::sequence`] tells that the index knows.
    /// # Errors
    /// Another stream speaks for it.
    pub async fn drain(&self, id: &Arc<str>, stream: StreamId) -> Result<u64, Superseded> {
        let effect = self.shared.leases.lock().drain(id, stream, Instant::now())?;
        self.settle(id, effect).await;
        Ok(self.shared.pending.lock().sequence)
    }

    /// The stream ended.
    pub async fn closed(&self, id: &Arc<str>, stream: StreamId) {
        let effect = self.shared.leases.lock().closed(id, stream);
        self.settle(id, effect).await;
    }

    /// Every workload with its state.
    pub fn workloads(&self) -> Vec<(Arc<WorkloadEntry>, State)> {
        self.shared.leases.lock().all().map(|(workload, state, _)| (workload.clone(), state)).collect()
    }

    /// Waits until something changed that the index has not heard of.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Those changes. The newest state of each workload; what came in between is of no use to anyone.
    pub fn take_changes(&self) -> Changes {
        let mut pending = self.shared.pending.lock();
        let workloads = std::mem::take(&mut pending.workloads);
        Changes { workloads, urgent: std::mem::take(&mut pending.urgent), sequence: pending.sequence }
    }

    /// Removes workloads whose lease ran out, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let now = Instant::now();
            let next = self.shared.leases.lock().next_expiry(now);
            let wake = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.shared.rescheduled.notified() => continue,
                () = wake => self.expire(Instant::now()).await,
            }
        }
    }

    async fn expire(&self, now: Instant) {
        let (gone, holding, before) = {
            let mut leases = self.shared.leases.lock();
            let before = leases.holding();
            (leases.expire(now), leases.holding(), before)
        };
        if holding && !before {
            tracing::warn!("more than half of the workloads went silent at once; they stay until some come back");
        }
        for id in gone {
            tracing::info!(workload = %id, "a lease ran out");
            self.settle(&id, Effect::Removed).await;
        }
    }

    /// Tells the index, then the disk. The index does not wait for the disk: an endpoint that left is to be left alone
    /// at once, and one that is not on disk registers again after a restart.
    async fn settle(&self, id: &Arc<str>, effect: Effect) {
        self.announce(id, effect);
        if effect == Effect::Nothing {
            return;
        }
        if let Err(error) = self.persist(id.clone()).await {
            tracing::error!(workload = %id, %error, "the registry's table could not be written");
        }
    }

    fn announce(&self, id: &Arc<str>, effect: Effect) {
        if effect == Effect::Nothing {
            return;
        }
        {
            let leases = self.shared.leases.lock();
            let mut pending = self.shared.pending.lock();
            pending.workloads.insert(id.clone(), leases.get(id).cloned());
            pending.urgent |= effect == Effect::Removed;
            pending.sequence += 1;
        }
        self.shared.changed.notify_one();
    }

    /// Writes what the lease says when the transaction runs, not when it was asked for: writes that overtake each other
    /// agree all the same.
    async fn persist(&self, id: Arc<str>) -> Result<(), StoreError> {
        let leases = self.shared.leases.clone();
        let work = move |transaction: &redb::WriteTransaction| {
            let workload = leases.lock().get(&id).cloned();
            record::write(transaction, &id, workload.as_deref())
        };
        self.shared.store.transact(work).await
    }
}
