//! Between the API's messages and ours.

use std::time::{Duration, SystemTime};

use similar::TextDiff;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tonic::Code;
use weft_model::{Finding, Kind, ResourceKey, defaults};
use weft_proto::weft::v1;

use super::error::ApiError;
use crate::store::Stored;

/// A key of the wire.
pub fn key_to_wire(key: &ResourceKey) -> v1::ResourceKey {
    v1::ResourceKey { kind: key.kind.to_string(), namespace: key.namespace.clone(), name: key.name.clone() }
}

/// A key of ours. The kind may be written as people type it; no namespace means `default`.
/// # Errors
/// Unknown kind, or no name.
pub fn key_from_wire(key: Option<v1::ResourceKey>) -> Result<ResourceKey, ApiError> {
    let key = key.ok_or_else(|| ApiError::new(Code::InvalidArgument, "the key of the resource is missing"))?;
    if key.name.is_empty() {
        return Err(ApiError::new(Code::InvalidArgument, "the name of the resource is missing"));
    }
    let namespace = if key.namespace.is_empty() { defaults::NAMESPACE.to_owned() } else { key.namespace };
    Ok(ResourceKey::new(kind_from_wire(&key.kind)?, namespace, key.name))
}

/// A kind as people type it.
/// # Errors
/// Unknown kind.
pub fn kind_from_wire(kind: &str) -> Result<Kind, ApiError> {
    kind.parse().map_err(|error: weft_model::UnknownKind| ApiError::new(Code::InvalidArgument, error.to_string()))
}

/// A stored resource.
pub fn resource_to_wire(key: &ResourceKey, stored: &Stored) -> v1::Resource {
    v1::Resource {
        key: Some(key_to_wire(key)),
        api_version: stored.api_version.clone(),
        yaml: stored.yaml.clone(),
        revision: stored.revision,
    }
}

/// A finding.
pub fn finding_to_wire(finding: &Finding) -> v1::Finding {
    v1::Finding {
        file: finding.file.clone(),
        line: finding.line,
        column: finding.column,
        field: finding.field.clone(),
        resource: finding.resource.as_ref().map(key_to_wire),
        message: finding.message.clone(),
        hint: finding.hint.clone(),
    }
}

/// What became of a resource, with the difference. `None`: not there.
pub fn change(key: &ResourceKey, before: Option<&Stored>, after: Option<&str>) -> v1::Change {
    let old = before.map_or("", |stored| stored.yaml.as_str());
    let kind = match (before, after) {
        (None, Some(_)) => v1::ChangeKind::Created,
        (Some(_), None) => v1::ChangeKind::Deleted,
        (Some(before), Some(after)) if before.yaml != after => v1::ChangeKind::Updated,
        _ => v1::ChangeKind::Unchanged,
    };
    let diff = match kind {
        v1::ChangeKind::Unchanged => String::new(),
        _ => {
            let from = before.map_or("none".to_owned(), |before| format!("{key}@{}", before.revision));
            let to = after.map_or("none".to_owned(), |_| key.to_string());
            TextDiff::from_lines(old, after.unwrap_or_default()).unified_diff().header(&from, &to).to_string()
        }
    };
    v1::Change { key: Some(key_to_wire(key)), kind: kind.into(), diff }
}

/// RFC 3339, UTC.
pub fn time_to_wire(time: SystemTime) -> String {
    match OffsetDateTime::from(time).format(&Rfc3339) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!(%error, "a time beyond the calendar");
            String::new()
        }
    }
}

/// Milliseconds since 1970 as RFC 3339.
pub fn millis_to_wire(time_ms: u64) -> String {
    time_to_wire(SystemTime::UNIX_EPOCH + Duration::from_millis(time_ms))
}

/// Now, in milliseconds since 1970.
pub fn now_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
