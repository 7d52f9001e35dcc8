//! The sessions against a client with Envoy's habits, under random schedules: it accepts a cluster only when the cluster's
//! endpoints have come after it, does not ask for them again in the incremental protocol, and asks with the nonce it has
//! already answered in the other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::{Key, World, cluster, host};
use proptest::prelude::*;
use prost::Message;
use weft_proto::envoy::{
    config::{cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, route::v3::RouteConfiguration},
    service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse},
};
use weft_xds::{
    resource::{ResourceType, version_hash},
    server::{DeltaSession, Options, SotwSession, View},
};

const HOSTS: usize = 3;
const CLUSTERS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    Retarget { host: usize, cluster: usize },
    RemoveHost(usize),
    TouchCluster(usize),
    TouchEndpoints(usize),
    Up,
    Down,
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..HOSTS, 0..CLUSTERS).prop_map(|(host, cluster)| Step::Retarget { host, cluster }),
        1 => (0..HOSTS).prop_map(Step::RemoveHost),
        2 => (0..CLUSTERS).prop_map(Step::TouchCluster),
        1 => (0..CLUSTERS).prop_map(Step::TouchEndpoints),
        8 => Just(Step::Up),
        8 => Just(Step::Down),
        1 => Just(Step::Reconnect),
    ]
}

enum Session {
    Delta(Box<DeltaSession>),
    Sotw(Box<SotwSession>),
}

enum Request {
    Delta(DeltaDiscoveryRequest),
    Sotw(DiscoveryRequest),
}

enum Response {
    Delta(DeltaDiscoveryResponse),
    Sotw(DiscoveryResponse),
}

/// What came, whichever way it was said.
struct Came {
    ty: ResourceType,
    set: Vec<(String, u64, BTreeSet<String>)>,
    removed: Vec<String>,
    nonce: String,
    version: String,
}

struct Envoy {
    delta: bool,
    held: BTreeMap<Key, u64>,
    targets: BTreeMap<String, BTreeSet<String>>,
    /// Clusters whose endpoints are awaited, and the answer that waits for them.
    warming: BTreeSet<String>,
    owed: Option<(String, String)>,
    endpoint_names: BTreeSet<String>,
    endpoint_nonce: String,
    up: VecDeque<Request>,
}

impl Envoy {
    fn connect(&mut self) {
        self.up.clear();
        self.warming.clear();
        self.owed = None;
        self.endpoint_nonce.clear();
        self.ask(ResourceType::Cluster, Vec::new());
        if !self.endpoint_names.is_empty() {
            self.ask(ResourceType::Endpoints, self.endpoint_names.iter().cloned().collect());
        }
        self.ask(ResourceType::Route, (0..HOSTS).map(host).collect());
    }

    fn ask(&mut self, ty: ResourceType, names: Vec<String>) {
        let type_url = ty.url().to_owned();
        self.up.push_back(if self.delta {
            let held = self.held.iter().filter(|((it, _), _)| *it == ty);
            let initial_resource_versions = held.map(|((_, name), version)| (name.clone(), format!("{version:016x}")));
            Request::Delta(DeltaDiscoveryRequest {
                type_url,
                resource_names_subscribe: names,
                initial_resource_versions: initial_resource_versions.collect(),
                ..Default::default()
            })
        } else {
            Request::Sotw(DiscoveryRequest { type_url, resource_names: names, ..Default::default() })
        });
    }

    fn answer(&mut self, ty: ResourceType, nonce: String, version: String) {
        let type_url = ty.url().to_owned();
        if ty == ResourceType::Endpoints {
            self.endpoint_nonce.clone_from(&nonce);
        }
        self.up.push_back(if self.delta {
            Request::Delta(DeltaDiscoveryRequest { type_url, response_nonce: nonce, ..Default::default() })
        } else {
            let resource_names = match ty {
                ResourceType::Endpoints => self.endpoint_names.iter().cloned().collect(),
                ResourceType::Route => (0..HOSTS).map(host).collect(),
                _ => Vec::new(),
            };
            Request::Sotw(DiscoveryRequest {
                type_url,
                resource_names,
                response_nonce: nonce,
                version_info: version,
                ..Default::default()
            })
        });
    }

    fn receive(&mut self, came: Came) {
        for name in came.removed {
            let held = self.held.remove(&(came.ty, name.clone())).is_some();
            match came.ty {
                ResourceType::Cluster => {
                    let users: Vec<_> = self.targets.iter().filter(|(_, it)| held && it.contains(&name)).collect();
                    assert!(users.is_empty(), "{name} was removed while {users:?} leads to it");
                    self.warming.remove(&name);
                    if self.endpoint_names.remove(&name) {
                        self.held.remove(&(ResourceType::Endpoints, name.clone()));
                        self.change_endpoints(Vec::new(), vec![name]);
                    }
                }
                ResourceType::Endpoints => {
                    self.warming.remove(&name);
                }
                _ => {
                    self.targets.remove(&name);
                }
            }
        }
        let mut fresh = Vec::new();
        let mut changed = false;
        for (name, version, targets) in came.set {
            let before = self.held.insert((came.ty, name.clone()), version);
            match came.ty {
                ResourceType::Cluster if before != Some(version) => {
                    self.warming.insert(name.clone());
                    changed = true;
                    if self.endpoint_names.insert(name.clone()) {
                        fresh.push(name);
                    }
                }
                ResourceType::Endpoints => {
                    if !self.endpoint_names.contains(&name) {
                        self.held.remove(&(came.ty, name.clone()));
                    }
                    self.warming.remove(&name);
                }
                ResourceType::Route => {
                    // Make before break: what a route leads to is there when the route comes.
                    for target in &targets {
                        let there = self.held.contains_key(&(ResourceType::Cluster, target.clone()));
                        assert!(there, "{name} leads to {target}, which never came");
                    }
                    self.targets.insert(name, targets);
                }
                _ => {}
            }
        }
        if !fresh.is_empty() || (changed && !self.delta) {
            self.change_endpoints(fresh, Vec::new());
        }
        if came.ty == ResourceType::Cluster && !self.warming.is_empty() {
            self.owed = Some((came.nonce, came.version));
        } else {
            self.answer(came.ty, came.nonce, came.version);
        }
        if self.warming.is_empty()
            && let Some((nonce, version)) = self.owed.take()
        {
            self.answer(ResourceType::Cluster, nonce, version);
        }
    }

    fn change_endpoints(&mut self, subscribe: Vec<String>, unsubscribe: Vec<String>) {
        let type_url = ResourceType::Endpoints.url().to_owned();
        self.up.push_back(if self.delta {
            Request::Delta(DeltaDiscoveryRequest {
                type_url,
                resource_names_subscribe: subscribe,
                resource_names_unsubscribe: unsubscribe,
                ..Default::default()
            })
        } else {
            Request::Sotw(DiscoveryRequest {
                type_url,
                resource_names: self.endpoint_names.iter().cloned().collect(),
                response_nonce: self.endpoint_nonce.clone(),
                ..Default::default()
            })
        });
    }
}

struct Pair {
    world: World,
    envoy: Envoy,
    session: Session,
    down: VecDeque<Response>,
}

impl Pair {
    fn new(delta: bool) -> Self {
        let mut envoy = Envoy {
            delta,
            held: BTreeMap::new(),
            targets: BTreeMap::new(),
            warming: BTreeSet::new(),
            owed: None,
            endpoint_names: BTreeSet::new(),
            endpoint_nonce: String::new(),
            up: VecDeque::new(),
        };
        envoy.connect();
        Self { world: World::default(), envoy, session: session(delta), down: VecDeque::new() }
    }

    fn apply(&mut self, step: &Step) {
        let dirty = match step {
            Step::Retarget { host, cluster } => self.world.retarget(*host, *cluster, false),
            // Nothing can tell a state-of-the-world client that a route configuration is gone.
            Step::RemoveHost(host) if self.envoy.delta => self.world.remove_host(*host),
            Step::RemoveHost(_) => Vec::new(),
            Step::TouchCluster(it) => self.world.touch_cluster(*it, false),
            Step::TouchEndpoints(it) => self.world.touch_endpoints(*it, false),
            Step::Up => {
                self.up();
                Vec::new()
            }
            Step::Down => {
                self.down();
                Vec::new()
            }
            Step::Reconnect => {
                // A state-of-the-world server cannot know what a new stream's client already has, so it cannot hold
                // removals back; only the incremental protocol keeps the order across streams.
                if self.envoy.delta {
                    self.session = session(true);
                    self.down.clear();
                    self.envoy.connect();
                }
                Vec::new()
            }
        };
        for (ty, name) in &dirty {
            match &mut self.session {
                Session::Delta(it) => it.dirty(*ty, [name.as_str()]),
                Session::Sotw(it) => it.dirty(*ty, [name.as_str()]),
            }
        }
        self.respond();
    }

    fn up(&mut self) {
        match (self.envoy.up.pop_front(), &mut self.session) {
            (Some(Request::Delta(request)), Session::Delta(session)) => drop(session.on_request(request).unwrap()),
            (Some(Request::Sotw(request)), Session::Sotw(session)) => drop(session.on_request(request).unwrap()),
            (None, _) => {}
            (Some(_), _) => unreachable!("one protocol a stream"),
        }
    }

    fn respond(&mut self) {
        loop {
            let response = match &mut self.session {
                Session::Delta(it) => it.next_response(&self.world).map(Response::Delta),
                Session::Sotw(it) => it.next_response(&self.world).map(Response::Sotw),
            };
            match response {
                Some(response) => self.down.push_back(response),
                None => return,
            }
        }
    }

    fn down(&mut self) {
        let Some(response) = self.down.pop_front() else { return };
        let came = match response {
            Response::Delta(response) => {
                let ty = ResourceType::from_url(&response.type_url).unwrap();
                let set = response.resources.iter();
                Came {
                    ty,
                    set: set
                        .map(|it| {
                            let value = &it.resource.as_ref().unwrap().value;
                            (it.name.clone(), version_hash(&it.version), read(ty, value).1)
                        })
                        .collect(),
                    removed: response.removed_resources,
                    nonce: response.nonce,
                    version: String::new(),
                }
            }
            Response::Sotw(response) => {
                let ty = ResourceType::from_url(&response.type_url).unwrap();
                let set: Vec<_> = response
                    .resources
                    .iter()
                    .map(|it| {
                        let (name, targets) = read(ty, &it.value);
                        (name, xxhash_rust::xxh3::xxh3_64(&it.value).max(1), targets)
                    })
                    .collect();
                let names: BTreeSet<_> = set.iter().map(|(name, _, _)| name.clone()).collect();
                let held = self.envoy.held.keys().filter(|(it, _)| *it == ty).map(|(_, name)| name.clone());
                let removed = if ty == ResourceType::Cluster {
                    held.filter(|it| !names.contains(it)).collect()
                } else {
                    Vec::new()
                };
                Came { ty, set, removed, nonce: response.nonce, version: response.version_info }
            }
        };
        self.envoy.receive(came);
    }

    fn settle(&mut self) {
        for _ in 0..2000 {
            self.up();
            self.respond();
            self.down();
            if self.envoy.up.is_empty() && self.down.is_empty() {
                return;
            }
        }
        panic!("the two never come to rest");
    }

    fn check(&self) {
        assert!(self.envoy.warming.is_empty(), "{:?} wait for endpoints that never come", self.envoy.warming);
        let held = |ty: ResourceType| -> BTreeMap<&str, u64> {
            let held = self.envoy.held.iter().filter(move |((it, _), _)| *it == ty);
            held.map(|((_, name), version)| (name.as_str(), *version)).collect()
        };
        for ty in [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Route] {
            let held = held(ty);
            let all = self.world.all(ty);
            let there: BTreeMap<&str, u64> = all.iter().map(|it| (&*it.name, it.hash)).collect();
            assert_eq!(held, there, "{ty}");
        }
        assert!(match &self.session {
            Session::Delta(it) => it.acked_all(),
            Session::Sotw(it) => it.acked_all(),
        });
    }
}

fn session(delta: bool) -> Session {
    match delta {
        true => Session::Delta(Box::new(DeltaSession::new(Options::default()))),
        false => Session::Sotw(Box::new(SotwSession::new(Options::default()))),
    }
}

/// Name and targets of a resource.
fn read(ty: ResourceType, bytes: &[u8]) -> (String, BTreeSet<String>) {
    match ty {
        ResourceType::Cluster => (Cluster::decode(bytes).unwrap().name, BTreeSet::new()),
        ResourceType::Endpoints => (ClusterLoadAssignment::decode(bytes).unwrap().cluster_name, BTreeSet::new()),
        _ => {
            let proto = RouteConfiguration::decode(bytes).unwrap();
            let text = format!("{proto:?}");
            (proto.name, (0..CLUSTERS).map(cluster).filter(|it| text.contains(it)).collect())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn envoy_is_never_kept_waiting(steps in prop::collection::vec(step(), 1..120), delta in any::<bool>()) {
        let mut pair = Pair::new(delta);
        for step in &steps {
            pair.apply(step);
        }
        pair.settle();
        pair.check();
    }
}
