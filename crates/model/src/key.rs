//! Keys: kind, namespace and name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A kind of resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// `weft.mesh/v1alpha1 Mesh`
    Mesh,
    /// `v1 Service`
    Service,
    /// `discovery.k8s.io/v1 EndpointSlice`
    EndpointSlice,
    /// `gateway.networking.k8s.io/v1 HTTPRoute`
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// `gateway.networking.k8s.io/v1 GRPCRoute`
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    /// `weft.mesh/v1alpha1 TrafficPolicy`
    TrafficPolicy,
    /// `weft.mesh/v1alpha1 AccessPolicy`
    AccessPolicy,
}

impl Kind {
    /// Every kind, in the order of the reference.
    pub const ALL: [Self; 7] = [
        Self::Service,
        Self::EndpointSlice,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TrafficPolicy,
        Self::AccessPolicy,
        Self::Mesh,
    ];

    /// As written in `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "Mesh",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::AccessPolicy => "AccessPolicy",
        }
    }

    /// As written in `apiVersion`.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Service => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::HttpRoute | Self::GrpcRoute => "gateway.networking.k8s.io/v1",
            Self::TrafficPolicy | Self::AccessPolicy | Self::Mesh => "weft.mesh/v1alpha1",
        }
    }

    /// Whether resources of the kind have a namespace.
    pub fn namespaced(self) -> bool {
        self != Self::Mesh
    }

    /// Reads a kind as people type it: any case, singular or plural, or the short forms `svc`, `tp`, `ap`.
    pub fn from_word(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        Self::ALL.into_iter().find(|kind| {
            let name = kind.as_str().to_ascii_lowercase();
            let plural = match name.strip_suffix('y') {
                Some(stem) => format!("{stem}ies"),
                None if name.ends_with('h') => format!("{name}es"),
                None => format!("{name}s"),
            };
            let short = match kind {
                Self::Service => "svc",
                Self::TrafficPolicy => "tp",
                Self::AccessPolicy => "ap",
                Self::Mesh | Self::EndpointSlice | Self::HttpRoute | Self::GrpcRoute => {
                    return word == name || word == plural;
                }
            };
            word == name || word == plural || word == short
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a kind; the kinds are Service, EndpointSlice, HTTPRoute, GRPCRoute, TrafficPolicy, AccessPolicy and Mesh"
)]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .or_else(|| Self::from_word(text))
            .ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// Names one resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ResourceKey {
    /// Kind.
    pub kind: Kind,
    /// Empty for a Mesh.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ResourceKey {
    /// A key; the namespace of a kind that has none is dropped.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        let namespace = if kind.namespaced() { namespace.into() } else { String::new() };
        Self { kind, namespace, name: name.into() }
    }
}

impl fmt::Display for ResourceKey {
    /// `Kind namespace/name`, or `Mesh default`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// Names a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ServiceKey {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceKey {
    /// `namespace/name`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
