//! Composition: makes the parts, connects them, and runs them until they are asked to stop.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use anyhow::{Context, anyhow, bail};
use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, interceptor::InterceptedService};
use weft_proto::weft::v1::{
    self, config_service_server::ConfigServiceServer, registry_service_server::RegistryServiceServer,
};
use weft_telemetry::{files, metrics as exposition};

use crate::{
    certificates::{self, Certificates, CertificatesGrpc, Tokens},
    config::{self, Author, Configuration},
    index::{Index, Worlds},
    kubernetes::{self, Cluster, Health, Held, Reviewer},
    metrics::Metrics,
    operator::Operator,
    registry::{self, Registry},
    serve::Port,
    settings::Settings,
    store::Store,
    xds::{Discovery, Sessions},
};

/// A control plane that runs.
#[derive(Debug)]
pub struct Running {
    /// Where gRPC is served.
    pub grpc: SocketAddr,
    /// Where HTTP is served.
    pub http: SocketAddr,
    tasks: JoinSet<&'static str>,
    stop: CancellationToken,
    state: Arc<HttpState>,
}

/// What the pages beside the API look at.
#[derive(Debug)]
struct HttpState {
    ready: AtomicBool,
    /// Whether there is a mesh to serve: not before the API server has told, in a cluster that is new to us.
    configured: Arc<AtomicBool>,
    kubernetes: Option<Arc<Health>>,
    prometheus: prometheus::Registry,
    metrics: Metrics,
    store: Store,
    registry: Registry,
    operator: Operator,
}

/// Makes everything and begins to serve.
/// # Errors
/// Whatever keeps it from starting, with what to do about it.
pub async fn start(settings: &Settings) -> anyhow::Result<Running> {
    let directory = &settings.data_dir;
    files::create_private_dir(directory).context("the data directory cannot be made; --data-dir names another")?;
    let path = directory.join("store.redb");
    let store = tokio::task::spawn_blocking(move || Store::open(&path)).await??;
    let prometheus = exposition::registry("weft_cp");
    let metrics = Metrics::new(&prometheus)?;
    let certificates = open_certificates(settings, &store, &prometheus)?;
    let stop = CancellationToken::new();

    let registry = Registry::open(store.clone(), settings.lease).await?;
    let cluster = InCluster::open(settings, &store, &certificates, &prometheus).await?;
    let discovered = cluster.as_ref().map(|cluster| cluster.discovery.clone());
    let index = Index::open(store.clone(), registry.clone(), discovered, certificates.bundle())?;
    let worlds = index.worlds();
    let discovery = Discovery::new(worlds.clone(), &prometheus, stop.clone())?;
    let api = Configuration::new(config::Parts {
        store: store.clone(),
        worlds: worlds.clone(),
        registry: registry.clone(),
        sessions: discovery.sessions(),
        certificates: certificates.clone(),
        append_seconds: metrics.append_seconds.clone(),
        kubernetes: cluster.as_ref().map(|cluster| cluster.health.clone()),
        stop: stop.clone(),
    });

    let grpc = bind("--grpc", settings.grpc).await?;
    let http = bind("--http", settings.http).await?;
    let (grpc_address, http_address) = (grpc.local_addr()?, http.local_addr()?);
    let operator = open_operator(settings, grpc_address, http_address, &certificates)?;
    if let Some(path) = settings.config.as_deref().filter(|_| api.is_empty()) {
        apply_first(&api, path).await?;
    }

    let registrations = registry::grpc::RegistryGrpc::new(
        registry.clone(),
        worlds.clone(),
        index.applied(),
        discovery.sessions(),
        stop.clone(),
    );
    let state = Arc::new(HttpState {
        ready: AtomicBool::new(true),
        configured: cluster.as_ref().map_or_else(|| Arc::new(AtomicBool::new(true)), |cluster| cluster.ready.clone()),
        kubernetes: cluster.as_ref().map(|cluster| cluster.health.clone()),
        prometheus,
        metrics: metrics.clone(),
        store: store.clone(),
        registry: registry.clone(),
        operator: operator.clone(),
    });
    let grpc_router = grpc_router(&api, registrations, &certificates, &discovery, operator, stop.clone()).await?;
    let port = |name, max_connections, router| Port {
        name,
        max_connections,
        router,
        certificates: certificates.clone(),
        metrics: metrics.clone(),
    };
    let grpc_port = port("grpc", MAX_GRPC_CONNECTIONS, grpc_router);
    let http_port = port("http", MAX_HTTP_CONNECTIONS, http_router(api, state.clone()));

    let mut tasks = JoinSet::new();
    run(&mut tasks, "registry", registry.run(stop.clone()));
    run(&mut tasks, "index", index.run(stop.clone()));
    let sessions = discovery.sessions();
    run(&mut tasks, "discovery", discovery.run());
    if let Some(cluster) = cluster {
        let source = cluster.source(&store, worlds.clone(), &certificates, sessions);
        run(&mut tasks, "Kubernetes source", kubernetes::run(source, stop.clone()));
    }
    run(&mut tasks, "mesh settings", follow_mesh(worlds, certificates.clone(), stop.clone()));
    run(&mut tasks, "certificates", certificates.run(stop.clone()));
    run(&mut tasks, "grpc port", grpc_port.serve(grpc, stop.clone()));
    run(&mut tasks, "http port", http_port.serve(http, stop.clone()));

    write_addresses(directory, grpc_address, http_address)?;
    tracing::info!(
        grpc = %grpc_address,
        http = %http_address,
        trust_domain = %settings.trust_domain,
        revision = store.log().head(),
        data = %directory.display(),
        "control plane ready"
    );
    Ok(Running { grpc: grpc_address, http: http_address, tasks, stop, state })
}

impl Running {
    /// Runs until `stop`, then ends in good order.
    /// # Errors
    /// A part ended by itself: the process cannot do its work any more.
    pub async fn until(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let failed = tokio::select! {
            () = stop.cancelled() => None,
            ended = self.tasks.join_next() => Some(ended),
        };
        // Load balancers look elsewhere while what runs is brought to its end.
        self.state.ready.store(false, Ordering::Relaxed);
        tracing::info!("the control plane ends");
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the control plane panicked");
            }
        }
        match failed {
            None => Ok(()),
            Some(Some(Ok(name))) => Err(anyhow!("the {name} ended by itself; the log says why")),
            Some(Some(Err(error))) => Err(anyhow!("a part of the control plane panicked: {error}")),
            Some(None) => Err(anyhow!("nothing was running")),
        }
    }
}

fn run(tasks: &mut JoinSet<&'static str>, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        task.await;
        name
    });
}

/// What the Mesh says about certificates is obeyed as soon as it is said.
async fn follow_mesh(worlds: Arc<Worlds>, certificates: Arc<Certificates>, stop: CancellationToken) {
    let mut changes = worlds.subscribe();
    loop {
        certificates.set_leaf_ttl(worlds.current().mesh.resource.certificate_ttl());
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.next() => if change.is_none() { return },
        }
    }
}

pub(crate) fn open_certificates(
    settings: &Settings,
    store: &Store,
    prometheus: &prometheus::Registry,
) -> anyhow::Result<Arc<Certificates>> {
    let import = settings.ca_cert.clone().zip(settings.ca_key.clone());
    let settings = certificates::Settings {
        directory: settings.data_dir.join("ca"),
        trust_domain: settings.trust_domain.clone(),
        import,
        ttl: settings.certificate_ttl,
        names: server_names(settings),
    };
    Ok(Certificates::open(settings, Tokens::new(store.clone()), prometheus, SystemTime::now())?)
}

/// What `--kubernetes` adds.
struct InCluster {
    cluster: Cluster,
    discovery: kubernetes::Discovery,
    held: Held,
    health: Arc<Health>,
    ready: Arc<AtomicBool>,
}

impl InCluster {
    /// The API server, with `--kubernetes`; its service accounts may join from now on.
    async fn open(
        settings: &Settings,
        store: &Store,
        certificates: &Certificates,
        prometheus: &prometheus::Registry,
    ) -> anyhow::Result<Option<Self>> {
        let Some(flags) = settings.cluster() else { return Ok(None) };
        let cluster = Cluster::open(&flags).await?;
        certificates.accept_service_accounts(Reviewer::new(
            &cluster,
            &flags.audience,
            &settings.trust_domain,
            prometheus,
        )?);
        let (discovery, held) = kubernetes::Discovery::open(store.clone()).await?;
        let health = Health::new(&kubernetes::Scope::all(&flags.namespaces), prometheus)?;
        Ok(Some(Self { cluster, discovery, held, health, ready: Arc::default() }))
    }

    fn source(
        self,
        store: &Store,
        worlds: Arc<Worlds>,
        certificates: &Certificates,
        sessions: Arc<Sessions>,
    ) -> kubernetes::Parts {
        let Self { cluster, discovery, held, health, ready } = self;
        let (store, bundle) = (store.clone(), certificates.bundle());
        kubernetes::Parts { cluster, store, discovery, held, worlds, bundle, health, sessions, ready }
    }
}

/// What clients that check host names, such as curl and gRPC's C core, may have dialled.
fn server_names(settings: &Settings) -> Vec<String> {
    let bound = [settings.grpc.ip(), settings.http.ip()].into_iter().filter(|ip| !ip.is_unspecified());
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend(bound.map(|ip| ip.to_string()));
    names.extend(settings.advertise.iter().cloned());
    names.sort();
    names.dedup();
    names
}

pub(crate) fn open_operator(
    settings: &Settings,
    grpc: SocketAddr,
    http: SocketAddr,
    certificates: &Certificates,
) -> anyhow::Result<Operator> {
    let path = settings.data_dir.join("operator.json");
    let bundle = certificates.bundle().borrow().clone();
    let (operator, new) = Operator::open(&path, &settings.advertised(grpc), &settings.advertised(http), &bundle)?;
    if new {
        tracing::info!(file = %path.display(), "operator's credential made: `weft --credential FILE status` uses it");
    }
    Ok(operator)
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{address} cannot be listened on; is another control plane running? {flag} names another address (port 0: any free one)"))
}

/// `addresses.json`: written when the ports are open, so that who waits for it finds them.
fn write_addresses(directory: &Path, grpc: SocketAddr, http: SocketAddr) -> anyhow::Result<()> {
    let addresses = serde_json::json!({ "grpc": grpc.to_string(), "http": http.to_string() });
    files::write_public(&directory.join("addresses.json"), format!("{addresses}\n").as_bytes())?;
    Ok(())
}

async fn apply_first(api: &Configuration, path: &Path) -> anyhow::Result<()> {
    let mut sources = Vec::new();
    for file in config_files(path)? {
        let content = std::fs::read(&file).with_context(|| format!("{} cannot be read", file.display()))?;
        sources.push(v1::Source { file: file.display().to_string(), content });
    }
    let request =
        v1::ApplyRequest { sources, message: format!("first start with {}", path.display()), ..Default::default() };
    match api.apply(request, Author("control-plane".to_owned())).await {
        Ok(applied) => {
            for warning in &applied.warnings {
                tracing::warn!(file = warning.file, line = warning.line, field = warning.field, "{}", warning.message);
            }
            tracing::info!(
                revision = applied.revision,
                resources = applied.changes.len(),
                "first configuration applied"
            );
            Ok(())
        }
        Err(error) if error.errors.is_empty() => bail!("{}: {}", path.display(), error.message),
        Err(error) => {
            let lines = error.errors.iter().map(|finding| {
                let v1::Finding { file, line, column, field, message, hint, .. } = finding;
                let hint = if hint.is_empty() { String::new() } else { format!(" ({hint})") };
                format!("\n  {file}:{line}:{column}: {field}: {message}{hint}")
            });
            bail!("the configuration is refused:{}", lines.collect::<String>())
        }
    }
}

fn config_files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = || format!("{} cannot be read", path.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).with_context(unreadable)? {
        let file = entry.with_context(unreadable)?.path();
        let known =
            file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json");
        if known && file.is_file() {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

async fn grpc_router(
    api: &Configuration,
    registrations: registry::grpc::RegistryGrpc,
    certificates: &Arc<Certificates>,
    discovery: &Discovery,
    operator: Operator,
    stop: CancellationToken,
) -> anyhow::Result<Router> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ConfigServiceServer<Configuration>>().await;
    health.set_serving::<RegistryServiceServer<registry::grpc::RegistryGrpc>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(weft_proto::DESCRIPTORS)
        .build_v1()?;
    let config = ConfigServiceServer::new(api.clone())
        .max_decoding_message_size(MAX_CONFIG_MESSAGE)
        .max_encoding_message_size(MAX_CONFIG_ANSWER);
    // Runs before the message is read: who has no credential is not listened to.
    let config = InterceptedService::new(config, move |mut request: tonic::Request<()>| {
        let author = operator.check(request.metadata().as_ref())?;
        request.extensions_mut().insert(author);
        Ok(request)
    });
    let registrations = RegistryServiceServer::new(registrations).max_decoding_message_size(MAX_REGISTRATION_MESSAGE);
    let routes = Routes::new(config)
        .add_service(registrations)
        .add_service(CertificatesGrpc::new(certificates.clone(), stop).into_service())
        .add_service(discovery.service())
        .add_service(health_service)
        .add_service(reflection);
    Ok(routes.prepare().into_axum_router())
}

fn http_router(api: Configuration, state: Arc<HttpState>) -> Router {
    let guarded = config::http::router(api).layer(middleware::from_fn_with_state(state.clone(), guard));
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(show_metrics))
        .with_state(state)
        .fallback_service(guarded)
}

/// Nothing of a request is read before its credential is checked.
async fn guard(State(state): State<Arc<HttpState>>, mut request: Request, next: Next) -> Response {
    match state.operator.check(request.headers()) {
        Ok(author) => {
            request.extensions_mut().insert(author);
            next.run(request).await
        }
        Err(error) => {
            let mut answer = error.into_response();
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            answer
        }
    }
}

async fn ready(State(state): State<Arc<HttpState>>) -> Response {
    let unavailable = |why: &'static str| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    match (state.ready.load(Ordering::Relaxed), state.configured.load(Ordering::Relaxed)) {
        (true, true) => "ready\n".into_response(),
        (true, false) => {
            unavailable("waiting for the first whole answer of the API server; /metrics and the log say more\n")
        }
        (false, _) => unavailable("ending\n"),
    }
}

async fn show_metrics(State(state): State<Arc<HttpState>>) -> Response {
    state.metrics.refresh(&state.store, &state.registry);
    if let Some(health) = &state.kubernetes {
        health.refresh();
    }
    ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], exposition::render(&state.prometheus)).into_response()
}

/// Sidecars have one connection each.
const MAX_GRPC_CONNECTIONS: usize = 16_384;
const MAX_HTTP_CONNECTIONS: usize = 256;
/// YAML of a large mesh.
const MAX_CONFIG_MESSAGE: usize = 32 << 20;
/// An export or a history of one.
const MAX_CONFIG_ANSWER: usize = 256 << 20;
const MAX_REGISTRATION_MESSAGE: usize = 64 << 10;
