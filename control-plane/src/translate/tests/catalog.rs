//! The cache: nothing is encoded twice, nothing stale is kept, and what everybody gets is the same everywhere.

use std::{collections::BTreeSet, sync::Arc};

use weft_xds::resource::ResourceType;

use super::{SHOP, WORKLOADS, client, register, world};
use crate::{
    index::{Dirty, ServiceKey, World},
    translate::{Catalog, Client, Source},
};

const NAMES: [(ResourceType, &str); 8] = [
    (ResourceType::Cluster, "default/orders:80"),
    (ResourceType::Cluster, "default/orders-v2:80"),
    (ResourceType::Endpoints, "default/orders:80"),
    (ResourceType::Endpoints, "default/inventory:9000"),
    (ResourceType::Secret, "ROOTCA"),
    (ResourceType::Listener, "inbound"),
    (ResourceType::VirtualHost, "outbound/orders.default:80"),
    (ResourceType::VirtualHost, "outbound/inventory.default:9000"),
];

fn sidecar() -> Client {
    client("weft-sidecar", "default/frontend/1", &[])
}

fn versions(catalog: &Catalog) -> Vec<Arc<str>> {
    NAMES.iter().map(|(ty, name)| catalog.get(&sidecar(), *ty, name).unwrap().version.clone()).collect()
}

fn encoded(catalog: &Catalog) -> u64 {
    ResourceType::ALL.iter().map(|ty| catalog.encoded(*ty)).sum()
}

fn next(catalog: &Catalog, change: impl FnOnce(&mut World)) -> Arc<World> {
    let mut world = (*catalog.world()).clone();
    world.generation += 1;
    change(&mut world);
    Arc::new(world)
}

#[test]
fn the_same_world_has_the_same_versions_whatever_the_order() {
    let documents: Vec<&str> = SHOP.split("---\n").collect();
    let backwards: Vec<&str> = documents.iter().rev().copied().collect();
    let mut workloads = WORKLOADS;
    workloads.reverse();
    let one = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    let other = Catalog::new(Arc::new(world(&backwards.join("---\n"), &workloads)));
    assert_eq!(versions(&one), versions(&other));
}

#[test]
fn each_resource_is_encoded_once_for_all_clients_of_a_kind() {
    let catalog = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    let first = versions(&catalog);
    let count = encoded(&catalog);
    assert_eq!(count, NAMES.len() as u64);
    for instance in ["default/frontend/2", "default/frontend/3"] {
        let client = client("weft-sidecar", instance, &[]);
        for (ty, name) in NAMES {
            let again = catalog.get(&client, ty, name).unwrap();
            assert!(Arc::ptr_eq(&again, &catalog.get(&sidecar(), ty, name).unwrap()), "{ty} {name}");
        }
    }
    assert_eq!((versions(&catalog), encoded(&catalog)), (first, count));
}

#[test]
fn an_endpoint_that_comes_costs_one_encoding() {
    let catalog = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    let before = versions(&catalog);
    let count = encoded(&catalog);
    let orders = ServiceKey::new("default", "orders");
    let world = next(&catalog, |world| register(world, "default/orders/4", "v1", "10.0.0.14"));
    let changes = catalog.update(world, Some(&BTreeSet::from([Dirty::Endpoints(orders.clone())])));
    assert!(!changes.everything);
    let addresses = ["10.0.0.14:8080", "10.0.0.14:9000"].map(|address| Source::Address(address.parse().unwrap()));
    assert_eq!(changes.sources, BTreeSet::from([Source::Endpoints(orders)]).into_iter().chain(addresses).collect());
    assert!(changes.clusters.is_empty());
    let after = versions(&catalog);
    assert_eq!(encoded(&catalog), count + 1);
    let changed: Vec<_> =
        (0..NAMES.len()).filter(|index| before[*index] != after[*index]).map(|index| NAMES[index]).collect();
    assert_eq!(changed, [(ResourceType::Endpoints, "default/orders:80")]);
}

#[test]
fn a_new_identity_changes_the_cluster_too() {
    let catalog = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    let inventory = ServiceKey::new("default", "inventory");
    let world = next(&catalog, |world| {
        let entry = world.services.get_mut(&inventory).unwrap();
        let mut endpoints = entry.endpoints.to_vec();
        endpoints[0].identity = Some(super::id("default", "warehouse"));
        let with = |endpoints: Vec<_>| crate::index::ServiceEntry {
            service: entry.service.clone(),
            implicit: false,
            revision: 7,
            endpoints: endpoints.into(),
            accounts: entry.accounts.clone(),
            owners: entry.owners.clone(),
        };
        *entry = Arc::new(with(endpoints));
    });
    let changes = catalog.update(world, Some(&BTreeSet::from([Dirty::Endpoints(inventory.clone())])));
    assert!(changes.sources.contains(&Source::Cluster(inventory)));
    assert_eq!(changes.clusters, BTreeSet::from(["default/inventory:9000".into()]));
}

#[test]
fn what_an_address_stands_for_is_told_when_it_changes() {
    let catalog = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    let get = |address: &str| catalog.get(&sidecar(), ResourceType::VirtualHost, &format!("outbound/{address}"));
    let source = |address: &str| Source::Address(address.parse().unwrap());
    let neighbour = get("10.0.0.11:8080").unwrap();
    assert!(get("10.0.0.14:8080").is_none());
    let orders = ServiceKey::new("default", "orders");
    let world = next(&catalog, |world| register(world, "default/orders/4", "v1", "10.0.0.14"));
    let changes = catalog.update(world, Some(&BTreeSet::from([Dirty::Endpoints(orders.clone())])));
    assert!(
        changes.sources.contains(&source("10.0.0.14:8080")) && !changes.sources.contains(&source("10.0.0.11:8080"))
    );
    assert!(get("10.0.0.14:8080").is_some());
    assert!(Arc::ptr_eq(&get("10.0.0.11:8080").unwrap(), &neighbour));
    // Its policy may say how long calls take.
    let changes = catalog.update(next(&catalog, |_| {}), Some(&BTreeSet::from([Dirty::Service(orders)])));
    assert!(changes.sources.contains(&source("10.0.0.11:8080")));
}

#[test]
fn a_service_that_goes_changes_the_routes_that_lead_to_it() {
    let catalog = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    let before = versions(&catalog);
    let v2 = ServiceKey::new("default", "orders-v2");
    let world = next(&catalog, |world| {
        world.services.remove_mut(&v2);
    });
    let changes = catalog.update(world, Some(&BTreeSet::from([Dirty::Service(v2)])));
    assert!(changes.sources.contains(&Source::Config(ServiceKey::new("default", "orders"))));
    let route = catalog.get(&sidecar(), ResourceType::VirtualHost, "outbound/orders.default:80").unwrap();
    assert_ne!(route.version, before[6]);
    assert!(catalog.get(&sidecar(), ResourceType::Cluster, "default/orders-v2:80").is_none());
    assert_eq!(
        catalog.get(&sidecar(), ResourceType::VirtualHost, "outbound/inventory.default:9000").unwrap().version,
        before[7]
    );
}

#[test]
fn a_selected_workload_that_comes_changes_its_own_listener() {
    let v1_only: Vec<_> = WORKLOADS.iter().copied().filter(|(_, version, _)| *version == "v1").collect();
    let catalog = Catalog::new(Arc::new(world(SHOP, &v1_only)));
    let orders = client("weft-sidecar", "default/orders/1", &[]);
    let before = catalog.get(&orders, ResourceType::Listener, "inbound").unwrap();
    let world = next(&catalog, |world| register(world, "default/orders/3", "v2", "10.0.0.13"));
    let dirty = ["orders", "orders-v2"].map(|name| Dirty::Endpoints(ServiceKey::new("default", name)));
    let changes = catalog.update(world, Some(&BTreeSet::from(dirty)));
    assert!(changes.sources.contains(&Source::Config(ServiceKey::new("default", "orders"))));
    assert_ne!(catalog.get(&orders, ResourceType::Listener, "inbound").unwrap().version, before.version);
}

#[test]
fn kinds_of_clients_do_not_share_what_differs() {
    let catalog = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    let agents = ["weft-sidecar", "envoy", "gRPC C-core"].map(|agent| client(agent, "default/frontend/1", &[]));
    let of = |ty, name: &str| -> BTreeSet<Arc<str>> {
        agents.iter().map(|client| catalog.get(client, ty, name).unwrap().version.clone()).collect()
    };
    assert_eq!(of(ResourceType::Cluster, "default/orders:80").len(), 2, "gRPC finds its certificate elsewhere");
    let listeners = agents.iter().map(|client| {
        let name = if client.agent.starts_with("gRPC") { "orders:80" } else { "outbound" };
        catalog.get(client, ResourceType::Listener, name).unwrap().any.value.clone()
    });
    assert_eq!(listeners.collect::<BTreeSet<_>>().len(), 3, "only ours is told of egress");
    assert_eq!(of(ResourceType::Endpoints, "default/orders:80").len(), 1);
    assert_eq!(of(ResourceType::Secret, "ROOTCA").len(), 1);
}

#[test]
fn a_mesh_change_and_lost_changes_spare_nothing() {
    let catalog = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    versions(&catalog);
    let count = encoded(&catalog);
    assert!(catalog.update(next(&catalog, |_| {}), Some(&BTreeSet::from([Dirty::Mesh]))).everything);
    versions(&catalog);
    assert_eq!(encoded(&catalog), 2 * count);
    assert!(catalog.update(next(&catalog, |_| {}), None).everything);
    versions(&catalog);
    assert_eq!(encoded(&catalog), 3 * count);
}
