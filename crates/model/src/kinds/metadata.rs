//! What every resource has: its name, and what people and other resources hang on it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    rules::TextRule,
    shape::{Field, Object, Shape, Shaped, plain, prose, required},
};

/// Name, namespace, labels and annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Unique within namespace and kind.
    pub name: String,
    /// Empty for a Mesh, which has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// What selectors look at.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Notes for people and tools.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What an API server adds to the metadata that it hands out.
pub(crate) const SERVER_SET: [&str; 10] = [
    "generateName",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "selfLink",
    "managedFields",
    "ownerReferences",
    "finalizers",
];

impl Shaped for Metadata {
    fn shape() -> Shape {
        let map = |name, doc, values, spec: crate::shape::Spec| {
            let spec = spec.keys(TextRule::LabelKey).text(values).items(0, 128);
            Field::new::<BTreeMap<String, String>>(name, &[], &[doc], spec)
        };
        Shape::Object(std::sync::Arc::new(Object {
            name: "Metadata",
            doc: prose(&["Name, namespace, labels and annotations."]),
            fields: vec![
                Field::new::<String>(
                    "name",
                    &[],
                    &["Unique within namespace and kind. A Service's name and every namespace are DNS labels."],
                    required().text(TextRule::DnsName),
                ),
                Field::new::<String>(
                    "namespace",
                    &[],
                    &["Who owns it. A Mesh has none."],
                    crate::shape::default("the namespace of the Apply, `default` unless told").text(TextRule::DnsLabel),
                ),
                map("labels", "What selectors look at.", TextRule::LabelValue, plain()),
                map(
                    "annotations",
                    "Notes for people and tools. Those that begin with `weft.mesh/` must be known to Weft.",
                    TextRule::Long,
                    plain(),
                ),
            ],
        }))
    }
}
