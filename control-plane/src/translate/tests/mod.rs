//! Translations of whole worlds. What a sidecar gets goes through the sidecar's own decoder.

mod catalog;
mod dns;
mod envoy;
mod grpc;
mod sidecar;

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use weft_identity::{SpiffeId, TrustDomain};
use weft_model::{Mesh, Resource};
use weft_xds::resource::{Decoded, Encoded, Health, ResourceType, decode};

use super::{Catalog, Client};
use crate::index::{
    EndpointEntry, EndpointPort, ServiceEntry, ServiceKey, Versioned, WorkloadEntry, WorkloadPort, World,
};

/// A world of these resources, all of revision 7, in which each workload serves every port of its service, and of the
/// services that select it, at port 15006.
pub(crate) fn world(yaml: &str, workloads: &[(&str, &str, &str)]) -> World {
    let parsed = weft_model::parse("test.yaml", yaml.as_bytes(), "default");
    assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
    let mut world = empty();
    let mut resources: Vec<Resource> = parsed.documents.into_iter().map(|document| document.resource).collect();
    // The order of the input must not matter.
    resources.reverse();
    for resource in resources {
        let key = ServiceKey::new(resource.metadata().namespace.clone(), resource.metadata().name.clone());
        match resource {
            Resource::Service(service) => {
                let accounts = std::iter::once(key.name.clone()).chain(service.service_accounts().map(str::to_owned));
                let accounts: Arc<[SpiffeId]> = accounts.map(|account| id(&key.namespace, &account)).collect();
                let endpoints = Arc::new([]);
                let entry = ServiceEntry {
                    service,
                    revision: 7,
                    implicit: false,
                    endpoints,
                    owners: accounts.clone(),
                    accounts,
                };
                if !entry.service.spec.selector.is_empty() {
                    world.selecting.insert_mut(key.clone());
                }
                world.put(&key, Some(entry));
            }
            Resource::HttpRoute(resource) => {
                world.http_routes.insert_mut(key, Versioned { resource, revision: 7 });
            }
            Resource::GrpcRoute(resource) => {
                world.grpc_routes.insert_mut(key, Versioned { resource, revision: 7 });
            }
            Resource::TrafficPolicy(resource) => {
                world.traffic_policies.insert_mut(key, Versioned { resource, revision: 7 });
            }
            Resource::AccessPolicy(resource) => {
                world.access_policies.insert_mut(key, Versioned { resource, revision: 7 });
            }
            Resource::Mesh(resource) => world.mesh = Versioned { resource, revision: 7 },
            Resource::EndpointSlice(_) => panic!("not in these worlds"),
        }
    }
    for (instance, version, address) in workloads {
        register(&mut world, instance, version, address);
    }
    world
}

fn empty() -> World {
    World {
        revision: 7,
        generation: 1,
        services: crate::index::Map::default(),
        selecting: crate::index::Set::default(),
        addresses: crate::index::Map::default(),
        http_routes: crate::index::Map::default(),
        grpc_routes: crate::index::Map::default(),
        traffic_policies: crate::index::Map::default(),
        access_policies: crate::index::Map::default(),
        mesh: Versioned { resource: Arc::new(Mesh::unset()), revision: 0 },
        workloads: crate::index::Map::default(),
        roots: Arc::new(vec![root()]),
        trust_domain: TrustDomain::parse("weft.local").unwrap(),
    }
}

/// A root certificate.
fn root() -> Vec<u8> {
    use std::sync::OnceLock;
    static ROOT: OnceLock<Vec<u8>> = OnceLock::new();
    ROOT.get_or_init(|| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).unwrap().der().to_vec()
    })
    .clone()
}

pub(crate) fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://weft.local/ns/{namespace}/sa/{account}")).unwrap()
}

/// Adds a workload, `namespace/service/instance`, to every service that it serves.
pub(crate) fn register(world: &mut World, instance: &str, version: &str, address: &str) {
    let mut parts = instance.split('/');
    let service = ServiceKey::new(parts.next().unwrap(), parts.next().unwrap());
    let ip: Ipv4Addr = address.parse().unwrap();
    let labels = Arc::new(BTreeMap::from([
        ("weft.mesh/service".to_owned(), service.name.clone()),
        ("version".to_owned(), version.to_owned()),
    ]));
    let ports = world.services[&service].service.spec.ports.iter();
    let workload = WorkloadEntry {
        id: instance.into(),
        service: service.clone(),
        identity: id(&service.namespace, &service.name),
        address: (ip, 15006).into(),
        ports: ports
            .map(|port| WorkloadPort {
                name: port.name.as_str().into(),
                port: port.port,
                protocol: "".into(),
                app: app(port.port),
            })
            .collect(),
        weight: 1,
        labels: labels.clone(),
        region: "eu".into(),
        zone: "a".into(),
        health: Health::Healthy,
    };
    for (key, entry) in &world.services.clone() {
        let selector = &entry.service.spec.selector;
        let selected = !selector.is_empty() && selector.iter().all(|(name, value)| labels.get(name) == Some(value));
        if key.namespace != service.namespace || !(selected || (*key == service && selector.is_empty())) {
            continue;
        }
        let ports = entry.service.spec.ports.iter();
        let endpoint = EndpointEntry {
            ip: ip.into(),
            ports: ports.map(|port| EndpointPort { service: port.port, target: 15006, app: app(port.port) }).collect(),
            weight: workload.weight,
            health: workload.health,
            region: workload.region.clone(),
            zone: workload.zone.clone(),
            identity: Some(workload.identity.clone()),
            workload: workload.id.clone(),
            labels: labels.clone(),
        };
        let endpoints = entry.endpoints.iter().cloned().chain([endpoint]).collect();
        let entry = ServiceEntry {
            service: entry.service.clone(),
            implicit: entry.implicit,
            revision: entry.revision,
            endpoints,
            accounts: entry.accounts.clone(),
            owners: entry.owners.clone(),
        };
        world.put(key, Some(entry));
    }
    world.workloads.insert_mut(instance.into(), Arc::new(workload));
}

/// Where applications of these worlds listen for a port of their service.
fn app(port: u16) -> u16 {
    if port < 1024 { 8000 + port } else { port }
}

pub(crate) fn client(agent: &str, id: &str, metadata: &[(&str, &str)]) -> Client {
    Client::from_node(&node(agent, id, metadata)).unwrap()
}

pub(crate) fn node(agent: &str, id: &str, metadata: &[(&str, &str)]) -> weft_proto::envoy::config::core::v3::Node {
    use prost_types::{Struct, Value, value::Kind};
    let fields = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Value { kind: Some(Kind::StringValue((*value).to_owned())) }));
    weft_proto::envoy::config::core::v3::Node {
        id: id.to_owned(),
        user_agent_name: agent.to_owned(),
        metadata: Some(Struct { fields: fields.collect() }),
        ..Default::default()
    }
}

/// What a weft sidecar of `default/frontend` makes of a resource.
fn decoded(world: &World, ty: ResourceType, name: &str) -> Decoded {
    decoded_by(world, "default/frontend/1", ty, name)
}

fn decoded_by(world: &World, node: &str, ty: ResourceType, name: &str) -> Decoded {
    let encoded = fetch(world, "weft-sidecar", node, ty, name).unwrap_or_else(|| panic!("there is no {ty} {name}"));
    decode(ty, &encoded.any).unwrap_or_else(|error| panic!("{ty} {name}: {error}"))
}

fn fetch(world: &World, agent: &str, node: &str, ty: ResourceType, name: &str) -> Option<Arc<Encoded>> {
    Catalog::new(Arc::new(world.clone())).get(&client(agent, node, &[]), ty, name)
}

/// The mesh of the demo, with every policy that this version obeys.
pub(crate) const SHOP: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: frontend }
spec: { ports: [{ port: 80, appProtocol: http }] }
---
apiVersion: v1
kind: Service
metadata: { name: orders }
spec:
  ports:
  - { name: http, port: 80, appProtocol: http }
  - { name: grpc, port: 9000, appProtocol: grpc }
---
apiVersion: v1
kind: Service
metadata: { name: orders-v1 }
spec:
  selector: { weft.mesh/service: orders, version: v1 }
  ports: [{ name: http, port: 80, appProtocol: http }]
---
apiVersion: v1
kind: Service
metadata: { name: orders-v2 }
spec:
  selector: { weft.mesh/service: orders, version: v2 }
  ports: [{ name: http, port: 80, appProtocol: http }]
---
apiVersion: v1
kind: Service
metadata: { name: inventory, annotations: { weft.mesh/service-accounts: "stock" } }
spec: { ports: [{ name: tcp, port: 9000, appProtocol: tcp }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders }
spec:
  parentRefs: [{ kind: Service, name: orders, port: 80 }]
  rules:
  - name: split
    backendRefs:
    - { name: orders-v1, port: 80, weight: 90 }
    - { name: orders-v2, port: 80, weight: 10 }
  - name: admin
    matches:
    - { path: { type: PathPrefix, value: /admin/ }, method: POST, headers: [{ name: X-Role, value: root }] }
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: { set: [{ name: x-a, value: "100%" }], add: [{ name: x-b, value: b }], remove: [x-c] }
    - type: URLRewrite
      urlRewrite: { hostname: internal.example, path: { type: ReplacePrefixMatch, replacePrefixMatch: / } }
    backendRefs: [{ name: orders-v1, port: 80 }]
    timeouts: { request: 3s, backendRequest: 1s }
    retry: { attempts: 1, codes: [503], backoff: 10ms }
  - name: debug
    matches: [{ path: { type: Exact, value: /admin }, queryParams: [{ name: debug, value: "1" }] }]
    backendRefs: [{ name: orders-v1, port: 80 }]
  - name: old
    matches: [{ path: { type: RegularExpression, value: "/old/[0-9]+" } }]
    filters:
    - type: RequestRedirect
      requestRedirect: { hostname: new.example, statusCode: 301, path: { type: ReplaceFullPath, replaceFullPath: /new } }
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: orders }
spec:
  parentRefs: [{ kind: Service, name: orders, port: 9000 }]
  rules:
  - matches: [{ method: { service: shop.Orders, method: Place } }]
    backendRefs: [{ name: orders, port: 9000 }]
  - matches: [{ method: { service: shop.Orders } }]
    backendRefs: [{ name: orders, port: 9000 }]
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: { name: orders }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  loadBalancer: { consistentHash: { header: X-User, virtualNodes: 200 } }
  circuitBreaker: { consecutiveFailures: 4, recoveryTime: 20s }
  connectionPool: { maxRequests: 100, maxPendingRequests: 10 }
  outlierDetection: { maxEjectionPercent: 30 }
  retry: { attempts: 3, on: [connect-failure, gateway-error], grpcCodes: [unavailable, aborted], budget: { percent: 10 } }
  timeouts: { request: 5s, connect: 500ms }
---
apiVersion: weft.mesh/v1alpha1
kind: AccessPolicy
metadata: { name: orders }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  rules:
  - name: frontend
    from: [{ identities: [default/frontend] }]
    to: [{ methods: [GET, POST], paths: [/api/*, /admin] }]
  - from: [{ namespaces: [ops] }]
---
apiVersion: weft.mesh/v1alpha1
kind: AccessPolicy
metadata: { name: orders-deny }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  action: DENY
  rules: [{ name: secret, to: [{ ports: [80], paths: [/secret/*] }] }]
---
apiVersion: weft.mesh/v1alpha1
kind: AccessPolicy
metadata: { name: inventory }
spec:
  targetRefs: [{ kind: Service, name: inventory }]
  rules:
  - { name: orders, from: [{ identities: [default/orders] }] }
  - { name: http-only, to: [{ methods: [GET] }] }
"#;

/// Its workloads: id, version, address.
pub(crate) const WORKLOADS: [(&str, &str, &str); 5] = [
    ("default/frontend/1", "v1", "10.0.0.1"),
    ("default/orders/1", "v1", "10.0.0.11"),
    ("default/orders/2", "v1", "10.0.0.12"),
    ("default/orders/3", "v2", "10.0.0.13"),
    ("default/inventory/1", "v1", "10.0.0.21"),
];
