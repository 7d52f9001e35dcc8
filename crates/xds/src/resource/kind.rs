//! The resource types, in the order in which they are pushed, and a resource as it travels.

use std::{fmt, sync::Arc};

use prost::Name;
use prost_types::Any;
use xxhash_rust::xxh3::xxh3_64;

/// Key of Weft's extensions in `metadata.typed_filter_metadata`.
pub const METADATA_KEY: &str = "weft.mesh";

/// The pattern that means "the whole path" in a `regex_rewrite`.
pub const FULL_PATH: &str = "^/.*$";

/// Type URLs as they stand in requests, responses and `Any`.
pub mod type_url {
    /// LDS.
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    /// RDS.
    pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    /// VHDS.
    pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
    /// CDS.
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    /// EDS.
    pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    /// SDS.
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
}

/// A type of resource. The order is that of pushes, make before break; removals go the other way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// SDS.
    Secret,
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// VHDS.
    VirtualHost,
}

impl ResourceType {
    /// How many there are.
    pub const COUNT: usize = 6;

    /// All, in push order.
    pub const ALL: [Self; Self::COUNT] =
        [Self::Cluster, Self::Endpoints, Self::Secret, Self::Listener, Self::Route, Self::VirtualHost];

    /// Its type URL.
    pub fn url(self) -> &'static str {
        match self {
            Self::Cluster => type_url::CLUSTER,
            Self::Endpoints => type_url::ENDPOINTS,
            Self::Secret => type_url::SECRET,
            Self::Listener => type_url::LISTENER,
            Self::Route => type_url::ROUTE,
            Self::VirtualHost => type_url::VIRTUAL_HOST,
        }
    }

    /// The type of a URL; `None` for one that Weft does not speak.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.url() == url)
    }

    /// As in metrics and logs: `cds`, `eds`, `sds`, `lds`, `rds`, `vhds`.
    pub fn short(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoints => "eds",
            Self::Secret => "sds",
            Self::Listener => "lds",
            Self::Route => "rds",
            Self::VirtualHost => "vhds",
        }
    }

    /// Position in [`Self::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// A resource as it travels: encoded once, shared by all sessions.
#[derive(Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Name of the resource.
    pub name: Arc<str>,
    /// Hash of the bytes, 16 hexadecimal digits: equal on every replica and after a restart.
    pub version: Arc<str>,
    /// The same as a number; see [`version_hash`].
    pub hash: u64,
    /// Type URL and bytes.
    pub any: Any,
}

impl Encoded {
    /// Encodes a message.
    pub fn new<M: Name>(name: &str, message: &M) -> Arc<Self> {
        Self::from_any(name, pack(message))
    }

    /// Takes an encoded message.
    pub fn from_any(name: &str, any: Any) -> Arc<Self> {
        // 0 stands for "nothing" in the sessions.
        let hash = xxh3_64(&any.value).max(1);
        Arc::new(Self { name: name.into(), version: format!("{hash:016x}").into(), hash, any })
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} ({} bytes)", self.name, self.version, self.any.value.len())
    }
}

/// Packs a message with the full type URL that Envoy and gRPC expect.
pub fn pack<M: Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: message.encode_to_vec() }
}

/// A version string as a number: our own are read, others are hashed. Never 0, except for the empty string.
pub fn version_hash(version: &str) -> u64 {
    if version.is_empty() {
        return 0;
    }
    let own = if version.len() == 16 { u64::from_str_radix(version, 16).ok() } else { None };
    own.unwrap_or_else(|| xxh3_64(version.as_bytes())).max(1)
}
