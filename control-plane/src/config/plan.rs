//! What a request would change, and whether it may. Pure.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{Document, Finding, Kind, KnownServices, Resource, ResourceKey, ResourceSet, Severity, validate};
use weft_proto::weft::v1;

use super::{error::ApiError, wire};
use crate::{
    index,
    store::{Event, Resources},
};

/// One wish.
#[derive(Debug, Clone)]
pub enum Edit {
    /// As the user wrote it.
    Apply(Document),
    /// As an earlier revision had it.
    Restore(Resource),
    /// Away with it.
    Delete(ResourceKey),
}

/// The consequence of wishes.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// For the log; empty when all is as wished already.
    pub events: Vec<Event>,
    /// For people: every resource that was named.
    pub changes: Vec<v1::Change>,
    /// What may not be as meant.
    pub warnings: Vec<v1::Finding>,
}

/// What there is: documents as stored, and parsed.
#[derive(Debug, Clone)]
pub struct Present<'a> {
    /// As stored.
    pub stored: &'a Resources,
    /// The same, parsed.
    pub set: &'a ResourceSet,
    /// Services that workloads registered for without a declaration.
    pub known: &'a KnownServices,
    /// Of this control plane.
    pub trust_domain: &'a str,
}

/// Reads the sources of a request.
/// # Errors
/// Everything that is wrong with them, with positions.
pub fn read(sources: &[v1::Source], namespace: &str) -> Result<Vec<Edit>, ApiError> {
    let mut errors = Vec::new();
    let mut edits = Vec::new();
    let mut seen: BTreeMap<ResourceKey, String> = BTreeMap::new();
    for source in sources {
        let parsed = weft_model::parse(&source.file, &source.content, namespace);
        errors.extend(parsed.errors.iter().map(wire::finding_to_wire));
        for document in parsed.documents {
            let key = document.resource.key();
            let position = document.origin.position();
            let place = format!("{}:{}", document.origin.file(), position.line);
            if let Some(first) = seen.get(&key) {
                errors.push(v1::Finding {
                    file: document.origin.file().to_owned(),
                    line: position.line,
                    column: position.column,
                    resource: Some(wire::key_to_wire(&key)),
                    message: format!("{key} is there twice; the other one is at {first}"),
                    hint: "remove one, or give it another name".into(),
                    ..v1::Finding::default()
                });
                continue;
            }
            seen.insert(key, place);
            edits.push(Edit::Apply(document));
        }
    }
    if !errors.is_empty() {
        return Err(ApiError::refused(errors));
    }
    if edits.is_empty() {
        return Err(ApiError::new(tonic::Code::InvalidArgument, "there is no resource in the input"));
    }
    Ok(edits)
}

/// Weighs wishes against what there is. A change is refused for what it breaks, not for what was broken before: services
/// that workloads make known come and go by themselves.
///
/// `lenient`: what it breaks is told, but does not stop it. For going back to a revision that was valid in its time.
/// # Errors
/// What it would break.
pub fn plan(present: &Present<'_>, edits: Vec<Edit>, lenient: bool) -> Result<Plan, ApiError> {
    let mut plan = Plan::default();
    let mut after = present.set.clone();
    let mut touched = BTreeSet::new();
    for edit in edits {
        let (key, event) = match &edit {
            Edit::Delete(key) => (key.clone(), Event::Delete { key: key.clone() }),
            Edit::Apply(Document { resource, .. }) | Edit::Restore(resource) => {
                (resource.key(), index::write(resource))
            }
        };
        let before = present.stored.get(&key).map(AsRef::as_ref);
        let yaml = match &event {
            Event::Set { yaml, .. } => Some(yaml.as_str()),
            Event::Delete { .. } => None,
        };
        let change = wire::change(&key, before, yaml);
        if change.kind() != v1::ChangeKind::Unchanged {
            plan.events.push(event);
        }
        plan.changes.push(change);
        match edit {
            Edit::Apply(document) => drop(after.insert_document(document)),
            Edit::Restore(resource) => drop(after.insert(resource)),
            Edit::Delete(key) => drop(after.remove(&key)),
        }
        touched.insert(key);
    }
    let (errors, warnings) = judge(present, &after, &touched);
    if !errors.is_empty() && !lenient {
        return Err(ApiError::refused(errors.iter().map(wire::finding_to_wire).collect()));
    }
    plan.warnings = errors.iter().chain(&warnings).map(wire::finding_to_wire).collect();
    Ok(plan)
}

fn judge(present: &Present<'_>, after: &ResourceSet, touched: &BTreeSet<ResourceKey>) -> (Vec<Finding>, Vec<Finding>) {
    let before: BTreeSet<_> = validate(present.set, present.known).into_iter().map(identity).collect();
    let findings = validate(after, present.known).into_iter().chain(other_trust_domain(present, after));
    let news = findings.filter(|finding| {
        let own = finding.resource.as_ref().is_some_and(|key| touched.contains(key));
        own || !before.contains(&identity(finding.clone()))
    });
    news.partition(|finding| finding.severity == Severity::Error)
}

/// A trust domain is fixed at the first start: a Mesh may name it, but not change it.
fn other_trust_domain(present: &Present<'_>, after: &ResourceSet) -> Option<Finding> {
    let key = ResourceKey::new(Kind::Mesh, "", weft_model::MESH_NAME);
    let member = after.get(&key)?;
    let Resource::Mesh(mesh) = &member.resource else { return None };
    let named = mesh.spec.trust_domain.as_deref().filter(|named| *named != present.trust_domain)?;
    let field = "spec.trustDomain";
    let position = member.origin.as_ref().map(|origin| origin.locate(field));
    Some(Finding {
        file: member.origin.as_ref().map_or_else(String::new, |origin| origin.file().to_owned()),
        line: position.map_or(0, |position| position.line),
        column: position.map_or(0, |position| position.column),
        field: field.to_owned(),
        resource: Some(key),
        message: format!("the trust domain of this mesh is `{}`, not `{named}`", present.trust_domain),
        hint: "it is set by the control plane's --trust-domain before its first start".to_owned(),
        ..Finding::default()
    })
}

/// What makes two findings the same, wherever the text came from.
fn identity(finding: Finding) -> (Option<ResourceKey>, String, String) {
    (finding.resource, finding.field, finding.message)
}
