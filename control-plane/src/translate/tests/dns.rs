//! What DNS is told, as a sidecar understands it.

use std::sync::Arc;

use weft_xds::resource::{Decoded, Encoded, ResourceType, RouteAction, VirtualHost};

use super::{SHOP, decoded, world};
use crate::index::{HOSTNAME, ServiceEntry, ServiceKey, World};

fn fetch(world: &World, name: &str) -> Option<Arc<Encoded>> {
    super::fetch(world, "weft-sidecar", "default/frontend/1", ResourceType::VirtualHost, name)
}

const HEADLESS: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: db, namespace: data }
spec: { clusterIP: None, ports: [{ name: sql, port: 3306 }, { name: tcp-admin, port: 33062 }] }
"#;

fn host(yaml: &str, name: &str) -> VirtualHost {
    match decoded(&world(yaml, &[]), ResourceType::VirtualHost, name) {
        Decoded::VirtualHost(host) => (*host).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_namespaces_are_those_of_services() {
    assert_eq!(host(HEADLESS, "outbound/namespaces").domains, ["data".into()]);
    assert!(fetch(&world("", &[]), "outbound/namespaces").is_none());
}

#[test]
fn a_service_exists_whatever_its_ports() {
    let orders = host(SHOP, "outbound/dns:orders.default");
    assert_eq!(orders.domains, ["orders.default".into()]);
    assert!(orders.routes.is_empty(), "nothing else is fetched");
    for name in ["outbound/dns:nosuch.default", "outbound/dns:orders", "outbound/dns:Orders.default", "outbound/dns:"] {
        assert!(fetch(&world(SHOP, &[]), name).is_none(), "{name}");
    }
}

#[test]
fn a_headless_service_leads_to_its_endpoints() {
    let db = host(HEADLESS, "outbound/dns:db.data");
    let RouteAction::Forward(forward) = &db.routes[0].action else { panic!("{:?}", db.routes) };
    let clusters: Vec<_> = forward.clusters.iter().map(|cluster| &*cluster.name).collect();
    assert_eq!(clusters, ["data/db:3306", "data/db:33062"]);
}

#[test]
fn endpoints_of_a_headless_service_have_their_names() {
    let names = |yaml: &str| {
        let mut world = world(yaml, &[("data/db/1", "v1", "10.0.0.1")]);
        let key = ServiceKey::new("data", "db");
        let entry = &world.services[&key];
        let mut endpoint = entry.endpoints[0].clone();
        endpoint.labels = Arc::new([(HOSTNAME.to_owned(), "db-0".to_owned())].into());
        let named = ServiceEntry {
            service: entry.service.clone(),
            implicit: false,
            revision: 7,
            endpoints: [endpoint].into(),
            accounts: entry.accounts.clone(),
            owners: entry.owners.clone(),
        };
        world.services.insert_mut(key, Arc::new(named));
        match decoded(&world, ResourceType::Endpoints, "data/db:3306") {
            Decoded::Endpoints(endpoints) => {
                endpoints.endpoints.iter().map(|endpoint| endpoint.hostname.to_string()).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(names(HEADLESS), ["db-0"]);
    assert_eq!(names(&HEADLESS.replace("clusterIP: None, ", "")), [""], "nobody asks for it");
}
