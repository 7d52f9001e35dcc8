//! `Any` → validated types. Strict: what cannot be honoured is an error that names the field.

mod access;
mod cluster;
mod endpoint;
mod listener;
mod matcher;
mod retry;
mod route;
mod secret;
mod value;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use prost::Name;
use prost_types::Any;

use self::value::err;
use super::{Cluster, Endpoints, Listener, ResourceType, RouteConfiguration, VirtualHost};

/// Why a resource is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Path of the field, as in `routes[2].match.safe_regex`; empty for the resource as a whole.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl DecodeError {
    /// An error at a field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }

    /// The same error, seen from one level above.
    fn at(mut self, parent: &str) -> Self {
        self.field = match self.field.as_str() {
            "" => parent.to_owned(),
            field if field.starts_with('[') => format!("{parent}{field}"),
            field => format!("{parent}.{field}"),
        };
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.field, self.message) }
    }
}

impl std::error::Error for DecodeError {}

/// A trust bundle (a Secret with a validation context).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// xDS name.
    pub name: Box<str>,
    /// Root certificates, DER; at least one.
    pub roots: Vec<Vec<u8>>,
}

/// A validated resource.
#[derive(Debug, Clone)]
pub enum Decoded {
    /// CDS.
    Cluster(Arc<Cluster>),
    /// EDS.
    Endpoints(Arc<Endpoints>),
    /// SDS.
    Secret(Arc<Bundle>),
    /// LDS.
    Listener(Arc<Listener>),
    /// RDS.
    Route(Arc<RouteConfiguration>),
    /// VHDS.
    VirtualHost(Arc<VirtualHost>),
}

impl Decoded {
    /// The name inside the resource.
    pub fn name(&self) -> &str {
        match self {
            Self::Cluster(it) => &it.name,
            Self::Endpoints(it) => &it.cluster,
            Self::Secret(it) => &it.name,
            Self::Listener(it) => &it.name,
            Self::Route(it) => &it.name,
            Self::VirtualHost(it) => &it.name,
        }
    }

    /// Its type.
    pub fn resource_type(&self) -> ResourceType {
        match self {
            Self::Cluster(_) => ResourceType::Cluster,
            Self::Endpoints(_) => ResourceType::Endpoints,
            Self::Secret(_) => ResourceType::Secret,
            Self::Listener(_) => ResourceType::Listener,
            Self::Route(_) => ResourceType::Route,
            Self::VirtualHost(_) => ResourceType::VirtualHost,
        }
    }
}

/// Decodes and validates a resource.
/// # Errors
/// What cannot be honoured, with its field.
pub fn decode(ty: ResourceType, any: &Any) -> Result<Decoded, DecodeError> {
    if any.type_url != ty.url() {
        return err("", format!("type is {:?}, expected {:?}", any.type_url, ty.url()));
    }
    match ty {
        ResourceType::Cluster => cluster::decode(unpack(any)?).map(|it| Decoded::Cluster(Arc::new(it))),
        ResourceType::Endpoints => endpoint::decode(unpack(any)?).map(|it| Decoded::Endpoints(Arc::new(it))),
        ResourceType::Secret => secret::decode(unpack(any)?).map(|it| Decoded::Secret(Arc::new(it))),
        ResourceType::Listener => listener::decode(unpack(any)?).map(|it| Decoded::Listener(Arc::new(it))),
        ResourceType::Route => route::decode_configuration(unpack(any)?).map(|it| Decoded::Route(Arc::new(it))),
        ResourceType::VirtualHost => {
            route::decode_virtual_host(unpack(any)?).map(|it| Decoded::VirtualHost(Arc::new(it)))
        }
    }
}

/// Decodes an `Any` whose type is known.
fn unpack<M: Name + Default>(any: &Any) -> Result<M, DecodeError> {
    let url = any.type_url.rsplit('/').next().unwrap_or_default();
    if url != M::full_name() {
        return err("", format!("type is {url:?}, expected {:?}", M::full_name()));
    }
    M::decode(any.value.as_slice()).or_else(|e| err("", format!("malformed protobuf: {e}")))
}

/// Decodes an `Any` and refuses fields that this version does not know: for what must never be half understood.
fn unpack_known<M: Name + Default>(any: &Any) -> Result<M, DecodeError> {
    let message: M = unpack(any)?;
    // Unknown fields are dropped by the decoder, so the message is shorter when written again.
    if message.encoded_len() != any.value.len() {
        return err("", "has fields that this version does not know (or is not canonically encoded)");
    }
    Ok(message)
}
