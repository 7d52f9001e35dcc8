//! Workloads: the kinds that make pods, and where each keeps its pod template.

use serde_json::Value;

/// Where the pod template of a kind is.
const KINDS: &[(&str, &str, &str)] = &[
    ("v1", "Pod", ""),
    ("apps/v1", "Deployment", "spec.template"),
    ("apps/v1", "StatefulSet", "spec.template"),
    ("apps/v1", "DaemonSet", "spec.template"),
    ("apps/v1", "ReplicaSet", "spec.template"),
    ("batch/v1", "Job", "spec.template"),
    ("batch/v1", "CronJob", "spec.jobTemplate.spec.template"),
];

/// A document that makes pods.
#[derive(Debug)]
pub(super) struct Workload<'a> {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// From the document to its pod template; empty for a Pod.
    pub(super) path: &'static str,
    /// Metadata and spec of its pods.
    pub(super) template: &'a Value,
}

/// The path of the pod template, if the document makes pods.
pub(super) fn path(document: &Value) -> Option<&'static str> {
    let is = |field: &str, word: &str| document[field] == word;
    KINDS.iter().find(|(version, kind, _)| is("apiVersion", version) && is("kind", kind)).map(|(_, _, path)| *path)
}

/// What a document makes pods of.
pub(super) fn of<'a>(document: &'a Value, default_namespace: &str) -> Option<Workload<'a>> {
    let path = path(document)?;
    let metadata = &document["metadata"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some(Workload {
        kind: text(&document["kind"])?,
        namespace: text(&metadata["namespace"]).unwrap_or_else(|| default_namespace.to_owned()),
        name: text(&metadata["name"]).or_else(|| text(&metadata["generateName"])).unwrap_or_default(),
        path,
        template: steps(path).fold(document, |value, step| &value[step]),
    })
}

/// The pod template, to be changed; `None` when the document has none, which an API server refuses anyway.
pub(super) fn template<'a>(document: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    steps(path).try_fold(document, |value, step| value.get_mut(step)).filter(|template| template["spec"].is_object())
}

/// The path of a field of the template.
pub(super) fn field(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn steps(path: &str) -> impl Iterator<Item = &str> {
    path.split('.').filter(|step| !step.is_empty())
}
