//! One simulated sidecar: what it says to the control plane and when is what a real one does, but there is no traffic.
//!
//! The protocol is that of the real one ([`weft_xds::client`], [`weft_proto::connect`]), and so are the pauses between
//! tries ([`Reconnect`]) and the time limits; the resources are decoded as there, and forgotten.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail};
use prost::Message as _;
use rustls::ClientConfig;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use weft_proto::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    weft::v1::{
        HealthReport, Heartbeat, RegisterRequest, Workload, WorkloadPort, register_request::Message, register_response,
        registry_service_client::RegistryServiceClient,
    },
};
use weft_sidecar::reconnect::Reconnect;
use weft_xds::{
    client::{Change, Client, Node, Update},
    resource::{Decoded, Health, ResourceType, RouteAction},
};

use crate::{
    board::Board,
    mesh::{PORT, Service, Watched},
};

/// As in the real sidecar.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
const LEASE_TIMEOUT: Duration = Duration::from_secs(5);
const XDS_PAUSE: Duration = Duration::from_secs(30);
const REGISTRATION_PAUSE: Duration = Duration::from_secs(4);
const REACHED_PAUSE: Duration = Duration::from_millis(500);
const REQUESTS: usize = 64;
/// What every sidecar has.
const ALWAYS: [(ResourceType, &str); 3] =
    [(ResourceType::Listener, "inbound"), (ResourceType::Listener, "outbound"), (ResourceType::Secret, "ROOTCA")];
/// Before a response in gRPC: compressed or not, and length.
const FRAME: usize = 5;

/// A sidecar.
#[derive(Debug)]
pub struct Sidecar {
    /// Where the control plane is.
    pub control_plane: String,
    /// Proves its identity.
    pub tls: Arc<ClientConfig>,
    /// Its service.
    pub home: Service,
    /// Unique among its service's.
    pub number: usize,
    /// What its application calls.
    pub calls: Vec<Service>,
    /// What it tells.
    pub board: Arc<Board>,
}

/// What discovery and registration share.
struct Halves {
    channel: Channel,
    steps: parking_lot::Mutex<Steps>,
    /// Told when the control plane has answered the registration.
    reached: Notify,
}

/// Which halves of a sidecar are in step.
#[derive(Debug, Default)]
struct Steps {
    discovery: bool,
    registration: bool,
}

impl Steps {
    fn both(&self) -> bool {
        self.discovery && self.registration
    }
}

/// A change of a workload's health. In the order of sending.
pub type Reports = mpsc::Receiver<bool>;

impl Sidecar {
    /// Lives until it is dropped.
    pub async fn run(self, mut reports: Reports) {
        // One connection for both, which dials anew by itself.
        let channel = weft_proto::connect::channel(&self.control_plane, self.tls.clone());
        let channel = channel.expect("the address is one that was bound");
        let shared = Halves { channel, steps: parking_lot::Mutex::default(), reached: Notify::new() };
        tokio::join!(Box::pin(self.discover(&shared)), Box::pin(self.register(&shared, &mut reports)));
    }

    /// Counts the sidecar in or out when one of its halves comes into step or falls out of it.
    fn step(&self, halves: &Halves, set: impl FnOnce(&mut Steps)) {
        let mut steps = halves.steps.lock();
        let before = steps.both();
        set(&mut steps);
        if before != steps.both() {
            self.board.step(steps.both());
        }
    }

    async fn discover(&self, halves: &Halves) {
        let mut client = Client::new(Node {
            id: format!("{}/{}", self.home.key(), self.number),
            cluster: self.home.key(),
            user_agent: "weft-sidecar".to_owned(),
            version: weft_telemetry::VERSION.to_owned(),
            ..Node::default()
        });
        for (ty, name) in ALWAYS {
            client.subscribe(ty, name);
        }
        for service in &self.calls {
            client.subscribe(ResourceType::VirtualHost, &service.virtual_host());
        }
        let mut reconnect = Reconnect::new(XDS_PAUSE);
        loop {
            // However it ends, the next begins.
            drop(self.stream(&mut client, halves, &mut reconnect).await);
            client.on_disconnected();
            self.step(halves, |steps| steps.discovery = false);
            self.board.lost();
            let pause = tokio::time::sleep(reconnect.pause(fastrand::f64()));
            tokio::select! {
                () = pause => {}
                // The other half has found the control plane back.
                () = halves.reached.notified() => tokio::time::sleep(REACHED_PAUSE.mul_f64(fastrand::f64())).await,
            }
        }
    }

    async fn stream(&self, client: &mut Client, halves: &Halves, reconnect: &mut Reconnect) -> Result<()> {
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        for request in client.on_connected() {
            requests.try_send(request)?;
        }
        let mut service = AggregatedDiscoveryServiceClient::new(halves.channel.clone());
        let opening = service.delta_aggregated_resources(ReceiverStream::new(outgoing));
        let mut responses = tokio::time::timeout(OPEN_TIMEOUT, opening).await??.into_inner();
        while let Some(response) = responses.message().await? {
            reconnect.succeeded();
            self.board.response(response.encoded_len() + FRAME);
            let mut seen = Vec::new();
            for update in client.on_response(response) {
                follow(client, &update);
                seen.extend(watched(&update));
            }
            send(client, &requests).await?;
            for (watched, healthy) in seen {
                self.board.acked(watched, healthy);
            }
            if self.has_all(client) {
                self.step(halves, |steps| steps.discovery = true);
            }
        }
        Ok(())
    }

    /// Whether the control plane has answered everything on this stream.
    fn has_all(&self, client: &Client) -> bool {
        let called = [ResourceType::VirtualHost, ResourceType::Cluster, ResourceType::Endpoints];
        let called = if self.calls.is_empty() { &[][..] } else { &called };
        let wanted = [ResourceType::Secret, ResourceType::Listener];
        let mut wanted = wanted.iter().chain(called);
        wanted.all(|ty| client.is_answered(*ty)) && client.held(ResourceType::Endpoints).count() == self.calls.len()
    }

    async fn register(&self, halves: &Halves, reports: &mut Reports) {
        let mut reconnect = Reconnect::new(REGISTRATION_PAUSE);
        let mut healthy = true;
        loop {
            drop(self.lease(halves, reports, &mut healthy, &mut reconnect).await);
            self.step(halves, |steps| steps.registration = false);
            self.board.lost();
            tokio::time::sleep(reconnect.pause(fastrand::f64())).await;
        }
    }

    async fn lease(
        &self,
        halves: &Halves,
        reports: &mut Reports,
        healthy: &mut bool,
        reconnect: &mut Reconnect,
    ) -> Result<()> {
        let (requests, outgoing) = mpsc::channel(8);
        requests.try_send(message(Message::Workload(self.workload(*healthy))))?;
        let mut service = RegistryServiceClient::new(halves.channel.clone());
        let opening = service.register(ReceiverStream::new(outgoing));
        let mut answers = tokio::time::timeout(LEASE_TIMEOUT, opening).await??.into_inner();
        let first = tokio::time::timeout(LEASE_TIMEOUT, answers.message()).await??;
        let Some(register_response::Message::Lease(lease)) = first.and_then(|answer| answer.message) else {
            bail!("the first answer is no lease");
        };
        reconnect.succeeded();
        halves.reached.notify_waiters();
        self.step(halves, |steps| steps.registration = true);
        let heartbeat = Duration::from_millis(u64::from(lease.ttl_milliseconds) / 3);
        let mut beats = tokio::time::interval_at(tokio::time::Instant::now() + heartbeat, heartbeat);
        loop {
            tokio::select! {
                _ = beats.tick() => requests.try_send(message(Message::Heartbeat(Heartbeat {})))?,
                Some(report) = reports.recv() => {
                    *healthy = report;
                    requests.try_send(message(Message::Health(HealthReport { healthy: report, reason: String::new() })))?;
                }
                answer = answers.message() => if answer?.is_none() { return Ok(()) },
            }
        }
    }

    fn workload(&self, healthy: bool) -> Workload {
        let (high, middle, low) = (self.number / 62_500, self.number / 250 % 250, self.number % 250);
        Workload {
            instance: format!("i{}", self.number),
            namespace: self.home.namespace.clone(),
            service: self.home.name.clone(),
            address: format!("10.{}.{middle}.{}", 100 + high, low + 1),
            port: 15006,
            ports: vec![WorkloadPort {
                name: "http".to_owned(),
                port: u32::from(PORT),
                protocol: "http".to_owned(),
                app_port: 0,
            }],
            weight: 1,
            healthy,
            ..Workload::default()
        }
    }
}

fn message(message: Message) -> RegisterRequest {
    RegisterRequest { message: Some(message) }
}

async fn send(client: &mut Client, requests: &mpsc::Sender<DeltaDiscoveryRequest>) -> Result<()> {
    while let Some(request) = client.next_request() {
        requests.send(request).await?;
    }
    Ok(())
}

/// A virtual host leads to clusters, a cluster to its endpoints.
fn follow(client: &mut Client, update: &Update) {
    let Change::Set { decoded, .. } = &update.change else { return };
    let mut wanted: Vec<(ResourceType, Box<str>)> = Vec::new();
    match decoded {
        Decoded::VirtualHost(host) => {
            for route in &host.routes {
                if let RouteAction::Forward(forward) = &route.action {
                    wanted.extend(forward.clusters.iter().map(|it| (ResourceType::Cluster, it.name.clone())));
                }
            }
        }
        Decoded::Cluster(cluster) => wanted.push((ResourceType::Endpoints, cluster.endpoints.clone())),
        _ => {}
    }
    for (ty, name) in wanted {
        if !client.is_subscribed(ty, &name) {
            client.subscribe(ty, &name);
        }
    }
}

/// Whether the update is one of a watched service's endpoints, and which state of its workload it shows.
fn watched(update: &Update) -> Option<(Watched, bool)> {
    let Change::Set { decoded: Decoded::Endpoints(endpoints), .. } = &update.change else { return None };
    let rest = endpoints.cluster.strip_prefix(Watched::NAMESPACE)?;
    let watched =
        Watched::ALL.into_iter().find(|it| rest.strip_prefix('/').is_some_and(|rest| rest.starts_with(it.name())))?;
    let endpoint = endpoints.endpoints.first()?;
    Some((watched, endpoint.health == Health::Healthy))
}
