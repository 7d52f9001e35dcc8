//! From bytes to resources.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use serde_json::Value;

use crate::{
    check::{Report, nearest},
    finding::{Finding, Severity},
    key::{Kind, ResourceKey},
    kinds::{self, SERVER_SET},
    resource::Resource,
    rules::TextRule,
    shape::{Object, Shape, Shaped},
    source::{self, Node, NodeValue, Position},
};

/// What an input holds.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The resources without an error of their own, in the order of the input.
    pub documents: Vec<Document>,
    /// Everything that is wrong with the others.
    pub errors: Vec<Finding>,
}

/// A resource and where it came from.
#[derive(Debug, Clone)]
pub struct Document {
    /// The resource.
    pub resource: Resource,
    /// Where it came from.
    pub origin: Arc<Origin>,
}

/// Where a resource came from, so that later findings can name the place.
#[derive(Debug)]
pub struct Origin {
    file: String,
    root: Node,
    prefix: String,
}

impl Origin {
    /// File as the user named it.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Where the resource begins.
    pub fn position(&self) -> Position {
        self.root.position
    }

    /// Where a field stands, as `spec.rules[0].backendRefs[1].port`.
    pub fn locate(&self, field: &str) -> Position {
        self.root.locate(field)
    }

    pub(crate) fn field(&self, field: &str) -> String {
        if self.prefix.is_empty() { field.to_owned() } else { format!("{}.{field}", self.prefix) }
    }
}

/// Reads YAML or JSON, one document or several; a `List` counts as its items.
///
/// `default_namespace`: of resources that name none.
pub fn parse(file: &str, bytes: &[u8], default_namespace: &str) -> Parsed {
    parse_all([(file, bytes)], default_namespace)
}

/// Reads several files, each as by [`parse`]. A resource that stands twice is an error, also across files.
pub fn parse_all<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>, default_namespace: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for (file, bytes) in files {
        read(file, bytes, default_namespace, &mut parsed);
    }
    duplicates(&mut parsed);
    parsed
}

/// Moves every second resource of the same key from the documents to the errors.
fn duplicates(parsed: &mut Parsed) {
    let mut first: HashMap<ResourceKey, String> = HashMap::new();
    let mut errors = Vec::new();
    parsed.documents.retain(|document| {
        let key = document.resource.key();
        let position = document.origin.position();
        let place = format!("{}:{}", document.origin.file(), position.line);
        let Some(earlier) = first.get(&key) else {
            first.insert(key, place);
            return true;
        };
        let hint = if key.kind == Kind::Mesh { "there is one Mesh" } else { "remove one, or give it another name" };
        errors.push(Finding {
            file: document.origin.file().to_owned(),
            line: position.line,
            column: position.column,
            message: format!("{key} stands a second time; the first is at {earlier}"),
            hint: hint.to_owned(),
            resource: Some(key),
            ..Finding::default()
        });
        false
    });
    parsed.errors.append(&mut errors);
}

fn read(file: &str, bytes: &[u8], default_namespace: &str, parsed: &mut Parsed) {
    let read = source::read(bytes);
    for error in read.errors {
        parsed.errors.push(Finding {
            severity: Severity::Error,
            file: file.to_owned(),
            line: error.position.line,
            column: error.position.column,
            message: error.message,
            hint: error.hint.to_owned(),
            ..Finding::default()
        });
    }
    for root in read.documents {
        if root.get("kind").and_then(Node::text) == Some("List") {
            list(file, root, default_namespace, parsed);
        } else {
            document(file, root, String::new(), default_namespace, parsed);
        }
    }
}

/// Each item of a `v1 List`, as `kubectl get -o yaml` prints it.
fn list(file: &str, root: Node, default_namespace: &str, parsed: &mut Parsed) {
    let NodeValue::Map(entries) = root.value else { return };
    for entry in entries {
        match (&*entry.key, entry.value.value) {
            ("items", NodeValue::List(items)) => {
                for (index, item) in items.into_iter().enumerate() {
                    document(file, item, format!("items[{index}]"), default_namespace, parsed);
                }
            }
            ("items", NodeValue::Null) | ("apiVersion" | "kind" | "metadata", _) => {}
            (key, _) => parsed.errors.push(Finding {
                file: file.to_owned(),
                line: entry.position.line,
                column: entry.position.column,
                field: key.to_owned(),
                message: format!("a List has no field `{key}`, or not of this form"),
                hint: "its fields are `apiVersion`, `kind`, `metadata` and `items`".to_owned(),
                ..Finding::default()
            }),
        }
    }
}

fn document(file: &str, root: Node, prefix: String, default_namespace: &str, parsed: &mut Parsed) {
    let mut report = Report { file, root: &root, prefix, resource: None, findings: Vec::new() };
    let resource = resource(&mut report, default_namespace);
    let Report { prefix, mut findings, .. } = report;
    findings.sort_by_key(|finding| (finding.line, finding.column));
    match resource {
        Some(resource) if findings.is_empty() => {
            let origin = Arc::new(Origin { file: file.to_owned(), root, prefix });
            parsed.documents.push(Document { resource, origin });
        }
        _ => parsed.errors.extend(findings),
    }
}

fn resource(report: &mut Report<'_>, default_namespace: &str) -> Option<Resource> {
    let root = report.root;
    let NodeValue::Map(_) = &root.value else {
        report.error("", format!("a resource is a map, not {}", root.describe()), "begin with `apiVersion` and `kind`");
        return None;
    };
    let kind = kind(report)?;
    let body = body(root);
    let Shape::Object(object) = shape(kind) else { return None };
    report.resource = key(&body, kind, default_namespace);
    let mut value = report.object("", &body, object)?;
    metadata(report, kind, default_namespace, &mut value);
    if !report.findings.is_empty() {
        return None;
    }
    match Resource::from_value(kind, value) {
        Ok(resource) => {
            crate::semantics::check(&resource, report);
            Some(resource)
        }
        Err(error) => {
            report.error("", error.to_string(), "");
            None
        }
    }
}

/// The shape of a kind, without `apiVersion` and `kind`.
pub(crate) fn shape(kind: Kind) -> &'static Shape {
    static SHAPES: LazyLock<[Shape; 7]> = LazyLock::new(|| {
        [
            kinds::Mesh::shape(),
            kinds::Service::shape(),
            kinds::EndpointSlice::shape(),
            kinds::HttpRoute::shape(),
            kinds::GrpcRoute::shape(),
            kinds::TrafficPolicy::shape(),
            kinds::AccessPolicy::shape(),
        ]
    });
    &SHAPES[kind as usize]
}

/// The object of a kind, without `apiVersion` and `kind`.
pub(crate) fn object(kind: Kind) -> &'static Object {
    match shape(kind) {
        Shape::Object(object) => object,
        other => unreachable!("a kind is an object, not {other:?}"),
    }
}

fn kind(report: &mut Report<'_>) -> Option<Kind> {
    let word = |name: &str| report.root.get(name).and_then(Node::text).map(str::to_owned);
    let (version, kind) = (word("apiVersion"), word("kind"));
    let Some(kind) = kind else {
        report.error("kind", "`kind` is missing", "a resource begins with `apiVersion` and `kind`");
        return None;
    };
    let Some(known) = Kind::ALL.into_iter().find(|known| known.as_str() == kind) else {
        let names = Kind::ALL.map(Kind::as_str);
        let hint = match nearest(&kind, names.into_iter()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("the kinds are {}", names.join(", ")),
        };
        report.error("kind", format!("unknown kind `{kind}`"), hint);
        return None;
    };
    let right = known.api_version();
    match version.as_deref() {
        Some(version) if version == right => Some(known),
        Some(version) => {
            let message = format!("`{version}` has no {known}");
            report.error("apiVersion", message, format!("write `apiVersion: {right}`"));
            None
        }
        None => {
            report.error("apiVersion", "`apiVersion` is missing", format!("write `apiVersion: {right}`"));
            None
        }
    }
}

/// The document without what is not part of the resource: `apiVersion` and `kind`, which were read, and what an API
/// server adds to what it hands out.
fn body(root: &Node) -> Node {
    let mut body = root.clone();
    if let NodeValue::Map(entries) = &mut body.value {
        entries.retain(|entry| !matches!(&*entry.key, "apiVersion" | "kind" | "status"));
        for entry in entries.iter_mut().filter(|entry| &*entry.key == "metadata") {
            if let NodeValue::Map(metadata) = &mut entry.value.value {
                metadata.retain(|entry| !SERVER_SET.contains(&&*entry.key));
            }
        }
    }
    body
}

/// The key, as far as it can be read before the check.
fn key(body: &Node, kind: Kind, default_namespace: &str) -> Option<ResourceKey> {
    let metadata = body.get("metadata")?;
    let name = metadata.get("name").and_then(Node::text)?;
    let namespace = metadata.get("namespace").and_then(Node::text).unwrap_or(default_namespace);
    Some(ResourceKey::new(kind, namespace, name))
}

/// What the metadata of a kind must obey beyond its shape; fills the namespace in.
fn metadata(report: &mut Report<'_>, kind: Kind, default_namespace: &str, value: &mut Value) {
    let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    match kind {
        Kind::Service => {
            if let (false, Err(message)) = (name.is_empty(), TextRule::DnsLabel.check(name)) {
                report.error("metadata.name", message, "a Service's name is part of its host name");
            }
        }
        Kind::Mesh if !name.is_empty() && name != kinds::MESH_NAME => {
            report.error("metadata.name", format!("a Mesh cannot be named `{name}`"), "there is one Mesh, `default`");
        }
        _ => {}
    }
    if !kind.namespaced() {
        if metadata.contains_key("namespace") {
            report.error("metadata.namespace", format!("a {kind} has no namespace"), "remove it");
        }
    } else if !metadata.contains_key("namespace") {
        metadata.insert("namespace".to_owned(), default_namespace.into());
    }
}
