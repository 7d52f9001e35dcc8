//! Both ends of the incremental protocol against each other, under random schedules.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use common::{Key, World, cluster, host};
use proptest::prelude::*;
use weft_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_xds::{
    client::{Change, Client, Node},
    resource::{Decoded, ResourceType, RouteAction, version_hash},
    server::{DeltaSession, Options, View, digest},
};

const HOSTS: usize = 4;
const CLUSTERS: usize = 5;

#[derive(Debug, Clone)]
enum Step {
    Retarget {
        host: usize,
        cluster: usize,
        bad: bool,
    },
    RemoveHost(usize),
    TouchCluster(usize, bool),
    TouchEndpoints(usize, bool),
    DropEndpoints(usize),
    Want(usize),
    Drop(usize),
    /// A message arrives at the server.
    Up,
    /// A message arrives at the client.
    Down,
    /// The last message arrives at the server once more.
    Repeat,
    /// The last response arrives at the client once more.
    RepeatDown,
    Disconnect,
    Connect,
}

fn step() -> impl Strategy<Value = Step> {
    let bad = || prop::bool::weighted(0.2);
    prop_oneof![
        3 => (0..HOSTS, 0..CLUSTERS, bad()).prop_map(|(host, cluster, bad)| Step::Retarget { host, cluster, bad }),
        1 => (0..HOSTS).prop_map(Step::RemoveHost),
        1 => (0..CLUSTERS, bad()).prop_map(|(it, bad)| Step::TouchCluster(it, bad)),
        1 => (0..CLUSTERS, bad()).prop_map(|(it, bad)| Step::TouchEndpoints(it, bad)),
        1 => (0..CLUSTERS).prop_map(Step::DropEndpoints),
        3 => (0..HOSTS).prop_map(Step::Want),
        1 => (0..HOSTS).prop_map(Step::Drop),
        8 => Just(Step::Up),
        8 => Just(Step::Down),
        1 => Just(Step::Repeat),
        1 => Just(Step::RepeatDown),
        1 => Just(Step::Disconnect),
        2 => Just(Step::Connect),
    ]
}

/// What the sidecar makes of updates: versions by name, and where each virtual host leads.
#[derive(Default)]
struct Sidecar {
    held: BTreeMap<Key, Arc<str>>,
    targets: BTreeMap<String, BTreeSet<String>>,
}

struct Pair {
    world: World,
    options: Options,
    wildcard: bool,
    client: Client,
    sidecar: Sidecar,
    server: Option<DeltaSession>,
    up: VecDeque<DeltaDiscoveryRequest>,
    down: VecDeque<DeltaDiscoveryResponse>,
    last_up: Option<DeltaDiscoveryRequest>,
    last_down: Option<DeltaDiscoveryResponse>,
    wanted: BTreeSet<usize>,
}

impl Pair {
    fn new(wildcard: bool, max_bytes: usize) -> Self {
        let mut client = Client::new(Node { id: "default/web/1".into(), ..Node::default() });
        if wildcard {
            client.subscribe(ResourceType::Cluster, "*");
        }
        Self {
            world: World::default(),
            options: Options { max_bytes, ..Options::default() },
            wildcard,
            client,
            sidecar: Sidecar::default(),
            server: None,
            up: VecDeque::new(),
            down: VecDeque::new(),
            last_up: None,
            last_down: None,
            wanted: BTreeSet::new(),
        }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Retarget { host, cluster, bad } => self.change(|it| it.retarget(*host, *cluster, *bad)),
            Step::RemoveHost(host) => self.change(|it| it.remove_host(*host)),
            Step::TouchCluster(it, bad) => self.change(|world| world.touch_cluster(*it, *bad)),
            Step::TouchEndpoints(it, bad) => self.change(|world| world.touch_endpoints(*it, *bad)),
            Step::DropEndpoints(it) => self.change(|world| world.drop_endpoints(*it)),
            Step::Want(it) => {
                self.wanted.insert(*it);
                self.client.subscribe(ResourceType::VirtualHost, &host(*it));
            }
            Step::Drop(it) => {
                self.wanted.remove(it);
                self.client.unsubscribe(ResourceType::VirtualHost, &host(*it));
                self.sidecar.held.remove(&(ResourceType::VirtualHost, host(*it)));
                self.sidecar.targets.remove(&host(*it));
                self.follow();
            }
            Step::Up => self.up(),
            Step::Down => self.down(),
            Step::Repeat => {
                // Only answers may be repeated: a repeated subscription would be another subscription.
                if let (Some(server), Some(last)) = (&mut self.server, &self.last_up)
                    && last.resource_names_subscribe.is_empty()
                    && last.resource_names_unsubscribe.is_empty()
                {
                    server.on_request(last.clone()).unwrap();
                }
            }
            Step::RepeatDown => {
                if let (true, Some(last)) = (self.client.is_connected(), self.last_down.clone()) {
                    let ty = ResourceType::from_url(&last.type_url).unwrap();
                    let held = |name: &str| self.client.version(ty, name).map(|it| it.to_string());
                    let stale = last.resources.iter().any(|it| held(&it.name).as_ref() != Some(&it.version));
                    // What is held may come again; what was let go of since would be a message of the past, and a
                    // stream delivers none.
                    if !stale && last.removed_resources.is_empty() {
                        self.receive(last);
                    }
                }
            }
            Step::Disconnect => self.disconnect(),
            Step::Connect => self.connect(),
        }
        self.respond();
    }

    fn change(&mut self, change: impl FnOnce(&mut World) -> Vec<Key>) {
        let dirty = change(&mut self.world);
        if let Some(server) = &mut self.server {
            for (ty, name) in &dirty {
                server.dirty(*ty, [name.as_str()]);
            }
        }
    }

    fn connect(&mut self) {
        if self.server.is_none() {
            self.server = Some(DeltaSession::new(self.options.clone()));
            self.up = self.client.on_connected().into();
        }
    }

    fn disconnect(&mut self) {
        self.server = None;
        self.client.on_disconnected();
        self.up.clear();
        self.down.clear();
        self.last_up = None;
        self.last_down = None;
    }

    fn up(&mut self) {
        self.up.extend(std::iter::from_fn(|| self.client.next_request()));
        if let (Some(server), Some(request)) = (&mut self.server, self.up.pop_front()) {
            self.last_up = Some(request.clone());
            server.on_request(request).unwrap();
        }
    }

    fn respond(&mut self) {
        if let Some(server) = &mut self.server {
            self.down.extend(std::iter::from_fn(|| server.next_response(&self.world)));
        }
    }

    fn down(&mut self) {
        if let Some(response) = self.down.pop_front() {
            self.last_down = Some(response.clone());
            self.receive(response);
        }
    }

    fn receive(&mut self, response: DeltaDiscoveryResponse) {
        for update in self.client.on_response(response) {
            let key = (update.ty, update.name.to_string());
            match update.change {
                Change::Set { decoded, version, .. } => {
                    assert!(!self.world.poison.contains(&version_hash(&version)), "{key:?} is bad and was taken");
                    if let Decoded::VirtualHost(it) = &decoded {
                        self.sidecar.targets.insert(key.1.clone(), targets(it));
                    }
                    self.sidecar.held.insert(key, version);
                }
                Change::Removed => {
                    let held = self.sidecar.held.remove(&key).is_some();
                    if held && update.ty == ResourceType::Cluster {
                        let users: Vec<_> = self.sidecar.targets.iter().filter(|(_, it)| it.contains(&key.1)).collect();
                        assert!(users.is_empty(), "{} was removed while {users:?} leads to it", key.1);
                    }
                    self.sidecar.targets.remove(&key.1);
                }
                Change::Rejected { version, .. } => {
                    assert!(self.world.poison.contains(&version_hash(&version)), "{key:?} is good and was refused");
                }
            }
        }
        self.follow();
    }

    /// The sidecar subscribes to the clusters and endpoints of the virtual hosts that it holds.
    fn follow(&mut self) {
        let needed: BTreeSet<String> = self.sidecar.targets.values().flatten().cloned().collect();
        for index in 0..CLUSTERS {
            let name = cluster(index);
            let mut types = vec![ResourceType::Endpoints];
            if !self.wildcard {
                types.push(ResourceType::Cluster);
            }
            for ty in types {
                match (needed.contains(&name), self.client.is_subscribed(ty, &name)) {
                    (true, false) => self.client.subscribe(ty, &name),
                    (false, true) => {
                        self.client.unsubscribe(ty, &name);
                        self.sidecar.held.remove(&(ty, name.clone()));
                    }
                    _ => {}
                }
            }
        }
    }

    fn settle(&mut self) {
        self.connect();
        for _ in 0..2000 {
            self.up();
            self.respond();
            self.down();
            self.up.extend(std::iter::from_fn(|| self.client.next_request()));
            if self.up.is_empty() && self.down.is_empty() {
                return;
            }
        }
        panic!("the two never come to rest");
    }

    /// What the client should hold: what exists of what it wants.
    fn check(&self, exact: bool) {
        let server = self.server.as_ref().unwrap();
        for ty in [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::VirtualHost] {
            let names: BTreeSet<String> = match (ty, self.wildcard) {
                (ResourceType::VirtualHost, _) => (0..HOSTS).map(host).collect(),
                _ => (0..CLUSTERS).map(cluster).collect(),
            };
            for name in names {
                let all = self.wildcard && ty == ResourceType::Cluster;
                let wanted = all || self.client.is_subscribed(ty, &name);
                let key = (ty, name);
                let held = self.sidecar.held.get(&key).map(|it| version_hash(it));
                let there = self.world.get(ty, &key.1).map(|it| it.hash).filter(|_| wanted);
                if exact {
                    assert_eq!(held, there, "{key:?}");
                } else if there.is_some() && !self.world.bad.contains(&key) {
                    assert_eq!(held, there, "{key:?}, which is good, was held up");
                }
                assert_eq!(
                    held,
                    self.client.version(ty, &key.1).map(|it| version_hash(it)),
                    "{key:?}: the client differs"
                );
            }
            let client: Vec<_> = self.client.held(ty).map(|(name, it)| (&**name, version_hash(it))).collect();
            assert_eq!(
                digest(client),
                digest(server.held(ty).map(|(name, it)| (&**name, it))),
                "{ty}: the two disagree on what the client holds"
            );
        }
    }
}

fn targets(host: &weft_xds::resource::VirtualHost) -> BTreeSet<String> {
    let forward = host.routes.iter().filter_map(|it| match &it.action {
        RouteAction::Forward(it) => Some(it),
        RouteAction::Redirect(_) | RouteAction::Respond { .. } => None,
    });
    forward.flat_map(|it| &it.clusters).map(|it| it.name.to_string()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_client_ends_up_with_the_servers_view(
        steps in prop::collection::vec(step(), 1..120),
        wildcard in any::<bool>(),
        max_bytes in prop_oneof![Just(1usize), Just(1 << 20)],
    ) {
        let mut pair = Pair::new(wildcard, max_bytes);
        for step in &steps {
            pair.apply(step);
        }
        pair.settle();
        pair.check(false);
        pair.change(World::repair);
        pair.respond();
        pair.settle();
        pair.check(true);
        prop_assert!(pair.server.as_ref().unwrap().acked_all());
        prop_assert!(pair.server.as_ref().unwrap().status().iter().all(|it| it.nacks.is_empty()));
    }
}
