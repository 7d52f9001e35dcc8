//! The control plane as a process: every call of its API over gRPC and HTTP, a life with kills in it.

#![allow(clippy::unwrap_used)] // A test that cannot go on is to stop.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Bytes};
use hyper_util::rt::TokioIo;
use prost::Message;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use weft_identity::{PrivateKey, SpiffeId, Svid, TrustBundle, TrustDomain, tls};
use weft_proto::weft::v1::{
    self, certificate_service_client::CertificateServiceClient, config_service_client::ConfigServiceClient,
    register_request, register_response, registry_service_client::RegistryServiceClient,
};

const ORDERS: &str = "apiVersion: v1\nkind: Service\nmetadata: { name: orders }\nspec: { ports: [{ port: 8080 }] }\n";

type Config = ConfigServiceClient<InterceptedService<Channel, Bearer>>;

#[derive(Clone)]
struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        request.metadata_mut().insert("weft-author", MetadataValue::from_static("jo"));
        Ok(request)
    }
}

/// A control plane that is killed when the test ends.
struct ControlPlane {
    child: Child,
    grpc: String,
    http: SocketAddr,
    token: String,
    bundle: TrustBundle,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }
}

impl ControlPlane {
    fn start(directory: &Path, grpc: &str, http: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_weft-control-plane"))
            .args(["--grpc", grpc, "--http", http, "--lease", "5s", "--log-format", "json", "--data-dir"])
            .arg(directory)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        for line in lines.by_ref() {
            let line = line.unwrap();
            said += &line;
            said.push('\n');
            if line.contains("control plane ready") {
                break;
            }
        }
        // It may go on talking.
        std::thread::spawn(move || lines.for_each(drop));
        let read = |name: &str| -> Value {
            let text = std::fs::read(directory.join(name)).unwrap_or_else(|error| panic!("{name}: {error}\n{said}"));
            serde_json::from_slice(&text).unwrap()
        };
        let (addresses, operator) = (read("addresses.json"), read("operator.json"));
        let domain = TrustDomain::parse(operator["trustDomain"].as_str().unwrap()).unwrap();
        Self {
            child,
            grpc: operator["grpc"].as_str().unwrap().to_owned(),
            http: addresses["http"].as_str().unwrap().parse().unwrap(),
            token: operator["token"].as_str().unwrap().to_owned(),
            bundle: TrustBundle::from_pem(domain, operator["ca"].as_str().unwrap()).unwrap(),
        }
    }

    fn channel(&self, svid: Option<&Svid>) -> Channel {
        let expected = SpiffeId::control_plane(self.bundle.trust_domain());
        let tls = tls::client_config_expecting(svid, &self.bundle, expected, &[b"h2"]).unwrap();
        weft_proto::connect::channel(&self.grpc, tls).unwrap()
    }

    fn config(&self) -> Config {
        let bearer: MetadataValue<_> = format!("Bearer {}", self.token).parse().unwrap();
        ConfigServiceClient::with_interceptor(self.channel(None), Bearer(bearer))
    }

    /// A request over HTTP/1.1; `None` as token: without credential.
    async fn http(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: &str,
        token: Option<&str>,
    ) -> Response<hyper::body::Incoming> {
        let expected = SpiffeId::control_plane(self.bundle.trust_domain());
        let tls = tls::client_config_expecting(None, &self.bundle, expected, &[b"http/1.1"]).unwrap();
        let name = rustls_pki_types::ServerName::try_from("weft-control-plane").unwrap();
        let stream = TcpStream::connect(self.http).await.unwrap();
        let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "x").header("content-type", kind);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        sender.send_request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap()
    }

    async fn json(&self, method: &str, path: &str, kind: &str, body: &str) -> (u16, Value) {
        let answer = self.http(method, path, kind, body, Some(&self.token)).await;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {body:?}")))
    }

    /// Joins the mesh as a workload of `account`.
    async fn join(&self, account: &str) -> Svid {
        let request = v1::CreateTokenRequest { service_account: account.into(), ..Default::default() };
        let token = self.config().create_token(request).await.unwrap().into_inner().token;
        let key = PrivateKey::generate().unwrap();
        let request = v1::IssueRequest { csr: key.csr().unwrap(), join_token: token };
        let issued = CertificateServiceClient::new(self.channel(None)).issue(request).await.unwrap().into_inner();
        Svid::new(issued.chain.into_iter().map(Into::into).collect(), key).unwrap()
    }

    async fn workload_states(&self) -> Vec<String> {
        let status = self.config().status(v1::StatusRequest {}).await.unwrap().into_inner();
        status.workloads.into_iter().map(|workload| format!("{} {}", workload.id, workload.state)).collect()
    }
}

fn apply(yaml: &str) -> v1::ApplyRequest {
    let source = v1::Source { file: "test.yaml".into(), content: yaml.into() };
    v1::ApplyRequest { sources: vec![source], ..Default::default() }
}

fn findings(status: &Status) -> Vec<v1::Finding> {
    let status = weft_proto::google::rpc::Status::decode(status.details()).unwrap();
    v1::Errors::decode(status.details[0].value.as_slice()).unwrap().errors
}

#[tokio::test]
async fn configuration_lives_through_its_calls_and_a_kill() {
    let directory = TempDir::new().unwrap();
    let plane = ControlPlane::start(directory.path(), "127.0.0.1:0", "127.0.0.1:0");
    let mut config = plane.config();

    let dry = v1::ApplyRequest { dry_run: true, ..apply(ORDERS) };
    let planned = config.apply(dry).await.unwrap().into_inner();
    assert_eq!((planned.revision, planned.changes[0].kind()), (0, v1::ChangeKind::Created));
    let applied = config.apply(v1::ApplyRequest { message: "first".into(), wait_seconds: 1, ..apply(ORDERS) }).await;
    let applied = applied.unwrap().into_inner();
    assert_eq!(applied.revision, 1);
    assert_eq!(applied.rollout.unwrap().affected, 0, "no sidecar is there");
    assert_eq!(config.apply(apply(ORDERS)).await.unwrap().into_inner().revision, 1, "nothing changed");

    let refused = config.apply(apply(&ORDERS.replace("port:", "prot:"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(findings(&refused).iter().any(|finding| finding.field == "spec.ports[0].prot" && finding.line == 4));

    let mut events = config.watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    let changed = ORDERS.replace("8080", "8081");
    let late = v1::ApplyRequest { expected_revision: 9, ..apply(&changed) };
    assert_eq!(config.apply(late).await.unwrap_err().code(), Code::Aborted);
    assert_eq!(config.apply(apply(&changed)).await.unwrap().into_inner().revision, 2);
    let event = events.message().await.unwrap().unwrap();
    assert_eq!((event.revision, event.kind()), (2, v1::ChangeKind::Updated));
    assert_eq!(plane.http("GET", "/api/v1/diff", "", "", Some(&plane.token)).await.status(), 405, "a diff is a POST");
    let diff = v1::DiffRequest { from_revision: 1, ..Default::default() };
    let diff = config.diff(diff).await.unwrap().into_inner();
    assert!(diff.changes[0].diff.contains("-  - port: 8080\n+  - port: 8081"), "{}", diff.changes[0].diff);

    let back =
        config.rollback(v1::RollbackRequest { to_revision: 1, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!(back.revision, 3);
    assert_eq!(events.message().await.unwrap().unwrap().revision, 3);
    let missing = v1::ResourceKey { kind: "Service".into(), name: "nothing".into(), ..Default::default() };
    let delete = v1::DeleteRequest { keys: vec![missing], ..Default::default() };
    assert_eq!(config.delete(delete).await.unwrap_err().code(), Code::NotFound);
    let past = v1::ListRequest { revision: 99, ..Default::default() };
    assert_eq!(config.list(past).await.unwrap_err().code(), Code::OutOfRange);

    let export = config.export(v1::ExportRequest::default()).await.unwrap().into_inner();
    let history = config.history(v1::HistoryRequest::default()).await.unwrap().into_inner();
    let told: Vec<_> = history.entries.iter().map(|entry| (entry.revision, entry.author.as_str())).collect();
    assert_eq!(told, [(3, "jo"), (2, "jo"), (1, "jo")]);
    assert_eq!(history.entries[0].message, "roll back to revision 1");

    // Killed, and started again on the very same ports.
    let (grpc, http, token) = (plane.grpc.clone(), plane.http.to_string(), plane.token.clone());
    drop(plane);
    assert!(events.message().await.is_err(), "a watch does not outlive the process");
    let plane = ControlPlane::start(directory.path(), &grpc, &http);
    assert_eq!(plane.token, token);
    let mut config = plane.config();
    assert_eq!(config.export(v1::ExportRequest::default()).await.unwrap().into_inner(), export);
    assert_eq!(config.history(v1::HistoryRequest::default()).await.unwrap().into_inner(), history);
    let key = v1::ResourceKey { kind: "svc".into(), name: "orders".into(), ..Default::default() };
    assert_eq!(
        config.delete(v1::DeleteRequest { keys: vec![key], ..Default::default() }).await.unwrap().into_inner().revision,
        4
    );
}

#[tokio::test]
async fn http_says_the_same() {
    let directory = TempDir::new().unwrap();
    let plane = ControlPlane::start(directory.path(), "127.0.0.1:0", "127.0.0.1:0");
    for page in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(plane.http("GET", page, "", "", None).await.status(), 200, "{page} needs no credential");
    }
    for token in [None, Some("wrong")] {
        let answer = plane.http("GET", "/api/v1/status", "", "", token).await;
        assert_eq!(answer.status(), 401);
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
    }
    let (status, planned) =
        plane.json("POST", "/api/v1/apply?file=a.yaml&dryRun=true", "application/yaml", ORDERS).await;
    assert_eq!((status, &planned["revision"]), (200, &0.into()));
    let body = serde_json::json!({ "sources": [{ "file": "a.yaml", "text": ORDERS }], "message": "by JSON" });
    let (status, applied) = plane.json("POST", "/api/v1/apply", "application/json", &body.to_string()).await;
    assert_eq!(
        (status, &applied["revision"], &applied["changes"][0]["kind"]),
        (200, &1.into(), &"CHANGE_KIND_CREATED".into())
    );
    let (status, one) = plane.json("GET", "/api/v1/resources/service/default/orders", "", "").await;
    assert_eq!((status, &one["revision"]), (200, &1.into()));
    let (status, list) = plane.json("GET", "/api/v1/resources?kind=httproutes", "", "").await;
    assert_eq!((status, list["resources"].as_array().unwrap().len()), (200, 0));
    let (status, refused) = plane.json("POST", "/api/v1/apply?file=b.yaml", "text/yaml", "kind: Servce").await;
    assert_eq!((status, &refused["code"]), (400, &"INVALID_ARGUMENT".into()));
    assert_eq!(refused["errors"][0]["file"], "b.yaml");
    let (status, refused) = plane.json("POST", "/api/v1/apply?dryrun=true", "text/yaml", ORDERS).await;
    assert_eq!((status, &refused["code"]), (400, &"INVALID_ARGUMENT".into()), "a misspelt parameter is not ignored");
    let (status, refused) = plane.json("POST", "/api/v1/rollback", "application/json", r#"{"toRevision": 7}"#).await;
    assert_eq!((status, &refused["code"]), (400, &"OUT_OF_RANGE".into()));
    let (status, lost) = plane.json("GET", "/api/v1/nothing", "", "").await;
    assert_eq!((status, &lost["code"]), (404, &"NOT_FOUND".into()));

    // A watch from the beginning of the log tells what happened since.
    let mut changes = plane.http("GET", "/api/v1/watch?fromRevision=1", "", "", Some(&plane.token)).await.into_body();
    plane.json("POST", "/api/v1/delete", "application/json", r#"{"keys":[{"kind":"Service","name":"orders"}]}"#).await;
    let line = changes.frame().await.unwrap().unwrap().into_data().unwrap();
    let event: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!((&event["kind"], &event["revision"]), (&"CHANGE_KIND_DELETED".into(), &2.into()));
}

/// A registration stream and what it hears.
struct Registration {
    sender: mpsc::Sender<v1::RegisterRequest>,
    answers: tonic::Streaming<v1::RegisterResponse>,
}

impl Registration {
    async fn open(plane: &ControlPlane, svid: Option<&Svid>, service: &str) -> Result<Self, Status> {
        let (sender, messages) = mpsc::channel(8);
        let workload = v1::Workload {
            instance: "one".into(),
            namespace: "default".into(),
            service: service.into(),
            address: "127.0.0.1".into(),
            port: 15006,
            ports: vec![v1::WorkloadPort { port: 8080, protocol: "http".into(), ..Default::default() }],
            healthy: true,
            ..Default::default()
        };
        sender.send(request(register_request::Message::Workload(workload))).await.unwrap();
        let mut client = RegistryServiceClient::new(plane.channel(svid));
        let mut answers = client.register(ReceiverStream::new(messages)).await?.into_inner();
        let lease = answers.message().await?;
        assert!(
            matches!(lease.unwrap().message, Some(register_response::Message::Lease(lease)) if lease.ttl_milliseconds == 5000)
        );
        Ok(Self { sender, answers })
    }
}

fn request(message: register_request::Message) -> v1::RegisterRequest {
    v1::RegisterRequest { message: Some(message) }
}

#[tokio::test]
async fn workloads_register_are_kept_over_a_kill_and_leave() {
    let directory = TempDir::new().unwrap();
    let plane = ControlPlane::start(directory.path(), "127.0.0.1:0", "127.0.0.1:0");
    let svid = plane.join("orders").await;

    let refused = Registration::open(&plane, None, "orders").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = Registration::open(&plane, Some(&svid), "payments").await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("weft.mesh/service-accounts"), "{}", refused.message());

    let registration = Registration::open(&plane, Some(&svid), "orders").await.unwrap();
    assert_eq!(plane.workload_states().await, ["default/orders/one READY"]);
    let report = v1::HealthReport { healthy: false, reason: "disk".into() };
    registration.sender.send(request(register_request::Message::Health(report))).await.unwrap();
    // Leaving by a second registration: the newer stream speaks, and the older is told so.
    let mut second = Registration::open(&plane, Some(&svid), "orders").await.unwrap();
    registration.sender.send(request(register_request::Message::Heartbeat(v1::Heartbeat {}))).await.unwrap();
    let mut first = registration.answers;
    assert_eq!(first.message().await.unwrap_err().code(), Code::Aborted);
    assert_eq!(plane.workload_states().await, ["default/orders/one READY"]);

    let (grpc, http) = (plane.grpc.clone(), plane.http.to_string());
    drop(plane);
    assert!(second.answers.message().await.is_err());
    let plane = ControlPlane::start(directory.path(), &grpc, &http);
    assert_eq!(plane.workload_states().await, ["default/orders/one LOST"], "known, with time to come back");
    let mut third = Registration::open(&plane, Some(&svid), "orders").await.unwrap();
    assert_eq!(plane.workload_states().await, ["default/orders/one READY"]);

    third.sender.send(request(register_request::Message::Drain(v1::Drain {}))).await.unwrap();
    let answer = third.answers.message().await.unwrap().unwrap();
    assert!(matches!(answer.message, Some(register_response::Message::Drained(_))));
    assert_eq!(plane.workload_states().await, ["default/orders/one DRAINING"]);
    drop(third.sender);
    assert!(third.answers.message().await.unwrap().is_none(), "the stream ends in good order");
    let gone = async {
        while !plane.workload_states().await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), gone).await.expect("the workload is gone");
}

#[tokio::test]
async fn ends_in_good_order_when_asked() {
    let directory = TempDir::new().unwrap();
    let mut plane = ControlPlane::start(directory.path(), "127.0.0.1:0", "127.0.0.1:0");
    let mut events = plane.config().watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    let asked = Command::new("kill").arg(plane.child.id().to_string()).status().unwrap();
    assert!(asked.success());
    assert!(events.message().await.unwrap().is_none(), "a watch ends, it does not break");
    let ended = tokio::task::spawn_blocking(move || {
        let status = plane.child.wait().unwrap();
        std::mem::forget(plane);
        status
    });
    assert!(ended.await.unwrap().success());
}

#[test]
fn says_what_to_do_when_it_cannot_start() {
    let directory = TempDir::new().unwrap();
    let plane = ControlPlane::start(directory.path(), "127.0.0.1:0", "127.0.0.1:0");
    let start = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_weft-control-plane")).args(args).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let same =
        start(&["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir", directory.path().to_str().unwrap()]);
    assert!(same.contains("another control plane"), "{same}");
    let other = TempDir::new().unwrap();
    let taken = start(&["--grpc", &plane.grpc, "--http", "127.0.0.1:0", "--data-dir", other.path().to_str().unwrap()]);
    assert!(taken.contains("--grpc names another"), "{taken}");
}

#[test]
fn the_credential_is_printed_where_nothing_else_can_read_it() {
    let directory = TempDir::new().unwrap();
    let print = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-control-plane"));
        command.env("WEFT_DATA_DIR", directory.path()).arg("credential").output().unwrap()
    };
    let none = print();
    assert!(!none.status.success() && none.stdout.is_empty());
    let _plane = ControlPlane::start(directory.path(), "127.0.0.1:0", "127.0.0.1:0");
    let printed = print();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    assert_eq!(printed.stdout, std::fs::read(directory.path().join("operator.json")).unwrap());
}

#[test]
fn the_first_configuration_comes_from_files() {
    let directory = TempDir::new().unwrap();
    let files = TempDir::new().unwrap();
    std::fs::write(files.path().join("a.yaml"), ORDERS).unwrap();
    std::fs::write(files.path().join("b.yaml"), "kind: Nothing\n").unwrap();
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_weft-control-plane"))
            .args(["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--config", files.path().to_str().unwrap()])
            .args(["--data-dir", directory.path().to_str().unwrap()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let refused = start().wait_with_output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("b.yaml:1"), "{said}");
    std::fs::remove_file(files.path().join("b.yaml")).unwrap();
    let mut child = start();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let ready = lines.map(Result::unwrap).find(|line| line.contains("control plane ready"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ready.unwrap().contains("revision=1"));
}
