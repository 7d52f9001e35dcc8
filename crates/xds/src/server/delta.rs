//! The incremental protocol.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use weft_proto::{
    envoy::{
        config::core::v3::ControlPlane,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    },
    google::rpc::Status,
};

use super::{
    Event, Nack, Options, ProtocolError, TypeStatus, View, attribute, check_length, dependents, entries::Entries, kept,
    routes,
};
use crate::{
    client::WILDCARD,
    resource::{Encoded, ResourceType, version_hash},
};

/// A response that awaits its ACK.
#[derive(Debug)]
struct InFlight {
    nonce: String,
    /// Versions by name, sorted; 0: removed.
    resources: Vec<(Arc<str>, u64)>,
}

#[derive(Debug, Default)]
struct TypeState {
    /// A request of this type has come.
    seen: bool,
    wildcard: bool,
    entries: Entries,
    /// To be looked at.
    dirty: BTreeSet<Arc<str>>,
    /// Everything is to be looked at.
    all_dirty: bool,
    /// The first request is not yet answered.
    reply_due: bool,
    in_flight: Option<InFlight>,
    nacks: HashMap<Arc<str>, Nack>,
}

/// What the dirty names of a type come down to.
#[derive(Debug, Default)]
struct Pending {
    /// New or changed.
    adds: Vec<(Arc<str>, Arc<Encoded>)>,
    /// "Does not exist", to be said at once.
    gone: Vec<Arc<str>>,
    /// Held by the client and no longer there; has to wait for its dependents.
    removals: Vec<Arc<str>>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.adds.is_empty() && self.gone.is_empty() && self.removals.is_empty()
    }
}

/// One incremental stream.
#[derive(Debug, Default)]
pub struct DeltaSession {
    options: Options,
    types: [TypeState; ResourceType::COUNT],
    last_nonce: u64,
    /// One answer has come, so the burst of first requests that opens a stream is over. Before that it is not known
    /// what depends on what the client brought along, and nothing of it is removed.
    settled: bool,
}

impl DeltaSession {
    /// A session at the start of its stream.
    pub fn new(options: Options) -> Self {
        Self { options, ..Self::default() }
    }

    /// Takes a request.
    /// # Errors
    /// The stream has to end.
    pub fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Result<Vec<Event>, ProtocolError> {
        let Some(ty) = ResourceType::from_url(&request.type_url) else {
            return Ok(vec![Event::UnknownType(request.type_url)]);
        };
        let mut events = Vec::new();
        if !request.response_nonce.is_empty() {
            events.extend(self.on_answer(ty, &request.response_nonce, request.error_detail.as_ref()));
        }
        let first = !std::mem::replace(&mut self.types[ty.index()].seen, true);
        let mut wildcard = false;
        if first {
            self.types[ty.index()].reply_due = true;
            let legacy = request.resource_names_subscribe.is_empty() && request.resource_names_unsubscribe.is_empty();
            wildcard = legacy && matches!(ty, ResourceType::Cluster | ResourceType::Listener);
        }
        events.extend(self.on_unsubscribe(ty, &request.resource_names_unsubscribe));
        let versions = if first { request.initial_resource_versions } else { Default::default() };
        let mut names = Vec::with_capacity(request.resource_names_subscribe.len());
        for name in &request.resource_names_subscribe {
            if name == WILDCARD {
                wildcard = true;
                continue;
            }
            check_length(ty, name)?;
            names.push(self.types[ty.index()].subscribe(name, versions.contains_key(name)));
        }
        if wildcard && ty == ResourceType::VirtualHost {
            return Err(ProtocolError::NoWildcard(ty));
        }
        self.types[ty.index()].bring_along(versions.iter(), wildcard);
        if ty == ResourceType::Endpoints && self.options.endpoints_follow_cluster {
            self.catch_up(&names);
        }
        if wildcard {
            self.types[ty.index()].wildcard = true;
            self.types[ty.index()].all_dirty = true;
        }
        if !names.is_empty() && self.subscribed() > self.options.max_names {
            return Err(ProtocolError::TooManyNames { limit: self.options.max_names });
        }
        if wildcard || !names.is_empty() {
            events.push(Event::Subscribed { ty, names, wildcard });
        }
        Ok(events)
    }

    fn subscribed(&self) -> usize {
        self.types.iter().map(|it| it.entries.sums().subscribed).sum()
    }

    /// An ACK or NACK. One of another nonce is out of date and says nothing.
    fn on_answer(&mut self, ty: ResourceType, nonce: &str, error: Option<&Status>) -> Option<Event> {
        let state = &mut self.types[ty.index()];
        let sent = state.in_flight.take_if(|it| it.nonce == nonce)?.resources;
        self.settled = true;
        let nonce = nonce.to_owned();
        let Some(error) = error else {
            state.accepted(&sent);
            return Some(Event::Acked { ty, nonce, resources: sent });
        };
        let message = kept(&error.message);
        let (blamed, good) = attribute(&message, sent);
        state.accepted(&good);
        for (name, version) in &blamed {
            match *version {
                // There is nothing to refuse in a removal.
                0 => state.accepted(&[(name.clone(), 0)]),
                version if state.covers(name) => {
                    state.nacks.insert(name.clone(), Nack { version, message: message.clone() });
                    // It may have been marked meanwhile, or have gone back to what the client holds.
                    state.dirty.insert(name.clone());
                }
                _ => {}
            }
        }
        Some(Event::Nacked { ty, nonce, resources: blamed, message })
    }

    fn on_unsubscribe(&mut self, ty: ResourceType, names: &[String]) -> Option<Event> {
        let state = &mut self.types[ty.index()];
        let mut wildcard = false;
        let mut dropped = Vec::new();
        for name in names {
            if name == WILDCARD {
                wildcard = std::mem::take(&mut state.wildcard);
                state.all_dirty = false;
                let (entries, nacks, dirty) = (&mut state.entries, &mut state.nacks, &mut state.dirty);
                entries.drop_unsubscribed();
                nacks.retain(|name, _| entries.contains(name));
                dirty.retain(|name| entries.contains(name));
            } else if let Some((name, entry)) = state.entries.get_key_value(name.as_str())
                && entry.subscribed
            {
                let name = name.clone();
                state.drop_name(&name);
                dropped.push(name);
            }
        }
        (wildcard || !dropped.is_empty()).then_some(Event::Unsubscribed { ty, names: dropped, wildcard })
    }

    /// Marks names that may have changed. Names that the client does not want cost nothing.
    pub fn dirty<'a>(&mut self, ty: ResourceType, names: impl IntoIterator<Item = &'a str>) {
        let state = &mut self.types[ty.index()];
        for name in names {
            match state.entries.get_key_value(name) {
                Some((name, _)) => state.dirty.insert(name.clone()),
                None if state.wildcard => state.dirty.insert(name.into()),
                None => false,
            };
        }
    }

    /// Marks everything, of all types.
    pub fn dirty_all(&mut self) {
        for state in &mut self.types {
            state.all_dirty = state.seen;
        }
    }

    /// The next response, or `None`: nothing to say until a request or a change comes.
    pub fn next_response(&mut self, view: &impl View) -> Option<DeltaDiscoveryResponse> {
        let mut pending: [Pending; ResourceType::COUNT] = Default::default();
        for ty in ResourceType::ALL {
            pending[ty.index()] = self.pending(ty, view);
        }
        for ty in ResourceType::ALL {
            let state = &self.types[ty.index()];
            if !state.seen || state.in_flight.is_some() {
                continue;
            }
            // What is reached here of these three could not be sent: a response of theirs is in flight.
            let held_up = routes(ty) && ResourceType::ALL[..3].iter().any(|it| !pending[it.index()].adds.is_empty());
            let removable = !pending[ty.index()].removals.is_empty() && self.may_remove(ty, &pending);
            let mut send = std::mem::take(&mut pending[ty.index()]);
            if !removable {
                send.removals.clear();
            }
            if held_up && !send.adds.is_empty() {
                send.adds.clear();
                if send.is_empty() {
                    continue;
                }
            } else if send.is_empty() && !state.reply_due {
                continue;
            }
            return Some(self.respond(ty, send));
        }
        None
    }

    /// Sorts the dirty names of a type, and drops those that need nothing.
    fn pending(&mut self, ty: ResourceType, view: &impl View) -> Pending {
        let mut pending = Pending::default();
        if self.types[ty.index()].all_dirty {
            self.types[ty.index()].mark_all(ty, view);
        }
        if self.types[ty.index()].dirty.is_empty() {
            return pending;
        }
        let dirty = std::mem::take(&mut self.types[ty.index()].dirty);
        for name in &dirty {
            let state = &self.types[ty.index()];
            let (held, force) = match state.entries.get(name) {
                Some(entry) => (state.under_way(name).unwrap_or(entry.held), entry.force),
                None if state.wildcard => (0, false),
                None => continue,
            };
            let refused = state.nacks.get(name).map(|it| it.version);
            match view.get(ty, name) {
                Some(it) if force || (it.hash != held && Some(it.hash) != refused) => {
                    pending.adds.push((name.clone(), it));
                }
                Some(it) if it.hash == held => {
                    self.types[ty.index()].nacks.remove(name);
                }
                Some(_) => {}
                None if held != 0 && !self.removed_alone(ty, name, view) => pending.removals.push(name.clone()),
                None if held != 0 || force || refused.is_some() => pending.gone.push(name.clone()),
                None => {}
            }
        }
        let state = &mut self.types[ty.index()];
        state.dirty = match state.in_flight {
            // What becomes of the response decides what is left to do; until then nothing is dropped.
            Some(_) => dirty,
            None => {
                let names = pending.adds.iter().map(|(name, _)| name).chain(&pending.gone).chain(&pending.removals);
                names.cloned().collect()
            }
        };
        pending
    }

    /// Endpoints whose cluster stays, or waits for them in the client, are removed at once.
    fn removed_alone(&self, ty: ResourceType, name: &str, view: &impl View) -> bool {
        let warming = || self.types[ResourceType::Cluster.index()].under_way(name).is_some_and(|it| it != 0);
        ty == ResourceType::Endpoints && (warming() || view.get(ResourceType::Cluster, name).is_some())
    }

    /// Whether everything that may refer to resources of this type is accepted.
    fn may_remove(&self, ty: ResourceType, pending: &[Pending; ResourceType::COUNT]) -> bool {
        self.settled
            && dependents(ty).all(|it| {
                let state = &self.types[it.index()];
                let rest = &pending[it.index()];
                // Only what comes later in push order lets go first; a type never waits for one that waits for it.
                let quiet = if it > ty { rest.is_empty() } else { rest.adds.is_empty() };
                quiet && state.in_flight.is_none() && !state.reply_due && (state.nacks.is_empty() || !routes(it))
            })
    }

    fn respond(&mut self, ty: ResourceType, send: Pending) -> DeltaDiscoveryResponse {
        let state = &mut self.types[ty.index()];
        let mut response = DeltaDiscoveryResponse {
            type_url: ty.url().to_owned(),
            control_plane: identifier(&self.options),
            ..DeltaDiscoveryResponse::default()
        };
        let mut sent = Vec::with_capacity(send.adds.len());
        let mut bytes = 0;
        for (name, it) in &send.adds {
            // The first goes in any case, or one large resource would stop all.
            if bytes > 0 && bytes + it.any.value.len() > self.options.max_bytes {
                break;
            }
            bytes += it.any.value.len() + 2 * name.len();
            state.entries.ensure(name, |entry| entry.force = false);
            state.dirty.remove(name);
            sent.push((name.clone(), it.hash));
            response.resources.push(Resource {
                name: name.to_string(),
                aliases: if ty == ResourceType::VirtualHost { vec![name.to_string()] } else { Vec::new() },
                version: it.version.to_string(),
                resource: Some(it.any.clone()),
                ..Resource::default()
            });
        }
        for name in send.gone.iter().chain(&send.removals) {
            state.entries.change(name, |entry| entry.force = false);
            state.dirty.remove(name);
            sent.push((name.clone(), 0));
            response.removed_resources.push(name.to_string());
        }
        if state.dirty.is_empty() {
            // An empty set keeps its last node.
            state.dirty = BTreeSet::new();
        }
        sent.sort();
        state.reply_due = false;
        self.last_nonce += 1;
        response.nonce = self.last_nonce.to_string();
        if ty == ResourceType::Cluster && self.options.endpoints_follow_cluster {
            self.follow(&sent);
        }
        self.types[ty.index()].in_flight = Some(InFlight { nonce: response.nonce.clone(), resources: sent });
        response
    }

    /// Endpoints that the client brought along, but whose clusters it was sent before it said so.
    fn catch_up(&mut self, names: &[Arc<str>]) {
        let warming = |name: &Arc<str>| {
            let version = self.types[ResourceType::Cluster.index()].under_way(name);
            version.is_some_and(|it| it != 0).then(|| (name.clone(), 1))
        };
        let warming: Vec<_> = names.iter().filter_map(warming).collect();
        self.follow(&warming);
    }

    /// Marks the endpoints of clusters that are sent.
    fn follow(&mut self, sent: &[(Arc<str>, u64)]) {
        let endpoints = &mut self.types[ResourceType::Endpoints.index()];
        for (name, version) in sent {
            if *version != 0 && endpoints.entries.change(name, |entry| entry.force = true).is_some() {
                endpoints.dirty.insert(name.clone());
            }
        }
    }

    /// Everything that was to be sent was, and was answered. To be asked after [`Self::next_response`] gave `None`. What
    /// was refused counts as answered (see [`Self::status`]); a removal that a refusal holds up does not.
    pub fn acked_all(&self) -> bool {
        self.types.iter().all(|it| !it.is_pending())
    }

    /// Names and versions that the client has accepted of a type.
    pub fn held(&self, ty: ResourceType) -> impl Iterator<Item = (&Arc<str>, u64)> {
        self.types[ty.index()].entries.iter().map(|(name, it)| (name, it.held)).filter(|(_, held)| *held != 0)
    }

    /// Whether the client has asked for a name, or for everything.
    pub fn wants(&self, ty: ResourceType, name: &str) -> bool {
        self.types[ty.index()].covers(name)
    }

    /// Where the client stands, for each type that it has asked for.
    pub fn status(&self) -> Vec<TypeStatus> {
        let mut out = Vec::with_capacity(ResourceType::COUNT);
        let seen = ResourceType::ALL.into_iter().filter(|ty| self.types[ty.index()].seen);
        out.extend(seen.map(|ty| {
            let state = &self.types[ty.index()];
            let mut nacks: Vec<_> = state.nacks.iter().map(|(name, it)| (name.clone(), it.clone())).collect();
            nacks.sort_by(|a, b| a.0.cmp(&b.0));
            let sums = state.entries.sums();
            TypeStatus {
                ty,
                subscribed: sums.subscribed,
                wildcard: state.wildcard,
                acked: sums.held,
                version: sums.version,
                pending: state.is_pending(),
                nacks,
            }
        }));
        out
    }
}

impl TypeState {
    fn covers(&self, name: &str) -> bool {
        self.wildcard || self.entries.contains(name)
    }

    /// The version of a name in the response that awaits its ACK; 0: removed.
    fn under_way(&self, name: &str) -> Option<u64> {
        let sent = &self.in_flight.as_ref()?.resources;
        let at = sent.binary_search_by(|(it, _)| (**it).cmp(name)).ok()?;
        Some(sent[at].1)
    }

    fn is_pending(&self) -> bool {
        self.in_flight.is_some() || self.reply_due || self.all_dirty || !self.dirty.is_empty()
    }

    /// `brought`: the client says which version it has, so it is answered only if that is not the one.
    fn subscribe(&mut self, name: &str, brought: bool) -> Arc<str> {
        let name: Arc<str> = match self.entries.get_key_value(name) {
            Some((name, _)) => name.clone(),
            None => name.into(),
        };
        self.entries.ensure(&name, |entry| {
            entry.subscribed = true;
            entry.force = !brought;
        });
        self.nacks.remove(&name);
        self.dirty.insert(name.clone());
        name
    }

    /// Versions that the client still has from an earlier stream.
    fn bring_along<'a>(&mut self, versions: impl Iterator<Item = (&'a String, &'a String)>, wildcard: bool) {
        for (name, version) in versions {
            if wildcard && !self.entries.contains(name) {
                self.entries.ensure(&name.as_str().into(), |_| ());
            }
            self.entries.change(name, |entry| {
                entry.held = version_hash(version);
                entry.force = entry.held == 0;
            });
        }
    }

    /// Ends the subscription to a name. Under the wildcard it is sent once more, as the protocol wants.
    fn drop_name(&mut self, name: &Arc<str>) {
        if !self.wildcard {
            self.entries.remove(name);
            self.nacks.remove(name);
            self.dirty.remove(name);
        } else {
            let dropped = self.entries.change(name, |entry| {
                entry.subscribed = false;
                entry.force = true;
            });
            if dropped.is_some() {
                self.dirty.insert(name.clone());
            }
        }
    }

    fn accepted(&mut self, resources: &[(Arc<str>, u64)]) {
        for (name, version) in resources {
            self.nacks.remove(name);
            // Not there: unsubscribed while the response was under way.
            let entry = self.entries.change(name, |entry| entry.held = *version);
            if *version == 0 && entry.is_some_and(|entry| !entry.subscribed && !entry.force) {
                self.entries.remove(name);
            }
        }
    }

    fn mark_all(&mut self, ty: ResourceType, view: &impl View) {
        self.all_dirty = false;
        self.dirty.extend(self.entries.names().cloned());
        if self.wildcard {
            self.dirty.extend(view.all(ty).iter().map(|it| it.name.clone()));
        }
    }
}

fn identifier(options: &Options) -> Option<ControlPlane> {
    (!options.identifier.is_empty()).then(|| ControlPlane { identifier: options.identifier.clone() })
}
