//! What the data path shares: of the process ([`DataPath`]), of one worker thread ([`Worker`]), of one connection
//! ([`Conn`]).

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderValue;
use prometheus::Registry;
use weft_identity::SpiffeId;
use weft_xds::resource::{InboundPort, RetryBudget};

use crate::{
    alarm::Alarms,
    balance::Budget,
    drain::Side,
    http::{classify::Named, upgrade::Tunnel},
    listener::Passing,
    metrics::{Connections, Count, Direction, FLOW_IDLE, Flow, FlowKey, Memo, Metrics},
    reason::Reason,
    record::{AccessLog, Slowest},
    shared::Shared,
    snapshot::Snapshot,
    upstream::Pools,
};

/// What all workers of a process share.
#[derive(Debug)]
pub struct DataPath {
    /// Configuration, certificates, drain.
    pub shared: Arc<Shared>,
    /// Metric families.
    pub metrics: Metrics,
    /// The access log's writer.
    pub log: AccessLog,
    /// `namespace/service` of this sidecar.
    pub service: Box<str>,
    /// Addresses on which this process listens: never a destination.
    pub own: Vec<SocketAddr>,
    /// Bounds in time and number.
    pub bounds: Bounds,
    /// Redirected connections that are being passed on to where they were meant to go.
    pub passing: Passing,
}

/// Bounds of the data path. The defaults are the reference's; tests use shorter ones.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// A request's head must be there this long after accept or after its first byte. Covers TLS.
    pub head: Duration,
    /// A connection without a request is closed after this time.
    pub keep_alive: Duration,
    /// No byte either way for this long ends a request whose route does not say otherwise.
    pub stream_idle: Duration,
    /// No byte either way for this long ends a TCP connection.
    pub tcp_idle: Duration,
    /// Wait for a client's first bytes where no protocol is declared.
    pub detection: Duration,
    /// Connecting to the application.
    pub app_connect: Duration,
    /// An unused connection to the application is closed after this time: sooner than servers do (Node: 5 s).
    pub app_idle: Duration,
    /// Wait for a free connection when their number is limited.
    pub pending: Duration,
    /// Connections from outside, of the whole process.
    pub connections: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            keep_alive: Duration::from_secs(300),
            stream_idle: Duration::from_secs(300),
            tcp_idle: Duration::from_secs(3600),
            detection: Duration::from_millis(100),
            app_connect: Duration::from_millis(250),
            app_idle: Duration::from_secs(3),
            pending: Duration::from_secs(3),
            connections: descriptor_budget(),
        }
    }
}

/// Connections from outside that the limit on file descriptors allows: each may need one to an upstream, too.
fn descriptor_budget() -> usize {
    const OTHERS: u64 = 64;
    let limit =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(limit.saturating_sub(OTHERS) / 2).unwrap_or(usize::MAX).max(16)
}

impl DataPath {
    /// `own`: every address on which this process listens.
    pub fn new(shared: Arc<Shared>, registry: &Registry, own: Vec<SocketAddr>) -> Arc<Self> {
        Self::with_bounds(shared, registry, own, Bounds::default())
    }

    /// The same with other bounds.
    pub fn with_bounds(shared: Arc<Shared>, registry: &Registry, own: Vec<SocketAddr>, bounds: Bounds) -> Arc<Self> {
        let metrics = Metrics::new(registry);
        let log = AccessLog::start(shared.settings.access_log, shared.settings.access_log_format, metrics.clone());
        let service = format!("{}/{}", shared.settings.namespace, shared.settings.service).into();
        Arc::new(Self { shared, metrics, log, service, own, bounds, passing: Passing::default() })
    }

    /// Drain state of a direction.
    pub fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Inbound => &self.shared.drain.inbound,
            Direction::Outbound => &self.shared.drain.outbound,
        }
    }

    /// Where the application listens for a port of the service.
    pub fn app(&self, port: u16) -> SocketAddr {
        let settings = &self.shared.settings;
        let app = settings.ports.iter().find(|known| known.port == port).map_or(port, |known| known.app_port);
        SocketAddr::new(settings.app_address, app)
    }

    /// Whether traffic to this address outside the mesh is refused: loopback, or this process itself.
    pub fn forbidden(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let local = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
        let advertised = self.shared.settings.address.map(|address| address.ip);
        local(ip)
            || self.own.iter().any(|own| {
                own.port() == address.port() && (own.ip() == ip || local(own.ip()) && advertised == Some(ip))
            })
    }
}

/// One worker thread's share: nothing here is seen by another thread.
#[derive(Debug)]
pub struct Worker {
    /// The process's.
    pub path: Arc<DataPath>,
    /// Connections to upstreams and to the application.
    pub pools: Pools,
    /// Latencies, to know the slowest.
    pub slowest: RefCell<Slowest>,
    /// Replays towards the application.
    pub app_budget: Budget,
    /// Timers of requests.
    pub alarms: Alarms,
    flows: RefCell<HashMap<u64, Rc<Flow>>>,
    /// The same, by where the names of destination and route stand.
    flows_at: Memo<Rc<Flow>>,
    decisions: RefCell<HashMap<u64, Rc<Decided>>>,
    /// The same, by where the names of policy and rule stand.
    decisions_at: Memo<Rc<Decided>>,
    downstream: [Connections; 2],
}

/// Decisions of one rule.
#[derive(Debug)]
struct Decided {
    decision: &'static str,
    policy: Box<str>,
    rule: Box<str>,
    count: Arc<Count>,
}

impl Worker {
    /// Nothing open yet.
    pub fn new(path: Arc<DataPath>) -> Rc<Self> {
        let open = |direction| path.metrics.connections(direction, "downstream");
        let downstream = [open(Direction::Outbound), open(Direction::Inbound)];
        // Towards the application nothing is retried but what met a closed connection.
        let budget = RetryBudget { percent: 100, min_per_second: 100 };
        Rc::new(Self {
            pools: Pools::new(&path.metrics),
            slowest: RefCell::default(),
            app_budget: Budget::new(budget, Instant::now()),
            alarms: Alarms::default(),
            flows: RefCell::default(),
            flows_at: Memo::default(),
            decisions: RefCell::default(),
            decisions_at: Memo::default(),
            downstream,
            path,
        })
    }

    /// Metric handles for connections from outside.
    pub fn downstream(&self, direction: Direction) -> &Connections {
        match direction {
            Direction::Outbound => &self.downstream[0],
            Direction::Inbound => &self.downstream[1],
        }
    }

    /// The handles of a flow.
    pub fn flow(&self, direction: Direction, source: &str, destination: &str, route: &str) -> Rc<Flow> {
        let is = |flow: &Rc<Flow>| flow.is(direction, source, destination, route);
        self.flows_at.find([destination, route], is, || {
            let hash = digest([direction.label(), source, destination, route]);
            let make = || {
                let [source, destination, route] = [source, destination, route].map(Box::from);
                self.path.metrics.flow(FlowKey { direction, source, destination, route })
            };
            Rc::clone(self.flows.borrow_mut().entry(hash).or_insert_with(make))
        })
    }

    /// An access policy decided.
    pub fn decided(&self, decision: &'static str, policy: &str, rule: &str) {
        let is = |known: &Rc<Decided>| known.decision == decision && *known.policy == *policy && *known.rule == *rule;
        let known = self.decisions_at.find([policy, rule], is, || {
            let hash = digest([decision, policy, rule]);
            let make = || {
                let count = self.path.metrics.access(decision, policy, rule);
                Rc::new(Decided { decision, policy: policy.into(), rule: rule.into(), count })
            };
            Rc::clone(self.decisions.borrow_mut().entry(hash).or_insert_with(make))
        });
        known.count.add(1);
    }

    /// Lets go of what has not been used for long.
    pub fn sweep(&self, now: Instant) {
        self.pools.sweep(now);
        self.flows_at.clear();
        self.flows.borrow_mut().retain(|_, flow| now.duration_since(flow.used.get()) < FLOW_IDLE);
        self.path.metrics.evict();
    }
}

/// One number for a set of labels; 64 bits do not collide among the few that there are.
fn digest<const N: usize>(parts: [&str; N]) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3Default::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update(&[0]);
    }
    hash.digest()
}

/// Where a connection came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// At the outbound port: requests name their host.
    Outbound,
    /// At the local port of an upstream, or in a CONNECT: the canonical authority is fixed.
    Fixed(Box<str>),
    /// By a redirect: the canonical authority, or the address, that the application connected to.
    Original(Box<str>),
    /// At the inbound port: the server name, empty when none was sent.
    Inbound(Box<str>),
    /// By a redirect, in plain text where none is taken, at a port of the application that has health probes.
    Probe(u16),
}

/// One accepted connection.
#[derive(Debug)]
pub struct Conn {
    /// Who serves it.
    pub worker: Rc<Worker>,
    /// Where it came in.
    pub origin: Origin,
    /// Who is at the other end.
    pub peer: SocketAddr,
    /// Who the other end proved to be.
    pub identity: Option<Arc<SpiffeId>>,
    /// Key exchange group of the handshake; empty for plain text.
    pub group: &'static str,
    /// `namespace/service` of the caller.
    pub source: Box<str>,
    /// Why the body of its last request was refused.
    pub refused: Cell<Option<Reason>>,
    /// The host that its last request asked for.
    pub named: RefCell<Option<Rc<Named>>>,
    /// Requests that are being answered.
    pub busy: Cell<u32>,
    /// What becomes of the connection after its last answer.
    pub tunnel: RefCell<Option<Tunnel>>,
    /// The connection is inside another of our own: CONNECT.
    pub depth: u8,
    /// Requests so far.
    pub requests: Cell<u64>,
    /// Every request is refused.
    pub refuse: Cell<Option<Reason>>,
    forwarded: OnceCell<[Option<HeaderValue>; 2]>,
    /// Of its last request. Does not keep it: a connection may be idle for longer than its flow.
    flow: RefCell<Weak<Flow>>,
}

impl Conn {
    /// A connection of the application's.
    pub fn outbound(worker: &Rc<Worker>, origin: Origin, peer: SocketAddr, depth: u8) -> Rc<Self> {
        let source = worker.path.service.clone();
        Self::new(worker, origin, peer, None, "", source, depth)
    }

    /// A connection from the mesh. `identity`: `None` for plain text.
    pub fn inbound(
        worker: &Rc<Worker>,
        sni: &str,
        peer: SocketAddr,
        identity: Option<Arc<SpiffeId>>,
        group: &'static str,
    ) -> Rc<Self> {
        let source = match &identity {
            Some(id) => format!("{}/{}", id.namespace(), id.account()).into(),
            None => "unmeshed".into(),
        };
        Self::new(worker, Origin::Inbound(sni.into()), peer, identity, group, source, 0)
    }

    /// A connection from outside the mesh.
    pub fn plain(worker: &Rc<Worker>, origin: Origin, peer: SocketAddr) -> Rc<Self> {
        Self::new(worker, origin, peer, None, "", "unmeshed".into(), 0)
    }

    fn new(
        worker: &Rc<Worker>,
        origin: Origin,
        peer: SocketAddr,
        identity: Option<Arc<SpiffeId>>,
        group: &'static str,
        source: Box<str>,
        depth: u8,
    ) -> Rc<Self> {
        Rc::new(Self {
            worker: Rc::clone(worker),
            origin,
            peer,
            identity,
            group,
            source,
            refused: Cell::new(None),
            named: RefCell::default(),
            busy: Cell::new(0),
            tunnel: RefCell::default(),
            depth,
            requests: Cell::new(0),
            refuse: Cell::new(None),
            forwarded: OnceCell::new(),
            flow: RefCell::default(),
        })
    }

    /// Which way its traffic flows.
    pub fn direction(&self) -> Direction {
        match self.origin {
            Origin::Outbound | Origin::Fixed(_) | Origin::Original(_) => Direction::Outbound,
            Origin::Inbound(_) | Origin::Probe(_) => Direction::Inbound,
        }
    }

    /// The handles of what its caller sends to a destination by a route.
    pub fn flow(&self, destination: &str, route: &str) -> Rc<Flow> {
        let (direction, source) = (self.direction(), &*self.source);
        let last = self.flow.borrow().upgrade();
        if let Some(last) = last.filter(|last| last.is(direction, source, destination, route)) {
            return last;
        }
        let flow = self.worker.flow(direction, source, destination, route);
        *self.flow.borrow_mut() = Rc::downgrade(&flow);
        flow
    }

    /// What the application is told of the caller: its address, and who it and we proved to be. Made once.
    pub fn forwarded(&self) -> [Option<&HeaderValue>; 2] {
        let made = self.forwarded.get_or_init(|| {
            let address = HeaderValue::try_from(self.peer.ip().to_canonical().to_string()).ok();
            let own = self.worker.path.shared.tls.load();
            let proved = self.identity.as_ref().zip(own.as_ref());
            let said = proved.and_then(|(peer, own)| HeaderValue::try_from(format!("By={};URI={peer}", own.id)).ok());
            [address, said]
        });
        made.each_ref().map(Option::as_ref)
    }
}

/// The port of the service that a server name selects; the first when it selects none.
pub fn inbound_port<'s>(snapshot: &'s Snapshot, sni: &str) -> Option<&'s InboundPort> {
    let ports = &snapshot.inbound.as_ref()?.ports;
    ports.iter().find(|port| *port.sni == *sni).or_else(|| ports.first())
}
