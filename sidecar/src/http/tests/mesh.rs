//! The stage: a certificate authority, a caller's sidecar, a callee's sidecar, applications, clients.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use clap::Parser as _;
use prometheus::Registry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};
use weft_identity::{
    PrivateKey, SpiffeId, Svid, TrustDomain,
    ca::Authority,
    tls::{ClientAuth, client_config, server_config},
};
use weft_xds::resource::{
    Balancer, Cluster, Endpoint, Endpoints, Forward, HeaderEdits, Health, Inbound, InboundPort, Protocol, Route,
    RouteAction, RouteMatch, UpstreamTls, VirtualHost, WeightedCluster, sni,
};

use crate::{
    balance::Upstream,
    demand::Demand,
    listener,
    settings::{Cli, Settings},
    shared::{Alpn, Shared, Sockets, TlsMaterial},
    snapshot::{ByName, Host, Snapshot, VhostState},
    worker::{Bounds, DataPath},
};

/// Runs a test with local tasks, bounded in time.
pub fn stage<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs");
    });
}

/// What differs from test to test.
pub struct Setup {
    /// What the service's port carries.
    pub protocol: Protocol,
    /// Of both sidecars.
    pub bounds: Bounds,
    /// Changes the cluster `default/orders:80`.
    pub cluster: fn(&mut Cluster),
    /// Changes its one route.
    pub route: fn(&mut Route),
    /// Changes the callee's port.
    pub port: fn(&mut InboundPort),
    /// Whom the caller expects at the endpoint.
    pub expected: &'static str,
    /// Where the caller finds the callee; default: the callee's inbound port.
    pub endpoints: Option<Vec<SocketAddr>>,
    /// The callee takes plain text.
    pub permissive: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            protocol: Protocol::Http,
            bounds: Bounds::default(),
            cluster: |_| {},
            route: |_| {},
            port: |_| {},
            expected: "orders",
            endpoints: None,
            permissive: false,
        }
    }
}

/// Two sidecars.
pub struct Mesh {
    /// The caller's outbound port.
    pub outbound: SocketAddr,
    /// The caller's local port for `orders.default:80`.
    pub local: SocketAddr,
    /// The callee's inbound port.
    pub inbound: SocketAddr,
    /// The caller's.
    pub caller: Arc<DataPath>,
    registries: [Registry; 2],
}

impl Mesh {
    /// Starts both for an application.
    pub fn start(app: SocketAddr, setup: &Setup) -> Self {
        let ca = Authority::create(TrustDomain::parse("weft.local").unwrap(), SystemTime::now()).unwrap();
        let registries = [Registry::new(), Registry::new()];
        let port = format!("80:{}", app.port());
        let [callee_sockets, caller_sockets] = [bind(), bind()];
        let inbound = callee_sockets.inbound[0].local_addr().unwrap();
        let outbound = caller_sockets.outbound[0].local_addr().unwrap();
        let local = caller_sockets.upstreams[0].0.local_addr().unwrap();

        let callee = data_path("orders", &["--port", &port], &ca, setup.bounds, &registries[1], vec![inbound]);
        let mut inbound_port = InboundPort {
            sni: sni("default", "orders", 80).into(),
            service: "default/orders".into(),
            port: 80,
            protocol: setup.protocol,
            access: Vec::new(),
            request_timeout: None,
        };
        (setup.port)(&mut inbound_port);
        let came_in = Inbound { ports: vec![inbound_port], permissive: setup.permissive };
        callee.shared.snapshot.store(Arc::new(Snapshot { inbound: Some(Arc::new(came_in)), ..Snapshot::default() }));

        let caller = data_path("web", &[], &ca, setup.bounds, &registries[0], vec![outbound, local]);
        let endpoints = setup.endpoints.clone().unwrap_or_else(|| vec![inbound]);
        caller.shared.snapshot.store(Arc::new(calls(setup, &endpoints)));
        tokio::task::spawn_local(listener::run(callee, callee_sockets));
        tokio::task::spawn_local(listener::run(Arc::clone(&caller), caller_sockets));
        Self { outbound, local, inbound, caller, registries }
    }

    /// Sends bytes to the outbound port and reads to the end.
    pub async fn ask(&self, request: &str) -> String {
        ask(self.outbound, request).await
    }

    /// Metrics of the caller's and of the callee's sidecar.
    pub fn metrics(&self) -> [String; 2] {
        [0, 1].map(|side| weft_telemetry::metrics::render(&self.registries[side]))
    }
}

fn calls(setup: &Setup, endpoints: &[SocketAddr]) -> Snapshot {
    let mut cluster = Cluster {
        name: "default/orders:80".into(),
        service: "default/orders".into(),
        port: 80,
        protocol: setup.protocol,
        endpoints: "default/orders:80".into(),
        balancer: Balancer::RoundRobin,
        connect_timeout: Duration::from_secs(1),
        limits: Default::default(),
        circuit_breaker: None,
        endpoint_breaker: None,
        retry_budget: Default::default(),
        pool_idle: Duration::from_secs(60),
        tls: Some(UpstreamTls { sni: sni("default", "orders", 80).into(), identities: Vec::new() }),
        policy: "".into(),
        panic_percent: 50,
    };
    (setup.cluster)(&mut cluster);
    let endpoints = Endpoints {
        cluster: cluster.name.clone(),
        endpoints: endpoints
            .iter()
            .map(|address| Endpoint {
                address: *address,
                weight: 1,
                health: Health::Healthy,
                priority: 0,
                zone: "".into(),
                identity: cluster.tls.as_ref().map(|_| identity(setup.expected)),
                workload: "default/orders/1".into(),
                hostname: "".into(),
            })
            .collect(),
    };
    let upstream = Upstream::build(Arc::new(cluster), &endpoints, None, Instant::now());
    let mut route = Route {
        name: "default".into(),
        matches: RouteMatch::any(),
        action: RouteAction::Forward(Box::new(Forward::to(vec![WeightedCluster::new("default/orders:80", 1)]))),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        source: "".into(),
        revision: 1,
    };
    (setup.route)(&mut route);
    let routes = Arc::new(VirtualHost {
        name: "outbound/orders.default:80".into(),
        domains: vec!["orders.default".into()],
        routes: vec![Arc::new(route)],
        endpoint: None,
    });
    let host = Arc::new(Host::new(routes, Instant::now()));
    let mut virtual_hosts: ByName<VhostState> = ByName::default();
    virtual_hosts.insert("orders.default".into(), VhostState::Found(Arc::clone(&host)));
    virtual_hosts.insert("orders.default:80".into(), VhostState::Found(host));
    virtual_hosts.insert("nobody.default".into(), VhostState::NotFound);
    let clusters = ByName::from_iter([("default/orders:80".into(), upstream)]);
    Snapshot { virtual_hosts, clusters, ..Snapshot::default() }
}

/// The route's way to its cluster.
pub fn forward(route: &mut Route) -> &mut Forward {
    match &mut route.action {
        RouteAction::Forward(forward) => forward,
        other => panic!("the stage's route forwards, not {other:?}"),
    }
}

fn bind() -> Sockets {
    let one = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    Sockets { inbound: vec![one()], outbound: vec![one()], upstreams: vec![(one(), "orders.default:80".into())] }
}

/// An identity of the mesh.
pub fn identity(account: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::parse("weft.local").unwrap(), "default", account).unwrap()
}

fn data_path(
    service: &str,
    flags: &[&str],
    ca: &Authority,
    bounds: Bounds,
    registry: &Registry,
    own: Vec<SocketAddr>,
) -> Arc<DataPath> {
    let base = ["weft-sidecar", "--control-plane", "mesh.example:15010", "--access-log", "all", "--service", service];
    let cli = Cli::try_parse_from(base.iter().chain(flags)).unwrap();
    let settings = Settings::new(cli.flags, None, 1).unwrap();
    let (demand, _wanted) = Demand::new(Duration::from_millis(50));
    // Names that are not in the snapshot are never answered: the control plane is away.
    std::mem::forget(_wanted);
    let shared = Shared::new(settings, demand);
    shared.tls.store(Some(Arc::new(material(ca, service))));
    DataPath::with_bounds(shared, registry, own, bounds)
}

/// A certificate of the authority as TLS configurations.
pub fn material(ca: &Authority, service: &str) -> TlsMaterial {
    let key = PrivateKey::generate().unwrap();
    let id = identity(service);
    let chain = ca.sign(&key.csr().unwrap(), &id, &[], Duration::from_secs(3600), SystemTime::now()).unwrap();
    let svid = Svid::new(chain, key).unwrap();
    let bundle = ca.bundle();
    let server = server_config(&svid, &bundle, ClientAuth::Required, &[b"h2", b"http/1.1"]).unwrap();
    let client = |alpn: Alpn| client_config(Some(&svid), &bundle, alpn.protocols()).unwrap();
    TlsMaterial::new(1, id, server, [client(Alpn::None), client(Alpn::Http1), client(Alpn::H2)])
}

/// Sends bytes and reads to the end.
pub async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A connection that is refused may be reset after its answer.
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8_lossy(&answer).into_owned()
}

/// An application that answers each connection by a script of its own.
pub async fn app<F: Future<Output = ()> + 'static>(serve: impl Fn(TcpStream, u32) -> F + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::task::spawn_local(serve(stream, number));
        }
    });
    address
}

/// Requests that an application has seen.
#[derive(Debug, Clone, Default)]
pub struct Seen(Rc<RefCell<Vec<String>>>);

impl Seen {
    /// How many.
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// The last one, head and body.
    pub fn last(&self) -> String {
        self.0.borrow().last().cloned().unwrap_or_default()
    }

    /// All.
    pub fn all(&self) -> Vec<String> {
        self.0.borrow().clone()
    }
}

/// An HTTP/1 application with keep-alive that answers the n-th request with the n-th answer, the last one for ever.
pub async fn answering(answers: &'static [&'static str]) -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let next = Rc::new(Cell::new(0));
    let noted = seen.clone();
    let address = app(move |mut stream, _| {
        let (seen, next) = (noted.clone(), Rc::clone(&next));
        async move {
            while let Some(request) = read_message(&mut stream).await {
                seen.0.borrow_mut().push(request);
                let answer = answers[next.get().min(answers.len() - 1)];
                next.set(next.get() + 1);
                if stream.write_all(answer.as_bytes()).await.is_err() || answer.contains("connection: close") {
                    return;
                }
            }
        }
    })
    .await;
    (address, seen)
}

/// Reads one message with content-length or chunked body; `None`: the connection ended before it was whole.
pub async fn read_message(stream: &mut TcpStream) -> Option<String> {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        text.push(char::from(stream.read_u8().await.ok()?));
    }
    let lower = text.to_ascii_lowercase();
    if let Some(length) = lower.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()) {
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).await.ok()?;
        text.push_str(&String::from_utf8_lossy(&body));
    } else if lower.contains("transfer-encoding: chunked") {
        let begin = text.len();
        while !(text[begin..].ends_with("\r\n\r\n") && text[begin..].contains("0\r\n")) {
            text.push(char::from(stream.read_u8().await.ok()?));
        }
    }
    Some(text)
}

/// A 200 with a short body.
pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A client of HTTP/2 with prior knowledge.
pub async fn http2_client(address: SocketAddr) -> hyper::client::conn::http2::SendRequest<ClientBody> {
    let stream = TcpStream::connect(address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http2::Builder::new(LocalExec).handshake(io).await.unwrap();
    tokio::task::spawn_local(async move {
        drop(connection.await);
    });
    sender
}

/// Runs hyper's tasks on the test's own thread.
#[derive(Debug, Clone, Copy)]
pub struct LocalExec;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// A body that a test feeds.
pub type ClientBody = Pin<Box<dyn http_body::Body<Data = Bytes, Error = Infallible>>>;

/// A whole body.
pub fn full(text: &'static str) -> ClientBody {
    Box::pin(http_body_util::Full::new(Bytes::from_static(text.as_bytes())))
}

/// An address where nobody listens.
pub fn nowhere() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
