use std::net::SocketAddr;

use weft_identity::TrustBundle;

use super::*;
use crate::{
    index::{Dirty, Fold, WorkloadEntry, WorkloadPort, World},
    store::{Entry, Event, Meta},
};

fn fold() -> Fold {
    use weft_identity::{TrustDomain, ca::Authority};
    let now = std::time::SystemTime::now();
    let bundle: TrustBundle = Authority::create(TrustDomain::parse("weft.local").unwrap(), now).unwrap().bundle();
    Fold::new(&bundle).in_cluster()
}

fn resource(yaml: &str) -> Resource {
    let mut parsed = weft_model::parse("test", yaml.as_bytes(), "shop");
    assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
    parsed.documents.remove(0).resource
}

fn declare(fold: &mut Fold, name: &str, selector: &str) {
    let yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\nspec:\n  selector: {{ {selector} }}\n  ports: [{{ \
         name: http, port: 80, targetPort: 8080 }}]\n"
    );
    let resource = resource(&yaml);
    let (key, api_version, yaml) = (resource.key(), resource.api_version().to_owned(), resource.to_yaml());
    let meta = Meta { author: String::new(), message: String::new(), time_ms: 0 };
    let revision = fold.world().revision + 1;
    fold.apply(&Entry { revision, meta, events: vec![Event::Set { key, api_version, yaml }] }).unwrap();
}

fn slice(fold: &mut Fold, service: &str, endpoints: &[(&str, bool)]) {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|(ip, ready)| format!("{{ addresses: [{ip}], conditions: {{ ready: {ready} }} }}"))
        .collect();
    let yaml = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{ name: {service}-1, labels: {{ \
         kubernetes.io/service-name: {service} }} }}\naddressType: IPv4\nports: [{{ name: http, port: 8080 }}]\n\
         endpoints: [{}]\n",
        endpoints.join(", ")
    );
    let Resource::EndpointSlice(slice) = resource(&yaml) else { panic!() };
    fold.slice(&ObjectKey::new("shop", format!("{service}-1")), Some(slice));
}

fn pod(fold: &mut Fold, name: &str, ip: &str, account: &str, inbound: Option<u16>) {
    let pod = PodEntry {
        ips: vec![ip.parse().unwrap()],
        account: account.to_owned(),
        labels: BTreeMap::from([("app".to_owned(), "orders".to_owned())]),
        inbound,
    };
    fold.pod(&ObjectKey::new("shop", name), Some(Arc::new(pod)));
}

fn register(fold: &mut Fold, instance: &str, address: &str, account: &str) -> Arc<WorkloadEntry> {
    let identity = SpiffeId::new(&fold.world().trust_domain.clone(), "shop", account).unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let workload = Arc::new(WorkloadEntry {
        id: format!("shop/orders/{instance}").into(),
        service: ServiceKey::new("shop", "orders"),
        identity,
        address,
        ports: vec![WorkloadPort { name: "http".into(), port: 80, app: 8080, protocol: "http".into() }],
        weight: 1,
        labels: Arc::new(BTreeMap::from([("weft.mesh/service".to_owned(), "orders".to_owned())])),
        region: "".into(),
        zone: "".into(),
        health: Health::Healthy,
    });
    fold.workload(&workload.id.clone(), Some(workload.clone()));
    workload
}

/// Address, account (empty: plain text), healthy.
fn seen(world: &World, service: &str) -> Vec<(String, String, bool)> {
    let Some(entry) = world.services.get(&ServiceKey::new("shop", service)) else { return Vec::new() };
    let one = |endpoint: &EndpointEntry| {
        let account = endpoint.identity.as_ref().map_or("", |identity| identity.account()).to_owned();
        (endpoint.address(80).unwrap().to_string(), account, endpoint.health == Health::Healthy)
    };
    entry.endpoints.iter().map(one).collect()
}

fn is(address: &str, account: &str, healthy: bool) -> (String, String, bool) {
    (address.to_owned(), account.to_owned(), healthy)
}

#[test]
fn an_address_a_pod_and_a_workload_are_one_endpoint() {
    let mut fold = fold();
    declare(&mut fold, "orders", "app: orders");
    slice(&mut fold, "orders", &[("10.0.0.1", true), ("10.0.0.2", true), ("10.0.0.3", false)]);
    assert_eq!(seen(fold.world(), "orders").len(), 3, "nobody has a sidecar");
    // A pod without a sidecar, one whose sidecar has not registered yet, one that has registered.
    pod(&mut fold, "orders-1", "10.0.0.1", "default", None);
    pod(&mut fold, "orders-2", "10.0.0.2", "batch", Some(15006));
    pod(&mut fold, "orders-3", "10.0.0.3", "batch", Some(15006));
    register(&mut fold, "three", "10.0.0.3:20006", "batch");
    let before =
        vec![is("10.0.0.1:8080", "", true), is("10.0.0.2:15006", "batch", true), is("10.0.0.3:20006", "batch", false)];
    assert_eq!(seen(fold.world(), "orders"), before, "the probe of the third fails");
    fold.publish();
    slice(&mut fold, "orders", &[("10.0.0.3", true)]);
    assert_eq!(seen(fold.world(), "orders"), [is("10.0.0.3:20006", "batch", true)]);
    let (_, dirty) = fold.publish();
    assert_eq!(dirty, [Dirty::Endpoints(ServiceKey::new("shop", "orders"))].into());
    // It says that it leaves, before the cluster does.
    let mut leaving = register(&mut fold, "three", "10.0.0.3:20006", "batch");
    Arc::make_mut(&mut leaving).health = Health::Draining;
    fold.workload(&leaving.id.clone(), Some(leaving.clone()));
    assert_eq!(seen(fold.world(), "orders"), []);
    // Its lease ran out, but the pod is there: in mutual TLS, or not at all.
    fold.workload(&leaving.id.clone(), None);
    assert_eq!(seen(fold.world(), "orders"), [is("10.0.0.3:15006", "batch", true)]);
}

#[test]
fn the_order_in_which_they_are_heard_of_makes_no_difference() {
    let steps: [&dyn Fn(&mut Fold); 4] = [
        &|fold| declare(fold, "orders", "app: orders"),
        &|fold| slice(fold, "orders", &[("10.0.0.1", true)]),
        &|fold| pod(fold, "orders-1", "10.0.0.1", "batch", Some(15006)),
        &|fold| drop(register(fold, "one", "10.0.0.1:15006", "batch")),
    ];
    let mut worlds = Vec::new();
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
        let mut fold = fold();
        for step in order {
            steps[step](&mut fold);
        }
        let (world, _) = fold.publish();
        let entry = &world.services[&ServiceKey::new("shop", "orders")];
        worlds.push((entry.endpoints.to_vec(), entry.accounts.to_vec(), entry.owners.to_vec()));
    }
    assert_eq!(worlds[0].0.len(), 1);
    assert!(worlds.iter().all(|world| *world == worlds[0]), "{worlds:#?}");
}

#[test]
fn an_address_is_not_taken_over_by_another_account() {
    let mut fold = fold();
    declare(&mut fold, "orders", "app: orders");
    slice(&mut fold, "orders", &[("10.0.0.1", true)]);
    pod(&mut fold, "orders-1", "10.0.0.1", "batch", Some(15006));
    register(&mut fold, "thief", "10.0.0.1:6666", "mallory");
    assert_eq!(seen(fold.world(), "orders"), [is("10.0.0.1:15006", "batch", true)]);
}

#[test]
fn a_pods_account_may_speak_for_the_services_that_pick_it() {
    let mut fold = fold();
    declare(&mut fold, "orders", "app: orders");
    declare(&mut fold, "other", "app: other");
    pod(&mut fold, "orders-1", "10.0.0.1", "batch", Some(15006));
    let (world, dirty) = fold.publish();
    assert!(dirty.contains(&Dirty::Service(ServiceKey::new("shop", "orders"))));
    let batch = SpiffeId::new(&world.trust_domain, "shop", "batch").unwrap();
    let may = |service: &str| world.may_act_as(&batch, &ServiceKey::new("shop", service));
    assert!(may("orders") && may("batch") && !may("other"));
    fold.pod(&ObjectKey::new("shop", "orders-1"), None);
    let (world, _) = fold.publish();
    assert!(!world.may_act_as(&batch, &ServiceKey::new("shop", "orders")), "the pod is gone");
}

#[test]
fn a_workload_has_its_pods_labels() {
    let mut fold = fold();
    register(&mut fold, "one", "10.0.0.1:15006", "batch");
    pod(&mut fold, "orders-1", "10.0.0.1", "batch", Some(15006));
    let labels = |fold: &Fold| fold.world().workloads.get("shop/orders/one").unwrap().labels.clone();
    assert_eq!((&*labels(&fold)["app"], &*labels(&fold)["weft.mesh/service"]), ("orders", "orders"));
    fold.pod(&ObjectKey::new("shop", "orders-1"), None);
    assert!(!labels(&fold).contains_key("app"));
}

#[test]
fn a_slice_that_goes_takes_its_addresses_along() {
    let mut fold = fold();
    declare(&mut fold, "orders", "app: orders");
    slice(&mut fold, "orders", &[("10.0.0.1", true)]);
    fold.slice(&ObjectKey::new("shop", "orders-1"), None);
    assert_eq!(seen(fold.world(), "orders"), []);
    // The log starts over: what was discovered stays.
    slice(&mut fold, "orders", &[("10.0.0.1", true)]);
    let log = crate::store::Log::default();
    fold.reset(&log).unwrap();
    assert!(fold.world().services.is_empty());
    declare(&mut fold, "orders", "app: orders");
    assert_eq!(seen(fold.world(), "orders").len(), 1);
}
