//! The resource kinds of Weft: parse, default, validate. No I/O.
//!
//! - [`parse`] reads YAML or JSON and reports every error with its position.
//! - [`validate`] checks a [`ResourceSet`] as a whole.
//! - [`effective_traffic`] fills defaults in.
//! - [`http_precedence`] and [`grpc_precedence`] say which rule takes a request.
//! - [`Resource::to_yaml`] writes a resource as it was applied.
//! - [`crd::render`] writes the CustomResourceDefinitions of its own kinds.
//! - [`reference::render`] writes the reference of all kinds.

mod check;
pub mod crd;
pub mod defaults;
mod effective;
mod finding;
mod key;
mod kinds;
pub mod not_yet;
mod parse;
mod period;
mod precedence;
pub mod reference;
mod resource;
mod rules;
mod semantics;
mod set;
mod shape;
mod source;
mod validate;
mod values;

/// YAML documents as trees in which every value knows where it stands.
pub mod yaml {
    pub use crate::source::{Documents, Entry, MAX_BYTES, Node, NodeValue, Position, SyntaxError, read};
}

pub use self::{
    effective::{
        Call, CallRoute, Decided, EffectiveBreaker, EffectiveOutlier, EffectivePool, EffectiveRetry, EffectiveTimeouts,
        EffectiveTraffic, Leaf, effective_traffic,
    },
    finding::{Finding, Severity},
    key::{Kind, ResourceKey, ServiceKey, UnknownKind},
    kinds::*,
    parse::{Document, Origin, Parsed, parse, parse_all},
    period::Period,
    precedence::{GrpcCandidate, HttpCandidate, grpc_precedence, http_precedence},
    resource::Resource,
    rules::regex,
    set::{Member, ResourceSet},
    source::{MAX_BYTES, Position},
    validate::{KnownServices, introduced, validate},
    values::{IdentityPattern, PathPattern, PortOrName},
};
