//! The one writer: decoded resources in, a new snapshot and subscriptions out. No I/O, no clock.
//!
//! Make before break: a virtual host goes live, new or changed, only when every cluster it refers to is here with its
//! endpoints, or known not to exist; until then the one before stays, with its clusters.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use weft_xds::resource::{
    Cluster, Decoded, Egress, Endpoints, Inbound, Listener, ListenerKind, ResourceType, RouteAction, VirtualHost,
};

use super::{Host, LastUsed, Snapshot, VhostState};
use crate::{balance::Upstream, demand, route::RouteIndex};

/// Names of virtual hosts begin with the name of their route configuration.
pub const VIRTUAL_HOST_PREFIX: &str = "outbound/";
/// For this long it is remembered that a service does not exist; the subscription lives as long, so that one that comes
/// into being is known at once. Afterwards the name is free for others.
const NOT_FOUND_KEPT: Duration = Duration::from_secs(30);
/// A name that nobody has answered is asked for anew after this time, should it still be wanted.
const UNANSWERED_KEPT: Duration = Duration::from_secs(60);

/// What the xDS client is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subscription {
    /// Ask for it, and for its changes.
    Subscribe(ResourceType, Box<str>),
    /// Ask no more; what is known of it is dropped.
    Unsubscribe(ResourceType, Box<str>),
}

/// A name for which a fetch came to an end.
pub type Settled = (Box<str>, demand::Outcome);

/// What a step amounts to.
#[derive(Debug, Default)]
pub struct Step {
    /// To be put in force, when something changed.
    pub snapshot: Option<Snapshot>,
    /// For the xDS client.
    pub subscriptions: Vec<Subscription>,
    /// For those who wait; to be told after the snapshot is in force.
    pub settled: Vec<Settled>,
}

/// Holds what is known, and makes snapshots of it.
#[derive(Debug, Default)]
pub struct Writer {
    inbound: Option<Arc<Inbound>>,
    egress: Egress,
    /// How many of the hosts are addresses.
    addresses: usize,
    hosts: HashMap<Box<str>, HostState>,
    clusters: BTreeMap<Box<str>, Known<Cluster>>,
    endpoints: BTreeMap<Box<str>, Known<Endpoints>>,
    upstreams: HashMap<Box<str>, Built>,
    revision: u64,
    changed: bool,
    subscriptions: Vec<Subscription>,
    settled: Vec<Settled>,
}

/// What is known of a resource.
#[derive(Debug)]
enum Known<T> {
    /// Asked for, not answered.
    Asked,
    /// It does not exist.
    Missing,
    /// This is it.
    Here(Arc<T>),
}

#[derive(Debug)]
struct HostState {
    latest: Known<VirtualHost>,
    live: Option<Arc<VirtualHost>>,
    /// Of the routes that are live.
    index: Arc<RouteIndex>,
    used: Arc<LastUsed>,
    /// When `latest` was last heard of or asked for.
    since: Instant,
    /// Someone may be waiting for it.
    awaited: bool,
}

/// An upstream, and what it was built from.
#[derive(Debug)]
struct Built {
    cluster: Arc<Cluster>,
    endpoints: Option<Arc<Endpoints>>,
    upstream: Arc<Upstream>,
}

impl Writer {
    /// The application has called an authority that is not in the snapshot.
    pub fn want(&mut self, authority: &str, now: Instant) {
        if let Some(host) = self.hosts.get_mut(authority) {
            match (&host.live, &host.latest) {
                (Some(_), _) => self.settled.push((authority.into(), demand::Outcome::Live)),
                (None, Known::Missing) => self.settled.push((authority.into(), demand::Outcome::NotFound)),
                (None, Known::Asked | Known::Here(_)) => (host.awaited, host.since) = (true, now),
            }
        } else if self.hosts.len() >= demand::MAX_NAMES
            || is_address(authority) && self.addresses >= demand::MAX_ADDRESSES
        {
            self.settled.push((authority.into(), demand::Outcome::TooMany));
        } else {
            let (latest, used) = (Known::Asked, Arc::new(LastUsed::new(now)));
            let host = HostState { latest, live: None, index: Arc::default(), used, since: now, awaited: true };
            self.hosts.insert(authority.into(), host);
            self.addresses += usize::from(is_address(authority));
            let name = format!("{VIRTUAL_HOST_PREFIX}{authority}").into();
            self.subscriptions.push(Subscription::Subscribe(ResourceType::VirtualHost, name));
        }
    }

    /// A resource came, or changed.
    pub fn set(&mut self, name: &str, resource: Decoded, now: Instant) {
        match resource {
            Decoded::Listener(listener) => self.set_listener(&listener),
            Decoded::VirtualHost(routes) => self.set_host(name, Known::Here(routes), now),
            Decoded::Cluster(cluster) => {
                if self.clusters.contains_key(name) {
                    ask(&mut self.endpoints, &mut self.subscriptions, ResourceType::Endpoints, &cluster.endpoints);
                    self.clusters.insert(name.into(), Known::Here(cluster));
                    self.changed = true;
                }
            }
            Decoded::Endpoints(endpoints) => {
                if let Some(known) = self.endpoints.get_mut(name) {
                    // The same bytes are sent again when the cluster changed; nothing is to be rebuilt for that.
                    if !matches!(known, Known::Here(before) if *before == endpoints) {
                        *known = Known::Here(endpoints);
                        self.changed = true;
                    }
                }
            }
            // Certificates and roots have an owner of their own; route configurations hold no more than the promise of
            // virtual hosts on demand.
            Decoded::Secret(_) | Decoded::Route(_) => {}
        }
    }

    /// A resource does not exist (any more).
    pub fn remove(&mut self, ty: ResourceType, name: &str, now: Instant) {
        match ty {
            ResourceType::Listener if name == "inbound" => {
                self.changed |= self.inbound.take().is_some();
            }
            ResourceType::VirtualHost => self.set_host(name, Known::Missing, now),
            ResourceType::Cluster => self.changed |= missing(&mut self.clusters, name),
            ResourceType::Endpoints => self.changed |= missing(&mut self.endpoints, name),
            ResourceType::Listener | ResourceType::Secret | ResourceType::Route => {}
        }
    }

    /// Drops what has not been used for `idle`, and names that led nowhere.
    pub fn sweep(&mut self, idle: Duration, now: Instant) {
        let mut dropped = Vec::new();
        for (authority, host) in &self.hosts {
            let over = match (&host.live, &host.latest) {
                (Some(_), _) | (None, Known::Here(_)) => host.used.idle(now) >= idle,
                (None, Known::Missing) => now.saturating_duration_since(host.since) >= NOT_FOUND_KEPT,
                (None, Known::Asked) => now.saturating_duration_since(host.since) >= UNANSWERED_KEPT,
            };
            if over {
                dropped.push(authority.clone());
            }
        }
        for authority in dropped {
            self.hosts.remove(&authority);
            self.addresses -= usize::from(is_address(&authority));
            let name = format!("{VIRTUAL_HOST_PREFIX}{authority}").into();
            self.subscriptions.push(Subscription::Unsubscribe(ResourceType::VirtualHost, name));
            self.settled.push((authority, demand::Outcome::Forgotten));
            self.changed = true;
        }
    }

    /// Ends a batch: what it amounts to.
    pub fn step(&mut self, now: Instant) -> Step {
        if self.changed {
            self.settle();
        }
        let snapshot = self.changed.then(|| self.snapshot(now));
        self.changed = false;
        Step {
            snapshot,
            subscriptions: std::mem::take(&mut self.subscriptions),
            settled: std::mem::take(&mut self.settled),
        }
    }

    fn set_listener(&mut self, listener: &Listener) {
        match &listener.kind {
            ListenerKind::Inbound(inbound) => self.inbound = Some(Arc::new(inbound.clone())),
            ListenerKind::Outbound(outbound) => self.egress = outbound.egress,
        }
        self.changed = true;
    }

    fn set_host(&mut self, name: &str, latest: Known<VirtualHost>, now: Instant) {
        let authority = name.strip_prefix(VIRTUAL_HOST_PREFIX).unwrap_or(name);
        // One that was dropped while the answer was on its way is of no interest any more.
        if let Some(host) = self.hosts.get_mut(authority) {
            (host.latest, host.since) = (latest, now);
            self.changed = true;
        }
    }

    /// Makes live what is complete, asks for what is referred to, and drops what nothing refers to.
    fn settle(&mut self) {
        let mut clusters = BTreeSet::new();
        for (authority, host) in &mut self.hosts {
            if let Known::Here(latest) = &host.latest {
                for name in clusters_of(latest) {
                    ask(&mut self.clusters, &mut self.subscriptions, ResourceType::Cluster, name);
                }
                if clusters_of(latest).all(|name| complete(&self.clusters, &self.endpoints, name)) {
                    if host.live.as_ref().is_none_or(|live| !Arc::ptr_eq(live, latest)) {
                        host.index = Arc::new(RouteIndex::new(latest));
                    }
                    host.live = Some(latest.clone());
                }
            } else if matches!(host.latest, Known::Missing) {
                host.live = None;
            }
            let outcome = match (&host.live, &host.latest) {
                (Some(_), _) => Some(demand::Outcome::Live),
                (None, Known::Missing) => Some(demand::Outcome::NotFound),
                (None, Known::Asked | Known::Here(_)) => None,
            };
            if let Some(outcome) = outcome.filter(|_| std::mem::take(&mut host.awaited)) {
                self.settled.push((authority.clone(), outcome));
            }
            let latest = if let Known::Here(latest) = &host.latest { Some(latest) } else { None };
            clusters
                .extend(host.live.iter().chain(latest).flat_map(|routes| clusters_of(routes)).map(Box::<str>::from));
        }
        release(&mut self.clusters, &mut self.subscriptions, ResourceType::Cluster, &clusters);
        self.upstreams.retain(|name, _| clusters.contains(name));
        // While a cluster waits for its new endpoints, those of the upstream in force are kept.
        let latest = self.clusters.values().filter_map(|cluster| match cluster {
            Known::Here(cluster) => Some(cluster.endpoints.clone()),
            Known::Asked | Known::Missing => None,
        });
        let built = self.upstreams.values().map(|built| built.cluster.endpoints.clone());
        let endpoints = latest.chain(built).collect();
        release(&mut self.endpoints, &mut self.subscriptions, ResourceType::Endpoints, &endpoints);
    }

    fn snapshot(&mut self, now: Instant) -> Snapshot {
        let names: Vec<_> = self.clusters.keys().cloned().collect();
        for name in names {
            self.build(&name, now);
        }
        let virtual_hosts = self.hosts.iter().filter_map(|(authority, host)| {
            let state = match (&host.live, &host.latest) {
                (Some(routes), _) => VhostState::Found(Arc::new(Host {
                    routes: routes.clone(),
                    index: host.index.clone(),
                    used: host.used.clone(),
                })),
                (None, Known::Missing) => VhostState::NotFound,
                (None, Known::Asked | Known::Here(_)) => return None,
            };
            Some((authority.clone(), state))
        });
        self.revision += 1;
        Snapshot {
            revision: self.revision,
            inbound: self.inbound.clone(),
            egress: self.egress,
            virtual_hosts: virtual_hosts.collect(),
            clusters: self.upstreams.iter().map(|(name, built)| (name.clone(), built.upstream.clone())).collect(),
        }
    }

    /// Builds a cluster's upstream anew when the cluster or its endpoints changed.
    fn build(&mut self, name: &str, now: Instant) {
        let cluster = match self.clusters.get(name) {
            Some(Known::Here(cluster)) => cluster,
            Some(Known::Missing) => {
                self.upstreams.remove(name);
                return;
            }
            Some(Known::Asked) | None => return,
        };
        let endpoints = match self.endpoints.get(&cluster.endpoints) {
            Some(Known::Here(endpoints)) => Some(endpoints),
            // Said to be empty.
            Some(Known::Missing) => None,
            // Not known yet: the one before stays, or there is none.
            Some(Known::Asked) | None => return,
        };
        let before = self.upstreams.get(name);
        if before.is_some_and(|built| {
            Arc::ptr_eq(&built.cluster, cluster)
                && built.endpoints.as_ref().map(Arc::as_ptr) == endpoints.map(Arc::as_ptr)
        }) {
            return;
        }
        let none = Endpoints { cluster: cluster.name.clone(), endpoints: Vec::new() };
        let previous = before.map(|built| &*built.upstream);
        let upstream = Upstream::build(cluster.clone(), endpoints.map_or(&none, |some| some), previous, now);
        let built = Built { cluster: cluster.clone(), endpoints: endpoints.cloned(), upstream };
        self.upstreams.insert(name.into(), built);
    }
}

/// Whether an authority is an address, as [`demand::Demand::at`] asks for it.
fn is_address(authority: &str) -> bool {
    authority.parse::<std::net::SocketAddr>().is_ok()
}

/// The clusters that routes refer to.
pub fn clusters_of(routes: &VirtualHost) -> impl Iterator<Item = &str> {
    routes
        .routes
        .iter()
        .flat_map(|route| match &route.action {
            RouteAction::Forward(forward) => forward.clusters.as_slice(),
            RouteAction::Redirect(_) | RouteAction::Respond { .. } => &[],
        })
        .map(|cluster| &*cluster.name)
}

/// Whether a cluster can take traffic, or is known not to exist.
fn complete(
    clusters: &BTreeMap<Box<str>, Known<Cluster>>,
    endpoints: &BTreeMap<Box<str>, Known<Endpoints>>,
    name: &str,
) -> bool {
    match clusters.get(name) {
        Some(Known::Missing) => true,
        Some(Known::Here(cluster)) => {
            matches!(endpoints.get(&cluster.endpoints), Some(Known::Here(_) | Known::Missing))
        }
        Some(Known::Asked) | None => false,
    }
}

fn ask<T>(
    known: &mut BTreeMap<Box<str>, Known<T>>,
    subscriptions: &mut Vec<Subscription>,
    ty: ResourceType,
    name: &str,
) {
    if !known.contains_key(name) {
        known.insert(name.into(), Known::Asked);
        subscriptions.push(Subscription::Subscribe(ty, name.into()));
    }
}

/// Marks one as missing; whether that is news.
fn missing<T>(known: &mut BTreeMap<Box<str>, Known<T>>, name: &str) -> bool {
    match known.get_mut(name) {
        Some(known) => !matches!(std::mem::replace(known, Known::Missing), Known::Missing),
        None => false,
    }
}

/// Drops what nothing refers to.
fn release<T>(
    known: &mut BTreeMap<Box<str>, Known<T>>,
    subscriptions: &mut Vec<Subscription>,
    ty: ResourceType,
    wanted: &BTreeSet<Box<str>>,
) {
    known.retain(|name, _| {
        let keep = wanted.contains(name);
        if !keep {
            subscriptions.push(Subscription::Unsubscribe(ty, name.clone()));
        }
        keep
    });
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
