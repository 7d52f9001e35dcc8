//! Pods and EndpointSlices on their way to the index. They are no configuration: they are not in the log and have no
//! history. They are on disk all the same, so that a control plane that starts while the API server is away knows where
//! everybody is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;
use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use weft_model::EndpointSlice;

use crate::{
    index::{ObjectKey, PodEntry},
    store::{Store, StoreError, decode, encode},
};

/// The table of what was discovered. Clones share it. One writer: the source.
#[derive(Debug, Clone)]
pub struct Discovery {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    pending: Mutex<Changes>,
    changed: Notify,
    /// Namespaces that have a pod with a sidecar, with how many.
    meshed: Mutex<Meshed>,
    meshed_changed: Notify,
}

#[derive(Debug, Default)]
struct Meshed {
    pods: BTreeSet<ObjectKey>,
    namespaces: BTreeMap<String, usize>,
}

/// What changed since the index last asked, the newest state of each. `None`: gone.
#[derive(Debug, Default)]
pub struct Changes {
    /// Pods.
    pub pods: BTreeMap<ObjectKey, Option<Arc<PodEntry>>>,
    /// EndpointSlices.
    pub slices: BTreeMap<ObjectKey, Option<Arc<EndpointSlice>>>,
    /// An endpoint may have gone: publish without delay.
    pub urgent: bool,
}

impl Changes {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.slices.is_empty()
    }
}

/// What a start finds on disk.
#[derive(Debug, Default)]
pub struct Held {
    /// Pods.
    pub pods: BTreeSet<ObjectKey>,
    /// EndpointSlices.
    pub slices: BTreeSet<ObjectKey>,
}

impl Discovery {
    /// Takes up what the store holds.
    /// # Errors
    /// The tables cannot be read.
    pub async fn open(store: Store) -> Result<(Self, Held), StoreError> {
        let (pods, slices) = store
            .transact(|transaction| {
                let pods: BTreeMap<ObjectKey, Arc<PodEntry>> = read_all(transaction, PODS, "pods")?;
                let slices: BTreeMap<ObjectKey, Arc<EndpointSlice>> = read_all(transaction, SLICES, "slices")?;
                Ok((pods, slices))
            })
            .await?;
        let held = Held { pods: pods.keys().cloned().collect(), slices: slices.keys().cloned().collect() };
        let mut meshed = Meshed::default();
        for (key, pod) in &pods {
            meshed.set(key, pod.inbound.is_some());
        }
        let pending = Changes {
            pods: pods.into_iter().map(|(key, pod)| (key, Some(pod))).collect(),
            slices: slices.into_iter().map(|(key, slice)| (key, Some(slice))).collect(),
            urgent: false,
        };
        let shared = Shared {
            store,
            pending: Mutex::new(pending),
            changed: Notify::new(),
            meshed: Mutex::new(meshed),
            meshed_changed: Notify::new(),
        };
        Ok((Self { shared: Arc::new(shared) }, held))
    }

    /// Waits until something changed that the index has not heard of.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Those changes.
    pub fn take_changes(&self) -> Changes {
        std::mem::take(&mut *self.shared.pending.lock())
    }

    /// Namespaces that have a pod with a sidecar.
    pub fn meshed_namespaces(&self) -> BTreeSet<String> {
        self.shared.meshed.lock().namespaces.keys().cloned().collect()
    }

    /// Waits until that may be different.
    pub async fn meshed_changed(&self) {
        self.shared.meshed_changed.notified().await;
    }

    /// Tells the index, then the disk: an endpoint that left is to be left alone at once.
    /// # Errors
    /// The disk refused; the index knows all the same.
    pub async fn apply(&self, changes: Changes) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut rows = Vec::new();
        for (key, pod) in &changes.pods {
            rows.push((PODS, key.to_string(), pod.as_ref().map(|pod| encode(&**pod))));
            let meshed = pod.as_ref().is_some_and(|pod| pod.inbound.is_some());
            if self.shared.meshed.lock().set(key, meshed) {
                self.shared.meshed_changed.notify_one();
            }
        }
        for (key, slice) in &changes.slices {
            rows.push((SLICES, key.to_string(), slice.as_ref().map(|slice| encode(&**slice))));
        }
        {
            let mut pending = self.shared.pending.lock();
            pending.pods.extend(changes.pods);
            pending.slices.extend(changes.slices);
            pending.urgent |= changes.urgent;
        }
        self.shared.changed.notify_one();
        self.shared.store.transact(move |transaction| write(transaction, &rows)).await
    }
}

impl Meshed {
    /// Whether the namespaces are others than before.
    fn set(&mut self, key: &ObjectKey, meshed: bool) -> bool {
        let changed = if meshed { self.pods.insert(key.clone()) } else { self.pods.remove(key) };
        if !changed {
            return false;
        }
        let count = self.namespaces.entry(key.namespace.clone()).or_default();
        *count = if meshed { *count + 1 } else { *count - 1 };
        let (first, none) = (meshed && *count == 1, *count == 0);
        if none {
            self.namespaces.remove(&key.namespace);
        }
        first || none
    }
}

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

fn read_all<T: DeserializeOwned>(
    transaction: &WriteTransaction,
    table: Table,
    name: &'static str,
) -> Result<BTreeMap<ObjectKey, Arc<T>>, StoreError> {
    let table = transaction.open_table(table)?;
    let mut found = BTreeMap::new();
    for row in table.iter()? {
        let (key, value) = row?;
        let Some((namespace, object)) = key.value().split_once('/') else {
            tracing::warn!(table = name, key = key.value(), "a stored row is left out");
            continue;
        };
        let value: T = decode(name, value.value())?;
        found.insert(ObjectKey::new(namespace, object), Arc::new(value));
    }
    Ok(found)
}

fn write(transaction: &WriteTransaction, rows: &[(Table, String, Option<Vec<u8>>)]) -> Result<(), StoreError> {
    for (table, key, value) in rows {
        let mut table = transaction.open_table(*table)?;
        match value {
            Some(value) => drop(table.insert(key.as_str(), value.as_slice())?),
            None => drop(table.remove(key.as_str())?),
        }
    }
    Ok(())
}

/// Name → pod as JSON.
const PODS: Table = TableDefinition::new("kubernetes_pods");
/// Name → EndpointSlice as JSON.
const SLICES: Table = TableDefinition::new("kubernetes_slices");
