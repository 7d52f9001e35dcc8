//! A worker's pools of HTTP connections, one for each destination, cluster and version.
//!
//! A pooled connection that its server has closed is noticed before it is used again; one that has been unused for
//! longer than its destination allows is not used at all. HTTP/2 connections are shared up to [`STREAMS`] streams.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use weft_identity::SpiffeId;

use super::{ConnectFailure, Destination, Link, Wire, connect};
use crate::{
    balance::{LimitKind, LimitPermit},
    clock,
    http1::client::Client,
    http2::client as http2,
    io::Io,
    metrics::{Connections, Direction, Metrics, OpenConnection},
    reason::Reason,
    worker::Worker,
};

/// Streams on one HTTP/2 connection before another one is opened.
const STREAMS: u32 = 100;
/// Unused connections kept for one destination.
const MAX_IDLE: usize = 256;
/// How often a request that waits for a connection looks whether another worker has given one back.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// All pools of a worker.
#[derive(Debug)]
pub struct Pools {
    hosts: RefCell<HashMap<(SocketAddr, Wire), Hosts, foldhash::fast::RandomState>>,
    upstream: Connections,
    app: Connections,
}

/// Of one address, by cluster: there are few.
type Hosts = Vec<Rc<Host>>;

/// Connections to one destination for one cluster.
#[derive(Debug)]
struct Host {
    cluster: Box<str>,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    /// An HTTP/2 connection is coming about; those who need one wait for it.
    dialing: RefCell<Option<Rc<Dialing>>>,
    freed: Notify,
    keep: Cell<Duration>,
}

/// An HTTP/1 connection that waits for a request.
#[derive(Debug)]
struct Idle {
    link: Box<Http1>,
    since: Instant,
}

/// An HTTP/1 connection, and what it holds while it is open.
#[derive(Debug)]
pub(super) struct Http1 {
    pub(super) client: Rc<Client>,
    peer: Option<Arc<SpiffeId>>,
    _permit: Option<LimitPermit>,
    _open: OpenConnection,
}

/// An HTTP/2 connection.
#[derive(Debug)]
struct Shared {
    client: Rc<http2::Client>,
    peer: Option<Arc<SpiffeId>>,
    since: Cell<Instant>,
}

#[derive(Debug, Default)]
struct Dialing {
    done: Notify,
    failed: RefCell<Option<ConnectFailure>>,
    over: Cell<bool>,
}

/// A connection for one request.
#[derive(Debug)]
pub struct Lease {
    pub(super) sender: Sender,
    /// It has served before.
    pub reused: bool,
    /// The peer proved an identity.
    pub mutual: bool,
    host: Rc<Host>,
}

#[derive(Debug)]
pub(super) enum Sender {
    Http1(Box<Http1>),
    Http2(StreamGuard),
}

/// One stream of a shared connection.
#[derive(Debug)]
pub(super) struct StreamGuard {
    shared: Rc<Shared>,
    pub(super) stream: http2::Stream,
}

impl StreamGuard {
    fn new(shared: &Rc<Shared>) -> Self {
        Self { shared: Rc::clone(shared), stream: http2::Stream::new(&shared.client) }
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.shared.since.set(clock::now());
    }
}

impl Lease {
    /// The answer has come to its end and the request was sent whole: the connection may serve again.
    pub fn give_back(self) {
        if let Sender::Http1(link) = self.sender
            && link.client.is_reusable()
        {
            let mut idle = self.host.idle.borrow_mut();
            if idle.len() < MAX_IDLE {
                link.client.rest();
                idle.push(Idle { link, since: clock::now() });
            }
        }
        self.host.freed.notify_one();
    }

    /// The stream of an HTTP/1 connection that was switched to another protocol.
    pub fn into_io(self) -> Option<Io> {
        match self.sender {
            Sender::Http1(link) => link.client.into_io(),
            Sender::Http2(_) => None,
        }
    }

    /// HTTP version of the connection.
    pub fn wire(&self) -> Wire {
        match self.sender {
            Sender::Http1(_) => Wire::Http1,
            Sender::Http2(_) => Wire::Http2,
        }
    }
}

impl Pools {
    /// Empty.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            hosts: RefCell::default(),
            upstream: metrics.connections(Direction::Outbound, "upstream"),
            app: metrics.connections(Direction::Inbound, "app"),
        }
    }

    /// Metric handles for connections to a destination.
    pub fn opened(&self, to: &Destination) -> &Connections {
        match to {
            Destination::Workload(..) | Destination::External(_) => &self.upstream,
            Destination::App(_) => &self.app,
        }
    }

    /// Metric handles for connections out of the mesh.
    pub fn external(&self) -> &Connections {
        &self.upstream
    }

    /// Connections that wait for a request.
    pub fn idle(&self) -> usize {
        self.hosts.borrow().values().flatten().map(|host| host.idle.borrow().len()).sum()
    }

    /// Closes what has been unused for too long or was closed by the other side.
    pub fn sweep(&self, now: Instant) {
        self.hosts.borrow_mut().retain(|_, hosts| {
            hosts.retain(|host| {
                let fresh = |since: Instant| now.saturating_duration_since(since) < host.keep.get();
                host.idle.borrow_mut().retain(|idle| fresh(idle.since) && !idle.link.client.is_stale());
                let alive = |shared: &Rc<Shared>| {
                    !shared.client.is_closed() && (shared.client.streams() > 0 || fresh(shared.since.get()))
                };
                host.shared.borrow_mut().retain(alive);
                Rc::strong_count(host) > 1 || !host.idle.borrow().is_empty() || !host.shared.borrow().is_empty()
            });
            !hosts.is_empty()
        });
    }

    /// Closes the unused connections of a cluster.
    fn close_idle(&self, cluster: &str) {
        for host in self.hosts.borrow().values().flatten().filter(|host| *host.cluster == *cluster) {
            host.idle.take();
            host.shared.borrow_mut().retain(|shared| shared.client.streams() > 0);
        }
    }

    fn host(&self, to: &Destination, wire: Wire) -> Rc<Host> {
        let mut all = self.hosts.borrow_mut();
        let hosts = all.entry((to.address(), wire)).or_default();
        if let Some(host) = hosts.iter().find(|host| *host.cluster == *to.cluster()) {
            return Rc::clone(host);
        }
        let host = Rc::new(Host {
            cluster: to.cluster().into(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            dialing: RefCell::default(),
            freed: Notify::new(),
            keep: Cell::new(Duration::ZERO),
        });
        hosts.push(Rc::clone(&host));
        host
    }

    /// A connection to `to`. `fresh`: none that has served before. `careful`: make sure that a connection that has
    /// served before is not closed already, since the request could not be sent twice.
    /// # Errors
    /// [`ConnectFailure`].
    pub async fn lease(
        &self,
        worker: &Worker,
        to: &Destination,
        wire: Wire,
        fresh: bool,
        careful: bool,
    ) -> Result<Lease, ConnectFailure> {
        let host = self.host(to, wire);
        host.keep.set(to.idle(worker.path.bounds.app_idle));
        match wire {
            Wire::Http1 => {
                if !fresh && let Some(lease) = host.idle_lease(to, careful).await {
                    return Ok(lease);
                }
                // Seldom, and large: not a part of every request's future.
                Box::pin(self.dial_http1(worker, to, host)).await
            }
            Wire::Http2 => {
                if !fresh && let Some(lease) = host.shared_lease(to) {
                    return Ok(lease);
                }
                Box::pin(self.http2_lease(worker, to, host, fresh)).await
            }
        }
    }

    async fn dial_http1(&self, worker: &Worker, to: &Destination, host: Rc<Host>) -> Result<Lease, ConnectFailure> {
        let permit = match permit(worker, to, &host).await? {
            Permit::Dial(permit) => permit,
            Permit::Reuse(lease) => return Ok(*lease),
        };
        let Link { io, peer, .. } = connect(worker, to, Wire::Http1.alpn()).await?;
        let mutual = peer.is_some();
        let link = Http1 { client: Client::new(io), peer, _permit: permit, _open: self.opened(to).open() };
        Ok(Lease { sender: Sender::Http1(Box::new(link)), reused: false, mutual, host })
    }

    async fn http2_lease(
        &self,
        worker: &Worker,
        to: &Destination,
        host: Rc<Host>,
        fresh: bool,
    ) -> Result<Lease, ConnectFailure> {
        loop {
            if !fresh && let Some(lease) = host.shared_lease(to) {
                return Ok(lease);
            }
            let waiting = host.dialing.borrow().clone();
            let Some(dialing) = waiting else { break };
            let done = dialing.done.notified();
            if !dialing.over.get() {
                done.await;
            }
            if let Some(failure) = dialing.failed.borrow().clone() {
                return Err(failure);
            }
            if fresh {
                break;
            }
        }
        let dialing = DialingGuard { host: Rc::clone(&host), dialing: Rc::default() };
        *host.dialing.borrow_mut() = Some(Rc::clone(&dialing.dialing));
        let made = self.dial_http2(worker, to, &host).await;
        if let Err(failure) = &made {
            *dialing.dialing.failed.borrow_mut() = Some(failure.clone());
        }
        made
    }

    async fn dial_http2(&self, worker: &Worker, to: &Destination, host: &Rc<Host>) -> Result<Lease, ConnectFailure> {
        let permit = match permit(worker, to, host).await? {
            Permit::Dial(permit) => permit,
            Permit::Reuse(lease) => return Ok(*lease),
        };
        let Link { io, peer, .. } = connect(worker, to, Wire::Http2.alpn()).await?;
        let (client, connection) = http2::handshake(io).await.map_err(|error| broken(to, &error))?;
        let open = self.opened(to).open();
        tokio::task::spawn_local(async move {
            let (_permit, _open) = (permit, open);
            connection.await;
        });
        let mutual = peer.is_some();
        let shared = Rc::new(Shared { client: Rc::new(client), peer, since: Cell::new(Instant::now()) });
        host.shared.borrow_mut().push(Rc::clone(&shared));
        let sender = Sender::Http2(StreamGuard::new(&shared));
        Ok(Lease { sender, reused: false, mutual, host: Rc::clone(host) })
    }
}

impl Host {
    /// A connection that has served before and still can.
    async fn idle_lease(self: &Rc<Self>, to: &Destination, careful: bool) -> Option<Lease> {
        let mut looked = !careful;
        loop {
            if !looked && !self.idle.borrow().is_empty() {
                // Lets the reactor see what has come meanwhile.
                tokio::task::yield_now().await;
                looked = true;
            }
            let Idle { link, since } = self.idle.borrow_mut().pop()?;
            let mutual = link.peer.is_some();
            if clock::now().saturating_duration_since(since) < self.keep.get()
                && proves(to, link.peer.as_deref())
                && !link.client.is_stale()
            {
                return Some(Lease { sender: Sender::Http1(link), reused: true, mutual, host: Rc::clone(self) });
            }
        }
    }

    fn shared_lease(self: &Rc<Self>, to: &Destination) -> Option<Lease> {
        let mut all = self.shared.borrow_mut();
        all.retain(|shared| !shared.client.is_closed());
        let usable = |shared: &&Rc<Shared>| shared.client.has_room(STREAMS) && proves(to, shared.peer.as_deref());
        let shared = all.iter().filter(usable).min_by_key(|shared| shared.client.streams())?;
        let sender = Sender::Http2(StreamGuard::new(shared));
        Some(Lease { sender, reused: true, mutual: shared.peer.is_some(), host: Rc::clone(self) })
    }
}

struct DialingGuard {
    host: Rc<Host>,
    dialing: Rc<Dialing>,
}

impl Drop for DialingGuard {
    fn drop(&mut self) {
        self.dialing.over.set(true);
        self.dialing.done.notify_waiters();
        let mut current = self.host.dialing.borrow_mut();
        if current.as_ref().is_some_and(|dialing| Rc::ptr_eq(dialing, &self.dialing)) {
            *current = None;
        }
    }
}

enum Permit {
    Dial(Option<LimitPermit>),
    Reuse(Box<Lease>),
}

/// Leave to open a connection; while the limit is reached, waits for one to be freed.
async fn permit(worker: &Worker, to: &Destination, host: &Rc<Host>) -> Result<Permit, ConnectFailure> {
    let Destination::Workload(upstream, _) = to else { return Ok(Permit::Dial(None)) };
    let limits = upstream.limits();
    if let Ok(permit) = limits.connections.acquire() {
        return Ok(Permit::Dial(Some(permit)));
    }
    let overflow = |reason: Reason, what: &str| ConnectFailure { reason, detail: what.into() };
    let _pending =
        limits.pending.acquire().map_err(|kind: LimitKind| overflow(Reason::OverflowPending, kind.label()))?;
    // What is kept for other endpoints of the cluster makes room.
    worker.pools.close_idle(to.cluster());
    let deadline = tokio::time::Instant::now() + worker.path.bounds.pending;
    while tokio::time::Instant::now() < deadline {
        let again = deadline.min(tokio::time::Instant::now() + LOOK_AGAIN);
        if tokio::time::timeout_at(again, host.freed.notified()).await.is_err() {
            tracing::trace!("no connection freed here; another worker may have freed one");
        }
        if let Some(lease) = host.idle_lease(to, false).await {
            return Ok(Permit::Reuse(Box::new(lease)));
        }
        if let Some(lease) = host.shared_lease(to) {
            return Ok(Permit::Reuse(Box::new(lease)));
        }
        if limits.connections.used() < limits.connections.max()
            && let Ok(permit) = limits.connections.acquire()
        {
            return Ok(Permit::Dial(Some(permit)));
        }
    }
    Err(overflow(Reason::OverflowConnections, "no connection became free in time"))
}

/// Whether what the peer of a pooled connection proved is still what the destination demands.
fn proves(to: &Destination, peer: Option<&SpiffeId>) -> bool {
    match (to.tls(), peer) {
        (None, None) => true,
        (Some((_, expected)), Some(peer)) => expected.contains(peer),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

fn broken(to: &Destination, error: &h2::Error) -> ConnectFailure {
    let reason = match to {
        Destination::Workload(..) => Reason::UpstreamConnectFailed,
        Destination::App(_) => Reason::AppConnectRefused,
        Destination::External(_) => Reason::ExternalConnectFailed,
    };
    ConnectFailure { reason, detail: error.to_string().into() }
}
