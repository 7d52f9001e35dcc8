//! One stream: a task that owns the protocol's state machine and feeds it with requests and changes.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tonic::{Status, Streaming};
use weft_identity::SpiffeId;
use weft_proto::envoy::config::core::v3::Node;
use weft_xds::{
    resource::{Encoded, ResourceType},
    server::{Event, Options, ProtocolError, View},
};

use super::{
    STREAM_AGE, Shared,
    protocol::Protocol,
    sessions::{EVERYTHING, Open, Session},
    status::Refusal,
};
use crate::{
    outbox::{Messages, Outbox, outbox},
    peer::Peer,
    translate::{Catalog, Client, Flavour, source},
};

/// What a stream sends.
pub(super) type Responses<R> = Messages<Result<R, Status>>;

/// The task's end of it.
type Outgoing<R> = Outbox<Result<R, Status>>;

/// Starts the task of a stream. It ends with the stream: when the client goes, nobody takes responses any more.
pub(super) fn spawn<P: Protocol>(
    shared: Arc<Shared>,
    peer: Peer,
    mut requests: Streaming<P::Request>,
) -> Responses<P::Response> {
    let (mut responses, stream) = outbox();
    let (gone, address) = (stream.dropped(), peer.address);
    tokio::spawn(async move {
        let running = async {
            // Boxed: what is kept from await to await has room in the task as long as the stream lives.
            let (mut stream, until) = Box::pin(open::<P>(&shared, peer, &mut requests)).await?;
            stream.serve(&mut requests, &mut responses, until).await
        };
        let ended = tokio::select! {
            ended = running => ended,
            () = gone => return,
        };
        if let Err(status) = ended
            && responses.send(Err(status)).await.is_err()
        {
            tracing::debug!(peer = %address, "the client left before it could be told why its stream ends");
        }
    });
    stream
}

/// Takes the first request, and learns from it who asks. Until when the stream may live is the second of what it returns.
async fn open<P: Protocol>(
    shared: &Arc<Shared>,
    peer: Peer,
    requests: &mut Streaming<P::Request>,
) -> Result<(Box<Running<P>>, tokio::time::Instant), Status> {
    let first = match tokio::time::timeout(FIRST_MESSAGE, requests.message()).await {
        Ok(first) => first?.ok_or_else(|| Status::invalid_argument("the stream ended before its first request"))?,
        Err(_) => return Err(Status::deadline_exceeded("no first request came")),
    };
    let (client, identity) = admit(shared, &peer, P::node(&first))?;
    let open = shared.sessions.open(client, identity, peer.certificate_expiry);
    let session = open.session.clone();
    tracing::info!(
        sidecar = %session.client.id, identity = %session.identity, agent = session.client.agent, from = %peer.address,
        protocol = P::NAME, "discovery stream opened"
    );
    let protocol = P::new(options(&session.client));
    let mut stream = Running::<P> { shared: shared.clone(), protocol, open, pushed: Pushed::default() };
    stream.request(&session, first).inspect_err(|status| stream.closed(status.message()))?;
    Ok((Box::new(stream), lifetime(&peer)))
}

/// Whether this certificate may speak for this node.
fn admit(shared: &Shared, peer: &Peer, node: Option<&Node>) -> Result<(Client, SpiffeId), Status> {
    let node = node.ok_or_else(|| Status::invalid_argument("the first request has no node"))?;
    let client = Client::from_node(node).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let identity = peer.identity.clone().ok_or_else(|| Status::unauthenticated("no client certificate"))?;
    if !shared.catalog.world().may_act_as(&identity, &client.service) {
        let service = &client.service;
        return Err(Status::permission_denied(format!(
            "{identity} may not act as service {service}: the account must be `{}`, or Service {service} must name it in \
             the annotation {}",
            service.name,
            weft_model::SERVICE_ACCOUNTS,
        )));
    }
    Ok((client, identity))
}

/// Until when a stream may live: its age with jitter, but no longer than the certificate that opened it.
fn lifetime(peer: &Peer) -> tokio::time::Instant {
    let age = STREAM_AGE.mul_f64(0.5 + fastrand::f64());
    let left = peer.certificate_expiry.map(|expiry| expiry.duration_since(SystemTime::now()).unwrap_or_default());
    tokio::time::Instant::now() + left.map_or(age, |left| left.min(age))
}

struct Running<P> {
    shared: Arc<Shared>,
    open: Open,
    protocol: P,
    pushed: Pushed,
}

/// What the protocol has been given so far.
#[derive(Default)]
struct Pushed {
    generation: u64,
    /// When the oldest unanswered change happened.
    since: Option<Instant>,
}

impl<P: Protocol> Running<P> {
    async fn serve(
        &mut self,
        requests: &mut Streaming<P::Request>,
        responses: &mut Outgoing<P::Response>,
        until: tokio::time::Instant,
    ) -> Result<(), Status> {
        let ended = self.answer(requests, responses, until).await;
        match &ended {
            Ok(why) => self.closed(why),
            Err(status) => self.closed(status.message()),
        }
        ended.map(|_| ())
    }

    fn closed(&self, why: &str) {
        tracing::info!(sidecar = %self.open.session.client.id, why, "discovery stream closed");
    }

    async fn answer(
        &mut self,
        requests: &mut Streaming<P::Request>,
        responses: &mut Outgoing<P::Response>,
        until: tokio::time::Instant,
    ) -> Result<&'static str, Status> {
        let session = self.open.session.clone();
        // Whether there may be something to send.
        let mut ready = true;
        loop {
            tokio::select! {
                biased;
                () = self.shared.shutdown.cancelled() => return Ok("the control plane stops"),
                () = tokio::time::sleep_until(until) => return Ok("its age, or that of its certificate"),
                request = requests.message() => {
                    let Some(request) = request? else { return Ok("the client ended it") };
                    self.request(&session, request)?;
                    ready = true;
                }
                // Only while nothing is to be sent: mail stays until it is taken, and would be chosen again and again.
                () = session.mail(), if !ready => ready = true,
                room = responses.room(), if ready => {
                    let Ok(()) = room else { return Ok("the client went") };
                    match self.next(&session) {
                        Some(response) => responses.put(Ok(response)),
                        None => ready = false,
                    }
                }
            }
        }
    }

    fn request(&mut self, session: &Session, request: P::Request) -> Result<(), Status> {
        let events = self.protocol.on_request(request).map_err(|error| match error {
            ProtocolError::TooManyNames { .. } => Status::resource_exhausted(error.to_string()),
            ProtocolError::LongName { .. } | ProtocolError::NoWildcard(_) => {
                Status::invalid_argument(error.to_string())
            }
        })?;
        for event in events {
            self.event(session, event);
        }
        self.shared.sessions.report(session, self.protocol.status());
        Ok(())
    }

    fn event(&mut self, session: &Session, event: Event) {
        let sessions = &self.shared.sessions;
        match event {
            Event::Subscribed { ty, names, wildcard } => {
                for name in &names {
                    if let Some(source) = source(&session.client, ty, name) {
                        sessions.subscribed(session, ty, name, source);
                    }
                }
                if wildcard {
                    sessions.subscribed_all(session, ty);
                }
            }
            Event::Unsubscribed { ty, names, wildcard } => {
                for name in &names {
                    if let Some(source) = source(&session.client, ty, name) {
                        sessions.unsubscribed(session, ty, name, &source);
                    }
                }
                if wildcard {
                    sessions.unsubscribed_all(session, ty);
                }
            }
            Event::Acked { ty, nonce, resources } => {
                tracing::trace!(sidecar = %session.client.id, kind = %ty, nonce, count = resources.len(), "acknowledged");
            }
            Event::Nacked { ty, resources, message, .. } => {
                let names = resources.iter().map(|(name, _)| name.to_string()).collect();
                self.refused(session, ty, names, &message);
            }
            Event::UnknownType(url) => {
                tracing::debug!(sidecar = %session.client.id, url, "a type that is not served was asked for");
            }
        }
    }

    fn refused(&mut self, session: &Session, ty: ResourceType, resources: Vec<String>, message: &str) {
        self.shared.sessions.metrics.nack(ty, !resources.is_empty());
        let refusal = Refusal {
            ty,
            resources,
            message: message.to_owned(),
            time: SystemTime::now(),
            generation: self.pushed.generation,
        };
        let resources = refusal.resources.join(", ");
        if session.report.refused(refusal) {
            tracing::warn!(sidecar = %session.client.id, kind = %ty, resources, message, "refused");
        }
    }

    /// The next response. In one turn with the mail: what is found changed has been told.
    fn next(&mut self, session: &Session) -> Option<P::Response> {
        let shared = self.shared.clone();
        let turn = shared.turn.read();
        self.mail(session);
        let view = Scope { catalog: &shared.catalog, client: &session.client };
        let response = self.protocol.next_response(&view);
        let world = shared.catalog.world();
        drop(turn);
        self.shared.sessions.report(session, self.protocol.status());
        if response.is_none() && self.protocol.acked_all() {
            self.shared.sessions.answered(session, world.generation, world.revision);
            if let Some(since) = self.pushed.since.take() {
                self.shared.sessions.metrics.acked(since);
            }
        }
        response
    }

    fn mail(&mut self, session: &Session) {
        let mail = session.take();
        if mail.everything || mail.names.values().any(|names| names.contains(EVERYTHING)) {
            self.protocol.dirty_all();
        }
        for (ty, names) in &mail.names {
            self.protocol.dirty(*ty, names);
        }
        self.pushed.generation = self.pushed.generation.max(mail.generation);
        if let Some(since) = mail.since {
            self.pushed.since.get_or_insert(since);
        }
    }
}

fn options(client: &Client) -> Options {
    Options {
        endpoints_follow_cluster: client.flavour != Flavour::Sidecar,
        identifier: format!("weft {}", env!("CARGO_PKG_VERSION")),
        max_names: MAX_NAMES,
        ..Options::default()
    }
}

/// What one client may see.
struct Scope<'a> {
    catalog: &'a Catalog,
    client: &'a Client,
}

impl View for Scope<'_> {
    fn get(&self, ty: ResourceType, name: &str) -> Option<Arc<Encoded>> {
        self.catalog.get(self.client, ty, name)
    }

    fn all(&self, ty: ResourceType) -> Vec<Arc<Encoded>> {
        self.catalog.all(self.client, ty)
    }
}

/// Names that one client may subscribe to: an Envoy in a mesh of ten thousand services names clusters and endpoints.
const MAX_NAMES: usize = 200_000;
/// How long a client may take to say who it is.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
