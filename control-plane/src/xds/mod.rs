//! The discovery service: one task for each stream, which owns the protocol's state machine and nothing else.
//!
//! A stream is woken by its client, by a change that concerns it, and by its age. What it sends waits in a channel of
//! one; a client that does not read holds up nobody but itself, and finds what it missed merged.

mod interested;
mod protocol;
mod sessions;
mod status;
mod stream;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::RwLock;
use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};

use weft_xds::server::{DeltaSession, SotwSession};

pub use self::{
    sessions::{Open, Session, Sessions, Standing},
    status::{Metrics, Refusal},
};
use crate::{
    index::{Change, Dirty, World, Worlds},
    peer::Peer,
    translate::Catalog,
};

/// The aggregated discovery service, incremental and state-of-the-world. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Discovery {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    worlds: Arc<Worlds>,
    catalog: Catalog,
    sessions: Arc<Sessions>,
    shutdown: CancellationToken,
    /// Held by the writer from the moment the catalog changes until everybody concerned has been told, and by a session
    /// while it reads: what a session finds changed it has been told of.
    turn: RwLock<()>,
}

impl Discovery {
    /// A discovery service for `worlds`; [`Discovery::run`] has to run beside it. When `shutdown` is cancelled every
    /// stream ends in good order.
    ///
    /// # Errors
    /// When the registry already has the metrics of another discovery service.
    pub fn new(
        worlds: Arc<Worlds>,
        registry: &Registry,
        shutdown: CancellationToken,
    ) -> Result<Self, prometheus::Error> {
        let world = worlds.current();
        let sessions = Arc::new(Sessions::new(&world, Metrics::new(registry)?));
        let catalog = Catalog::new(world);
        Ok(Self { shared: Arc::new(Shared { worlds, catalog, sessions, shutdown, turn: RwLock::new(()) }) })
    }

    /// Who is connected, and what they have acknowledged.
    pub fn sessions(&self) -> Arc<Sessions> {
        self.shared.sessions.clone()
    }

    /// The gRPC service. It reads [`Peer`] from the extensions of each request.
    pub fn service(&self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Follows the worlds until `shutdown`: takes each change into the catalog and wakes whom it concerns.
    pub async fn run(self) {
        let Shared { worlds, shutdown, .. } = &*self.shared;
        let mut changes = worlds.subscribe();
        // What was published between `new` and the subscription.
        self.shared.take(worlds.current(), None);
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                () = shutdown.cancelled() => return,
            };
            match change {
                Some(Change::Update(update)) => self.shared.take(update.world, Some(&update.dirty)),
                Some(Change::Lagged) => {
                    tracing::warn!("changes came too fast: every view is checked anew");
                    self.shared.take(worlds.current(), None);
                }
                None => return,
            }
        }
    }

    /// Who may open a stream: a client with a certificate.
    fn peer<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        let peer = request.extensions().get::<Peer>().filter(|peer| peer.identity.is_some());
        peer.cloned().ok_or_else(|| {
            Status::unauthenticated("discovery needs a client certificate of the mesh; get one with a join token first")
        })
    }
}

impl Shared {
    /// Goes on to the next world. `dirty`: what differs; `None`: nobody knows.
    fn take(&self, world: Arc<World>, dirty: Option<&BTreeSet<Dirty>>) {
        let _turn = self.turn.write();
        // Of changes that were missed the newest has been taken in already.
        if world.generation < self.catalog.world().generation {
            return;
        }
        let changes = self.catalog.update(world.clone(), dirty);
        self.sessions.publish(&world, &changes);
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream = stream::Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = stream::Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let peer = self.peer(&request)?;
        Ok(Response::new(stream::spawn::<SotwSession>(self.shared.clone(), peer, request.into_inner())))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = self.peer(&request)?;
        Ok(Response::new(stream::spawn::<DeltaSession>(self.shared.clone(), peer, request.into_inner())))
    }
}

/// Longest message either way: the first request of a reconnecting client names everything that it has.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Age at which a stream is ended so that its client may find another control plane; half more or less, at random.
const STREAM_AGE: Duration = Duration::from_secs(30 * 60);
