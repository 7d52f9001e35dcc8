//! The fold against what it should come to: whatever the order of changes, the world is the one that a restart would make,
//! and nothing differs that was not marked dirty.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use proptest::prelude::*;
use weft_identity::{SpiffeId, TrustBundle, TrustDomain, ca::Authority};
use weft_model::{Kind, ResourceKey};
use weft_xds::resource::Health;

use super::*;
use crate::store::{Entry, Event, Log, Meta};

fn bundle() -> Arc<TrustBundle> {
    static BUNDLE: std::sync::OnceLock<Arc<TrustBundle>> = std::sync::OnceLock::new();
    let make = || {
        let domain = TrustDomain::parse("weft.local").unwrap();
        Arc::new(Authority::create(domain, SystemTime::now()).unwrap().bundle())
    };
    BUNDLE.get_or_init(make).clone()
}

fn documents(yaml: &str) -> Vec<Event> {
    let parsed = weft_model::parse("test.yaml", yaml.as_bytes(), "default");
    assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
    parsed.documents.iter().map(|document| write(&document.resource)).collect()
}

fn entry(revision: u64, events: Vec<Event>) -> Entry {
    Entry { revision, meta: Meta { author: "a".into(), message: String::new(), time_ms: 0 }, events }
}

fn workload(service: &str, instance: u8, version: &str) -> Arc<WorkloadEntry> {
    let labels = [("weft.mesh/service", service), ("version", version)];
    Arc::new(WorkloadEntry {
        id: format!("default/{service}/{instance}").into(),
        service: ServiceKey::new("default", service),
        identity: SpiffeId::new(bundle().trust_domain(), "default", service).unwrap(),
        address: ([10, 0, 0, instance], 15006).into(),
        ports: vec![WorkloadPort { name: "".into(), port: 8080, protocol: "http".into(), app: 8080 }],
        weight: 1,
        labels: Arc::new(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
        region: "".into(),
        zone: "".into(),
        health: Health::Healthy,
    })
}

fn service(name: &str, selector: &str) -> String {
    let selector = if selector.is_empty() { String::new() } else { format!(", selector: {{ {selector} }}") };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\nspec: {{ ports: [{{ port: 8080 }}]{selector} }}\n"
    )
}

fn addresses(world: &World, name: &str) -> Vec<String> {
    let entry = &world.services[&ServiceKey::new("default", name)];
    entry.endpoints.iter().map(|endpoint| endpoint.address(8080).unwrap().to_string()).collect()
}

#[test]
fn workloads_make_services_and_selectors_pick_among_them() {
    let mut fold = Fold::new(&bundle());
    for instance in 1..=4 {
        let version = if instance >= 3 { "v2" } else { "v1" };
        let workload = workload("orders", instance, version);
        fold.workload(&workload.id.clone(), Some(workload));
    }
    let (world, _) = fold.publish();
    assert!(world.services[&ServiceKey::new("default", "orders")].implicit);
    assert_eq!(addresses(&world, "orders").len(), 4);

    fold.apply(&entry(1, documents(&service("orders-v2", "weft.mesh/service: orders, version: v2")))).unwrap();
    let (world, dirty) = fold.publish();
    assert_eq!(addresses(&world, "orders-v2"), ["10.0.0.3:15006", "10.0.0.4:15006"]);
    assert_eq!(dirty, [Dirty::Service(ServiceKey::new("default", "orders-v2"))].into());

    let gone = workload("orders", 3, "v2");
    fold.workload(&gone.id, None);
    let (world, dirty) = fold.publish();
    assert_eq!(addresses(&world, "orders-v2"), ["10.0.0.4:15006"]);
    let endpoints = ["orders", "orders-v2"].map(|name| Dirty::Endpoints(ServiceKey::new("default", name)));
    assert_eq!(dirty, endpoints.into(), "an endpoint change touches endpoints and nothing else");
}

/// What an address stands for: service, port, the endpoint that is meant.
fn meant(world: &World, address: &str) -> Option<(String, u16, Option<String>)> {
    let place = world.at(address.parse().unwrap())?;
    Some((place.service.to_string(), place.port, place.endpoint.map(|endpoint| endpoint.to_string())))
}

#[test]
fn an_address_stands_for_its_service_or_for_one_endpoint() {
    let mut fold = Fold::new(&bundle());
    let mut one = workload("orders", 1, "v1");
    let ports = [(80, 8080), (9000, 9000)];
    let port = |(port, app)| WorkloadPort { name: format!("p{port}").into(), port, protocol: "".into(), app };
    Arc::make_mut(&mut one).ports = ports.map(port).into();
    // Another workload at the same address, behind a sidecar of its own.
    let mut neighbour = workload("stock", 1, "v1");
    Arc::make_mut(&mut neighbour).address.set_port(15106);
    for workload in [&one, &neighbour] {
        fold.workload(&workload.id.clone(), Some(workload.clone()));
    }
    let (world, _) = fold.publish();
    let orders = |port| Some(("default/orders".to_owned(), port, Some("10.0.0.1:15006".to_owned())));
    // Both applications say 8080: the first by name, whichever registered first.
    assert_eq!(meant(&world, "10.0.0.1:8080"), orders(80));
    assert_eq!(meant(&world, "10.0.0.1:9000"), orders(9000));
    assert_eq!(meant(&world, "10.0.0.1:80"), None, "nobody listens there");
    assert_eq!(meant(&world, "10.0.0.1:15006"), None, "sidecars are called by sidecars");

    fold.workload(&one.id, None);
    let (world, _) = fold.publish();
    let stock = Some(("default/stock".to_owned(), 8080, Some("10.0.0.1:15106".to_owned())));
    assert_eq!(meant(&world, "10.0.0.1:8080"), stock);
    assert_eq!(meant(&world, "10.0.0.1:9000"), None);

    let virtual_ips = "apiVersion: v1\nkind: Service\nmetadata: { name: stock }\nspec:\n  clusterIP: 10.96.0.7\n  \
                       clusterIPs: [10.96.0.7, 'fd00::7']\n  ports: [{ port: 8080 }]\n";
    fold.apply(&entry(1, documents(virtual_ips))).unwrap();
    let (world, _) = fold.publish();
    for address in ["10.96.0.7:8080", "[fd00::7]:8080"] {
        assert_eq!(meant(&world, address), Some(("default/stock".to_owned(), 8080, None)), "{address}");
    }
    assert_eq!(meant(&world, "10.0.0.1:8080"), stock, "its endpoints' addresses stay");

    fold.apply(&entry(2, documents(&virtual_ips.replace("10.96.0.7", "None")))).unwrap();
    let (world, _) = fold.publish();
    assert_eq!(meant(&world, "10.96.0.7:8080"), None);
    assert!(meant(&world, "[fd00::7]:8080").is_some());
}

#[test]
fn a_workload_is_meant_in_its_own_service_before_those_that_select_it() {
    let mut fold = Fold::new(&bundle());
    fold.apply(&entry(1, documents(&service("a-selection", "version: v1")))).unwrap();
    let one = workload("orders", 1, "v1");
    fold.workload(&one.id.clone(), Some(one.clone()));
    let (world, _) = fold.publish();
    assert_eq!(meant(&world, "10.0.0.1:8080").unwrap().0, "default/orders");
    assert_eq!(world.addresses[&"10.0.0.1:8080".parse().unwrap()].len(), 2);
    fold.workload(&one.id, None);
    assert!(fold.world().addresses.is_empty());
}

#[test]
fn a_service_whose_last_workload_left_is_still_known() {
    let mut fold = Fold::new(&bundle());
    let only = workload("orders", 1, "v1");
    fold.workload(&only.id.clone(), Some(only.clone()));
    fold.publish();
    fold.workload(&only.id, None);
    let (world, dirty) = fold.publish();
    assert!(addresses(&world, "orders").is_empty());
    assert_eq!(dirty, [Dirty::Endpoints(ServiceKey::new("default", "orders"))].into());
}

#[test]
fn draining_workloads_get_no_traffic() {
    let mut fold = Fold::new(&bundle());
    let mut leaving = workload("orders", 1, "v1");
    Arc::make_mut(&mut leaving).health = Health::Draining;
    fold.workload(&leaving.id.clone(), Some(leaving));
    let (world, _) = fold.publish();
    assert!(addresses(&world, "orders").is_empty());
}

#[test]
fn static_addresses_join_registered_ones() {
    let mut fold = Fold::new(&bundle());
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: orders-1\n  labels: { \
                 kubernetes.io/service-name: orders }\naddressType: IPv4\nports: [{ port: 9000 }]\nendpoints:\n- \
                 addresses: [192.0.2.1]\n  hostname: orders-0\n- addresses: [192.0.2.2]\n  conditions: { ready: false }\n- addresses: \
                 [192.0.2.3]\n  conditions: { terminating: true }\n";
    fold.apply(&entry(1, documents(&service("orders", "")))).unwrap();
    fold.publish();
    fold.apply(&entry(2, documents(slice))).unwrap();
    let own = workload("orders", 1, "v1");
    fold.workload(&own.id.clone(), Some(own));
    let (world, dirty) = fold.publish();
    assert_eq!(addresses(&world, "orders"), ["10.0.0.1:15006", "192.0.2.1:9000", "192.0.2.2:9000"]);
    let endpoints = &world.services[&ServiceKey::new("default", "orders")].endpoints;
    assert!(endpoints[0].identity.is_some() && endpoints[1].identity.is_none());
    assert_eq!(endpoints[2].health, Health::Unhealthy);
    assert_eq!((endpoints[1].hostname(), endpoints[2].hostname()), (Some("orders-0"), None));
    assert_eq!(dirty, [Dirty::Endpoints(ServiceKey::new("default", "orders"))].into());
}

#[test]
fn routes_and_policies_touch_the_services_they_are_for() {
    let mut fold = Fold::new(&bundle());
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: split }\nspec:\n  \
                 parentRefs: [{ group: '', kind: Service, name: orders }]\n  rules: [{ backendRefs: [{ name: orders-v2, \
                 port: 8080 }] }]\n";
    let policy = "apiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: { name: split }\nspec:\n  targetRefs: \
                  [{ kind: HTTPRoute, name: split }]\n  timeouts: { request: 1s }\n";
    let orders = || [Dirty::Service(ServiceKey::new("default", "orders"))];
    fold.apply(&entry(1, documents(route))).unwrap();
    assert_eq!(fold.publish().1, orders().into());
    fold.apply(&entry(2, documents(policy))).unwrap();
    assert_eq!(fold.publish().1, orders().into(), "by way of the route");
    fold.apply(&entry(3, documents(&service("orders-v2", "")))).unwrap();
    let backend = Dirty::Service(ServiceKey::new("default", "orders-v2"));
    assert_eq!(fold.publish().1, orders().into_iter().chain([backend]).collect(), "a backend that came");
}

#[test]
fn who_may_act_as_a_service() {
    let mut fold = Fold::new(&bundle());
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: { name: orders, annotations: { weft.mesh/service-accounts: \
                'batch, cron' } }\nspec: { ports: [{ port: 8080 }] }\n";
    fold.apply(&entry(1, documents(yaml))).unwrap();
    let (world, _) = fold.publish();
    let orders = ServiceKey::new("default", "orders");
    let may = |namespace: &str, account: &str| {
        let id = SpiffeId::new(bundle().trust_domain(), namespace, account).unwrap();
        world.may_act_as(&id, &orders)
    };
    assert!(may("default", "orders") && may("default", "batch") && may("default", "cron"));
    assert!(!may("default", "frontend") && !may("shop", "orders"));
    let foreign = SpiffeId::new(&TrustDomain::parse("other.example").unwrap(), "default", "orders").unwrap();
    assert!(!world.may_act_as(&foreign, &orders));
    assert_eq!(world.services[&orders].accounts.len(), 3);
}

#[derive(Debug, Clone)]
enum Op {
    Declare(u8, Option<u8>),
    Slice(u8, u8),
    DropService(u8),
    DropSlice(u8),
    Come(u8, u8, bool),
    Go(u8, u8),
    Publish,
}

fn op() -> impl Strategy<Value = Op> {
    let name = 0u8..3;
    prop_oneof![
        (name.clone(), prop::option::of(0u8..2)).prop_map(|(name, selector)| Op::Declare(name, selector)),
        (name.clone(), 1u8..4).prop_map(|(name, address)| Op::Slice(name, address)),
        name.clone().prop_map(Op::DropService),
        name.clone().prop_map(Op::DropSlice),
        (name.clone(), 1u8..4, any::<bool>()).prop_map(|(name, instance, v1)| Op::Come(name, instance, v1)),
        (name, 1u8..4).prop_map(|(name, instance)| Op::Go(name, instance)),
        Just(Op::Publish),
    ]
}

/// What translation sees of a service.
type Seen = (bool, Vec<EndpointEntry>, Vec<SpiffeId>, u64);

fn seen(world: &World) -> BTreeMap<ServiceKey, Seen> {
    let see =
        |entry: &Arc<ServiceEntry>| (entry.implicit, entry.endpoints.to_vec(), entry.accounts.to_vec(), entry.revision);
    world.services.iter().map(|(key, entry)| (key.clone(), see(entry))).collect()
}

proptest! {
    #[test]
    fn the_fold_comes_to_what_a_restart_makes(ops in prop::collection::vec(op(), 1..60)) {
        let mut fold = Fold::new(&bundle());
        let mut entries: Vec<Entry> = Vec::new();
        let mut workloads: BTreeMap<Arc<str>, Arc<WorkloadEntry>> = BTreeMap::new();
        let mut published = seen(fold.world());
        for op in ops {
            let events = match op {
                Op::Declare(name, selector) => {
                    let selector = selector.map_or(String::new(), |version| format!("version: v{version}"));
                    documents(&service(&format!("s{name}"), &selector))
                }
                Op::Slice(name, address) => documents(&format!(
                    "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{ name: e{name}, labels: {{ \
                     kubernetes.io/service-name: s{name} }} }}\naddressType: IPv4\nports: [{{ port: 9000 }}]\n\
                     endpoints: [{{ addresses: [192.0.2.{address}] }}]\n"
                )),
                Op::DropService(name) => {
                    vec![Event::Delete { key: ResourceKey::new(Kind::Service, "default", format!("s{name}")) }]
                }
                Op::DropSlice(name) => {
                    vec![Event::Delete { key: ResourceKey::new(Kind::EndpointSlice, "default", format!("e{name}")) }]
                }
                Op::Come(name, instance, first) => {
                    let workload = workload(&format!("s{name}"), instance, if first { "v1" } else { "v0" });
                    workloads.insert(workload.id.clone(), workload.clone());
                    fold.workload(&workload.id.clone(), Some(workload));
                    continue;
                }
                Op::Go(name, instance) => {
                    let id: Arc<str> = format!("default/s{name}/{instance}").into();
                    workloads.remove(&id);
                    fold.workload(&id, None);
                    continue;
                }
                Op::Publish => {
                    let (world, dirty) = fold.publish();
                    let now = seen(&world);
                    let keys: BTreeSet<_> = published.keys().chain(now.keys()).cloned().collect();
                    for key in keys {
                        if published.get(&key) != now.get(&key) {
                            let marked = dirty.contains(&Dirty::Service(key.clone()))
                                || dirty.contains(&Dirty::Endpoints(key.clone()));
                            prop_assert!(marked, "{} changed unmarked", key);
                        }
                    }
                    published = now;
                    continue;
                }
            };
            let entry = entry(entries.len() as u64 + 1, events);
            fold.apply(&entry).unwrap();
            entries.push(entry);
        }
        let log = Log::from_parts(0, BTreeMap::new(), entries);
        let mut restarted = Fold::new(&bundle());
        restarted.reset(&log).unwrap();
        for (id, workload) in &workloads {
            restarted.workload(id, Some(workload.clone()));
        }
        let mut grown = seen(fold.world());
        let fresh = seen(restarted.world());
        let meant = |world: &World| -> Vec<_> {
            world.addresses.iter().map(|(address, places)| (*address, places.to_vec())).collect()
        };
        prop_assert_eq!(meant(fold.world()), meant(restarted.world()));
        // The one thing that a restart forgets: implicit services without workloads.
        grown.retain(|key, (implicit, endpoints, ..)| !*implicit || !endpoints.is_empty() || fresh.contains_key(key));
        prop_assert_eq!(grown, fresh);
    }
}
