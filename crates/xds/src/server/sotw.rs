//! The state-of-the-world protocol.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use weft_proto::{
    envoy::{
        config::{core::v3::ControlPlane, endpoint::v3::ClusterLoadAssignment},
        service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
    },
    google::rpc::Status,
};

use super::{
    Event, Nack, Options, ProtocolError, TypeStatus, View, attribute, check_length, dependents, digest, kept, routes,
};
use crate::{
    client::WILDCARD,
    resource::{Encoded, ResourceType},
};

/// A set of resources, by name.
type Set = BTreeMap<Arc<str>, Arc<Encoded>>;

#[derive(Debug)]
struct InFlight {
    nonce: String,
    digest: u64,
    resources: Vec<(Arc<str>, u64)>,
}

#[derive(Debug, Default)]
struct TypeState {
    seen: bool,
    wildcard: bool,
    /// Names came once; from then on an empty list means none, not all.
    named: bool,
    names: BTreeSet<Arc<str>>,
    /// What the client was sent last; the resources themselves, as a cluster may have to be sent on for a while after it
    /// has gone. They are shared, so this costs a pointer each.
    sent: Set,
    /// Versions accepted.
    held: HashMap<Arc<str>, u64>,
    in_flight: Option<InFlight>,
    /// Nonce of the last response that was answered.
    answered: String,
    /// Digest of the set that was refused.
    refused: Option<u64>,
    nacks: HashMap<Arc<str>, Nack>,
    dirty: bool,
    /// To be answered although unchanged.
    due: bool,
}

/// What a type has to say.
#[derive(Debug, Default)]
struct Pending {
    set: Set,
    /// Something is new or has changed.
    adds: bool,
    /// Sent before and no longer there. Only for clusters, which have to wait for their dependents.
    removals: Vec<Arc<str>>,
    send: bool,
}

/// One state-of-the-world stream: all Envoys that are not told otherwise, and all gRPC clients.
///
/// Clusters and listeners are sent in full, and what is left out is removed. Of other types only what exists is sent: the
/// client cannot be told that something does not, but endpoints that do not exist are sent as an empty assignment.
#[derive(Debug, Default)]
pub struct SotwSession {
    options: Options,
    types: [TypeState; ResourceType::COUNT],
    last_nonce: u64,
}

impl SotwSession {
    /// A session at the start of its stream.
    pub fn new(options: Options) -> Self {
        Self { options, ..Self::default() }
    }

    /// Takes a request.
    /// # Errors
    /// The stream has to end.
    pub fn on_request(&mut self, request: DiscoveryRequest) -> Result<Vec<Event>, ProtocolError> {
        let ty = match ResourceType::from_url(&request.type_url) {
            // Virtual hosts on demand exist in the incremental protocol only.
            None | Some(ResourceType::VirtualHost) => return Ok(vec![Event::UnknownType(request.type_url)]),
            Some(ty) => ty,
        };
        for name in &request.resource_names {
            check_length(ty, name)?;
        }
        let nonce = request.response_nonce.as_str();
        let state = &mut self.types[ty.index()];
        let mut events = Vec::new();
        let mut resend = false;
        if !state.seen {
            // The nonce of another stream says nothing.
            state.seen = true;
            state.due = true;
        } else if let Some(sent) = state.in_flight.take_if(|it| it.nonce == nonce) {
            events.push(state.on_answer(ty, sent, request.error_detail.as_ref()));
        } else if nonce == state.answered && state.in_flight.is_none() {
            // Answered once already: the names have changed, or else the client asks to be sent it again. Envoy does so
            // for the endpoints of a cluster that has changed.
            resend = true;
        } else if !nonce.is_empty() {
            return Ok(events); // out of date; what the client wants comes with its next answer
        }
        let changed = state.subscribe(ty, &request.resource_names);
        state.due |= resend && changed.is_none();
        events.extend(changed.unwrap_or_default());
        if self.types.iter().map(|it| it.names.len()).sum::<usize>() > self.options.max_names {
            return Err(ProtocolError::TooManyNames { limit: self.options.max_names });
        }
        Ok(events)
    }

    /// Marks names that may have changed. Names that the client does not want cost nothing.
    pub fn dirty<'a>(&mut self, ty: ResourceType, names: impl IntoIterator<Item = &'a str>) {
        let state = &mut self.types[ty.index()];
        state.dirty |= state.seen && names.into_iter().any(|name| state.covers(name));
    }

    /// Marks everything, of all types.
    pub fn dirty_all(&mut self) {
        for state in &mut self.types {
            state.dirty = state.seen;
        }
    }

    /// The next response, or `None`: nothing to say until a request or a change comes.
    pub fn next_response(&mut self, view: &impl View) -> Option<DiscoveryResponse> {
        let mut pending: [Pending; ResourceType::COUNT] = Default::default();
        for ty in ResourceType::ALL {
            pending[ty.index()] = self.types[ty.index()].pending(ty, view);
        }
        for ty in ResourceType::ALL {
            let state = &self.types[ty.index()];
            if state.in_flight.is_some() || !pending[ty.index()].send {
                continue;
            }
            // What is reached here of these three could not be sent: a response of theirs is in flight.
            if routes(ty) && pending[ty.index()].adds && pending[..3].iter().any(|it| it.adds) {
                continue;
            }
            let may_remove = pending[ty.index()].removals.is_empty() || self.may_remove(ty, &pending);
            let mut send = std::mem::take(&mut pending[ty.index()]);
            if !may_remove {
                if !send.adds && !state.due {
                    continue;
                }
                let kept = send.removals.drain(..).filter_map(|name| state.sent.get_key_value(&name));
                send.set.extend(kept.map(|(name, it)| (name.clone(), it.clone())));
            }
            return Some(self.respond(ty, send, may_remove));
        }
        None
    }

    /// Whether everything that may refer to resources of this type is accepted.
    fn may_remove(&self, ty: ResourceType, pending: &[Pending; ResourceType::COUNT]) -> bool {
        dependents(ty).filter(|it| *it > ty).all(|it| {
            let state = &self.types[it.index()];
            state.in_flight.is_none() && !pending[it.index()].send && (state.nacks.is_empty() || !routes(it))
        })
    }

    fn respond(&mut self, ty: ResourceType, send: Pending, complete: bool) -> DiscoveryResponse {
        self.last_nonce += 1;
        let nonce = self.last_nonce.to_string();
        let state = &mut self.types[ty.index()];
        let resources: Vec<_> = send.set.iter().map(|(name, it)| (name.clone(), it.hash)).collect();
        let digest = digest_of(&send.set);
        let response = DiscoveryResponse {
            version_info: format!("{digest:016x}"),
            resources: send.set.values().map(|it| it.any.clone()).collect(),
            type_url: ty.url().to_owned(),
            nonce: nonce.clone(),
            control_plane: (!self.options.identifier.is_empty())
                .then(|| ControlPlane { identifier: self.options.identifier.clone() }),
            ..DiscoveryResponse::default()
        };
        state.sent = send.set;
        state.in_flight = Some(InFlight { nonce, digest, resources });
        state.due = false;
        state.dirty = !complete;
        response
    }

    /// Everything that was to be sent was, and was answered. To be asked after [`Self::next_response`] gave `None`. What
    /// was refused counts as answered (see [`Self::status`]); a removal that a refusal holds up does not.
    pub fn acked_all(&self) -> bool {
        self.types.iter().all(|it| !it.is_pending())
    }

    /// Names and versions that the client has accepted of a type.
    pub fn held(&self, ty: ResourceType) -> impl Iterator<Item = (&Arc<str>, u64)> {
        self.types[ty.index()].held.iter().map(|(name, version)| (name, *version))
    }

    /// Whether the client has asked for a name, or for everything.
    pub fn wants(&self, ty: ResourceType, name: &str) -> bool {
        self.types[ty.index()].covers(name)
    }

    /// Where the client stands, for each type that it has asked for.
    pub fn status(&self) -> Vec<TypeStatus> {
        let seen = ResourceType::ALL.into_iter().filter(|ty| self.types[ty.index()].seen);
        seen.map(|ty| {
            let state = &self.types[ty.index()];
            let mut nacks: Vec<_> = state.nacks.iter().map(|(name, it)| (name.clone(), it.clone())).collect();
            nacks.sort_by(|a, b| a.0.cmp(&b.0));
            TypeStatus {
                ty,
                subscribed: state.names.len(),
                wildcard: state.wildcard,
                acked: state.held.len(),
                version: digest(self.held(ty).map(|(name, held)| (&**name, held))),
                pending: state.is_pending(),
                nacks,
            }
        })
        .collect()
    }
}

impl TypeState {
    fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn is_pending(&self) -> bool {
        self.in_flight.is_some() || self.due || self.dirty
    }

    fn on_answer(&mut self, ty: ResourceType, sent: InFlight, error: Option<&Status>) -> Event {
        self.answered.clone_from(&sent.nonce);
        // Whatever was left out of the full state is gone in the client, too.
        if full_state(ty) {
            let names: BTreeSet<&Arc<str>> = sent.resources.iter().map(|(name, _)| name).collect();
            self.held.retain(|name, _| names.contains(name));
        }
        let Some(error) = error else {
            self.refused = None;
            self.nacks.clear();
            self.accepted(&sent.resources);
            return Event::Acked { ty, nonce: sent.nonce, resources: sent.resources };
        };
        let message = kept(&error.message);
        let (blamed, good) = attribute(&message, sent.resources);
        self.refused = Some(sent.digest);
        self.nacks.clear();
        self.accepted(&good);
        let nack = |version| Nack { version, message: message.clone() };
        self.nacks.extend(blamed.iter().map(|(name, version)| (name.clone(), nack(*version))));
        Event::Nacked { ty, nonce: sent.nonce, resources: blamed, message }
    }

    fn accepted(&mut self, resources: &[(Arc<str>, u64)]) {
        for (name, version) in resources {
            if self.covers(name) {
                self.held.insert(name.clone(), *version);
            }
        }
    }

    /// Takes the list of names of a request. `None`: it is as before.
    fn subscribe(&mut self, ty: ResourceType, list: &[String]) -> Option<Vec<Event>> {
        let wildcard =
            if list.is_empty() { full_state(ty) && !self.named } else { list.iter().any(|it| it == WILDCARD) };
        self.named |= !list.is_empty();
        let names: BTreeSet<&str> = list.iter().map(String::as_str).filter(|it| *it != WILDCARD).collect();
        let added: Vec<Arc<str>> =
            names.iter().filter(|it| !self.names.contains(**it)).map(|it| (*it).into()).collect();
        let dropped: Vec<Arc<str>> = self.names.iter().filter(|it| !names.contains(&***it)).cloned().collect();
        let (opened, closed) = (wildcard && !self.wildcard, self.wildcard && !wildcard);
        self.wildcard = wildcard;
        self.names.extend(added.iter().cloned());
        for name in &dropped {
            self.names.remove(name);
        }
        let mut events = Vec::new();
        if opened || !added.is_empty() {
            self.due = true;
            events.push(Event::Subscribed { ty, names: added, wildcard: opened });
        }
        if closed || !dropped.is_empty() {
            let (names, sent, held, nacks) = (&self.names, &mut self.sent, &mut self.held, &mut self.nacks);
            let keep = |name: &Arc<str>| wildcard || names.contains(name);
            sent.retain(|name, _| keep(name));
            held.retain(|name, _| keep(name));
            nacks.retain(|name, _| keep(name));
            events.push(Event::Unsubscribed { ty, names: dropped, wildcard: closed });
        }
        (!events.is_empty()).then_some(events)
    }

    /// What stands in for endpoints that do not exist. That they do not cannot be said, and Envoy would wait for them.
    /// Those of a cluster that is gone stay until the client lets go of them, which it does after its routes did.
    fn missing(&self, name: &str, view: &impl View) -> Arc<Encoded> {
        match self.sent.get(name) {
            Some(sent) if view.get(ResourceType::Cluster, name).is_none() => sent.clone(),
            Some(_) | None => no_endpoints(name),
        }
    }

    fn pending(&mut self, ty: ResourceType, view: &impl View) -> Pending {
        if !self.dirty && !self.due {
            return Pending::default();
        }
        let mut set = Set::new();
        if self.wildcard {
            set.extend(view.all(ty).into_iter().map(|it| (it.name.clone(), it)));
        }
        set.extend(self.names.iter().filter_map(|name| {
            let found =
                view.get(ty, name).or_else(|| (ty == ResourceType::Endpoints).then(|| self.missing(name, view)));
            Some((name.clone(), found?))
        }));
        let same = |name: &Arc<str>, it: &Arc<Encoded>| self.sent.get(name).is_some_and(|sent| sent.hash == it.hash);
        let adds = set.iter().any(|(name, it)| !same(name, it));
        let gone: Vec<_> = self.sent.keys().filter(|name| !set.contains_key(*name)).cloned().collect();
        let shrunk = full_state(ty) && !gone.is_empty();
        if !self.due {
            // The set that was refused is not sent again; another one is, even if it differs in one name only.
            let refused = self.refused.is_some_and(|it| it == digest_of(&set));
            if refused || (!adds && !shrunk) {
                self.dirty = self.in_flight.is_some() && (adds || shrunk);
                return Pending::default();
            }
        }
        let removals = if ty == ResourceType::Cluster { gone } else { Vec::new() };
        Pending { set, adds, removals, send: true }
    }
}

/// An assignment without endpoints.
fn no_endpoints(cluster: &str) -> Arc<Encoded> {
    let cluster_name = cluster.to_owned();
    Encoded::new(cluster, &ClusterLoadAssignment { cluster_name, ..ClusterLoadAssignment::default() })
}

/// Types of which every response is the whole.
fn full_state(ty: ResourceType) -> bool {
    matches!(ty, ResourceType::Cluster | ResourceType::Listener)
}

fn digest_of(set: &Set) -> u64 {
    digest(set.iter().map(|(name, it)| (&**name, it.hash)))
}
