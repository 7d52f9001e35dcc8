//! An API server of Kubernetes that repeats a recorded conversation: lists and watches from a fixture, over HTTPS, and it
//! writes down what it is told. It can forget history (410 Gone), cut connections, go away and come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Frame, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnboundedReceiverStream;
use weft_identity::{
    TrustDomain,
    ca::Authority,
    tls::{self, ClientAuth},
};

type Body = BoxBody<Bytes, Infallible>;

/// A request that came, other than lists and watches.
#[derive(Debug, Clone)]
pub struct Told {
    /// Method.
    pub method: Method,
    /// Path without query.
    pub path: String,
    /// Query.
    pub query: String,
    /// Body as JSON.
    pub body: Value,
}

/// The server; it goes away when dropped.
pub struct ApiServer {
    /// Where it listens, also while it is away.
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    tls: Arc<rustls::ServerConfig>,
    /// What signed its certificate, PEM.
    ca: String,
    serving: Option<JoinSet<()>>,
}

#[derive(Default)]
struct State {
    /// Collection path → kind, api version, and the objects by `namespace/name`. A path that is not here is a kind that is
    /// not installed.
    collections: BTreeMap<String, Collection>,
    /// Recorded steps by name: events with the path of their collection.
    steps: BTreeMap<String, Vec<Value>>,
    /// Version of the newest change.
    version: u64,
    /// Changes that a watch may still ask for: version, collection, namespace, event.
    history: Vec<(u64, String, String, String)>,
    /// Watches from before this version are told 410.
    oldest: u64,
    /// Collection, namespace (none: all), and where its lines go.
    watches: Vec<(String, Option<String>, mpsc::UnboundedSender<Bytes>)>,
    told: Vec<Told>,
    /// Collections that the service account may not look at.
    forbidden: BTreeSet<String>,
    /// Token → the status of its review.
    tokens: BTreeMap<String, Value>,
    /// How often each collection was listed.
    lists: BTreeMap<String, usize>,
}

#[derive(Default, Clone)]
struct Collection {
    kind: String,
    api_version: String,
    objects: BTreeMap<String, Value>,
}

impl ApiServer {
    /// Starts one with a fixture, in which `${NAME}` stands for what `values` say.
    ///
    /// # Errors
    /// When the fixture cannot be read.
    pub async fn start(fixture: &str, values: &[(&str, String)]) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kubernetes").join(fixture);
        let mut text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        for (name, value) in values {
            text = text.replace(&format!("${{{name}}}"), value);
        }
        let fixture: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let mut state = State { version: 1000, oldest: 0, ..State::default() };
        for (path, list) in fixture["lists"].as_object().context("lists")? {
            let word = |name: &str| list[name].as_str().unwrap_or_default().to_owned();
            let mut collection = Collection {
                kind: word("kind").replace("List", ""),
                api_version: word("apiVersion"),
                ..Collection::default()
            };
            for object in list["items"].as_array().context("items")? {
                state.version += 1;
                let mut object = object.clone();
                object["metadata"]["resourceVersion"] = state.version.to_string().into();
                collection.objects.insert(name_of(&object), object);
            }
            state.collections.insert(path.clone(), collection);
        }
        for (name, events) in fixture["steps"].as_object().context("steps")? {
            state.steps.insert(name.clone(), events.as_array().context("a step is a list of events")?.clone());
        }
        let now = std::time::SystemTime::now();
        let authority = Authority::create(TrustDomain::parse("cluster.local")?, now)?;
        let svid = authority.control_plane_svid(&["127.0.0.1"], Duration::from_secs(3600), now)?;
        let mut server = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            state: Arc::new(Mutex::new(state)),
            tls: tls::server_config(&svid, &authority.bundle(), ClientAuth::Optional, &[b"http/1.1"])?,
            ca: authority.bundle().to_pem(),
            serving: None,
        };
        server.come_back().await?;
        Ok(server)
    }

    /// Listens (again), where it did before.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub async fn come_back(&mut self) -> Result<()> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(self.address)?;
        let listener = socket.listen(256)?;
        self.address = listener.local_addr()?;
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, TlsAcceptor::from(self.tls.clone()), self.state.clone()));
        self.serving = Some(serving);
        Ok(())
    }

    /// Goes away as a crash would, with every connection.
    pub async fn go_away(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            serving.shutdown().await;
        }
        self.state.lock().watches.clear();
    }

    /// Cuts every watch in mid-stream; who comes back is told what it missed.
    pub fn cut(&self) {
        self.state.lock().watches.clear();
    }

    /// Forgets what was: watches are told 410 Gone in mid-stream, and have to list anew.
    pub fn forget(&self) {
        let mut state = self.state.lock();
        state.version += 1;
        state.oldest = state.version;
        state.history.clear();
        let gone = format!("{}\n", json!({ "type": "ERROR", "object": gone() }));
        for (_, _, watch) in std::mem::take(&mut state.watches) {
            let _ = watch.send(Bytes::from(gone.clone()));
        }
    }

    /// Plays a step of the fixture.
    ///
    /// # Panics
    /// When the fixture has no such step.
    pub fn play(&self, step: &str) {
        let mut state = self.state.lock();
        let events = state.steps.get(step).unwrap_or_else(|| panic!("no step {step}")).clone();
        for event in events {
            let path = event["path"].as_str().expect("an event names its collection").to_owned();
            let kind = event["type"].as_str().expect("an event has a type").to_owned();
            if !state.collections.contains_key(&path) {
                let object = &event["object"];
                let word = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
                let new = Collection { kind: word("kind"), api_version: word("apiVersion"), objects: BTreeMap::new() };
                state.collections.insert(path.clone(), new);
            }
            state.change(&path, &kind, event["object"].clone());
        }
    }

    /// What it was told so far at paths that end so.
    pub fn told(&self, end: &str) -> Vec<Told> {
        self.state.lock().told.iter().filter(|told| told.path.ends_with(end)).cloned().collect()
    }

    /// An object as it is now.
    pub fn object(&self, path: &str, name: &str) -> Option<Value> {
        self.state.lock().collections.get(path)?.objects.get(name).cloned()
    }

    /// How often a collection was listed from its beginning.
    pub fn lists(&self, path: &str) -> usize {
        self.state.lock().lists.get(path).copied().unwrap_or(0)
    }

    /// How many watches there are now.
    pub fn watches(&self) -> usize {
        let mut state = self.state.lock();
        state.watches.retain(|(_, _, watch)| !watch.is_closed());
        state.watches.len()
    }

    /// Whether a collection may be looked at.
    pub fn forbid(&self, path: &str, forbidden: bool) {
        let mut state = self.state.lock();
        if forbidden {
            state.forbidden.insert(path.to_owned())
        } else {
            state.forbidden.remove(path)
        };
    }

    /// From now on a token is reviewed so.
    pub fn token(&self, token: &str, status: Value) {
        self.state.lock().tokens.insert(token.to_owned(), status);
    }

    /// Writes a kubeconfig that leads here.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, folder: &Path) -> Result<PathBuf> {
        let (path, ca) = (folder.join("kubeconfig.yaml"), folder.join("cluster-ca.pem"));
        std::fs::write(&ca, &self.ca)?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://{}", self.address), "certificate-authority": "cluster-ca.pem"
            } }],
            "users": [{ "name": "test", "user": { "token": OPERATOR } }],
            "contexts": [
                { "name": "test", "context": { "cluster": "test", "user": "test", "namespace": "weft-system" } }
            ],
        });
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }
}

impl State {
    fn change(&mut self, path: &str, kind: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let collection = self.collections.get_mut(path).expect("the collection is there");
        match kind {
            "DELETED" => drop(collection.objects.remove(&name_of(&object))),
            _ => {
                // A spec that comes from outside does not touch the status.
                if let Some(before) = collection.objects.get(&name_of(&object))
                    && object.get("status").is_none()
                    && let Some(status) = before.get("status")
                {
                    object["status"] = status.clone();
                }
                collection.objects.insert(name_of(&object), object.clone());
            }
        }
        let line = format!("{}\n", json!({ "type": kind, "object": object }));
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        self.history.push((self.version, path.to_owned(), namespace.clone(), line.clone()));
        self.watches.retain(|(_, _, watch)| !watch.is_closed());
        let hears = |on: &str, of: &Option<String>| on == path && of.as_ref().is_none_or(|of| *of == namespace);
        for (_, _, watch) in self.watches.iter().filter(|(on, of, _)| hears(on, of)) {
            let _ = watch.send(Bytes::from(line.clone()));
        }
    }

    fn watch(&mut self, path: &str, namespace: Option<&str>, from: u64) -> Response<Body> {
        let (sender, receiver) = mpsc::unbounded_channel();
        if from < self.oldest {
            let _ = sender.send(Bytes::from(format!("{}\n", json!({ "type": "ERROR", "object": gone() }))));
        } else {
            let hears = |on: &str, of: &str| on == path && namespace.is_none_or(|namespace| namespace == of);
            for (_, _, _, line) in self.history.iter().filter(|(version, on, of, _)| *version > from && hears(on, of)) {
                let _ = sender.send(Bytes::from(line.clone()));
            }
            let collection = &self.collections[path];
            let bookmark = json!({
                "type": "BOOKMARK",
                "object": {
                    "kind": collection.kind, "apiVersion": collection.api_version,
                    "metadata": { "resourceVersion": self.version.to_string(), "creationTimestamp": null },
                    "spec": {}, "status": {},
                },
            });
            let _ = sender.send(Bytes::from(format!("{bookmark}\n")));
            self.watches.push((path.to_owned(), namespace.map(str::to_owned), sender));
        }
        let stream = tokio_stream::StreamExt::map(UnboundedReceiverStream::new(receiver), |line| Ok(Frame::data(line)));
        Response::new(BodyExt::boxed(StreamBody::new(stream)))
    }

    fn list(&mut self, path: &str, namespace: Option<&str>) -> Response<Body> {
        *self.lists.entry(path.to_owned()).or_default() += 1;
        let collection = &self.collections[path];
        let of = |object: &&Value| namespace.is_none_or(|namespace| object["metadata"]["namespace"] == namespace);
        let items: Vec<&Value> = collection.objects.values().filter(of).collect();
        json_answer(
            StatusCode::OK,
            &json!({
                "kind": format!("{}List", collection.kind),
                "apiVersion": collection.api_version,
                "metadata": { "resourceVersion": self.version.to_string() },
                "items": items,
            }),
        )
    }

    /// A merge patch of `…/namespaces/NS/PLURAL/NAME/status`.
    fn patch_status(&mut self, path: &str, body: &Value) -> Response<Body> {
        let (collection, key) = split(path.trim_end_matches("/status"));
        let object = self.collections.get(&collection).and_then(|collection| collection.objects.get(&key));
        let Some(mut object) = object.cloned() else { return failure(StatusCode::NOT_FOUND, "not found") };
        let version = body["metadata"]["resourceVersion"].as_str();
        if version.is_some() && version != object["metadata"]["resourceVersion"].as_str() {
            return failure(StatusCode::CONFLICT, "the object has been modified");
        }
        for (name, value) in body["status"].as_object().into_iter().flatten() {
            object["status"][name] = value.clone();
        }
        self.change(&collection, "MODIFIED", object);
        json_answer(StatusCode::OK, &self.collections[&collection].objects[&key])
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (state, tls) = (state.clone(), tls.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request| {
                let state = state.clone();
                async move { Ok::<_, Infallible>(answer(request, &state).await) }
            });
            // How a connection ends is the client's business.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, state: &Mutex<State>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let bearer = head.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if bearer != Some(&format!("Bearer {OPERATOR}")) {
        return failure(StatusCode::UNAUTHORIZED, "Unauthorized");
    }
    let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
    let mut state = state.lock();
    if head.method == Method::GET {
        let (collection, key) = split(&format!("{path}/any"));
        let namespace = key.split_once('/').map(|(namespace, _)| namespace.to_owned()).filter(|name| !name.is_empty());
        if state.forbidden.contains(&collection) {
            return failure(StatusCode::FORBIDDEN, "is forbidden: User \"weft\" cannot list resource");
        }
        if !state.collections.contains_key(&collection) {
            return failure(StatusCode::NOT_FOUND, "the server could not find the requested resource");
        }
        let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        return match parameter("watch") {
            Some("true" | "1") => {
                let from = parameter("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
                state.watch(&collection, namespace.as_deref(), from)
            }
            _ => state.list(&collection, namespace.as_deref()),
        };
    }
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    state.told.push(Told { method: head.method.clone(), path: path.clone(), query, body: body.clone() });
    if head.method == Method::POST && path == "/apis/authentication.k8s.io/v1/tokenreviews" {
        let token = body["spec"]["token"].as_str().unwrap_or_default();
        let unknown = json!({ "authenticated": false, "error": "[invalid bearer token, token lookup failed]" });
        let mut review = body.clone();
        review["status"] = state.tokens.get(token).cloned().unwrap_or(unknown);
        return json_answer(StatusCode::CREATED, &review);
    }
    if head.method == Method::PATCH && path.ends_with("/status") {
        return state.patch_status(&path, &body);
    }
    if head.method == Method::PATCH && path.contains("/configmaps/") {
        return json_answer(StatusCode::OK, &body);
    }
    failure(StatusCode::METHOD_NOT_ALLOWED, "not in this conversation")
}

/// `/api/v1/namespaces/shop/services/orders` → `/api/v1/services`, `shop/orders`.
fn split(path: &str) -> (String, String) {
    let (collection, name) = path.rsplit_once('/').unwrap_or((path, ""));
    match collection.split_once("/namespaces/").and_then(|(root, rest)| Some((root, rest.split_once('/')?))) {
        Some((root, (namespace, plural))) => (format!("{root}/{plural}"), format!("{namespace}/{name}")),
        None => (collection.to_owned(), format!("/{name}")),
    }
}

fn name_of(object: &Value) -> String {
    let word = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    format!("{}/{}", word("namespace"), word("name"))
}

fn gone() -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
        "message": "too old resource version",
    })
}

fn failure(status: StatusCode, message: &str) -> Response<Body> {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": status.as_u16(),
        "reason": status.canonical_reason().unwrap_or_default().replace(' ', ""), "message": message,
    });
    json_answer(status, &body)
}

fn json_answer(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// What the control plane shows the API server.
const OPERATOR: &str = "test-credential";
