//! The catalog: every resource that somebody asked for, encoded once, until what it was made of changes.
//!
//! Owns the cache and the knowledge of what each resource is made of ([`Source`]). Never encodes what nobody asks for.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;
use weft_xds::resource::{Encoded, ResourceType};

use super::{Client, Flavour, cluster, envoy, listener, names, render, routes};
use crate::index::{Dirty, Place, ServiceKey, World, addresses_of};

/// What a resource is made of: it is stale when this changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// Never changes.
    Constant,
    /// The trust bundle.
    Bundle,
    /// A service's ports, routes and access rules.
    Config(ServiceKey),
    /// A service's traffic policy, and the identities that its endpoints prove.
    Cluster(ServiceKey),
    /// A service's endpoints.
    Endpoints(ServiceKey),
    /// What an address stands for.
    Address(SocketAddr),
    /// The configuration of every service.
    World,
}

/// What a new world made stale.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Everything, whatever `sources` says.
    pub everything: bool,
    /// What changed.
    pub sources: BTreeSet<Source>,
    /// Names of the clusters that changed, came or went.
    pub clusters: BTreeSet<Arc<str>>,
}

/// Resources by name, for every kind of client.
#[derive(Debug)]
pub struct Catalog {
    inner: RwLock<Inner>,
    encoded: [AtomicU64; ResourceType::COUNT],
}

#[derive(Debug)]
struct Inner {
    world: Arc<World>,
    /// Grows with each update: what was rendered from an older world is not kept.
    updates: u64,
    cache: HashMap<Key, Arc<Encoded>>,
    by_source: HashMap<Source, Vec<Key>>,
}

/// `flavour`: absent where all kinds of clients get the same bytes. `variant`: what else of the client matters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    flavour: Option<Flavour>,
    variant: Arc<str>,
    ty: ResourceType,
    name: Arc<str>,
}

impl Catalog {
    /// A catalog of `world`.
    pub fn new(world: Arc<World>) -> Self {
        let inner = Inner { world, updates: 0, cache: HashMap::new(), by_source: HashMap::new() };
        Self { inner: RwLock::new(inner), encoded: Default::default() }
    }

    /// The world that resources are made of now.
    pub fn world(&self) -> Arc<World> {
        self.inner.read().world.clone()
    }

    /// Goes on to the next world. `dirty`: what differs; `None`: nobody knows.
    pub fn update(&self, world: Arc<World>, dirty: Option<&BTreeSet<Dirty>>) -> Changes {
        let mut inner = self.inner.write();
        let changes = match dirty {
            Some(dirty) => changes(&inner.world, &world, dirty),
            None => Changes { everything: true, ..Changes::default() },
        };
        if changes.everything {
            inner.cache.clear();
            inner.by_source.clear();
        } else {
            for source in &changes.sources {
                for key in inner.by_source.remove(source).unwrap_or_default() {
                    inner.cache.remove(&key);
                }
            }
        }
        inner.world = world;
        inner.updates += 1;
        changes
    }

    /// One resource as `client` may see it; `None`: there is no such thing.
    pub fn get(&self, client: &Client, ty: ResourceType, name: &str) -> Option<Arc<Encoded>> {
        let key = key(client, ty, name);
        let (world, updates) = {
            let inner = self.inner.read();
            if !render::visible(&inner.world, client, ty, name) {
                return None;
            }
            if let Some(found) = inner.cache.get(&key) {
                return Some(found.clone());
            }
            (inner.world.clone(), inner.updates)
        };
        let encoded = render::resource(&world, client, ty, name)?;
        self.encoded[ty.index()].fetch_add(1, Ordering::Relaxed);
        let Some(source) = source(client, ty, name).filter(|_| cacheable(ty, name)) else { return Some(encoded) };
        let mut inner = self.inner.write();
        // A newer world has come meanwhile: this may be stale already, and its session will be woken.
        if inner.updates != updates {
            return Some(encoded);
        }
        // One name for all.
        let key = Key { name: encoded.name.clone(), ..key };
        // Most sources have one resource.
        inner.by_source.entry(source).or_insert_with(|| Vec::with_capacity(1)).push(key.clone());
        Some(inner.cache.entry(key).or_insert(encoded).clone())
    }

    /// Every resource of a type that `client` gets without naming it, in order of name.
    pub fn all(&self, client: &Client, ty: ResourceType) -> Vec<Arc<Encoded>> {
        let names = render::wildcard(&self.world(), client, ty);
        names.iter().filter_map(|name| self.get(client, ty, name)).collect()
    }

    /// How often a resource of this type was encoded.
    pub fn encoded(&self, ty: ResourceType) -> u64 {
        self.encoded[ty.index()].load(Ordering::Relaxed)
    }
}

/// What a resource is made of; `None`: the name is none that this client can ask for.
pub fn source(client: &Client, ty: ResourceType, name: &str) -> Option<Source> {
    match ty {
        ResourceType::Secret => (name == names::ROOTCA).then_some(Source::Bundle),
        ResourceType::Cluster => names::of_cluster(name).map(|(service, _)| Source::Cluster(service)),
        ResourceType::Endpoints => names::of_cluster(name).map(|(service, _)| Source::Endpoints(service)),
        ResourceType::VirtualHost => match (names::DnsName::parse(name), names::address(name)) {
            (Some(names::DnsName::Namespaces), _) => Some(Source::World),
            (Some(names::DnsName::Service(service)), _) => Some(Source::Config(service)),
            (None, Some(address)) => Some(Source::Address(address)),
            (None, None) => names::Host::of_virtual_host(name).map(|host| Source::Config(host.service)),
        },
        ResourceType::Route => match client.flavour {
            Flavour::Envoy => Some(Source::World),
            Flavour::Sidecar | Flavour::Grpc => Some(Source::Constant),
        },
        ResourceType::Listener => match client.flavour {
            Flavour::Grpc => {
                names::Host::parse(name, &client.service.namespace).map(|host| Source::Config(host.service))
            }
            Flavour::Sidecar if name == names::INBOUND => Some(Source::Config(client.service.clone())),
            Flavour::Envoy => match envoy::local_port(client, name) {
                Some(port) => Some(Source::Config(port.service.clone())),
                None => Some(Source::Constant),
            },
            Flavour::Sidecar => Some(Source::Constant),
        },
    }
}

fn key(client: &Client, ty: ResourceType, name: &str) -> Key {
    let flavour = match ty {
        ResourceType::Secret | ResourceType::Endpoints => None,
        _ => Some(client.flavour),
    };
    let variant = match (client.flavour, ty) {
        // A target's short form means another service in another namespace.
        (Flavour::Grpc, ResourceType::Listener) => client.service.namespace.as_str().into(),
        (Flavour::Sidecar, ResourceType::Listener) if name == names::INBOUND => client.service.to_string().into(),
        (Flavour::Envoy, ResourceType::Listener) => {
            let ports = client.listeners.iter().map(|port| format!(" {}={}:{}", port.bind, port.service, port.port));
            format!("{}{}", client.outbound, ports.collect::<String>()).into()
        }
        (Flavour::Envoy, ResourceType::Route) => {
            let wanted = client.upstreams.iter().flat_map(|wanted| wanted.iter().map(|key| format!(" {key}")));
            let all = if client.upstreams.is_none() { " *" } else { "" };
            format!("{}{all}{}", client.service.namespace, wanted.collect::<String>()).into()
        }
        _ => "".into(),
    };
    Key { flavour, variant, ty, name: name.into() }
}

/// Targets of gRPC clients are theirs to spell: the cache holds one spelling.
fn cacheable(ty: ResourceType, name: &str) -> bool {
    ty != ResourceType::Listener || !name.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn changes(old: &World, new: &World, dirty: &BTreeSet<Dirty>) -> Changes {
    let mut changes = Changes::default();
    for dirty in dirty {
        match dirty {
            Dirty::Mesh => return Changes { everything: true, ..Changes::default() },
            Dirty::Bundle => {
                changes.sources.insert(Source::Bundle);
            }
            Dirty::Endpoints(service) => {
                changes.sources.insert(Source::Endpoints(service.clone()));
                if cluster::peers(old, service) != cluster::peers(new, service) {
                    changes.sources.insert(Source::Cluster(service.clone()));
                }
                let (before, after) = (addresses(old, service), addresses(new, service));
                let differ = before.symmetric_difference(&after);
                changes.sources.extend(differ.map(|(address, _)| Source::Address(*address)));
                // Workloads that a selector newly picks take in what is sent to that service.
                let (before, after) = (listener::members(old, service), listener::members(new, service));
                changes.sources.extend(before.symmetric_difference(&after).cloned().map(Source::Config));
            }
            Dirty::Service(service) => {
                changes.sources.extend([
                    Source::World,
                    Source::Config(service.clone()),
                    Source::Cluster(service.clone()),
                    Source::Endpoints(service.clone()),
                ]);
                let addresses = [addresses(old, service), addresses(new, service)].into_iter().flatten();
                changes.sources.extend(addresses.map(|(address, _)| Source::Address(address)));
                let members = [listener::members(old, service), listener::members(new, service)];
                changes.sources.extend(members.into_iter().flatten().map(Source::Config));
                // A backend that comes or goes changes the routes that lead to it.
                if cluster::ports(old, service) != cluster::ports(new, service) {
                    let parents = routes::leading_to(new, service).into_iter();
                    changes.sources.extend(parents.map(Source::Config));
                }
            }
        }
    }
    changes.clusters = cluster_names(old, new, &changes.sources);
    changes
}

/// What the addresses of a service stand for; none when there is no such service.
fn addresses(world: &World, service: &ServiceKey) -> BTreeSet<(SocketAddr, Place)> {
    world.services.get(service).map(|entry| addresses_of(service, entry)).unwrap_or_default()
}

fn cluster_names(old: &World, new: &World, sources: &BTreeSet<Source>) -> BTreeSet<Arc<str>> {
    let services = sources.iter().filter_map(|source| match source {
        Source::Cluster(service) => Some(service),
        _ => None,
    });
    let ports = services.flat_map(|service| {
        let ports = [cluster::ports(old, service), cluster::ports(new, service)].concat();
        ports.into_iter().map(move |port| names::cluster(service, port))
    });
    ports.collect()
}
