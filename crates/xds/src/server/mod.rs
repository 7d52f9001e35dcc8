//! The server's half of the protocol: one stream as a state machine.
//!
//! [`DeltaSession`] speaks the incremental protocol, [`SotwSession`] the state of the world. Each owns what one client
//! has subscribed to, was sent, accepted and refused; neither owns resources, does I/O or knows a clock. The host hands
//! in requests and a [`View`], marks what has changed, and sends what comes out:
//!
//! ```text
//! request ─► on_request ─► events        change ─► dirty ─┐
//!                                            view ─► next_response ─► response   (until None)
//! ```
//!
//! Rules of both:
//! - One response of a type is in flight at a time; what changes meanwhile is sent once, in its last state.
//! - Make before break. Listeners, routes and virtual hosts wait until the clusters, endpoints and secrets that changed
//!   with them were sent. (Sent, not accepted: Envoy accepts a cluster only once it has its endpoints.) A cluster,
//!   and its endpoints with it, is removed only when listeners, routes and virtual hosts were all accepted.
//! - The first request of a type is always answered, if need be with nothing.
//! - The same bytes are not sent again after a NACK, unless the client asks.
//!
//! Everything that changed with a view has to be marked before that view is handed in.

mod delta;
mod entries;
mod sotw;

use std::sync::Arc;

pub use self::{delta::DeltaSession, sotw::SotwSession};
use crate::resource::{Encoded, ResourceType};

/// What one client may see at one moment.
pub trait View {
    /// A resource by name.
    fn get(&self, ty: ResourceType, name: &str) -> Option<Arc<Encoded>>;

    /// All of a type, for wildcard subscriptions. `get` finds each of them.
    fn all(&self, ty: ResourceType) -> Vec<Arc<Encoded>>;
}

impl<V: View + ?Sized> View for &V {
    fn get(&self, ty: ResourceType, name: &str) -> Option<Arc<Encoded>> {
        (**self).get(ty, name)
    }

    fn all(&self, ty: ResourceType) -> Vec<Arc<Encoded>> {
        (**self).all(ty)
    }
}

/// Bounds and habits of a session.
#[derive(Debug, Clone)]
pub struct Options {
    /// Most names of all types that a client may be subscribed to. Default: 20 000.
    pub max_names: usize,
    /// A delta response is closed when its resources reach this many bytes. Default: 1 MiB.
    pub max_bytes: usize,
    /// Endpoints are sent again after their cluster, although unchanged: Envoy warms a changed cluster until they come.
    /// Our own sidecar does not need it. Default: true.
    pub endpoints_follow_cluster: bool,
    /// Shown to clients as the control plane's identifier. Default: empty.
    pub identifier: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_names: 20_000, max_bytes: 1 << 20, endpoints_follow_cluster: true, identifier: String::new() }
    }
}

/// What a request meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Names were added to a subscription.
    Subscribed {
        /// Of this type.
        ty: ResourceType,
        /// These.
        names: Vec<Arc<str>>,
        /// And everything.
        wildcard: bool,
    },
    /// Names were dropped from a subscription.
    Unsubscribed {
        /// Of this type.
        ty: ResourceType,
        /// These.
        names: Vec<Arc<str>>,
        /// And the wildcard.
        wildcard: bool,
    },
    /// A response was accepted.
    Acked {
        /// Of this type.
        ty: ResourceType,
        /// The response's nonce.
        nonce: String,
        /// What it held, with versions; 0: removed.
        resources: Vec<(Arc<str>, u64)>,
    },
    /// A response was refused, at least in part.
    Nacked {
        /// Of this type.
        ty: ResourceType,
        /// The response's nonce.
        nonce: String,
        /// The resources to blame: those the message names, else all that the response held. With versions.
        resources: Vec<(Arc<str>, u64)>,
        /// What the client said.
        message: Arc<str>,
    },
    /// A type that is not served was asked for; it is ignored.
    UnknownType(String),
}

/// A request that ends the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Resource exhausted.
    #[error("more than {limit} resources subscribed to on one stream")]
    TooManyNames {
        /// The bound.
        limit: usize,
    },
    /// Invalid argument.
    #[error("{ty}: a resource name has {length} bytes, more than {}", NAME_BYTES)]
    LongName {
        /// Type asked for.
        ty: ResourceType,
        /// Bytes of the name.
        length: usize,
    },
    /// Invalid argument.
    #[error("{0}: there is no wildcard subscription to this type")]
    NoWildcard(ResourceType),
}

/// Longest name of a resource, in bytes.
const NAME_BYTES: usize = 1024;
/// Longest message of a NACK that is kept, in bytes.
const MESSAGE_BYTES: usize = 16 << 10;

/// A refusal that still stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// Version that was refused.
    pub version: u64,
    /// What the client said.
    pub message: Arc<str>,
}

/// Where a client stands with one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeStatus {
    /// The type.
    pub ty: ResourceType,
    /// Names subscribed to.
    pub subscribed: usize,
    /// Everything is subscribed to.
    pub wildcard: bool,
    /// Resources that the client has accepted.
    pub acked: usize,
    /// One number for the names and versions accepted.
    pub version: u64,
    /// A response awaits its ACK, or something is still to be sent.
    pub pending: bool,
    /// Refusals that still stand.
    pub nacks: Vec<(Arc<str>, Nack)>,
}

/// One number for a set of names and versions, whatever their order.
pub fn digest<'a>(resources: impl IntoIterator<Item = (&'a str, u64)>) -> u64 {
    let one = |(name, version): (&str, u64)| xxhash_rust::xxh3::xxh3_64_with_seed(name.as_bytes(), version);
    resources.into_iter().fold(0, |sum: u64, it| sum.wrapping_add(one(it)))
}

fn check_length(ty: ResourceType, name: &str) -> Result<(), ProtocolError> {
    if name.len() > NAME_BYTES { Err(ProtocolError::LongName { ty, length: name.len() }) } else { Ok(()) }
}

/// The message of a NACK, as it is kept.
fn kept(message: &str) -> Arc<str> {
    message.get(..message.floor_char_boundary(MESSAGE_BYTES)).unwrap_or_default().into()
}

/// Names and versions; 0: removed.
type Versions = Vec<(Arc<str>, u64)>;

/// Splits what a refused response held into (to blame, accepted). Nobody named: all are to blame.
fn attribute(message: &str, sent: Versions) -> (Versions, Versions) {
    let (blamed, good): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(name, _)| names(message, name));
    if blamed.is_empty() { (good, Vec::new()) } else { (blamed, good) }
}

/// Whether a message names a resource: `a:80` is not named by `a:8080` or by `x/a:80`.
fn names(message: &str, name: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '/' | '*');
    !name.is_empty()
        && message.match_indices(name).any(|(at, _)| {
            let before = message[..at].chars().next_back();
            let mut after = message[at + name.len()..].chars();
            let ends = match after.next() {
                // A full stop or colon that is followed by more of a name belongs to it.
                Some('.' | ':') => !after.next().is_some_and(part),
                Some(c) => !part(c),
                None => true,
            };
            ends && !before.is_some_and(|c| part(c) || c == '.')
        })
}

/// The types whose resources refer to those of a type: they let go first.
fn dependents(ty: ResourceType) -> impl Iterator<Item = ResourceType> {
    let also = (ty == ResourceType::Secret).then_some(ResourceType::Cluster);
    ResourceType::ALL.into_iter().filter(move |it| *it > ty).chain(also)
}

/// Whether resources of a type name clusters.
fn routes(ty: ResourceType) -> bool {
    matches!(ty, ResourceType::Listener | ResourceType::Route | ResourceType::VirtualHost)
}
