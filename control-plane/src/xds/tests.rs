//! The service over a real connection, with a client of each protocol.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint, Server, Uri},
};
use weft_identity::SpiffeId;
use weft_proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::rpc,
};
use weft_xds::resource::{Decoded, ResourceType, decode, type_url};

use super::{Discovery, Sessions};
use crate::{
    index::{Dirty, ServiceKey, World, Worlds},
    peer::Peer,
    translate::tests::{SHOP, WORKLOADS, id, node, register, world},
};

/// A discovery service and the connection of one client that proved `identity`.
struct Mesh {
    worlds: Arc<Worlds>,
    sessions: Arc<Sessions>,
    discovery: Discovery,
    _run: tokio_util::task::AbortOnDropHandle<()>,
    stop: tokio_util::sync::CancellationToken,
}

impl Mesh {
    fn start() -> Self {
        let worlds = Arc::new(Worlds::new(world(SHOP, &WORKLOADS)));
        let stop = tokio_util::sync::CancellationToken::new();
        let discovery = Discovery::new(worlds.clone(), &prometheus::Registry::new(), stop.clone()).unwrap();
        let run = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(discovery.clone().run()));
        Self { worlds, sessions: discovery.sessions(), discovery, _run: run, stop }
    }

    /// A connection of a client that proved this identity.
    async fn connect(&self, identity: Option<SpiffeId>) -> AggregatedDiscoveryServiceClient<Channel> {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let peer = Peer {
            address: "127.0.0.1:1".parse().unwrap(),
            identity,
            certificate_expiry: Some(std::time::SystemTime::now() + Duration::from_secs(3600)),
            certificates: None,
        };
        let with_peer = move |mut request: tonic::Request<()>| {
            request.extensions_mut().insert(peer.clone());
            Ok(request)
        };
        let service = tonic::service::interceptor::InterceptedService::new(self.discovery.service(), with_peer);
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(server));
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        let mut client = Some(client);
        let connector = tower::service_fn(move |_: Uri| {
            let io = client.take().map(TokioIo::new);
            async move { io.ok_or_else(|| std::io::Error::other("connected once already")) }
        });
        let channel = Endpoint::from_static("http://control-plane").connect_with_connector(connector).await.unwrap();
        AggregatedDiscoveryServiceClient::new(channel)
    }

    fn change(&self, dirty: Dirty, change: impl FnOnce(&mut World)) -> u64 {
        let mut world = (*self.worlds.current()).clone();
        world.generation += 1;
        change(&mut world);
        let generation = world.generation;
        self.worlds.publish(world, BTreeSet::from([dirty]));
        generation
    }

    async fn delta(&self, node: Node, identity: Option<SpiffeId>) -> Result<Delta, Status> {
        let (requests, stream) = mpsc::channel(16);
        let first = DeltaDiscoveryRequest { node: Some(node), type_url: type_url::SECRET.into(), ..Default::default() };
        let first = DeltaDiscoveryRequest { resource_names_subscribe: vec!["ROOTCA".into()], ..first };
        requests.send(first).await.unwrap();
        let mut client = self.connect(identity).await;
        let responses = client.delta_aggregated_resources(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Delta { requests, responses })
    }
}

struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Delta {
    async fn subscribe(&self, ty: ResourceType, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            type_url: ty.url().into(),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> DeltaDiscoveryResponse {
        let next = tokio::time::timeout(PATIENCE, self.responses.message());
        next.await.expect("no response").unwrap().expect("the stream ended")
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, refusal: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: refusal.map(|message| rpc::Status {
                code: 13,
                message: message.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn acked(&mut self) -> DeltaDiscoveryResponse {
        let response = self.next().await;
        self.answer(&response, None).await;
        response
    }
}

fn frontend() -> Node {
    node("weft-sidecar", "default/frontend/1", &[])
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

/// Waits for what tests cannot be told of: that a condition holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let all = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("never: {what}"));
}

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_sidecar_gets_what_it_asks_for_and_hears_of_changes_to_it() {
    let mesh = Mesh::start();
    let mut sidecar = mesh.delta(frontend(), Some(id("default", "frontend"))).await.unwrap();
    let secret = sidecar.acked().await;
    assert!(matches!(
        decode(ResourceType::Secret, secret.resources[0].resource.as_ref().unwrap()),
        Ok(Decoded::Secret(_))
    ));
    sidecar.subscribe(ResourceType::VirtualHost, &["outbound/orders.default:80", "outbound/nobody.default:80"]).await;
    let hosts = sidecar.acked().await;
    assert_eq!(names(&hosts), ["outbound/orders.default:80"]);
    assert_eq!(hosts.removed_resources, ["outbound/nobody.default:80"]);
    sidecar.subscribe(ResourceType::Endpoints, &["default/orders:80"]).await;
    sidecar.acked().await;

    // Nothing that it has not asked for, and only the resource that changed.
    let generation = mesh.change(Dirty::Endpoints(ServiceKey::new("default", "inventory")), |world| {
        register(world, "default/inventory/2", "v1", "10.0.0.22");
    });
    assert!(mesh.sessions.flushed(generation, PATIENCE).await, "it does not concern the sidecar");
    let generation = mesh.change(Dirty::Endpoints(ServiceKey::new("default", "orders")), |world| {
        register(world, "default/orders/4", "v1", "10.0.0.14");
    });
    let changed = sidecar.next().await;
    assert_eq!(names(&changed), ["default/orders:80"]);
    assert!(!mesh.sessions.flushed(generation, Duration::ZERO).await, "not answered yet");
    sidecar.answer(&changed, None).await;
    assert!(mesh.sessions.flushed(generation, PATIENCE).await);
}

#[tokio::test]
async fn a_service_asked_for_too_early_comes_when_it_exists() {
    let mesh = Mesh::start();
    let mut sidecar = mesh.delta(frontend(), Some(id("default", "frontend"))).await.unwrap();
    sidecar.acked().await;
    sidecar.subscribe(ResourceType::VirtualHost, &["outbound/late.default:80"]).await;
    assert_eq!(sidecar.acked().await.removed_resources, ["outbound/late.default:80"]);
    let late = ServiceKey::new("default", "late");
    mesh.change(Dirty::Service(late.clone()), |world| {
        let frontend = world.services[&ServiceKey::new("default", "frontend")].clone();
        world.services.insert_mut(late, frontend);
    });
    assert_eq!(names(&sidecar.acked().await), ["outbound/late.default:80"]);
}

#[tokio::test]
async fn a_refusal_is_kept_shown_and_forgotten_when_it_no_longer_stands() {
    let mesh = Mesh::start();
    let mut sidecar = mesh.delta(frontend(), Some(id("default", "frontend"))).await.unwrap();
    sidecar.acked().await;
    sidecar.subscribe(ResourceType::Cluster, &["default/orders:80", "default/frontend:80"]).await;
    sidecar.acked().await;
    until("the first configuration is answered", || mesh.sessions.status()[0].acked_revision == 7).await;
    let mut told = mesh.sessions.watch_refusals();
    assert!(mesh.sessions.refusals().is_empty() && !told.has_changed().unwrap());

    let orders = ServiceKey::new("default", "orders");
    let connect = |world: &mut World, revision: u64, milliseconds: u64| {
        world.revision = revision;
        let policy = world.traffic_policies.get_mut(&ServiceKey::new("default", "orders")).unwrap();
        let mut resource = (*policy.resource).clone();
        resource.spec.timeouts.as_mut().unwrap().connect = Some(Duration::from_millis(milliseconds).into());
        policy.resource = Arc::new(resource);
        policy.revision = revision;
    };
    mesh.change(Dirty::Service(orders.clone()), |world| connect(world, 8, 700));
    let refused = sidecar.next().await;
    assert_eq!(names(&refused), ["default/orders:80"]);
    sidecar.answer(&refused, Some("default/orders:80: connect_timeout: too long")).await;
    let rollout = mesh.sessions.wait(8, PATIENCE).await;
    assert_eq!((rollout.affected, rollout.acked, rollout.pending.len()), (1, 0, 0));
    assert_eq!(rollout.nacks[0].resources, ["default/orders:80"]);
    assert_eq!(rollout.nacks[0].sidecar, "default/frontend/1");
    let status = &mesh.sessions.status()[0];
    let clusters = status.types.iter().find(|state| state.type_url == type_url::CLUSTER).unwrap();
    assert_eq!((clusters.subscribed, clusters.acked, clusters.nacked), (2, 2, 1));
    assert!(status.nacks[0].message.contains("too long"));
    told.changed().await.unwrap();
    let standing = mesh.sessions.refusals();
    assert_eq!((standing.len(), standing[0].ty, &*standing[0].name), (1, ResourceType::Cluster, "default/orders:80"));
    assert_eq!(&*standing[0].client.id, "default/frontend/1");

    mesh.change(Dirty::Service(orders.clone()), |world| connect(world, 9, 600));
    sidecar.acked().await;
    let rollout = mesh.sessions.wait(9, PATIENCE).await;
    assert_eq!((rollout.affected, rollout.acked, rollout.nacks.len()), (1, 1, 0));
    assert!(mesh.sessions.status()[0].nacks.is_empty());
    told.changed().await.unwrap();
    assert!(mesh.sessions.refusals().is_empty());

    // What a client refused is refused by nobody when it is gone.
    mesh.change(Dirty::Service(orders), |world| connect(world, 10, 700));
    let refused = sidecar.next().await;
    sidecar.answer(&refused, Some("default/orders:80: connect_timeout: too long")).await;
    told.changed().await.unwrap();
    assert_eq!(mesh.sessions.refusals().len(), 1);
    drop(sidecar);
    told.changed().await.unwrap();
    assert!(mesh.sessions.refusals().is_empty());
}

#[tokio::test]
async fn only_the_identity_of_a_service_may_speak_for_it() {
    let mesh = Mesh::start();
    let refused = |identity| {
        let mesh = &mesh;
        async move {
            match mesh.delta(frontend(), identity).await {
                Ok(mut stream) => stream.responses.message().await.unwrap_err(),
                Err(status) => status,
            }
        }
    };
    assert_eq!(refused(None).await.code(), Code::Unauthenticated);
    for other in [id("default", "orders"), id("ops", "frontend")] {
        let status = refused(Some(other)).await;
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains("may not act as service default/frontend"), "{}", status.message());
    }
    // Named by the annotation.
    let stock = mesh.delta(node("weft-sidecar", "default/inventory/1", &[]), Some(id("default", "stock"))).await;
    assert_eq!(stock.unwrap().next().await.type_url, type_url::SECRET);
    let nameless = mesh.delta(node("weft-sidecar", "frontend", &[]), Some(id("default", "frontend"))).await;
    let status = match nameless {
        Ok(mut stream) => stream.responses.message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn each_sidecar_sees_its_own_inbound_listener() {
    let mesh = Mesh::start();
    for service in ["frontend", "orders"] {
        let node = node("weft-sidecar", &format!("default/{service}/1"), &[]);
        let mut sidecar = mesh.delta(node, Some(id("default", service))).await.unwrap();
        sidecar.acked().await;
        sidecar.subscribe(ResourceType::Listener, &["inbound"]).await;
        let response = sidecar.acked().await;
        let Ok(Decoded::Listener(listener)) =
            decode(ResourceType::Listener, response.resources[0].resource.as_ref().unwrap())
        else {
            panic!("{response:?}");
        };
        assert!(format!("{listener:?}").contains(&format!("p80.{service}.default.weft")));
    }
}

#[tokio::test]
async fn an_envoy_speaks_the_state_of_the_world() {
    let mesh = Mesh::start();
    let (requests, stream) = mpsc::channel(16);
    let request = |ty: ResourceType, names: &[&str]| DiscoveryRequest {
        node: Some(node("envoy", "default/frontend/e", &[])),
        type_url: ty.url().into(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    let ack = |response: &DiscoveryResponse, names: &[&str]| DiscoveryRequest {
        version_info: response.version_info.clone(),
        response_nonce: response.nonce.clone(),
        type_url: response.type_url.clone(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    requests.send(request(ResourceType::Cluster, &[])).await.unwrap();
    let mut client = mesh.connect(Some(id("default", "frontend"))).await;
    let mut responses = client.stream_aggregated_resources(ReceiverStream::new(stream)).await.unwrap().into_inner();
    let clusters = responses.message().await.unwrap().unwrap();
    assert_eq!(clusters.resources.len(), 5);
    requests.send(request(ResourceType::Endpoints, &["default/orders:80"])).await.unwrap();
    let endpoints = responses.message().await.unwrap().unwrap();
    assert_eq!(endpoints.resources.len(), 1);
    requests.send(ack(&clusters, &[])).await.unwrap();
    requests.send(ack(&endpoints, &["default/orders:80"])).await.unwrap();

    // A service that goes takes its cluster out of the state of the world.
    mesh.change(Dirty::Service(ServiceKey::new("default", "orders-v2")), |world| {
        world.services.remove_mut(&ServiceKey::new("default", "orders-v2"));
    });
    let clusters = responses.message().await.unwrap().unwrap();
    assert_eq!((clusters.type_url.as_str(), clusters.resources.len()), (type_url::CLUSTER, 4));
    let status = mesh.sessions.status();
    assert_eq!((status.len(), status[0].agent.as_str()), (1, "envoy"));
}

#[tokio::test]
async fn a_grpc_client_gets_its_target() {
    let mesh = Mesh::start();
    let (requests, stream) = mpsc::channel(16);
    let request = DiscoveryRequest {
        node: Some(node("gRPC C-core", "default/frontend/g", &[])),
        type_url: type_url::LISTENER.into(),
        resource_names: vec!["orders:9000".into()],
        ..Default::default()
    };
    requests.send(request).await.unwrap();
    let mut client = mesh.connect(Some(id("default", "frontend"))).await;
    let mut responses = client.stream_aggregated_resources(ReceiverStream::new(stream)).await.unwrap().into_inner();
    let listener = responses.message().await.unwrap().unwrap();
    let listener = weft_proto::envoy::config::listener::v3::Listener::decode(&*listener.resources[0].value).unwrap();
    assert!(listener.name == "orders:9000" && listener.api_listener.is_some());
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let mesh = Mesh::start();
    let stuck = mesh.delta(frontend(), Some(id("default", "frontend"))).await.unwrap();
    stuck.subscribe(ResourceType::Endpoints, &["default/orders:80"]).await;
    let mut sidecar =
        mesh.delta(node("weft-sidecar", "default/frontend/2", &[]), Some(id("default", "frontend"))).await.unwrap();
    sidecar.acked().await;
    sidecar.subscribe(ResourceType::Endpoints, &["default/orders:80"]).await;
    sidecar.acked().await;
    for octet in 30..60 {
        mesh.change(Dirty::Endpoints(ServiceKey::new("default", "orders")), |world| {
            register(world, &format!("default/orders/{octet}"), "v1", &format!("10.0.0.{octet}"));
        });
        sidecar.acked().await;
    }
    // It leaves, and nobody waits for it any more.
    drop(stuck);
    until("the session is gone", || mesh.sessions.count() == 1).await;
    assert!(mesh.sessions.flushed(mesh.worlds.current().generation, PATIENCE).await);
}

#[tokio::test]
async fn streams_end_in_good_order_when_the_control_plane_stops() {
    let mesh = Mesh::start();
    let mut sidecar = mesh.delta(frontend(), Some(id("default", "frontend"))).await.unwrap();
    sidecar.acked().await;
    mesh.stop.cancel();
    let end = tokio::time::timeout(PATIENCE, sidecar.responses.message()).await.unwrap();
    assert!(matches!(end, Ok(None)), "{end:?}");
    until("the session is gone", || mesh.sessions.count() == 0).await;
}
