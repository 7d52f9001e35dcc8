//! The event log in memory: what every revision held. Pure; the file is [`super::file`]'s business.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use weft_model::ResourceKey;

use super::StoreError;

/// A resource as the log holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// `weft.mesh/v1alpha1`.
    pub api_version: String,
    /// As applied, defaults not filled in, canonical.
    pub yaml: String,
    /// Revision that last changed it.
    pub revision: u64,
}

/// Part of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The resource is now this.
    Set {
        /// Which.
        key: ResourceKey,
        /// Of the document.
        api_version: String,
        /// Canonical text.
        yaml: String,
    },
    /// The resource is gone.
    Delete {
        /// Which.
        key: ResourceKey,
    },
}

impl Event {
    /// The resource it is about.
    pub fn key(&self) -> &ResourceKey {
        match self {
            Self::Set { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Who changed something, why and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Name of the credential, or who it acted for.
    pub author: String,
    /// As given.
    pub message: String,
    /// Milliseconds since 1970.
    pub time_ms: u64,
}

/// One change: one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place in the log; the first is 1.
    pub revision: u64,
    /// Who, why, when.
    pub meta: Meta,
    /// In order; no resource twice.
    pub events: Vec<Event>,
}

/// The resources of one revision.
pub type Resources = BTreeMap<ResourceKey, Arc<Stored>>;

/// The log: a snapshot of its old part, and each change after that.
#[derive(Debug, Clone, Default)]
pub struct Log {
    base_revision: u64,
    base: Arc<Resources>,
    entries: Vec<Arc<Entry>>,
    current: Arc<Resources>,
}

impl Log {
    /// A log from its parts, as read from the file. `entries` follow `base_revision` without a gap.
    pub fn from_parts(base_revision: u64, base: Resources, entries: Vec<Entry>) -> Self {
        let base = Arc::new(base);
        let mut log = Self { base_revision, base: base.clone(), entries: Vec::new(), current: base };
        for entry in entries {
            log.push(entry);
        }
        log
    }

    /// Revision of the newest change; 0 for an empty log.
    pub fn head(&self) -> u64 {
        self.entries.last().map_or(self.base_revision, |entry| entry.revision)
    }

    /// Revision of the snapshot: changes up to it are known only by their result.
    pub fn begins(&self) -> u64 {
        self.base_revision
    }

    /// The snapshot: the resources of the revision at which the log begins.
    pub fn base(&self) -> &Arc<Resources> {
        &self.base
    }

    /// The changes kept, oldest first.
    pub fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// The resources now.
    pub fn current(&self) -> &Arc<Resources> {
        &self.current
    }

    /// The resources as of `revision`.
    /// # Errors
    /// [`StoreError::Compacted`] and [`StoreError::NotYet`] when the log does not hold that revision.
    pub fn at(&self, revision: u64) -> Result<Arc<Resources>, StoreError> {
        if revision == self.head() {
            return Ok(self.current.clone());
        }
        let mut resources = (*self.base).clone();
        for entry in self.up_to(revision)? {
            fold(&mut resources, entry);
        }
        Ok(Arc::new(resources))
    }

    /// The changes after `revision`, oldest first.
    /// # Errors
    /// As [`Log::at`].
    pub fn after(&self, revision: u64) -> Result<&[Arc<Entry>], StoreError> {
        let known = self.up_to(revision)?.len();
        Ok(&self.entries[known..])
    }

    fn up_to(&self, revision: u64) -> Result<&[Arc<Entry>], StoreError> {
        if revision < self.base_revision {
            return Err(StoreError::Compacted { asked: revision, begins: self.base_revision });
        }
        if revision > self.head() {
            return Err(StoreError::NotYet { asked: revision, head: self.head() });
        }
        let known = self.entries.partition_point(|entry| entry.revision <= revision);
        Ok(&self.entries[..known])
    }

    /// Adds the next change.
    pub(super) fn push(&mut self, entry: Entry) {
        debug_assert_eq!(entry.revision, self.head() + 1, "revisions have no gap");
        fold(Arc::make_mut(&mut self.current), &entry);
        self.entries.push(Arc::new(entry));
    }

    /// Folds all but the last `keep` changes into the snapshot; the keys that this touched and the revisions that went.
    pub(super) fn compact(&mut self, keep: usize) -> Compacted {
        let old = self.entries.len().saturating_sub(keep);
        let base = Arc::make_mut(&mut self.base);
        let mut touched = BTreeSet::new();
        let mut revisions = Vec::with_capacity(old);
        for entry in self.entries.drain(..old) {
            fold(base, &entry);
            touched.extend(entry.events.iter().map(|event| event.key().clone()));
            revisions.push(entry.revision);
            self.base_revision = entry.revision;
        }
        let touched = touched.into_iter().map(|key| (base.get(&key).cloned(), key)).map(|(value, key)| (key, value));
        Compacted { base_revision: self.base_revision, changed: touched.collect(), revisions }
    }
}

/// What a compaction did, for the file to follow.
#[derive(Debug)]
pub(super) struct Compacted {
    pub base_revision: u64,
    /// `None`: not in the snapshot any more.
    pub changed: Vec<(ResourceKey, Option<Arc<Stored>>)>,
    pub revisions: Vec<u64>,
}

fn fold(resources: &mut Resources, entry: &Entry) {
    for event in &entry.events {
        match event {
            Event::Set { key, api_version, yaml } => {
                let stored = Stored { api_version: api_version.clone(), yaml: yaml.clone(), revision: entry.revision };
                resources.insert(key.clone(), Arc::new(stored));
            }
            Event::Delete { key } => {
                resources.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(name: u8) -> ResourceKey {
        ResourceKey::new(weft_model::Kind::Service, "default", format!("s{name}"))
    }

    fn entry(revision: u64, changes: &[(u8, Option<u8>)]) -> Entry {
        let events = changes
            .iter()
            .map(|&(name, value)| match value {
                Some(value) => {
                    Event::Set { key: key(name), api_version: "v1".into(), yaml: format!("value: {value}\n") }
                }
                None => Event::Delete { key: key(name) },
            })
            .collect();
        Entry { revision, meta: Meta { author: "a".into(), message: String::new(), time_ms: revision }, events }
    }

    proptest! {
        /// Whatever is folded away, each revision that is still there holds what it held.
        #[test]
        fn compaction_changes_no_revision(
            changes in prop::collection::vec(prop::collection::btree_map(0u8..6, prop::option::of(0u8..4), 1..4), 1..30),
            keep in 0usize..10,
        ) {
            let mut log = Log::default();
            let mut states = vec![log.current().clone()];
            for (index, change) in changes.iter().enumerate() {
                let change: Vec<_> = change.iter().map(|(&name, &value)| (name, value)).collect();
                log.push(entry(index as u64 + 1, &change));
                states.push(log.current().clone());
            }
            log.compact(keep);
            prop_assert_eq!(log.head(), changes.len() as u64);
            prop_assert!(log.entries().len() <= keep || log.begins() == 0);
            for (revision, state) in states.iter().enumerate() {
                match log.at(revision as u64) {
                    Ok(found) => prop_assert_eq!(&found, state),
                    Err(error) => prop_assert!((revision as u64) < log.begins(), "{}", error),
                }
            }
        }
    }

    #[test]
    fn a_revision_that_is_not_there_is_an_error_that_says_why() {
        let mut log = Log::default();
        for revision in 1..=4 {
            log.push(entry(revision, &[(1, Some(1))]));
        }
        log.compact(2);
        assert!(matches!(log.at(1), Err(StoreError::Compacted { asked: 1, begins: 2 })));
        assert!(matches!(log.at(9), Err(StoreError::NotYet { asked: 9, head: 4 })));
        assert_eq!(log.after(3).unwrap().len(), 1);
    }
}
