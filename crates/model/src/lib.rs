//! The resource kinds of Weft: parse, default, validate. No I/O.
//!
//! - [`parse`] reads YAML or JSON and reports every error with its position.
//! - [`validate`] checks a [`ResourceSet`] as a whole.
//! - [`effective_traffic`] fills defaults in.
//! - [`Resource::to_yaml`] writes a resource as it was applied.

mod check;
pub mod defaults;
mod finding;
mod key;
mod kinds;
pub mod not_yet;
mod parse;
mod period;
mod resource;
mod rules;
mod semantics;
mod set;
mod shape;
mod source;
mod validate;
mod values;

pub use self::{
    finding::{Finding, Severity},
    key::{Kind, ResourceKey, ServiceKey, UnknownKind},
    kinds::*,
    parse::{Document, Origin, Parsed, parse},
    period::Period,
    resource::Resource,
    rules::regex,
    set::{Member, ResourceSet},
    source::{MAX_BYTES, Position},
    validate::{KnownServices, validate},
    values::{IdentityPattern, PathPattern, PortOrName},
};
