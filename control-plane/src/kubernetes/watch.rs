//! One watch of the API server: list, watch, and again after whatever went wrong, with back-off. kube's watcher does the
//! protocol (pages, bookmarks, 410 Gone); this shell reads what it hands out.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::StreamExt;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::mpsc;

use super::{
    health::Health,
    read::{Subject, read},
    state::{Heard, Scope},
};

/// Watches for ever; ends when nobody listens any more.
pub async fn run(client: Client, scope: Scope, health: Arc<Health>, out: mpsc::Sender<(Scope, Heard)>) {
    let api = api(client, scope.subject, scope.namespace.as_deref());
    // Lists come in pages, and watches with bookmarks: kube's defaults.
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    // What was told of an error is not told again until it is another one.
    let mut told = BTreeSet::new();
    while let Some(event) = events.next().await {
        let heard = match event {
            Ok(event) => {
                health.heard(&scope, matches!(event, watcher::Event::InitDone));
                if told.len() > MAX_TOLD || matches!(event, watcher::Event::InitDone) {
                    told.clear();
                }
                understand(scope.subject, event)
            }
            Err(error) => match failed(&scope, &error, &health, &mut told) {
                Some(heard) => heard,
                None => continue,
            },
        };
        // Full: the source is busy with the disk, and the API server keeps what we do not take.
        if out.send((scope.clone(), heard)).await.is_err() {
            return;
        }
    }
}

fn understand(subject: Subject, event: watcher::Event<DynamicObject>) -> Heard {
    let set = |object: &DynamicObject| {
        let value = serde_json::to_value(object).expect("what came as JSON is JSON");
        Heard::Set(Box::new(read(subject, &value)))
    };
    match event {
        watcher::Event::Init => Heard::Begin,
        watcher::Event::InitApply(object) | watcher::Event::Apply(object) => set(&object),
        watcher::Event::InitDone => Heard::Listed,
        watcher::Event::Delete(object) => Heard::Gone(crate::index::ObjectKey::new(
            object.metadata.namespace.unwrap_or_default(),
            object.metadata.name.unwrap_or_default(),
        )),
    }
}

/// Tells of an error, once; what the source is to know of it.
fn failed(scope: &Scope, error: &watcher::Error, health: &Health, told: &mut BTreeSet<String>) -> Option<Heard> {
    let (code, text) = describe(error);
    let kind = scope.subject.as_str();
    let new = told.insert(text.clone());
    // An ordinary end: what is too old to be watched from is listed anew.
    if code == Some(410) {
        health.gone(scope);
        tracing::info!(kind, "the API server has forgotten where the watch stood; listing anew");
        return None;
    }
    if code == Some(404) && scope.subject.optional() {
        health.not_installed(scope);
        if new {
            let crd = format!("{}.{}", scope.subject.plural(), group(scope.subject));
            tracing::info!(kind, crd, "the cluster does not have this kind; looked for again now and then");
        }
        return Some(Heard::NotInstalled);
    }
    health.failed(scope, &text);
    if new {
        let namespace = scope.namespace.as_deref().unwrap_or("(all)");
        let hint = match code {
            Some(401) => "the credential is not accepted; see --kubeconfig, or the pod's service account",
            Some(403) => "the service account may not `list` and `watch` it; see the ClusterRole of deploy/kubernetes",
            _ => "what is known stays in force; trying again",
        };
        tracing::warn!(kind, namespace, hint, "the watch failed: {text}");
    }
    None
}

fn describe(error: &watcher::Error) -> (Option<u16>, String) {
    let of = |error: &kube::Error| match error {
        kube::Error::Api(status) => (Some(status.code), super::explain(error)),
        other => (None, super::explain(other)),
    };
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => of(error),
        watcher::Error::WatchError(status) => (Some(status.code), format!("{} ({})", status.message, status.code)),
        watcher::Error::NoResourceVersion => (None, error.to_string()),
    }
}

/// Where the objects of a subject are.
pub fn api(client: Client, subject: Subject, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: group(subject).to_owned(),
        version: subject.api_version().rsplit('/').next().unwrap_or_default().to_owned(),
        api_version: subject.api_version().to_owned(),
        kind: subject.as_str().to_owned(),
        plural: subject.plural().to_owned(),
    };
    match namespace {
        Some(namespace) if subject.namespaced() => Api::namespaced_with(client, namespace, &resource),
        _ => Api::all_with(client, &resource),
    }
}

fn group(subject: Subject) -> &'static str {
    subject.api_version().rsplit_once('/').map_or("", |(group, _)| group)
}

/// Texts may differ in a number; the set must not grow for ever.
const MAX_TOLD: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::Deserialize;
    use serde_json::Value;
    use weft_model::Kind;

    use super::*;
    use crate::kubernetes::root::ROOT_CONFIG_MAP;

    /// `group/resource names: verbs` of every rule of the role.
    fn granted(role: &Value) -> BTreeSet<String> {
        let words = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
        };
        let mut all = BTreeSet::new();
        for rule in role["rules"].as_array().expect("rules") {
            let (group, names) = (words(&rule["apiGroups"]).join(","), words(&rule["resourceNames"]).join(","));
            for resource in words(&rule["resources"]) {
                all.insert(format!("{group}/{resource} {names}: {}", words(&rule["verbs"]).join(" ")));
            }
        }
        all
    }

    #[test]
    fn the_role_of_the_manifests_has_what_is_asked_for_and_nothing_more() {
        let text = include_str!("../../../deploy/kubernetes/base/account.yaml");
        let documents = serde_yaml::Deserializer::from_str(text).map(|one| Value::deserialize(one).expect("YAML"));
        let roles: Vec<Value> = documents.filter(|document| document["kind"] == "ClusterRole").collect();
        let mut wanted = BTreeSet::from([
            "authentication.k8s.io/tokenreviews : create".to_owned(),
            // A server-side apply creates what is not there.
            "/configmaps : create".to_owned(),
            format!("/configmaps {ROOT_CONFIG_MAP}: patch"),
        ]);
        for subject in Subject::ALL {
            let resource = format!("{}/{}", group(subject), subject.plural());
            wanted.insert(format!("{resource} : list watch"));
            match subject {
                Subject::Pod | Subject::Kind(Kind::Service | Kind::EndpointSlice) => {}
                Subject::Kind(_) => {
                    wanted.insert(format!("{resource}/status : patch"));
                }
            }
        }
        assert_eq!(roles.iter().map(granted).collect::<Vec<_>>(), [wanted]);
    }
}
