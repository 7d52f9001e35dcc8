//! The resources of the log's newest revision, parsed. Follows the log change by change, so that an Apply costs what it
//! changes and not what there is.

use std::sync::Arc;

use parking_lot::Mutex;
use weft_model::ResourceSet;

use crate::{
    index::{self, DocumentError},
    store::{Event, Log, Stored},
};

/// The newest revision that was looked at.
#[derive(Debug, Default)]
pub struct Current {
    seen: Mutex<(u64, Arc<ResourceSet>)>,
}

impl Current {
    /// The parsed resources of a log's head.
    /// # Errors
    /// A document cannot be read by this version.
    pub fn of(&self, log: &Log) -> Result<Arc<ResourceSet>, DocumentError> {
        let (revision, set) = self.seen.lock().clone();
        let set = match log.after(revision) {
            Ok([]) => return Ok(set),
            Ok(entries) if revision > 0 => {
                let mut set = (*set).clone();
                for entry in entries {
                    for event in &entry.events {
                        apply(&mut set, event, entry.revision)?;
                    }
                }
                Arc::new(set)
            }
            // The first look, or one after so long a time that the log was compacted.
            _ => {
                let read = log.current().iter().map(|(key, stored)| index::read(key, stored));
                Arc::new(read.collect::<Result<_, _>>()?)
            }
        };
        let mut seen = self.seen.lock();
        if seen.0 < log.head() {
            *seen = (log.head(), set.clone());
        }
        Ok(set)
    }
}

fn apply(set: &mut ResourceSet, event: &Event, revision: u64) -> Result<(), DocumentError> {
    match event {
        Event::Set { key, api_version, yaml } => {
            let stored = Stored { api_version: api_version.clone(), yaml: yaml.clone(), revision };
            set.insert(index::read(key, &stored)?);
        }
        Event::Delete { key } => drop(set.remove(key)),
    }
    Ok(())
}
