//! A resource of any kind, and its canonical form.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _};
use serde_json::{Map, Value};

use crate::{
    key::{Kind, ResourceKey},
    kinds::{AccessPolicy, EndpointSlice, GrpcRoute, HttpRoute, Mesh, Metadata, Service, TrafficPolicy},
};

/// A resource. Cheap to clone.
///
/// Its serde form is the document itself, `apiVersion` and `kind` first, defaults not filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// A service.
    Service(Arc<Service>),
    /// Fixed addresses.
    EndpointSlice(Arc<EndpointSlice>),
    /// Where HTTP requests go.
    HttpRoute(Arc<HttpRoute>),
    /// Where gRPC calls go.
    GrpcRoute(Arc<GrpcRoute>),
    /// How a service is called.
    TrafficPolicy(Arc<TrafficPolicy>),
    /// Who may call a service.
    AccessPolicy(Arc<AccessPolicy>),
    /// What holds for the whole mesh.
    Mesh(Arc<Mesh>),
}

/// Runs `$body` with `$value` bound to the resource inside.
macro_rules! each {
    ($resource:expr, $value:ident => $body:expr) => {
        match $resource {
            Resource::Service($value) => $body,
            Resource::EndpointSlice($value) => $body,
            Resource::HttpRoute($value) => $body,
            Resource::GrpcRoute($value) => $body,
            Resource::TrafficPolicy($value) => $body,
            Resource::AccessPolicy($value) => $body,
            Resource::Mesh($value) => $body,
        }
    };
}

impl Resource {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::GrpcRoute(_) => Kind::GrpcRoute,
            Self::TrafficPolicy(_) => Kind::TrafficPolicy,
            Self::AccessPolicy(_) => Kind::AccessPolicy,
            Self::Mesh(_) => Kind::Mesh,
        }
    }

    /// Name, namespace, labels and annotations.
    pub fn metadata(&self) -> &Metadata {
        each!(self, value => &value.metadata)
    }

    /// Its key.
    pub fn key(&self) -> ResourceKey {
        let metadata = self.metadata();
        ResourceKey::new(self.kind(), metadata.namespace.clone(), metadata.name.clone())
    }

    /// As written in `apiVersion`.
    pub fn api_version(&self) -> &'static str {
        self.kind().api_version()
    }

    /// The resource as applied, in canonical YAML: fields in the order of the reference, defaults not filled in.
    pub fn to_yaml(&self) -> String {
        let yaml =
            serde_yaml::to_string(self).expect("a resource holds only text, numbers, lists and maps with text keys");
        // The writer takes these for the line breaks that they were in YAML 1.1, and indents what follows; to readers of
        // YAML 1.2 they are text. JSON is YAML, too, and says it in one way.
        if yaml.contains(['\u{85}', '\u{2028}', '\u{2029}']) { self.to_json() + "\n" } else { yaml }
    }

    /// As [`Resource::to_yaml`], in JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a resource holds only text, numbers, lists and maps with text keys")
    }

    /// A resource from the value of a whole document, which was checked against its shape.
    pub(crate) fn from_value(kind: Kind, value: Value) -> Result<Self, serde_json::Error> {
        Ok(match kind {
            Kind::Service => Self::Service(serde_json::from_value(value)?),
            Kind::EndpointSlice => Self::EndpointSlice(serde_json::from_value(value)?),
            Kind::HttpRoute => Self::HttpRoute(serde_json::from_value(value)?),
            Kind::GrpcRoute => Self::GrpcRoute(serde_json::from_value(value)?),
            Kind::TrafficPolicy => Self::TrafficPolicy(serde_json::from_value(value)?),
            Kind::AccessPolicy => Self::AccessPolicy(serde_json::from_value(value)?),
            Kind::Mesh => Self::Mesh(serde_json::from_value(value)?),
        })
    }
}

impl Serialize for Resource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let body = each!(self, value => serde_json::to_value(value)).map_err(S::Error::custom)?;
        let mut document = Map::new();
        document.insert("apiVersion".into(), self.api_version().into());
        document.insert("kind".into(), self.kind().as_str().into());
        if let Value::Object(body) = body {
            document.extend(body);
        }
        document.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Resource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut document = Map::deserialize(deserializer)?;
        let kind = match document.remove("kind") {
            Some(Value::String(kind)) => Kind::ALL.into_iter().find(|known| known.as_str() == kind),
            _ => None,
        };
        let kind = kind.ok_or_else(|| D::Error::custom("a resource without a known kind"))?;
        match document.remove("apiVersion") {
            Some(Value::String(version)) if version == kind.api_version() => {}
            _ => return Err(D::Error::custom(format!("{kind} needs apiVersion {}", kind.api_version()))),
        }
        Self::from_value(kind, Value::Object(document)).map_err(D::Error::custom)
    }
}
