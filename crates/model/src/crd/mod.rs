//! The CustomResourceDefinitions of Weft's own kinds, written from their declarations. `deploy/kubernetes/crds/` holds
//! them; a test compares.
//!
//! A field that the mesh does not obey yet stands in the schema, with a rule that refuses it: an API server drops what a
//! schema does not know, and a setting that vanished is worse than one that was refused. Fields that inherit the Mesh's
//! value have no default here, for a default that the API server filled in would look like one that somebody set.

mod pattern;
mod rules;
mod schema;

use serde_json::{Value, json};

use crate::{key::Kind, parse};

/// The kinds that Weft defines itself.
pub const KINDS: [Kind; 3] = [Kind::TrafficPolicy, Kind::AccessPolicy, Kind::Mesh];

/// Group of [`KINDS`].
pub const GROUP: &str = "weft.mesh";

/// Version of [`KINDS`].
pub const VERSION: &str = "v1alpha1";

/// How a kind is called on the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// As in a path and in an RBAC rule.
    pub plural: &'static str,
    /// As typed.
    pub singular: &'static str,
    /// Short forms.
    pub short: &'static [&'static str],
}

/// How one of [`KINDS`] is called on the API server; `None` for a kind of somebody else.
pub fn names(kind: Kind) -> Option<Names> {
    match kind {
        Kind::TrafficPolicy => Some(Names { plural: "trafficpolicies", singular: "trafficpolicy", short: &["tp"] }),
        Kind::AccessPolicy => Some(Names { plural: "accesspolicies", singular: "accesspolicy", short: &["ap"] }),
        Kind::Mesh => Some(Names { plural: "meshes", singular: "mesh", short: &[] }),
        Kind::Service | Kind::EndpointSlice | Kind::HttpRoute | Kind::GrpcRoute => None,
    }
}

/// Its file in `deploy/kubernetes/crds/`.
pub fn file(kind: Kind) -> Option<String> {
    names(kind).map(|names| format!("{}.yaml", names.plural))
}

/// The definition as YAML, as it stands in its file.
pub fn render(kind: Kind) -> Option<String> {
    let yaml = serde_yaml::to_string(&definition(kind)?).expect("text, numbers, lists and maps with text keys");
    Some(format!(
        "# Written by weft-model from its types. Change them and run: WEFT_UPDATE=1 cargo test -p weft-model\n{yaml}"
    ))
}

/// The definition; `None` for a kind of somebody else.
pub fn definition(kind: Kind) -> Option<Value> {
    let names = names(kind)?;
    Some(json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{GROUP}", names.plural),
            "labels": {
                "app.kubernetes.io/name": "weft",
                "app.kubernetes.io/part-of": "weft",
            },
        },
        "spec": {
            "group": GROUP,
            "scope": if kind.namespaced() { "Namespaced" } else { "Cluster" },
            "names": {
                "kind": kind.as_str(),
                "listKind": format!("{kind}List"),
                "plural": names.plural,
                "singular": names.singular,
                "shortNames": names.short,
                "categories": ["weft"],
            },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": columns(kind),
                "schema": { "openAPIV3Schema": root(kind) },
            }],
        },
    }))
}

/// The schema of a whole document.
fn root(kind: Kind) -> Value {
    let object = parse::object(kind);
    let mut root = json!({
        "description": object.doc,
        "type": "object",
        "properties": {
            "apiVersion": { "type": "string", "description": "`weft.mesh/v1alpha1`." },
            "kind": { "type": "string", "description": format!("`{kind}`.") },
            "metadata": { "type": "object" },
        },
    });
    for field in object.fields.iter().filter(|field| field.name != "metadata") {
        root["properties"][field.name.as_str()] = schema::field(kind, object, field);
    }
    if object.field("spec").is_some_and(|spec| spec.spec.required) {
        root["required"] = json!(["spec"]);
    }
    root["properties"]["status"] = status();
    let rules = rules::of(kind, object.name);
    if !rules.is_empty() {
        root["x-kubernetes-validations"] = rules.into();
    }
    root
}

/// What `kubectl get` shows.
fn columns(kind: Kind) -> Value {
    let column = |name: &str, path: &str, doc: &str| json!({ "name": name, "type": "string", "jsonPath": path, "description": doc });
    let target = column("Target", ".spec.targetRefs[0].name", "First of what the policy is for.");
    let accepted = column(
        "Accepted",
        ".status.conditions[?(@.type==\"Accepted\")].status",
        "Whether the mesh obeys it; `False`: see the condition's message.",
    );
    let programmed = column(
        "Programmed",
        ".status.conditions[?(@.type==\"Programmed\")].status",
        "Whether it is in force and refused by no sidecar; `False`: see the condition's message.",
    );
    // Why not: what is accepted may still be refused, and what is not accepted is not programmed.
    let mut reason = column("Reason", ".status.conditions[?(@.type==\"Programmed\")].reason", "Why it is so.");
    reason["priority"] = 1.into();
    let age = json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" });
    let mut columns = match kind {
        Kind::TrafficPolicy => {
            vec![column("Kind", ".spec.targetRefs[0].kind", "Kind of the first target."), target]
        }
        Kind::AccessPolicy => {
            vec![target, column("Action", ".spec.action", "What a rule that matches does.")]
        }
        Kind::Mesh => vec![
            column("mTLS", ".spec.mtls.mode", "What a workload accepts."),
            column("Access", ".spec.defaultAccess", "Whether a service without AccessPolicy may be called."),
        ],
        Kind::Service | Kind::EndpointSlice | Kind::HttpRoute | Kind::GrpcRoute => Vec::new(),
    };
    columns.extend([accepted, programmed, reason, age]);
    columns.into()
}

/// What the control plane says of a resource.
fn status() -> Value {
    let text = |max: u32, doc: &str| json!({ "description": doc, "type": "string", "maxLength": max });
    let mut name = text(316, "What it is about: `Accepted` or `Programmed`.");
    name["pattern"] = pattern::CONDITION_TYPE.into();
    let mut reason = text(1024, "Why, in one word.");
    reason["minLength"] = 1.into();
    reason["pattern"] = "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$".into();
    let generation = |doc: &str| json!({ "description": doc, "type": "integer", "format": "int64", "minimum": 0 });
    json!({
        "description": "What the control plane says of it.",
        "type": "object",
        "properties": {
            "observedGeneration": generation("Generation of the resource that the control plane has seen."),
            "revision": generation("Revision of the mesh's configuration in which it holds; see `weft history`."),
            "conditions": {
                "description": "Whether the mesh obeys it, and why not.",
                "type": "array",
                "maxItems": 16,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                    "properties": {
                        "type": name,
                        "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                        "observedGeneration": generation("Generation of which it speaks."),
                        "lastTransitionTime": {
                            "description": "Since when its status is what it is.",
                            "type": "string",
                            "format": "date-time",
                        },
                        "reason": reason,
                        "message": text(32768, "Why, in words: field, problem and what to do."),
                    },
                },
            },
        },
    })
}
