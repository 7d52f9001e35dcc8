//! Writes statuses back: one at a time, not too many a second, and none twice.
//!
//! A write names the version of the object that it is about. When that is no longer the newest, the API server refuses,
//! and the watch brings the newer one: nothing that others wrote is overwritten.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kube::{
    Client,
    api::{Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use weft_model::ResourceKey;

use super::{health::Health, read::Subject, watch};

/// A status that is to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The version of the object that it is about.
    pub resource_version: String,
    /// The new `status`.
    pub status: Value,
}

/// What is to be written. The source replaces it as a whole; each object has one place, so that it is bounded.
#[derive(Debug, Default)]
pub struct Queue {
    inner: Mutex<Inner>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    wanted: BTreeMap<ResourceKey, Wanted>,
    /// What was sent last for each object: until the watch has brought it back, it is wanted again each time.
    sent: BTreeMap<ResourceKey, Wanted>,
}

impl Queue {
    /// Everything that is to be written now.
    pub fn set(&self, wanted: BTreeMap<ResourceKey, Wanted>) {
        let mut inner = self.inner.lock();
        inner.sent.retain(|key, _| wanted.contains_key(key));
        let sent = &inner.sent;
        let new: BTreeMap<_, _> =
            wanted.into_iter().filter(|(key, wanted)| sent.get(key).is_none_or(|sent| !sent.same(wanted))).collect();
        inner.wanted = new;
        if !inner.wanted.is_empty() {
            self.more.notify_one();
        }
    }

    fn next(&self, after: Option<&ResourceKey>) -> Option<(ResourceKey, Wanted)> {
        let inner = self.inner.lock();
        let later = after.and_then(|after| inner.wanted.range(after..).find(|(key, _)| *key != after));
        let found = later.or_else(|| inner.wanted.iter().next());
        found.map(|(key, wanted)| (key.clone(), wanted.clone()))
    }

    /// It was sent, with whatever result that trying again would not change.
    fn done(&self, key: &ResourceKey, sent: Wanted) {
        let mut inner = self.inner.lock();
        if inner.wanted.get(key).is_some_and(|wanted| wanted.same(&sent)) {
            inner.wanted.remove(key);
        }
        inner.sent.insert(key.clone(), sent);
    }
}

impl Wanted {
    /// The same but for the time at which it was thought of.
    fn same(&self, other: &Self) -> bool {
        self.resource_version == other.resource_version && timeless(&self.status) == timeless(&other.status)
    }
}

fn timeless(status: &Value) -> Value {
    match status {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(name, _)| *name != "lastTransitionTime");
            fields.map(|(name, value)| (name.clone(), timeless(value))).collect()
        }
        Value::Array(items) => items.iter().map(timeless).collect(),
        other => other.clone(),
    }
}

/// Writes until `stop`.
pub async fn run(client: Client, queue: Arc<Queue>, health: Arc<Health>, stop: CancellationToken) {
    let mut last = None;
    let mut pause = PACE;
    loop {
        let next = queue.next(last.as_ref());
        let wait = async {
            match &next {
                Some(_) => tokio::time::sleep(pause).await,
                None => queue.more.notified().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = wait => {}
        }
        let Some((key, wanted)) = queue.next(last.as_ref()) else { continue };
        pause = match write(&client, &key, &wanted, &health).await {
            true => {
                queue.done(&key, wanted);
                PACE
            }
            // The API server is away: the others would fare no better.
            false => (pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE),
        };
        last = Some(key);
    }
}

/// Whether that is settled.
async fn write(client: &Client, key: &ResourceKey, wanted: &Wanted, health: &Health) -> bool {
    let namespace = (!key.namespace.is_empty()).then_some(key.namespace.as_str());
    let api = watch::api(client.clone(), Subject::Kind(key.kind), namespace);
    let body = json!({ "metadata": { "resourceVersion": wanted.resource_version }, "status": wanted.status });
    let patch = Patch::Merge(&body);
    let params = PatchParams { field_manager: Some(super::MANAGER.to_owned()), ..PatchParams::default() };
    let writing = tokio::time::timeout(WRITE_TIMEOUT, api.patch_status(&key.name, &params, &patch));
    let (result, settled) = match writing.await {
        Ok(Ok(_)) => ("ok", true),
        // Somebody changed the object meanwhile, or it is gone: the watch tells.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 409 | 404) => ("conflict", true),
        Ok(Err(error @ kube::Error::Api(_))) => {
            let temporary = matches!(&error, kube::Error::Api(status) if status.code == 429 || status.code >= 500);
            if !temporary {
                tracing::warn!(object = %key, "its status cannot be written: {}", super::explain(&error));
            }
            (if temporary { "failed" } else { "refused" }, !temporary)
        }
        Ok(Err(error)) => {
            tracing::debug!(object = %key, "its status cannot be written yet: {}", super::explain(&error));
            ("failed", false)
        }
        Err(_late) => ("failed", false),
    };
    health.status_written(result);
    settled
}

/// At most twenty a second.
const PACE: Duration = Duration::from_millis(50);
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use weft_model::Kind;

    use super::*;

    fn wanted(version: &str, reason: &str, time: &str) -> Wanted {
        let status = json!({ "conditions": [{ "reason": reason, "lastTransitionTime": time }] });
        Wanted { resource_version: version.to_owned(), status }
    }

    #[test]
    fn what_was_sent_is_not_sent_again_until_the_object_is_another() {
        let key = ResourceKey::new(Kind::TrafficPolicy, "shop", "orders");
        let queue = Queue::default();
        let set = |wanted: Wanted| queue.set(BTreeMap::from([(key.clone(), wanted)]));
        set(wanted("1", "Accepted", "T1"));
        let (_, first) = queue.next(None).unwrap();
        queue.done(&key, first);
        assert_eq!(queue.next(None), None);
        set(wanted("1", "Accepted", "T2"));
        assert_eq!(queue.next(None), None, "the watch has not brought it back yet");
        set(wanted("1", "Invalid", "T3"));
        assert!(queue.next(None).is_some(), "the answer is another");
        set(wanted("2", "Accepted", "T3"));
        assert!(queue.next(None).is_some(), "somebody removed it");
        queue.set(BTreeMap::new());
        assert_eq!(queue.next(None), None);
    }
}
