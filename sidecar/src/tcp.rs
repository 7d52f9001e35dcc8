//! Raw connections: picked, connected and relayed both ways, with half-close. Bytes are counted as they pass.

mod stride;

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderMap;
use weft_xds::resource::{Cluster, RouteAction};

use self::stride::Way;
use crate::{
    balance::{Failure, Outcome, PickError, Refused, Upstream, request_hash},
    http::{
        answer::Failed,
        request::{authorize, unknown},
    },
    io::Io,
    metrics::AttemptKind,
    reason::Reason,
    record::{Entry, Record, Try},
    route::pick_cluster,
    shared::Alpn,
    upstream::{Destination, Link, connect},
    worker::{Conn, Worker, inbound_port},
};

/// Endpoints tried beyond the first, while none has accepted the connection.
const RETRIES: usize = 2;

/// When a silent relay ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// After the bound of TCP connections.
    Tcp,
    /// Not by itself: both sides have agreed on a protocol with its own keep-alive.
    Never,
}

/// Carries bytes both ways until both sides have ended.
/// # Errors
/// The reason, when one side broke off or was silent for too long.
pub async fn relay(conn: &Conn, downstream: Io, upstream: Io, record: &Entry, idle: Idle) -> Result<(), Reason> {
    let limit = match idle {
        Idle::Tcp => conn.worker.path.bounds.tcp_idle,
        Idle::Never => Duration::MAX,
    };
    let quiet = async {
        while let Some(at) = record.progressed().checked_add(limit) {
            if at <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(at.into()).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        biased;
        carried = stride::carry(downstream, upstream, |way, bytes| match way {
            Way::Up => record.received(bytes),
            Way::Down => record.sent(bytes),
        }) => carried.map_err(|error| {
            tracing::debug!(%error, "relay ended");
            Reason::UpstreamReset
        }),
        () = quiet => Err(Reason::IdleTimeout),
    }
}

/// Takes note of how a relay ended.
pub fn note(record: &Entry, ended: Result<(), Reason>) {
    if let Err(reason) = ended {
        record.fail(reason, None);
    }
}

/// A raw connection of the application's to a service.
pub async fn outbound(conn: &Rc<Conn>, authority: &str, downstream: Io) {
    let record = Record::tcp(conn);
    match dial_service(conn, authority, &record).await {
        Err(failed) => record.fail(failed.reason, failed.detail.as_deref()),
        Ok(dialed) => dialed.carry(conn, downstream, &record).await,
    }
    record.finish();
}

/// A connection to a workload of a service, not yet used.
#[derive(Debug)]
pub struct Dialed {
    upstream: Io,
    picked: crate::balance::Picked,
    admitted: crate::balance::Admitted,
    _permit: Option<crate::balance::LimitPermit>,
    cluster: Arc<Cluster>,
}

impl Dialed {
    /// Carries bytes until both sides have ended.
    pub async fn carry(mut self, conn: &Conn, downstream: Io, record: &Entry) {
        let now = Instant::now();
        let metrics = &conn.worker.path.metrics;
        // It came about: that is all that a raw connection can say of its endpoint.
        if let Some(change) = self.picked.finish(Outcome::Success, now) {
            metrics.ejection(&self.cluster, self.picked.endpoint.address(), &change);
        }
        if let Some(change) = self.admitted.finish(Outcome::Success, now) {
            metrics.breaker(&self.cluster, &change);
        }
        note(record, relay(conn, downstream, self.upstream, record, Idle::Tcp).await);
    }
}

/// Where raw connections to an authority go.
#[derive(Debug)]
pub struct Goal {
    /// The cluster.
    pub upstream: Arc<Upstream>,
    /// The one endpoint of it that is meant.
    endpoint: Option<SocketAddr>,
}

/// The cluster of an authority's first route that forwards.
pub async fn service_cluster(conn: &Conn, authority: &str) -> Result<Goal, Failed> {
    let shared = &conn.worker.path.shared;
    let ready = shared.demand.ensure(shared, authority).await.map_err(|error| unknown(error, authority))?;
    let forward = ready.host.routes.routes.iter().find_map(|route| match &route.action {
        RouteAction::Forward(forward) => Some(forward),
        RouteAction::Redirect(_) | RouteAction::Respond { .. } => None,
    });
    let share = forward.and_then(|forward| pick_cluster(forward, fastrand::u64(..))).ok_or(Reason::NoRoute)?;
    let upstream = ready.snapshot.cluster(&share.name).cloned();
    let upstream =
        upstream.ok_or_else(|| Failed::with(Reason::ServiceUnknown, format!("no cluster {}", share.name)))?;
    Ok(Goal { upstream, endpoint: ready.host.routes.endpoint })
}

/// Connects to a workload of a service; moves on to others while none accepts.
/// # Errors
/// [`Failed`].
pub async fn dial_service(conn: &Conn, authority: &str, record: &Entry) -> Result<Dialed, Failed> {
    let Goal { upstream, endpoint: only } = service_cluster(conn, authority).await?;
    let cluster = upstream.cluster();
    record.goes(&cluster.service, None);
    record.by(cluster);
    let now = Instant::now();
    upstream.budget().deposit(now);
    let mut admitted = upstream.admit(now).map_err(|refused| match refused {
        Refused::BreakerOpen { .. } => Failed::from(Reason::BreakerOpen),
        Refused::Overflow(_) => Failed::from(Reason::OverflowRequests),
    })?;
    let permit = upstream.limits().connections.acquire().map_err(|_full| Failed::from(Reason::OverflowConnections))?;
    let hash = request_hash(&cluster.balancer, &[], &HeaderMap::new(), conn.peer.ip());
    let mut tried: Vec<SocketAddr> = Vec::new();
    loop {
        let now = Instant::now();
        let picked = match only {
            None => upstream.pick(hash, &tried, now),
            Some(only) => upstream.pick_only(only, now),
        };
        let mut picked = picked.map_err(|error| match error {
            PickError::NoEndpoints => Failed::from(Reason::NoEndpoints),
            PickError::NoneReady => Failed::from(Reason::NoReadyEndpoint),
        })?;
        let endpoint = picked.endpoint.address();
        let to = Destination::Workload(Arc::clone(&upstream), Arc::clone(&picked.endpoint));
        let kind = if tried.is_empty() { AttemptKind::First } else { AttemptKind::Retry };
        tried.push(endpoint);
        let connected = connect(&conn.worker, &to, Alpn::None).await;
        record.waited(now.elapsed());
        record.connected(now.elapsed());
        let result = connected.as_ref().map_or_else(|failure| failure.reason.code(), |_| "ok");
        record.tried(Try { endpoint, kind, result, took: now.elapsed() });
        match connected {
            Ok(Link { io, peer, .. }) => {
                record.mutual(peer.is_some());
                let cluster = Arc::clone(cluster);
                return Ok(Dialed { upstream: io, picked, admitted, _permit: Some(permit), cluster });
            }
            Err(failure) => {
                let outcome = Outcome::Failed(Failure::Connect);
                if let Some(change) = picked.finish(outcome, Instant::now()) {
                    conn.worker.path.metrics.ejection(cluster, endpoint, &change);
                }
                if only.is_some() || tried.len() > RETRIES {
                    if let Some(change) = admitted.finish(outcome, Instant::now()) {
                        conn.worker.path.metrics.breaker(cluster, &change);
                    }
                    return Err(Failed::with(failure.reason, failure.detail));
                }
            }
        }
    }
}

/// A raw connection of the mesh's to the application.
pub async fn inbound(conn: &Rc<Conn>, sni: &str, downstream: Io) {
    let record = Record::tcp(conn);
    record.goes(&conn.worker.path.service, None);
    carry_to_app(conn, dial_app(conn, sni, &record).await, downstream, &record).await;
    record.finish();
}

/// A raw connection of somebody's outside the mesh to a port of the application that is none of the service's.
pub async fn inbound_at(conn: &Rc<Conn>, port: u16, downstream: Io) {
    let record = Record::tcp(conn);
    record.goes(&conn.worker.path.service, None);
    let app = connect_app(&conn.worker, app_at(&conn.worker, port), Some(&record)).await;
    carry_to_app(conn, app, downstream, &record).await;
    record.finish();
}

/// Whether the application takes connections at a port.
/// # Errors
/// [`Failed`], when it does not.
pub async fn app_listens(worker: &Worker, port: u16) -> Result<(), Failed> {
    connect_app(worker, app_at(worker, port), None).await.map(drop)
}

fn app_at(worker: &Worker, port: u16) -> SocketAddr {
    SocketAddr::new(worker.path.shared.settings.app_address, port)
}

/// Carries bytes to the application until both sides have ended.
pub async fn carry_to_app(conn: &Conn, app: Result<Io, Failed>, downstream: Io, record: &Entry) {
    match app {
        Err(failed) => record.fail(failed.reason, failed.detail.as_deref()),
        Ok(app) => note(record, relay(conn, downstream, app, record, Idle::Tcp).await.map_err(app_side)),
    }
}

fn app_side(reason: Reason) -> Reason {
    if reason == Reason::UpstreamReset { Reason::AppReset } else { reason }
}

/// Connects to the application, when the access policies let the caller.
/// # Errors
/// [`Failed`].
pub async fn dial_app(conn: &Conn, sni: &str, record: &Entry) -> Result<Io, Failed> {
    let path = &conn.worker.path;
    let snapshot = path.shared.snapshot.load_full();
    let port = inbound_port(&snapshot, sni).ok_or(Reason::ConfigTimeout)?;
    authorize(conn, port, None)?;
    connect_app(&conn.worker, path.app(port.port), Some(record)).await
}

async fn connect_app(worker: &Worker, endpoint: SocketAddr, record: Option<&Entry>) -> Result<Io, Failed> {
    let began = Instant::now();
    let connected = connect(worker, &Destination::App(endpoint), Alpn::None).await;
    if let Some(record) = record {
        record.waited(began.elapsed());
        let result = connected.as_ref().map_or_else(|failure| failure.reason.code(), |_| "ok");
        record.tried(Try { endpoint, kind: AttemptKind::First, result, took: began.elapsed() });
    }
    connected.map(|link| link.io).map_err(|failure| Failed::with(failure.reason, failure.detail))
}
