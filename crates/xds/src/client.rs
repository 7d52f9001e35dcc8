//! The client's half: delta ADS as a state machine.
//!
//! Owns what is subscribed and which version of what is held; says what to send and what has changed. Never holds the
//! decoded resources, never does I/O, knows no clock. A resource that cannot be honoured is refused alone: the others of
//! the same response count, and of the refused one the last good version stays.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use prost_types::Any;
use weft_proto::{
    envoy::{
        config::core::v3::{Locality, Node as NodeProto, node::UserAgentVersionType},
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    },
    google::rpc::Status,
};

use crate::resource::{DecodeError, Decoded, ResourceType, decode};

/// Asks for everything of a type.
pub const WILDCARD: &str = "*";

/// `INVALID_ARGUMENT`, the code of a NACK.
const REFUSED: i32 = 3;
/// Longest text of a NACK, in bytes; the server logs it and shows it to people.
const LONGEST_NACK: usize = 8 << 10;

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// `NAMESPACE/SERVICE/INSTANCE`.
    pub id: String,
    /// `namespace/service`; Envoy calls it the cluster.
    pub cluster: String,
    /// `weft-sidecar`.
    pub user_agent: String,
    /// Version of the program.
    pub version: String,
    /// Region, empty when unknown.
    pub region: String,
    /// Zone, empty when unknown.
    pub zone: String,
    /// What else the server may want to know.
    pub metadata: BTreeMap<String, String>,
}

impl Node {
    /// As it travels.
    pub fn to_proto(&self) -> NodeProto {
        let text = |it: &String| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(it.clone())) };
        let fields = self.metadata.iter().map(|(key, value)| (key.clone(), text(value))).collect();
        let locality = Locality { region: self.region.clone(), zone: self.zone.clone(), sub_zone: String::new() };
        NodeProto {
            id: self.id.clone(),
            cluster: self.cluster.clone(),
            metadata: (!self.metadata.is_empty()).then_some(prost_types::Struct { fields }),
            locality: (locality != Locality::default()).then_some(locality),
            user_agent_name: self.user_agent.clone(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(self.version.clone())),
            ..NodeProto::default()
        }
    }
}

/// What became of one resource.
#[derive(Debug, Clone)]
pub struct Update {
    /// Its type.
    pub ty: ResourceType,
    /// Its name.
    pub name: Arc<str>,
    /// What became of it.
    pub change: Change,
}

/// What became of a resource.
#[derive(Debug, Clone)]
pub enum Change {
    /// It is new or has changed.
    Set {
        /// As validated.
        decoded: Decoded,
        /// As it came; for the cache.
        any: Any,
        /// Its version.
        version: Arc<str>,
    },
    /// It does not exist, or no longer.
    Removed,
    /// It was refused; the version held before, if any, stays in force.
    Rejected {
        /// The version that was refused.
        version: Arc<str>,
        /// Why.
        error: DecodeError,
    },
}

/// Subscriptions and versions of one type.
#[derive(Debug, Default)]
struct TypeState {
    /// Names subscribed to.
    wanted: HashSet<Arc<str>>,
    /// Everything is subscribed to.
    wildcard: bool,
    /// What is held, with its version.
    held: HashMap<Arc<str>, Arc<str>>,
    /// Not yet told to the server on this stream.
    subscribe: BTreeSet<Arc<str>>,
    /// Not yet told to the server on this stream. A name in both was dropped and is wanted again: the server has to hear
    /// of both, or it would take what was forgotten here for what is held.
    unsubscribe: BTreeSet<Arc<str>>,
    /// The server has had a request of this type on this stream.
    started: bool,
    /// The server has answered on this stream.
    answered: bool,
}

/// The client's half of one aggregated delta stream, and what outlives it.
#[derive(Debug)]
pub struct Client {
    node: Node,
    types: [TypeState; ResourceType::COUNT],
    connected: bool,
    /// The node goes with the first request of a stream.
    introduced: bool,
    /// Answers, and what had to be said before them.
    outbox: VecDeque<DeltaDiscoveryRequest>,
}

impl Client {
    /// A client that holds nothing and asks for nothing.
    pub fn new(node: Node) -> Self {
        Self { node, types: Default::default(), connected: false, introduced: false, outbox: VecDeque::new() }
    }

    /// Subscribes to a name; [`WILDCARD`] to all of a type. Again: the server is asked to send it anew.
    pub fn subscribe(&mut self, ty: ResourceType, name: &str) {
        let state = &mut self.types[ty.index()];
        let name: Arc<str> = name.into();
        if &*name == WILDCARD {
            state.wildcard = true;
        } else {
            state.wanted.insert(name.clone());
        }
        state.subscribe.insert(name);
    }

    /// Ends a subscription. What was held of it is forgotten, unless the wildcard still covers it.
    pub fn unsubscribe(&mut self, ty: ResourceType, name: &str) {
        let state = &mut self.types[ty.index()];
        let name: Arc<str> = name.into();
        if &*name == WILDCARD {
            if !std::mem::take(&mut state.wildcard) {
                return;
            }
            let wanted = &state.wanted;
            state.held.retain(|name, _| wanted.contains(name));
        } else {
            if !state.wanted.remove(&name) {
                return;
            }
            if !state.wildcard {
                state.held.remove(&name);
            }
        }
        // If the server has never heard of it, this says so in vain; an unsubscribe of an unknown name is harmless,
        // while guessing whether the request has left would not be.
        state.subscribe.remove(&name);
        state.unsubscribe.insert(name);
    }

    /// Whether a name is subscribed to by itself.
    pub fn is_subscribed(&self, ty: ResourceType, name: &str) -> bool {
        self.types[ty.index()].wanted.contains(name)
    }

    /// The version held of a resource.
    pub fn version(&self, ty: ResourceType, name: &str) -> Option<&Arc<str>> {
        self.types[ty.index()].held.get(name)
    }

    /// What is held of a type: names and versions.
    pub fn held(&self, ty: ResourceType) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.types[ty.index()].held.iter()
    }

    /// Takes a resource from a cache: subscribes to it and holds its version, so that the server need not send it.
    /// # Errors
    /// The resource cannot be decoded; nothing is held then.
    pub fn restore(&mut self, ty: ResourceType, name: &str, version: &str, any: &Any) -> Result<Decoded, DecodeError> {
        let decoded = decode(ty, any)?;
        check_name(ty, name, &decoded)?;
        self.subscribe(ty, name);
        self.types[ty.index()].held.insert(name.into(), version.into());
        Ok(decoded)
    }

    /// A stream is open: returns the first requests, in push order, with the versions held.
    pub fn on_connected(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.on_disconnected();
        self.connected = true;
        for state in &mut self.types {
            state.subscribe = state.wanted.clone().into_iter().collect();
            if state.wildcard {
                state.subscribe.insert(WILDCARD.into());
            }
            state.unsubscribe.clear();
        }
        std::iter::from_fn(|| self.next_request()).collect()
    }

    /// The stream is gone; subscriptions and versions stay.
    pub fn on_disconnected(&mut self) {
        self.connected = false;
        self.introduced = false;
        self.outbox.clear();
        for state in &mut self.types {
            state.started = false;
            state.answered = false;
        }
    }

    /// Whether a stream is open.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Whether the server has answered for this type on this stream.
    pub fn is_answered(&self, ty: ResourceType) -> bool {
        self.types[ty.index()].answered
    }

    /// The next message to send, or `None`: nothing to say, or no stream. To be drained after every call that may have
    /// changed something.
    pub fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        if !self.connected {
            return None;
        }
        let mut request = match self.outbox.pop_front() {
            Some(request) => request,
            None => ResourceType::ALL.into_iter().find_map(|ty| self.subscription(ty))?,
        };
        if !std::mem::replace(&mut self.introduced, true) {
            request.node = Some(self.node.to_proto());
        }
        Some(request)
    }

    /// Changes of the subscriptions of a type that the server does not know yet.
    fn subscription(&mut self, ty: ResourceType) -> Option<DeltaDiscoveryRequest> {
        let state = &mut self.types[ty.index()];
        if !state.started {
            state.unsubscribe.clear();
        }
        if state.subscribe.is_empty() && state.unsubscribe.is_empty() {
            return None;
        }
        let unsubscribe = std::mem::take(&mut state.unsubscribe);
        // Servers do not agree on which list of a request comes first.
        let again = unsubscribe.iter().any(|name| state.subscribe.contains(name));
        let subscribe = if again { BTreeSet::new() } else { std::mem::take(&mut state.subscribe) };
        let mut request = DeltaDiscoveryRequest {
            type_url: ty.url().to_owned(),
            resource_names_subscribe: texts(&subscribe),
            resource_names_unsubscribe: texts(&unsubscribe),
            ..DeltaDiscoveryRequest::default()
        };
        if !std::mem::replace(&mut state.started, true) {
            let held = state.held.iter().map(|(name, version)| (name.to_string(), version.to_string()));
            request.initial_resource_versions = held.collect();
        }
        Some(request)
    }

    /// Takes a response: returns what has changed, and has the ACK or NACK ready for [`Self::next_request`].
    pub fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Vec<Update> {
        let Some(ty) = ResourceType::from_url(&response.type_url) else {
            let text = format!("type {:?} was not asked for", response.type_url);
            self.answer(response.type_url, response.nonce, Some(text));
            return Vec::new();
        };
        // What was said before this response came has to arrive before its ACK: the server takes the ACK as one for the
        // subscriptions that it knows of then.
        while let Some(request) = self.subscription(ty) {
            self.outbox.push_back(request);
        }
        let state = &mut self.types[ty.index()];
        state.answered = true;
        let mut updates = Vec::new();
        let mut refused = Vec::new();
        let mut seen = HashSet::new();
        for resource in response.resources {
            let update = match seen.insert(resource.name.clone()) {
                true => state.on_resource(ty, resource),
                false => state.refuse(ty, &resource, DecodeError::new("name", "occurs twice in the response")),
            };
            let Some(update) = update else { continue };
            if let Change::Rejected { error, .. } = &update.change {
                refused.push(format!("{}: {error}", update.name));
            }
            updates.push(update);
        }
        for name in response.removed_resources {
            updates.extend(state.on_removed(ty, name.as_str().into()));
        }
        let text = (!refused.is_empty()).then(|| bounded(&refused));
        self.answer(response.type_url, response.nonce, text);
        updates
    }

    fn answer(&mut self, type_url: String, response_nonce: String, refused: Option<String>) {
        self.outbox.push_back(DeltaDiscoveryRequest {
            type_url,
            response_nonce,
            error_detail: refused.map(|message| Status { code: REFUSED, message, details: Vec::new() }),
            ..DeltaDiscoveryRequest::default()
        });
    }
}

impl TypeState {
    fn covers(&self, name: &str) -> bool {
        self.wildcard || self.wanted.contains(name)
    }

    /// `None`: nothing has changed. That is so for a repeated version, for a heartbeat (a TTL and no body), and for a
    /// name that is no longer wanted.
    fn on_resource(&mut self, ty: ResourceType, resource: Resource) -> Option<Update> {
        if !self.covers(&resource.name) {
            return None;
        }
        let name: Arc<str> = resource.name.as_str().into();
        let Some(any) = &resource.resource else {
            // Without a TTL it is what Envoy's VHDS takes for "does not exist".
            return if resource.ttl.is_some() { None } else { self.on_removed(ty, name) };
        };
        if self.held.get(&name).is_some_and(|held| **held == *resource.version) {
            return None;
        }
        let decoded = decode(ty, any).and_then(|decoded| check_name(ty, &name, &decoded).map(|()| decoded));
        let decoded = match decoded {
            Ok(decoded) => decoded,
            Err(error) => return self.refuse(ty, &resource, error),
        };
        let version: Arc<str> = resource.version.into();
        self.held.insert(name.clone(), version.clone());
        let any = resource.resource.unwrap_or_default();
        Some(Update { ty, name, change: Change::Set { decoded, any, version } })
    }

    fn refuse(&self, ty: ResourceType, resource: &Resource, error: DecodeError) -> Option<Update> {
        if !self.covers(&resource.name) {
            return None;
        }
        let change = Change::Rejected { version: resource.version.as_str().into(), error };
        Some(Update { ty, name: resource.name.as_str().into(), change })
    }

    /// Told of any wanted name, held or not: "does not exist" is an answer.
    fn on_removed(&mut self, ty: ResourceType, name: Arc<str>) -> Option<Update> {
        let held = self.held.remove(&name).is_some();
        (held || self.wanted.contains(&name)).then_some(Update { ty, name, change: Change::Removed })
    }
}

/// The name inside must be that outside; a virtual host is only ever known by the name outside.
fn check_name(ty: ResourceType, name: &str, decoded: &Decoded) -> Result<(), DecodeError> {
    if ty == ResourceType::VirtualHost || decoded.name() == name {
        return Ok(());
    }
    Err(DecodeError::new("name", format!("is {:?} inside the resource", decoded.name())))
}

fn texts(names: &BTreeSet<Arc<str>>) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// One line for each refusal, as many as fit.
fn bounded(refused: &[String]) -> String {
    let mut text = String::new();
    for (index, line) in refused.iter().enumerate() {
        if text.len() + line.len() > LONGEST_NACK && index > 0 {
            text.push_str(&format!("\nand {} more", refused.len() - index));
            break;
        }
        if index > 0 {
            text.push('\n');
        }
        // A single line may be long on its own: regular expressions are quoted.
        text.extend(line.chars().take(LONGEST_NACK));
    }
    text
}
