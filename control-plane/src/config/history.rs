//! The log for people: what each change did.

use weft_model::ResourceKey;
use weft_proto::weft::v1;

use super::{Configuration, error::ApiError, wire};
use crate::store::{Entry, Event, Log, Resources, Stored};

impl Configuration {
    /// The log, newest first.
    /// # Errors
    /// The key is not one.
    pub fn history(&self, request: v1::HistoryRequest) -> Result<v1::HistoryResponse, ApiError> {
        let key = request.key.map(|key| wire::key_from_wire(Some(key))).transpose()?;
        let limit = if request.limit == 0 { LIMIT } else { request.limit as usize };
        let before = if request.before_revision == 0 { u64::MAX } else { request.before_revision };
        Ok(v1::HistoryResponse { entries: entries(&self.log(), limit.min(MAX_LIMIT), before, key.as_ref()) })
    }
}

fn entries(log: &Log, limit: usize, before: u64, key: Option<&ResourceKey>) -> Vec<v1::HistoryEntry> {
    let concerns = |entry: &Entry| key.is_none_or(|key| entry.events.iter().any(|event| event.key() == key));
    let wanted: Vec<u64> = log
        .entries()
        .iter()
        .rev()
        .filter(|entry| entry.revision < before && concerns(entry))
        .take(limit)
        .map(|entry| entry.revision)
        .collect();
    let mut resources = (**log.base()).clone();
    let mut found = Vec::with_capacity(wanted.len() + 1);
    for entry in log.entries() {
        let shown = wanted.contains(&entry.revision);
        let mut changes = Vec::new();
        for event in &entry.events {
            if shown && key.is_none_or(|key| key == event.key()) {
                changes.push(change(&resources, event));
            }
            step(&mut resources, event, entry.revision);
        }
        if shown {
            found.push(v1::HistoryEntry {
                revision: entry.revision,
                time: wire::millis_to_wire(entry.meta.time_ms),
                author: entry.meta.author.clone(),
                message: entry.meta.message.clone(),
                changes,
            });
        }
    }
    found.reverse();
    let begins = log.begins();
    if begins > 0 && begins < before && found.len() < limit {
        found.push(v1::HistoryEntry {
            revision: begins,
            message: format!("the history begins here: changes up to revision {begins} are kept only by their result"),
            ..v1::HistoryEntry::default()
        });
    }
    found
}

fn change(resources: &Resources, event: &Event) -> v1::Change {
    let before = resources.get(event.key()).map(AsRef::as_ref);
    match event {
        Event::Set { key, yaml, .. } => wire::change(key, before, Some(yaml)),
        Event::Delete { key } => wire::change(key, before, None),
    }
}

fn step(resources: &mut Resources, event: &Event, revision: u64) {
    match event {
        Event::Set { key, api_version, yaml } => {
            let stored = Stored { api_version: api_version.clone(), yaml: yaml.clone(), revision };
            resources.insert(key.clone(), stored.into());
        }
        Event::Delete { key } => drop(resources.remove(key)),
    }
}

/// Entries of an answer, unless the caller says otherwise.
const LIMIT: usize = 100;
/// Most entries of an answer.
const MAX_LIMIT: usize = 1000;
