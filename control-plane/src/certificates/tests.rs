//! The certificates manager behind real TLS and gRPC on loopback, from the first contact to the renewal.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use prometheus::Registry;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Server};
use tonic::{Code, Status};
use weft_identity::ca::Authority;
use weft_identity::tls::{self, HandshakeFault};
use weft_identity::{CertificateDer, JoinToken, PrivateKey, SpiffeId, Svid, TrustBundle, TrustDomain};
use weft_proto::connect::channel;
use weft_proto::weft::v1::certificate_service_client::CertificateServiceClient;
use weft_proto::weft::v1::{IssueRequest, IssueResponse, TrustBundleRequest};

use super::issue::Refused;
use super::*;
use crate::peer::Peer;
use crate::store::Store;

const DAY: Duration = Duration::from_secs(86_400);

fn domain() -> TrustDomain {
    TrustDomain::default()
}

fn settings(dir: &Path) -> Settings {
    Settings {
        directory: dir.join("ca"),
        trust_domain: domain(),
        import: None,
        ttl: DAY,
        names: vec!["localhost".into(), "127.0.0.1".into()],
    }
}

fn open(dir: &Path) -> (Arc<Certificates>, Registry) {
    let registry = Registry::new();
    let tokens = Tokens::new(Store::open(&dir.join("store.redb")).unwrap());
    let certificates = Certificates::open(settings(dir), tokens, &registry, SystemTime::now()).unwrap();
    (certificates, registry)
}

/// A manager with a gRPC server before it.
struct Plane {
    certificates: Arc<Certificates>,
    registry: Registry,
    address: String,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Plane {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (certificates, registry) = open(dir.path());
        let stop = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (connections, incoming) = tokio::sync::mpsc::channel(16);
        let accepting = certificates.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let tls = TlsAcceptor::from(accepting.server_config());
                if let Ok(stream) = tls.accept(stream).await
                    && connections.send(Ok::<_, std::io::Error>(Connection(stream))).await.is_err()
                {
                    return;
                }
            }
        });
        let service = CertificatesGrpc::new(certificates.clone(), stop.clone()).into_service();
        let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        Self { certificates, registry, address, stop, _dir: dir }
    }

    async fn token(&self, uses: u32) -> JoinToken {
        let identity = orders();
        let grant = Grant { identity, uses, ttl: Duration::from_secs(600), created_by: "test".into() };
        self.certificates.create_token(grant, SystemTime::now()).await.unwrap().0
    }

    /// A client that knows no more than the token.
    fn stranger(&self, token: &JoinToken) -> CertificateServiceClient<Channel> {
        let tls = tls::client_config_pinned(token.ca_sha256(), None, &[]).unwrap();
        CertificateServiceClient::new(channel(&self.address, tls).unwrap())
    }

    /// A client that has a certificate.
    fn member(&self, svid: &Svid, bundle: &TrustBundle) -> CertificateServiceClient<Channel> {
        let expected = SpiffeId::control_plane(&domain());
        let tls = tls::client_config_expecting(Some(svid), bundle, expected, &[]).unwrap();
        CertificateServiceClient::new(channel(&self.address, tls).unwrap())
    }

    fn count(&self, result: &str) -> u64 {
        let text = weft_telemetry::metrics::render(&self.registry);
        let name = format!("weft_cp_certificates_issued_total{{result=\"{result}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    }
}

struct Connection(TlsStream<TcpStream>);

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let (stream, connection) = self.0.get_ref();
        Peer::new(stream.peer_addr().unwrap(), connection.peer_certificates())
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

fn orders() -> SpiffeId {
    SpiffeId::new(&domain(), "default", "orders").unwrap()
}

fn request(key: &PrivateKey, token: &str) -> IssueRequest {
    IssueRequest { csr: key.csr().unwrap(), join_token: token.to_owned() }
}

fn svid(answer: &IssueResponse, key: PrivateKey) -> (Svid, TrustBundle) {
    let ders = |ders: &[Vec<u8>]| ders.iter().map(|der| der.clone().into()).collect::<Vec<_>>();
    let bundle = TrustBundle::new(TrustDomain::parse(&answer.trust_domain).unwrap(), ders(&answer.trust_bundle));
    (Svid::new(ders(&answer.chain), key).unwrap(), bundle.unwrap())
}

async fn issue(
    client: &mut CertificateServiceClient<Channel>,
    key: &PrivateKey,
    token: &str,
) -> Result<IssueResponse, Status> {
    client.issue(request(key, token)).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_stranger_joins_by_token_and_renews_by_certificate() {
    let plane = Plane::start().await;
    let token = plane.token(1).await;
    let key = PrivateKey::generate().unwrap();
    let answer = issue(&mut plane.stranger(&token), &key, &token.to_string()).await.unwrap();
    assert_eq!(answer.identity, orders().as_str());
    let (joined, bundle) = svid(&answer, key);
    assert_eq!((&joined.id, joined.valid_at(SystemTime::now())), (&orders(), true));
    assert_eq!(tls::verify::chain(&joined.chain, &bundle, SystemTime::now()), Ok(()));
    let seconds = joined.not_after.duration_since(SystemTime::now()).unwrap();
    assert!(seconds <= DAY && seconds > DAY - Duration::from_secs(60));
    assert_eq!(humantime::parse_rfc3339(&answer.not_after).unwrap(), joined.not_after);

    let mut member = plane.member(&joined, &bundle);
    let key = PrivateKey::generate().unwrap();
    let (renewed, _) = svid(&issue(&mut member, &key, "").await.unwrap(), key);
    assert_eq!(renewed.id, joined.id);
    assert_ne!(renewed.serial(), joined.serial());
    assert_eq!((plane.count("joined"), plane.count("renewed")), (1, 1));
}

#[tokio::test]
async fn a_token_is_used_once_but_a_lost_answer_can_be_asked_for_again() {
    let plane = Plane::start().await;
    let token = plane.token(1).await;
    let text = token.to_string();
    let mut client = plane.stranger(&token);
    let bad = IssueRequest { csr: b"no request".to_vec(), join_token: text.clone() };
    assert_eq!(client.issue(bad).await.unwrap_err().code(), Code::InvalidArgument, "a bad request uses nothing up");
    let key = PrivateKey::generate().unwrap();
    assert!(issue(&mut client, &key, &text).await.is_ok());
    assert!(issue(&mut client, &key, &text).await.is_ok(), "the same key");
    let refused = issue(&mut client, &PrivateKey::generate().unwrap(), &text).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("weft token create"), "{refused}");
    assert_eq!((plane.count("joined"), plane.count("unproved"), plane.count("bad_request")), (2, 1, 1));
}

#[tokio::test]
async fn without_proof_nothing_is_issued() {
    let plane = Plane::start().await;
    let token = plane.token(1).await;
    let mut client = plane.stranger(&token);
    let key = PrivateKey::generate().unwrap();
    let elsewhere = JoinToken::new(token.ca_sha256()).unwrap().to_string();
    for proof in ["", "weft1.x", &elsewhere] {
        let refused = issue(&mut client, &key, proof).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{proof}");
        assert!(proof.is_empty() || !refused.message().contains(proof), "the answer does not repeat the token");
    }
    assert_eq!(plane.count("unproved"), 3);
}

#[tokio::test]
async fn the_first_contact_is_pinned_and_its_failure_is_told() {
    let plane = Plane::start().await;
    let other = JoinToken::new([9; 32]).unwrap();
    let mut client = plane.stranger(&other);
    let status = issue(&mut client, &PrivateKey::generate().unwrap(), &other.to_string()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(HandshakeFault::find(&status), Some(HandshakeFault::UnknownAuthority));
    assert!(channel("no port", tls::client_config_pinned([0; 32], None, &[]).unwrap()).is_err());
}

#[tokio::test]
async fn a_certificate_must_still_be_good_when_it_is_used() {
    let plane = Plane::start().await;
    let token = plane.token(1).await;
    let key = PrivateKey::generate().unwrap();
    let (joined, _) = svid(&issue(&mut plane.stranger(&token), &key, &token.to_string()).await.unwrap(), key.clone());
    let csr = key.csr().unwrap();
    let ask = |chain: Vec<CertificateDer<'static>>, at| {
        let (certificates, csr) = (plane.certificates.clone(), csr.clone());
        async move { certificates.issue(&csr, "", Some(&chain), at).await.map(|issued| issued.identity) }
    };
    assert_eq!(ask(joined.chain.clone(), SystemTime::now()).await.unwrap(), orders());
    let late = joined.not_after + Duration::from_secs(1);
    let expired = ask(joined.chain.clone(), late).await;
    assert!(matches!(expired, Err(Refused::Certificate(HandshakeFault::Expired))), "the connection outlived it");
    let rogue = Authority::create(domain(), SystemTime::now()).unwrap();
    let chain = rogue.sign(&csr, &orders(), &[], DAY, SystemTime::now()).unwrap();
    let unknown = ask(chain, SystemTime::now()).await;
    assert!(matches!(unknown, Err(Refused::Certificate(HandshakeFault::UnknownAuthority))));
}

#[tokio::test]
async fn nobody_gets_the_control_planes_identity() {
    let plane = Plane::start().await;
    let own = Authority::load(domain(), &plane._dir.path().join("ca"), SystemTime::now()).unwrap().unwrap();
    let own = own.control_plane_svid(&[], DAY, SystemTime::now()).unwrap();
    let bundle = plane.certificates.bundle().borrow().clone();
    let refused = issue(&mut plane.member(&own, &bundle), &PrivateKey::generate().unwrap(), "").await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let grant = |identity| Grant { identity, uses: 1, ttl: DAY, created_by: "test".into() };
    let answer = plane.certificates.create_token(grant(SpiffeId::control_plane(&domain())), SystemTime::now()).await;
    assert!(matches!(answer, Err(GrantError::ControlPlane)));
    let elsewhere = SpiffeId::parse("spiffe://other.local/ns/default/sa/orders").unwrap();
    let answer = plane.certificates.create_token(grant(elsewhere), SystemTime::now()).await;
    assert!(matches!(answer, Err(GrantError::OtherTrustDomain)));
}

#[tokio::test]
async fn a_storm_of_strangers_is_shed_and_members_are_not() {
    let plane = Plane::start().await;
    let token = plane.token(1).await;
    let key = PrivateKey::generate().unwrap();
    let (joined, _) = svid(&issue(&mut plane.stranger(&token), &key, &token.to_string()).await.unwrap(), key);
    let shed = loop {
        // Straight at the manager: over the network a busy machine may stay below the limit.
        match plane.certificates.issue(b"", "", None, SystemTime::now()).await {
            Err(refused @ Refused::Shed { .. }) => break super::grpc::status(&refused),
            Err(Refused::Request(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(shed.code(), Code::ResourceExhausted);
    let hint: u64 = shed.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap();
    assert!((1..=2000).contains(&hint), "{hint}");
    assert_eq!(plane.count("shed"), 1);
    let bundle = plane.certificates.bundle().borrow().clone();
    let renewed = issue(&mut plane.member(&joined, &bundle), &PrivateKey::generate().unwrap(), "").await;
    assert!(renewed.is_ok(), "renewals have a limit of their own");
}

#[tokio::test]
async fn the_trust_bundle_is_streamed_now_and_at_each_change() {
    let plane = Plane::start().await;
    let token = plane.token(1).await;
    let mut stream = plane.stranger(&token).trust_bundle(TrustBundleRequest {}).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!((first.trust_domain.as_str(), first.roots.len()), ("weft.local", 1));
    let next = Authority::create(domain(), SystemTime::now()).unwrap().bundle().roots()[0].clone();
    plane.certificates.trust(next.clone(), SystemTime::now()).unwrap();
    let second = stream.message().await.unwrap().unwrap();
    assert_eq!(second.roots, [first.roots[0].clone(), next.to_vec()]);
    plane.stop.cancel();
    assert!(stream.message().await.unwrap().is_none(), "a shutdown ends the stream in order");
    let kept = Authority::load(domain(), &plane._dir.path().join("ca"), SystemTime::now()).unwrap().unwrap();
    assert_eq!(kept.bundle().roots().len(), 2, "and the next start knows both roots");
}

#[tokio::test]
async fn the_own_certificate_is_renewed_without_a_new_root() {
    let dir = tempfile::tempdir().unwrap();
    let (certificates, registry) = open(dir.path());
    let before = certificates.server_config();
    certificates.maintain(SystemTime::now()).unwrap();
    assert!(Arc::ptr_eq(&before, &certificates.server_config()), "nothing is due");
    let later = SystemTime::now() + DAY * 7 / 10;
    certificates.maintain(later).unwrap();
    assert!(!Arc::ptr_eq(&before, &certificates.server_config()));
    let year = SystemTime::now() + DAY * 200;
    certificates.maintain(year).unwrap();
    let text = weft_telemetry::metrics::render(&registry);
    let expiry = |kind: &str| -> u64 {
        let name = format!("weft_certificate_expiry_timestamp_seconds{{kind=\"{kind}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(expiry("issuer") > now + 500 * 86_400, "the intermediate was renewed half a year in");
    assert!(expiry("root") > now + 3640 * 86_400 && expiry("leaf") > now + 200 * 86_400);
}

#[tokio::test]
async fn an_import_replaces_the_authority_and_keeps_the_former_root_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let roots = |certificates: &Certificates| certificates.bundle().borrow().roots().to_vec();
    let first = roots(&open(dir.path()).0);
    assert_eq!(roots(&open(dir.path()).0), first, "a restart changes nothing");

    let made = tempfile::tempdir().unwrap();
    Authority::create(domain(), SystemTime::now()).unwrap().save(made.path()).unwrap();
    let import = Some((made.path().join("root.pem"), made.path().join("root.key")));
    let start = |import| {
        let tokens = Tokens::new(Store::open(&dir.path().join("store.redb")).unwrap());
        let settings = Settings { import, ..settings(dir.path()) };
        Certificates::open(settings, tokens, &Registry::new(), SystemTime::now())
    };
    let imported = roots(&start(import.clone()).unwrap());
    assert_eq!((imported.len(), &imported[1]), (2, &first[0]));
    let issuer = std::fs::read(dir.path().join("ca/issuer.pem")).unwrap();
    assert_eq!(roots(&start(import).unwrap()), imported, "the same import again changes nothing");
    assert_eq!(std::fs::read(dir.path().join("ca/issuer.pem")).unwrap(), issuer);
    assert_eq!(roots(&start(None).unwrap()), imported);

    let missing = Some((made.path().join("none.pem"), made.path().join("root.key")));
    assert!(matches!(start(missing), Err(CertificatesError::Read { .. })));
    let short = Settings { ttl: Duration::from_secs(1), ..settings(dir.path()) };
    let tokens = Tokens::new(Store::open(&dir.path().join("store.redb")).unwrap());
    let answer = Certificates::open(short, tokens, &Registry::new(), SystemTime::now());
    assert!(matches!(answer, Err(CertificatesError::Ttl)));
}
