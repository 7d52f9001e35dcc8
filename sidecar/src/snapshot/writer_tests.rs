//! The writer's states, step by step.

use proptest::prelude::*;
use weft_xds::resource::{
    Balancer, Endpoint, Forward, HeaderEdits, InboundPort, Limits, Protocol, RetryBudget, Route, RouteMatch,
    WeightedCluster,
};

use super::*;
use crate::demand::Outcome;

const IDLE: Duration = Duration::from_secs(600);

fn routes(authority: &str, clusters: &[&str]) -> Decoded {
    let forward = Forward::to(clusters.iter().map(|name| WeightedCluster::new(*name, 1)).collect());
    let route = Route {
        name: "default".into(),
        matches: RouteMatch::any(),
        action: RouteAction::Forward(Box::new(forward)),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        source: "".into(),
        revision: 1,
    };
    let host = VirtualHost {
        name: authority.into(),
        domains: vec![authority.into()],
        routes: vec![Arc::new(route)],
        endpoint: None,
    };
    Decoded::VirtualHost(Arc::new(host))
}

fn cluster(name: &str, endpoints: &str) -> Decoded {
    Decoded::Cluster(Arc::new(Cluster {
        name: name.into(),
        service: "default/orders".into(),
        port: 80,
        protocol: Protocol::Http,
        endpoints: endpoints.into(),
        balancer: Balancer::LeastRequest,
        connect_timeout: Duration::from_secs(1),
        limits: Limits::default(),
        circuit_breaker: None,
        endpoint_breaker: None,
        retry_budget: RetryBudget::default(),
        pool_idle: Duration::from_secs(60),
        tls: None,
        policy: "".into(),
        panic_percent: 50,
    }))
}

fn endpoints(name: &str, ports: &[u16]) -> Decoded {
    let endpoints = ports.iter().map(|port| Endpoint {
        address: ([127, 0, 0, 1], *port).into(),
        weight: 1,
        health: weft_xds::resource::Health::Healthy,
        priority: 0,
        zone: "".into(),
        identity: None,
        workload: "".into(),
        hostname: "".into(),
    });
    Decoded::Endpoints(Arc::new(Endpoints { cluster: name.into(), endpoints: endpoints.collect() }))
}

/// A writer, the snapshot in force, and what is subscribed to.
struct World {
    writer: Writer,
    now: Instant,
    snapshot: Snapshot,
    subscribed: BTreeSet<(ResourceType, Box<str>)>,
    settled: Vec<Settled>,
}

impl World {
    fn new() -> Self {
        Self {
            writer: Writer::default(),
            now: Instant::now(),
            snapshot: Snapshot::default(),
            subscribed: BTreeSet::new(),
            settled: Vec::new(),
        }
    }

    fn step(&mut self) -> bool {
        let step = self.writer.step(self.now);
        for subscription in step.subscriptions {
            match subscription {
                Subscription::Subscribe(ty, name) => assert!(self.subscribed.insert((ty, name)), "twice"),
                Subscription::Unsubscribe(ty, name) => assert!(self.subscribed.remove(&(ty, name)), "never subscribed"),
            }
        }
        self.settled.extend(step.settled);
        let changed = step.snapshot.is_some();
        if let Some(snapshot) = step.snapshot {
            self.snapshot = snapshot;
        }
        changed
    }

    fn want(&mut self, authority: &str) {
        self.writer.want(authority, self.now);
        self.step();
    }

    fn set(&mut self, name: &str, resource: Decoded) -> bool {
        self.writer.set(name, resource, self.now);
        self.step()
    }

    fn remove(&mut self, ty: ResourceType, name: &str) -> bool {
        self.writer.remove(ty, name, self.now);
        self.step()
    }

    fn subscribed(&self, ty: ResourceType) -> Vec<&str> {
        self.subscribed.iter().filter(|(of, _)| *of == ty).map(|(_, name)| &**name).collect()
    }

    fn live(&self, authority: &str) -> Option<Vec<&str>> {
        self.snapshot.host(authority).map(|routes| clusters_of(routes).collect())
    }

    /// Ports of a cluster's endpoints in force.
    fn ports(&self, cluster: &str) -> Option<Vec<u16>> {
        let upstream = self.snapshot.cluster(cluster)?;
        Some(upstream.endpoints().iter().map(|state| state.address().port()).collect())
    }

    /// `orders` with one endpoint at port 1.
    fn with_orders() -> Self {
        let mut world = Self::new();
        world.want("orders.default:80");
        world.set("outbound/orders.default:80", routes("orders", &["default/orders:80"]));
        world.set("default/orders:80", cluster("default/orders:80", "default/orders:80"));
        world.set("default/orders:80", endpoints("default/orders:80", &[1]));
        world.settled.clear();
        world
    }
}

#[test]
fn a_host_goes_live_with_all_that_it_needs() {
    let mut world = World::new();
    world.want("orders.default:80");
    world.want("orders.default:80");
    assert_eq!(world.subscribed(ResourceType::VirtualHost), ["outbound/orders.default:80"]);
    world.set("outbound/orders.default:80", routes("orders", &["a", "b"]));
    assert_eq!(world.subscribed(ResourceType::Cluster), ["a", "b"]);
    assert_eq!(world.live("orders.default:80"), None);
    world.set("a", cluster("a", "a"));
    world.set("a", endpoints("a", &[1]));
    world.set("b", cluster("b", "b"));
    assert_eq!(world.subscribed(ResourceType::Endpoints), ["a", "b"]);
    assert_eq!(world.live("orders.default:80"), None, "b has no endpoints yet");
    assert!(world.settled.is_empty());
    world.set("b", endpoints("b", &[]));
    assert_eq!(world.live("orders.default:80"), Some(vec!["a", "b"]));
    assert_eq!((world.ports("a"), world.ports("b")), (Some(vec![1]), Some(vec![])));
    assert_eq!(world.settled, [("orders.default:80".into(), Outcome::Live)]);
}

#[test]
fn a_cluster_that_does_not_exist_does_not_hold_up_the_others() {
    let mut world = World::new();
    world.want("orders.default:80");
    world.set("outbound/orders.default:80", routes("orders", &["a", "b"]));
    world.set("a", cluster("a", "a"));
    world.set("a", endpoints("a", &[1]));
    world.remove(ResourceType::Cluster, "b");
    assert!(world.live("orders.default:80").is_some());
    assert_eq!(world.ports("b"), None);
}

#[test]
fn new_routes_wait_for_their_clusters_and_the_old_ones_serve() {
    let mut world = World::with_orders();
    world.set("outbound/orders.default:80", routes("orders", &["default/v2:80"]));
    assert_eq!(world.live("orders.default:80"), Some(vec!["default/orders:80"]), "the old ones");
    assert_eq!(world.ports("default/orders:80"), Some(vec![1]));
    world.set("default/v2:80", cluster("default/v2:80", "default/v2:80"));
    world.set("default/v2:80", endpoints("default/v2:80", &[2]));
    assert_eq!(world.live("orders.default:80"), Some(vec!["default/v2:80"]));
    assert_eq!(world.ports("default/orders:80"), None, "dropped after, not before");
    assert_eq!(world.subscribed(ResourceType::Cluster), ["default/v2:80"]);
    assert_eq!(world.subscribed(ResourceType::Endpoints), ["default/v2:80"]);
}

#[test]
fn a_cluster_keeps_its_endpoints_until_the_new_ones_are_there() {
    let mut world = World::with_orders();
    world.set("default/orders:80", cluster("default/orders:80", "elsewhere"));
    assert_eq!(world.ports("default/orders:80"), Some(vec![1]));
    world.set("elsewhere", endpoints("elsewhere", &[2, 3]));
    assert_eq!(world.ports("default/orders:80"), Some(vec![2, 3]));
}

#[test]
fn empty_only_when_said_so() {
    let mut world = World::with_orders();
    world.set("default/orders:80", cluster("default/orders:80", "default/orders:80"));
    assert_eq!(world.ports("default/orders:80"), Some(vec![1]), "a new version of the cluster alone");
    world.remove(ResourceType::Endpoints, "default/orders:80");
    assert_eq!(world.ports("default/orders:80"), Some(vec![]), "said to be empty");
    world.set("default/orders:80", endpoints("default/orders:80", &[4]));
    assert_eq!(world.ports("default/orders:80"), Some(vec![4]));
}

#[test]
fn equal_endpoints_change_nothing() {
    let mut world = World::with_orders();
    let before = world.snapshot.cluster("default/orders:80").unwrap().clone();
    assert!(!world.set("default/orders:80", endpoints("default/orders:80", &[1])));
    world.want("billing.default:80");
    world.set("outbound/billing.default:80", routes("billing", &["default/orders:80"]));
    assert!(Arc::ptr_eq(&before, world.snapshot.cluster("default/orders:80").unwrap()), "not rebuilt for others' sake");
}

#[test]
fn what_does_not_exist_is_remembered_for_a_while() {
    let mut world = World::new();
    world.want("nobody.default");
    world.remove(ResourceType::VirtualHost, "outbound/nobody.default");
    assert_eq!(world.settled, [("nobody.default".into(), Outcome::NotFound)]);
    assert!(matches!(world.snapshot.virtual_hosts.get("nobody.default"), Some(VhostState::NotFound)));
    world.now += NOT_FOUND_KEPT;
    world.writer.sweep(IDLE, world.now);
    world.step();
    assert!(world.snapshot.virtual_hosts.is_empty() && world.subscribed.is_empty());
}

#[test]
fn one_that_comes_into_being_is_live() {
    let mut world = World::new();
    world.want("late.default");
    world.remove(ResourceType::VirtualHost, "outbound/late.default");
    world.set("outbound/late.default", routes("late", &[]));
    assert_eq!(world.live("late.default"), Some(vec![]));
}

#[test]
fn a_removed_service_is_gone_with_its_clusters() {
    let mut world = World::with_orders();
    world.remove(ResourceType::VirtualHost, "outbound/orders.default:80");
    assert!(matches!(world.snapshot.virtual_hosts.get("orders.default:80"), Some(VhostState::NotFound)));
    assert!(world.snapshot.clusters.is_empty());
    assert_eq!(world.subscribed(ResourceType::VirtualHost), ["outbound/orders.default:80"], "it may come back");
    assert!(world.subscribed(ResourceType::Cluster).is_empty());
}

#[test]
fn the_unused_is_dropped_and_the_used_stays() {
    let mut world = World::with_orders();
    world.want("billing.default:80");
    world.set("outbound/billing.default:80", routes("billing", &["default/orders:80", "default/billing:80"]));
    world.set("default/billing:80", cluster("default/billing:80", "default/billing:80"));
    world.set("default/billing:80", endpoints("default/billing:80", &[9]));
    world.now += IDLE;
    match &world.snapshot.virtual_hosts["orders.default:80"] {
        VhostState::Found(host) => host.used.touch_at(world.now),
        VhostState::NotFound => panic!("orders is live"),
    }
    world.writer.sweep(IDLE, world.now);
    world.step();
    assert_eq!(world.subscribed(ResourceType::VirtualHost), ["outbound/orders.default:80"]);
    assert_eq!(world.subscribed(ResourceType::Cluster), ["default/orders:80"], "shared, still referred to");
    assert!(!world.snapshot.virtual_hosts.contains_key("billing.default:80"));
    assert_eq!(world.ports("default/billing:80"), None);
}

#[test]
fn an_answer_to_what_was_dropped_is_ignored() {
    let mut world = World::new();
    world.want("slow.default");
    world.now += UNANSWERED_KEPT;
    world.writer.sweep(IDLE, world.now);
    world.step();
    assert_eq!(world.settled, [("slow.default".into(), Outcome::Forgotten)]);
    assert!(!world.set("outbound/slow.default", routes("slow", &["a"])));
    assert!(world.subscribed.is_empty());
}

#[test]
fn names_are_bounded() {
    let mut world = World::new();
    for index in 0..demand::MAX_NAMES {
        world.want(&format!("s{index}.default"));
    }
    world.want("one-more.default");
    assert_eq!(world.settled, [("one-more.default".into(), Outcome::TooMany)]);
    assert_eq!(world.subscribed.len(), demand::MAX_NAMES);
}

#[test]
fn addresses_leave_room_for_names() {
    let mut world = World::new();
    for index in 0..demand::MAX_ADDRESSES {
        world.want(&format!("192.0.{}.{}:443", index / 256, index % 256));
    }
    world.want("[2001:db8::1]:443");
    assert_eq!(world.settled, [("[2001:db8::1]:443".into(), Outcome::TooMany)]);
    world.want("orders.default:80");
    assert_eq!(world.subscribed.len(), demand::MAX_ADDRESSES + 1);
}

#[test]
fn inbound_comes_and_goes() {
    let mut world = World::new();
    let port = InboundPort {
        sni: "p80.orders.default.weft".into(),
        service: "default/orders".into(),
        port: 80,
        protocol: Protocol::Http,
        access: Vec::new(),
        request_timeout: None,
    };
    let inbound = ListenerKind::Inbound(Inbound { ports: vec![port], permissive: false });
    world.set("inbound", Decoded::Listener(Arc::new(Listener { name: "inbound".into(), kind: inbound })));
    assert_eq!(world.snapshot.inbound.as_ref().unwrap().ports.len(), 1);
    world.remove(ResourceType::Listener, "inbound");
    assert!(world.snapshot.inbound.is_none());
}

/// What a control plane may do to a sidecar, in any order.
#[derive(Debug, Clone)]
enum Act {
    Want(usize),
    Routes(usize, Vec<usize>),
    NoRoutes(usize),
    Cluster(usize, usize),
    NoCluster(usize),
    Endpoints(usize, Vec<u16>),
    NoEndpoints(usize),
    Sweep(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let index = 0..4usize;
    prop_oneof![
        index.clone().prop_map(Act::Want),
        (index.clone(), proptest::collection::vec(index.clone(), 0..3)).prop_map(|(host, on)| Act::Routes(host, on)),
        index.clone().prop_map(Act::NoRoutes),
        (index.clone(), index.clone()).prop_map(|(cluster, at)| Act::Cluster(cluster, at)),
        index.clone().prop_map(Act::NoCluster),
        (index.clone(), proptest::collection::vec(1..9u16, 0..3)).prop_map(|(at, ports)| Act::Endpoints(at, ports)),
        index.prop_map(Act::NoEndpoints),
        (0..700u64).prop_map(Act::Sweep),
    ]
}

proptest! {
    /// Whatever comes in whatever order: a live host has every cluster that was not said to be missing, and nothing is
    /// subscribed to, or kept, that no host refers to.
    #[test]
    fn any_order(acts in proptest::collection::vec(act(), 0..80)) {
        let mut world = World::new();
        let mut missing = BTreeSet::new();
        let (host, name) = (|i: usize| format!("h{i}.default:80"), |i: usize| format!("c{i}"));
        for act in acts {
            match act {
                Act::Want(i) => world.want(&host(i)),
                Act::Routes(i, on) => {
                    let on: Vec<_> = on.into_iter().map(name).collect();
                    let on: Vec<_> = on.iter().map(String::as_str).collect();
                    world.set(&format!("outbound/{}", host(i)), routes("h", &on));
                }
                Act::NoRoutes(i) => { world.remove(ResourceType::VirtualHost, &format!("outbound/{}", host(i))); }
                Act::Cluster(i, at) => {
                    missing.remove(&name(i));
                    world.set(&name(i), cluster(&name(i), &format!("e{at}")));
                }
                Act::NoCluster(i) => {
                    missing.insert(name(i));
                    world.remove(ResourceType::Cluster, &name(i));
                }
                Act::Endpoints(at, ports) => { world.set(&format!("e{at}"), endpoints(&format!("e{at}"), &ports)); }
                Act::NoEndpoints(at) => { world.remove(ResourceType::Endpoints, &format!("e{at}")); }
                Act::Sweep(seconds) => {
                    world.now += Duration::from_secs(seconds);
                    world.writer.sweep(IDLE, world.now);
                    world.step();
                }
            }
            for (authority, state) in &world.snapshot.virtual_hosts {
                let VhostState::Found(found) = state else { continue };
                for cluster in clusters_of(&found.routes) {
                    prop_assert!(
                        world.snapshot.clusters.contains_key(cluster) || !matches!(world.writer.clusters.get(cluster), Some(Known::Here(_)))
                            || missing.contains(cluster) || waits(&world, cluster),
                        "{} lacks {}", authority, cluster
                    );
                }
            }
            let hosts = world.writer.hosts.len();
            prop_assert_eq!(world.subscribed(ResourceType::VirtualHost).len(), hosts);
            prop_assert_eq!(world.subscribed(ResourceType::Cluster).len(), world.writer.clusters.len());
            prop_assert_eq!(world.subscribed(ResourceType::Endpoints).len(), world.writer.endpoints.len());
            if hosts == 0 {
                prop_assert!(world.snapshot.clusters.is_empty() && world.writer.clusters.is_empty());
            }
        }
    }
}

/// The cluster was missing, is back, and has no endpoints yet.
fn waits(world: &World, name: &str) -> bool {
    match world.writer.clusters.get(name) {
        Some(Known::Here(cluster)) => matches!(world.writer.endpoints.get(&cluster.endpoints), Some(Known::Asked)),
        _ => false,
    }
}
