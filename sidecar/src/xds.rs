//! The stream to the control plane: decoded resources in, subscriptions out.
//!
//! A thin shell: the protocol is [`weft_xds::client`]'s, what follows from a resource is [`Writer`]'s. This task connects
//! and reconnects, feeds the one to the other, puts snapshots in force, keeps the cache on disk, and tells those who wait.
//! A lost stream drops nothing.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc},
    time::MissedTickBehavior,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use weft_xds::{
    client::{Change, Client, Node, Update},
    resource::{Decoded, ResourceType},
};

use crate::{
    cache::{Cache, CachedResource},
    certs::{Certs, CertsError},
    reconnect::{Reconnect, explain},
    settings::Settings,
    shared::Shared,
    snapshot::{Step, Subscription, VIRTUAL_HOST_PREFIX, Writer},
};

/// The longest pause between two tries; less when another stream finds the control plane back.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// For dial, handshake and the answer's head.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream that lived as long counts as a success, even if nothing was to be said on it.
const LIVED: Duration = Duration::from_secs(5);
/// Between looks for what is idle, and for what is to be written to disk.
const TICK: Duration = Duration::from_secs(1);
/// The most bytes of one response.
const MAX_RESPONSE: usize = 64 * 1024 * 1024;
/// Requests on their way; more wait in the client.
const REQUESTS: usize = 64;
/// What every sidecar subscribes to.
const ALWAYS: [(ResourceType, &str); 3] =
    [(ResourceType::Listener, "inbound"), (ResourceType::Listener, "outbound"), (ResourceType::Secret, "ROOTCA")];

/// What is held, for the cache and for people.
#[derive(Debug, Default)]
pub struct Held {
    /// As they came.
    pub resources: BTreeMap<(ResourceType, Box<str>), CachedResource>,
    /// What was refused last, and why; the version before stays in force.
    pub rejects: BTreeMap<(ResourceType, Box<str>), Rejection>,
    /// The stream is up.
    pub connected: bool,
    /// Why it is not; empty when it is, or was never tried.
    pub error: String,
}

/// A refused resource.
#[derive(Debug, Clone)]
pub struct Rejection {
    /// Of the refused resource.
    pub version: Box<str>,
    /// Field and reason.
    pub error: String,
}

/// The task.
#[derive(Debug)]
pub struct Xds {
    shared: Arc<Shared>,
    certs: Arc<Certs>,
    client: Client,
    writer: Writer,
    held: Arc<Mutex<Held>>,
    cache: Cache,
    /// The cache differs from what is held.
    unsaved: bool,
    wanted: mpsc::Receiver<Box<str>>,
    reached: Arc<Notify>,
    metrics: XdsMetrics,
    /// When the control plane was last there.
    contact: Instant,
}

#[derive(Debug, Error)]
enum Lost {
    #[error(transparent)]
    Certificate(#[from] CertsError),
    #[error("{}", explain(.0))]
    Refused(Box<tonic::Status>),
    #[error("the control plane ended the stream")]
    Closed,
    #[error("the control plane did not answer in time")]
    Late,
}

type Opening = Pin<Box<dyn Future<Output = Result<Streaming<DeltaDiscoveryResponse>, Lost>> + Send>>;

/// The state of the stream.
enum Link {
    /// Not now.
    Pausing(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// Dialling.
    Opening { requests: mpsc::Sender<DeltaDiscoveryRequest>, opening: Opening },
    /// Up.
    Open {
        requests: mpsc::Sender<DeltaDiscoveryRequest>,
        responses: Box<Streaming<DeltaDiscoveryResponse>>,
        since: Instant,
    },
}

enum Event {
    Dial,
    Opened(Box<Streaming<DeltaDiscoveryResponse>>),
    Response(DeltaDiscoveryResponse),
    Lost(Lost),
}

impl Xds {
    /// `wanted`: from [`crate::demand::Demand::new`]. `instance`: of the registration.
    ///
    /// # Errors
    /// When the metrics are registered already.
    pub fn new(
        shared: Arc<Shared>,
        certs: Arc<Certs>,
        instance: &str,
        wanted: mpsc::Receiver<Box<str>>,
        reached: Arc<Notify>,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let settings = &shared.settings;
        let owner = format!("{}/{}", settings.trust_domain, settings.service_key());
        let cache = Cache::new(&settings.data_dir, &owner);
        let mut client = Client::new(node(settings, instance));
        for (ty, name) in ALWAYS {
            client.subscribe(ty, name);
        }
        Ok(Self {
            metrics: XdsMetrics::register(registry)?,
            writer: Writer::default(),
            held: Arc::default(),
            unsaved: false,
            contact: Instant::now(),
            shared,
            certs,
            client,
            cache,
            wanted,
            reached,
        })
    }

    /// What is held, for people.
    pub fn held(&self) -> Arc<Mutex<Held>> {
        self.held.clone()
    }

    /// Puts the last known configuration in force. Nothing is asked of anyone.
    pub fn restore(&mut self, now: Instant) {
        let resources = match self.cache.load() {
            Ok(resources) => resources,
            Err(error) => {
                tracing::warn!(%error, "the cached configuration is not used");
                return;
            }
        };
        if resources.is_empty() {
            return;
        }
        let count = resources.len();
        // Each is of interest only through those before it.
        let order = [
            ResourceType::Secret,
            ResourceType::Listener,
            ResourceType::VirtualHost,
            ResourceType::Cluster,
            ResourceType::Endpoints,
        ];
        for ty in order {
            for resource in resources.iter().filter(|resource| resource.ty == ty) {
                self.restore_one(resource, now);
            }
            let step = self.writer.step(now);
            self.put(step);
        }
        self.shared.set_configured();
        tracing::info!(resources = count, "configuration taken from disk");
    }

    fn restore_one(&mut self, resource: &CachedResource, now: Instant) {
        let CachedResource { ty, name, version, any } = resource;
        match self.client.restore(*ty, name, version, any) {
            Ok(decoded) => {
                if *ty == ResourceType::VirtualHost {
                    self.writer.want(name.strip_prefix(VIRTUAL_HOST_PREFIX).unwrap_or(name), now);
                }
                self.take(name, decoded, now);
                self.held.lock().resources.insert((*ty, name.clone()), resource.clone());
            }
            Err(error) => tracing::warn!(r#type = ty.short(), %name, %error, "a cached resource is not used"),
        }
    }

    /// Runs until `stop`; the cache is written a last time.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut reconnect = Reconnect::new(LONGEST_PAUSE);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut link = pause(Duration::ZERO);
        let reached = self.reached.clone();
        loop {
            let pausing = matches!(link, Link::Pausing(_));
            tokio::select! {
                () = stop.cancelled() => break,
                event = next(&mut link) => link = self.on(event, link, &mut reconnect),
                Some(authority) = self.wanted.recv() => self.writer.want(&authority, Instant::now()),
                // Others have found the control plane back: a fleet is still spread over half a second.
                () = reached.notified(), if pausing => link = pause(Duration::from_millis(500).mul_f64(fastrand::f64())),
                _ = tick.tick() => self.tick(),
            }
            while let Ok(authority) = self.wanted.try_recv() {
                self.writer.want(&authority, Instant::now());
            }
            let step = self.writer.step(Instant::now());
            self.put(step);
            if let Link::Open { requests, .. } = &link {
                self.send(requests);
            }
        }
        self.save();
    }

    fn on(&mut self, event: Event, link: Link, reconnect: &mut Reconnect) -> Link {
        match (event, link) {
            (Event::Opened(responses), Link::Opening { requests, .. }) => {
                self.connected();
                Link::Open { requests, responses, since: Instant::now() }
            }
            (Event::Response(response), link) => {
                reconnect.succeeded();
                self.response(response);
                link
            }
            (Event::Dial, _) => match self.certs.channel() {
                Ok(channel) => {
                    let (requests, outgoing) = mpsc::channel(REQUESTS);
                    // The first requests go with the call: servers may wait for them before they answer.
                    for request in self.client.on_connected() {
                        requests.try_send(request).expect("there are fewer types than places");
                    }
                    Link::Opening { requests, opening: Box::pin(open(channel, outgoing)) }
                }
                Err(CertsError::NoProof) => {
                    let shared = self.shared.clone();
                    Link::Pausing(Box::pin(async move { shared.certified().await }))
                }
                Err(error) => self.lost(&error.into(), reconnect),
            },
            (Event::Lost(lost), link) => {
                if matches!(link, Link::Open { since, .. } if since.elapsed() >= LIVED) {
                    reconnect.succeeded();
                }
                self.lost(&lost, reconnect)
            }
            (Event::Opened(_), link) => link,
        }
    }

    fn connected(&mut self) {
        tracing::info!(control_plane = &*self.shared.settings.control_plane, "connected to the control plane");
        self.contact = Instant::now();
        self.metrics.connected.set(1);
        self.shared.demand.set_connected(true);
        let mut held = self.held.lock();
        (held.connected, held.error) = (true, String::new());
        drop(held);
        self.shared.set_configured();
        self.reached.notify_waiters();
    }

    fn lost(&mut self, lost: &Lost, reconnect: &mut Reconnect) -> Link {
        let after = reconnect.pause(fastrand::f64());
        tracing::warn!(error = %lost, retry_in_ms = after.as_millis(), "no stream to the control plane; the configuration stays");
        self.client.on_disconnected();
        self.metrics.connected.set(0);
        self.shared.demand.set_connected(false);
        let mut held = self.held.lock();
        if held.connected {
            self.contact = Instant::now();
        }
        (held.connected, held.error) = (false, lost.to_string());
        pause(after)
    }

    fn response(&mut self, response: DeltaDiscoveryResponse) {
        let now = Instant::now();
        for Update { ty, name, change } in self.client.on_response(response) {
            let key = (ty, Box::<str>::from(&*name));
            match change {
                Change::Set { decoded, any, version } => {
                    self.metrics.updates.with_label_values(&[ty.short(), "ok"]).inc();
                    let resource = CachedResource { ty, name: key.1.clone(), version: (&*version).into(), any };
                    let mut held = self.held.lock();
                    held.rejects.remove(&key);
                    held.resources.insert(key, resource);
                    drop(held);
                    self.take(&name, decoded, now);
                }
                Change::Removed => {
                    self.metrics.updates.with_label_values(&[ty.short(), "removed"]).inc();
                    let mut held = self.held.lock();
                    held.rejects.remove(&key);
                    held.resources.remove(&key);
                    drop(held);
                    self.writer.remove(ty, &name, now);
                }
                Change::Rejected { version, error } => {
                    self.metrics.updates.with_label_values(&[ty.short(), "rejected"]).inc();
                    tracing::error!(r#type = ty.short(), %name, %version, %error, "refused; the version before stays in force");
                    let rejection = Rejection { version: (&*version).into(), error: error.to_string() };
                    self.held.lock().rejects.insert(key, rejection);
                }
            }
            self.unsaved = true;
        }
    }

    fn take(&mut self, name: &str, decoded: Decoded, now: Instant) {
        match decoded {
            Decoded::Secret(bundle) => self.certs.set_roots(&bundle.roots),
            other => self.writer.set(name, other, now),
        }
    }

    /// Puts a step in force: first the snapshot, then those who wait for it are told.
    fn put(&mut self, step: Step) {
        if let Some(snapshot) = step.snapshot {
            self.metrics.revision.set(i64::try_from(snapshot.revision).unwrap_or(i64::MAX));
            self.shared.snapshot.store(Arc::new(snapshot));
            self.shared.refresh_ready();
        }
        for subscription in step.subscriptions {
            match subscription {
                Subscription::Subscribe(ty, name) => {
                    if !self.client.is_subscribed(ty, &name) {
                        self.client.subscribe(ty, &name);
                    }
                }
                Subscription::Unsubscribe(ty, name) => {
                    self.client.unsubscribe(ty, &name);
                    let mut held = self.held.lock();
                    let key = (ty, name);
                    held.rejects.remove(&key);
                    self.unsaved |= held.resources.remove(&key).is_some();
                }
            }
        }
        for (authority, outcome) in step.settled {
            self.shared.demand.settle(&authority, outcome);
        }
    }

    fn send(&mut self, requests: &mpsc::Sender<DeltaDiscoveryRequest>) {
        while let Ok(permit) = requests.try_reserve() {
            match self.client.next_request() {
                Some(request) => permit.send(request),
                None => return,
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.writer.sweep(self.shared.settings.on_demand_idle, now);
        let age =
            if self.client.is_connected() && self.held.lock().connected { 0 } else { self.contact.elapsed().as_secs() };
        for ty in ResourceType::ALL {
            if self.client.held(ty).next().is_some() {
                self.metrics.age.with_label_values(&[ty.short()]).set(i64::try_from(age).unwrap_or(i64::MAX));
            }
        }
        self.save();
    }

    /// Writes the cache if it differs: at most once a tick.
    fn save(&mut self) {
        if !std::mem::take(&mut self.unsaved) {
            return;
        }
        if let Err(error) = self.cache.store(self.held.lock().resources.values()) {
            tracing::error!(%error, "the configuration could not be kept on disk");
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Pausing(_) => "Pausing",
            Self::Opening { .. } => "Opening",
            Self::Open { .. } => "Open",
        })
    }
}

fn pause(pause: Duration) -> Link {
    Link::Pausing(Box::pin(tokio::time::sleep(pause)))
}

/// The next event of the stream. Dropping this loses nothing.
async fn next(link: &mut Link) -> Event {
    match link {
        Link::Pausing(over) => {
            over.await;
            Event::Dial
        }
        Link::Opening { opening, .. } => match opening.await {
            Ok(responses) => Event::Opened(Box::new(responses)),
            Err(lost) => Event::Lost(lost),
        },
        Link::Open { responses, .. } => match responses.message().await {
            Ok(Some(response)) => Event::Response(response),
            Ok(None) => Event::Lost(Lost::Closed),
            Err(status) => Event::Lost(Lost::Refused(Box::new(status))),
        },
    }
}

async fn open(
    channel: tonic::transport::Channel,
    outgoing: mpsc::Receiver<DeltaDiscoveryRequest>,
) -> Result<Streaming<DeltaDiscoveryResponse>, Lost> {
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
    let opened = tokio::time::timeout(OPEN_TIMEOUT, client.delta_aggregated_resources(ReceiverStream::new(outgoing)));
    match opened.await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(Lost::Refused(Box::new(status))),
        Err(_late) => Err(Lost::Late),
    }
}

fn node(settings: &Settings, instance: &str) -> Node {
    Node {
        id: format!("{}/{instance}", settings.service_key()),
        cluster: settings.service_key(),
        user_agent: "weft-sidecar".to_owned(),
        version: weft_telemetry::VERSION.to_owned(),
        region: settings.region.to_string(),
        zone: settings.zone.to_string(),
        metadata: BTreeMap::new(),
    }
}

#[derive(Debug)]
struct XdsMetrics {
    connected: IntGauge,
    updates: IntCounterVec,
    age: IntGaugeVec,
    revision: IntGauge,
}

impl XdsMetrics {
    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let connected = IntGauge::new("weft_xds_connected", "1 while the stream to the control plane is up.")?;
        let updates = IntCounterVec::new(
            Opts::new("weft_xds_updates_total", "Resources that came, by type and by what became of them."),
            &["type", "result"],
        )?;
        for ty in ResourceType::ALL {
            for result in ["ok", "removed", "rejected"] {
                updates.with_label_values(&[ty.short(), result]);
            }
        }
        let age = IntGaugeVec::new(
            Opts::new(
                "weft_config_age_seconds",
                "For how long no control plane has said what changed; 0 while the stream is up.",
            ),
            &["type"],
        )?;
        let revision = IntGauge::new("weft_config_revision", "Counts the configurations that were put in force.")?;
        registry.register(Box::new(connected.clone()))?;
        registry.register(Box::new(updates.clone()))?;
        registry.register(Box::new(age.clone()))?;
        registry.register(Box::new(revision.clone()))?;
        Ok(Self { connected, updates, age, revision })
    }
}
