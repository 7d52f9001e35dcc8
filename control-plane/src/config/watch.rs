//! Changes as they happen.

use std::collections::{BTreeSet, VecDeque};

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_model::ResourceKey;
use weft_proto::weft::v1;

use super::{Configuration, Filter, error::ApiError, wire};
use crate::store::{Entry, Event, Store, Stored};

impl Configuration {
    /// Changes after a revision, for ever. A reader that is slow holds up nobody: it reads the log at its own pace, until
    /// the log forgets what it has not read.
    /// # Errors
    /// Unknown kind; OUT_OF_RANGE when the revision is not kept.
    pub fn watch(
        &self,
        request: v1::WatchRequest,
    ) -> Result<impl Stream<Item = Result<v1::WatchEvent, ApiError>> + Send + 'static, ApiError> {
        let parts = &self.shared.parts;
        let log = parts.store.log();
        let from = if request.from_revision == 0 { log.head() } else { request.from_revision };
        let reader = Reader {
            filter: Filter::new(&request.kind, request.namespace)?,
            known: log.at(from)?.keys().cloned().collect(),
            revision: from,
            ready: VecDeque::new(),
            head: parts.store.watch(),
            store: parts.store.clone(),
            stop: parts.stop.clone(),
        };
        Ok(stream::unfold(Some(reader), |reader| async move {
            let mut reader = reader?;
            match reader.next().await {
                Some(Ok(event)) => Some((Ok(event), Some(reader))),
                Some(Err(error)) => Some((Err(error), None)),
                None => None,
            }
        }))
    }
}

struct Reader {
    filter: Filter,
    /// Resources that are there at `revision`.
    known: BTreeSet<ResourceKey>,
    revision: u64,
    ready: VecDeque<v1::WatchEvent>,
    head: watch::Receiver<u64>,
    store: Store,
    stop: CancellationToken,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<v1::WatchEvent, ApiError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            self.head.mark_unchanged();
            let log = self.store.log();
            match log.after(self.revision) {
                Ok([]) => {}
                Ok(entries) => {
                    self.take(&entries[0].clone());
                    continue;
                }
                Err(error) => return Some(Err(error.into())),
            }
            drop(log);
            tokio::select! {
                () = self.stop.cancelled() => return None,
                moved = self.head.changed() => moved.ok()?,
            }
        }
    }

    fn take(&mut self, entry: &Entry) {
        self.revision = entry.revision;
        for event in &entry.events {
            let (kind, resource) = match event {
                Event::Set { key, api_version, yaml } => {
                    let stored =
                        Stored { api_version: api_version.clone(), yaml: yaml.clone(), revision: entry.revision };
                    let new = self.known.insert(key.clone());
                    let kind = if new { v1::ChangeKind::Created } else { v1::ChangeKind::Updated };
                    (kind, wire::resource_to_wire(key, &stored))
                }
                Event::Delete { key } => {
                    self.known.remove(key);
                    let resource = v1::Resource {
                        key: Some(wire::key_to_wire(key)),
                        revision: entry.revision,
                        ..v1::Resource::default()
                    };
                    (v1::ChangeKind::Deleted, resource)
                }
            };
            if self.filter.takes(event.key()) {
                let event = v1::WatchEvent { revision: entry.revision, kind: kind.into(), resource: Some(resource) };
                self.ready.push_back(event);
            }
        }
    }
}
