//! Real handshakes over memory: who is let in, who is refused, and what each side learns of the cause.

mod resumed;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::{ClientConfig, HandshakeKind, NamedGroup, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::ca::Authority;
use crate::key::PrivateKey;

/// An authority that signs whatever a test wants.
struct Forge {
    root: CertifiedIssuer<'static, KeyPair>,
}

impl Forge {
    fn new() -> Self {
        Self { root: CertifiedIssuer::self_signed(ca_params("root"), KeyPair::generate().unwrap()).unwrap() }
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle::new(TrustDomain::default(), vec![self.root.der().clone()]).unwrap()
    }

    fn good(&self) -> Svid {
        self.leaf(|_| {})
    }

    /// A leaf that is good but for what `change` does to it. Not made with `Svid::new`, which would refuse the bad ones.
    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Svid {
        let (params, key) = leaf_params(change);
        svid(vec![params.signed_by(key.pair(), &self.root).unwrap().into()], key)
    }

    /// A leaf below an intermediate.
    fn below(
        &self,
        intermediate: impl FnOnce(&mut CertificateParams),
        change: impl FnOnce(&mut CertificateParams),
    ) -> Svid {
        let mut ca = ca_params("intermediate");
        intermediate(&mut ca);
        let ca = CertifiedIssuer::signed_by(ca, KeyPair::generate().unwrap(), &self.root).unwrap();
        let (params, key) = leaf_params(change);
        svid(vec![params.signed_by(key.pair(), &ca).unwrap().into(), ca.der().clone()], key)
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("{name} {}", fastrand::u64(..)));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = (SystemTime::now() - HOUR).into();
    params.not_after = (SystemTime::now() + HOUR).into();
    params
}

fn leaf_params(change: impl FnOnce(&mut CertificateParams)) -> (CertificateParams, PrivateKey) {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("spiffe://weft.local/ns/default/sa/orders")];
    params.is_ca = IsCa::ExplicitNoCa;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = (SystemTime::now() - HOUR).into();
    params.not_after = (SystemTime::now() + HOUR).into();
    change(&mut params);
    (params, PrivateKey::generate().unwrap())
}

fn svid(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Svid {
    let id = SpiffeId::parse("spiffe://weft.local/ns/default/sa/orders").unwrap();
    Svid { chain, id, not_before: SystemTime::UNIX_EPOCH, not_after: SystemTime::UNIX_EPOCH, key }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

type ServerSide = Result<server::TlsStream<DuplexStream>, HandshakeFault>;
type ClientSide = Result<client::TlsStream<DuplexStream>, HandshakeFault>;

/// Both ends' view of one handshake. A TLS 1.3 client is done before the server has seen its certificate: it reads on,
/// and takes the end of the stream for success.
async fn handshake(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> (ServerSide, ClientSide) {
    let (near, far) = duplex(64 * 1024);
    let name = ServerName::try_from("p80.orders.default.weft").unwrap();
    let serve = async {
        let mut stream =
            TlsAcceptor::from(server).accept(near).await.map_err(|error| HandshakeFault::from_io(&error))?;
        stream.shutdown().await.unwrap();
        Ok(stream)
    };
    let call = async {
        let connected = TlsConnector::from(client).connect(name, far).await;
        let mut stream = connected.map_err(|error| HandshakeFault::from_io(&error))?;
        match stream.read(&mut [0; 1]).await {
            Ok(_) => Ok(stream),
            Err(error) => Err(HandshakeFault::from_io(&error)),
        }
    };
    tokio::join!(serve, call)
}

fn server_of(svid: &Svid, bundle: &TrustBundle) -> Arc<ServerConfig> {
    server_config(svid, bundle, ClientAuth::Required, &[b"h2"]).unwrap()
}

fn client_of(svid: &Svid, bundle: &TrustBundle) -> Arc<ClientConfig> {
    client_config(Some(svid), bundle, &[b"h2"]).unwrap()
}

/// Presents `bad` as a server and as a client to a peer that trusts `forge`.
async fn refused(what: &str, forge: &Forge, bad: &Svid, fault: HandshakeFault) {
    let (good, bundle) = (forge.good(), forge.bundle());
    let (served, called) = handshake(server_of(bad, &bundle), client_of(&good, &bundle)).await;
    assert_eq!(called.err(), Some(fault), "{what}, as a server");
    assert!(served.err().is_some_and(HandshakeFault::by_peer), "{what}: the server learns that it was refused");
    let (served, called) = handshake(server_of(&good, &bundle), client_of(bad, &bundle)).await;
    assert_eq!(served.err(), Some(fault), "{what}, as a client");
    assert!(called.err().is_some_and(HandshakeFault::by_peer), "{what}: the client learns that it was refused");
}

#[tokio::test]
async fn both_sides_prove_themselves_with_the_hybrid_group() {
    let forge = Forge::new();
    let (bundle, good) = (forge.bundle(), forge.good());
    let (server, client) = (server_of(&good, &bundle), client_of(&good, &bundle));
    for _ in 0..2 {
        let (served, called) = handshake(server.clone(), client.clone()).await;
        let (served, called) = (served.unwrap(), called.unwrap());
        let (_, connection) = called.get_ref();
        assert_eq!(peer_id(connection.peer_certificates()), Ok(good.id.clone()));
        assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(connection.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full), "sessions are not resumed");
        assert_eq!(peer_id(served.get_ref().1.peer_certificates()), Ok(good.id.clone()));
        assert_eq!(served.get_ref().1.server_name(), Some("p80.orders.default.weft"));
    }
}

#[tokio::test]
async fn chains_that_lead_nowhere_are_refused() {
    let forge = Forge::new();
    let stranger = Forge::new();
    refused("another root", &forge, &stranger.good(), HandshakeFault::UnknownAuthority).await;

    let (params, key) = leaf_params(|_| {});
    let own = svid(vec![params.self_signed(key.pair()).unwrap().into()], key);
    refused("self-signed", &forge, &own, HandshakeFault::UnknownAuthority).await;

    let mut short = forge.below(|_| {}, |_| {});
    short.chain.truncate(1);
    refused("intermediate missing", &forge, &short, HandshakeFault::UnknownAuthority).await;

    let mut rooted = stranger.good();
    rooted.chain.push(forge.root.der().clone());
    refused("a trusted root in a stranger's chain", &forge, &rooted, HandshakeFault::UnknownAuthority).await;

    let mut damaged = forge.good();
    let mut bytes = damaged.chain[0].to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    damaged.chain[0] = bytes.into();
    refused("signature damaged", &forge, &damaged, HandshakeFault::BadCertificate).await;
}

#[tokio::test]
async fn other_trust_domains_are_refused() {
    let forge = Forge::new();
    let elsewhere = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![uri("spiffe://other.local/ns/default/sa/orders")];
    };
    refused("same root", &forge, &forge.leaf(elsewhere), HandshakeFault::WrongTrustDomain).await;
    refused("own root", &forge, &Forge::new().leaf(elsewhere), HandshakeFault::WrongTrustDomain).await;
    let prefix = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![uri("spiffe://weft.local.evil/ns/default/sa/orders")];
    };
    refused("a prefix is not enough", &forge, &forge.leaf(prefix), HandshakeFault::WrongTrustDomain).await;
}

#[tokio::test]
async fn certificates_out_of_their_time_are_refused() {
    let forge = Forge::new();
    let (before, after) = (SystemTime::now() - HOUR / 2, SystemTime::now() + HOUR / 2);
    let expired = |params: &mut CertificateParams| params.not_after = before.into();
    let early = |params: &mut CertificateParams| params.not_before = after.into();
    refused("expired", &forge, &forge.leaf(expired), HandshakeFault::Expired).await;
    refused("not yet valid", &forge, &forge.leaf(early), HandshakeFault::NotYetValid).await;
    refused("expired intermediate", &forge, &forge.below(expired, |_| {}), HandshakeFault::Expired).await;
    refused("intermediate not yet valid", &forge, &forge.below(early, |_| {}), HandshakeFault::NotYetValid).await;
}

#[tokio::test]
async fn certificates_for_another_use_are_refused() {
    let forge = Forge::new();
    let without = |params: &mut CertificateParams| params.extended_key_usages.clear();
    refused("no EKU", &forge, &forge.leaf(without), HandshakeFault::BadKeyUsage).await;
    let code = |params: &mut CertificateParams| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    refused("another EKU", &forge, &forge.leaf(code), HandshakeFault::BadKeyUsage).await;
    let ca = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    refused("CA:TRUE", &forge, &forge.leaf(ca), HandshakeFault::CaAsLeaf).await;

    let (good, bundle) = (forge.good(), forge.bundle());
    let half = |usage| forge.leaf(move |params| params.extended_key_usages = vec![usage]);
    let server_only = half(ExtendedKeyUsagePurpose::ServerAuth);
    let (served, _) = handshake(server_of(&good, &bundle), client_of(&server_only, &bundle)).await;
    assert_eq!(served.err(), Some(HandshakeFault::BadKeyUsage), "a server's certificate is none for a client");
    let client_only = half(ExtendedKeyUsagePurpose::ClientAuth);
    let (_, called) = handshake(server_of(&client_only, &bundle), client_of(&good, &bundle)).await;
    assert_eq!(called.err(), Some(HandshakeFault::BadKeyUsage), "a client's certificate is none for a server");
}

#[tokio::test]
async fn constraints_of_authorities_are_obeyed() {
    let forge = Forge::new();
    let only = |subtree: GeneralSubtree| {
        move |params: &mut CertificateParams| {
            let constraints = NameConstraints { permitted_subtrees: vec![subtree], excluded_subtrees: vec![] };
            params.name_constraints = Some(constraints);
        }
    };
    let named = |params: &mut CertificateParams| params.subject_alt_names.push(dns("orders.default"));
    let bad = forge.below(only(GeneralSubtree::DnsName("example.com".into())), named);
    refused("name constraint", &forge, &bad, HandshakeFault::ConstraintViolated).await;
    let addressed = |params: &mut CertificateParams| {
        params.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into()));
    };
    let bad =
        forge.below(only(GeneralSubtree::IpAddress(CidrSubnet::V4([192, 168, 0, 0], [255, 255, 0, 0]))), addressed);
    refused("address constraint", &forge, &bad, HandshakeFault::ConstraintViolated).await;

    let mut top = ca_params("top");
    top.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let top = CertifiedIssuer::signed_by(top, KeyPair::generate().unwrap(), &forge.root).unwrap();
    let middle = CertifiedIssuer::signed_by(ca_params("middle"), KeyPair::generate().unwrap(), &top).unwrap();
    let (params, key) = leaf_params(|_| {});
    let leaf = params.signed_by(key.pair(), &middle).unwrap().into();
    let long = svid(vec![leaf, middle.der().clone(), top.der().clone()], key);
    refused("path length", &forge, &long, HandshakeFault::ConstraintViolated).await;
    let no_ca = |params: &mut CertificateParams| {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages.clear();
    };
    refused("a leaf that signs", &forge, &forge.below(no_ca, |_| {}), HandshakeFault::ConstraintViolated).await;
}

#[tokio::test]
async fn certificates_without_exactly_one_spiffe_id_are_refused() {
    let forge = Forge::new();
    let id = "spiffe://weft.local/ns/default/sa/orders";
    let table: &[(&str, &[SanType])] = &[
        ("no SAN", &[]),
        ("DNS only", &[dns("orders.default")]),
        ("the ID as a DNS name", &[dns(id)]),
        ("two URIs", &[uri(id), uri("spiffe://weft.local/ns/default/sa/billing")]),
        ("the same URI twice", &[uri(id), uri(id)]),
        ("another scheme beside", &[uri(id), uri("https://weft.local/")]),
        ("another scheme", &[uri("https://weft.local/ns/default/sa/orders")]),
        ("NUL", &[uri("spiffe://weft.local/ns/default/sa/orders\0")]),
        ("percent-encoding", &[uri("spiffe://weft.local/ns/default/sa/order%73")]),
        ("upper case", &[uri("spiffe://Weft.local/ns/default/sa/orders")]),
        ("wildcard", &[uri("spiffe://weft.local/ns/default/sa/*")]),
        ("no account", &[uri("spiffe://weft.local/ns/default")]),
        ("a CA's", &[uri("spiffe://weft.local")]),
    ];
    for (what, names) in table {
        let bad = forge.leaf(|params| params.subject_alt_names = names.to_vec());
        refused(what, &forge, &bad, HandshakeFault::BadIdentity).await;
    }
    let with_name = forge.leaf(|params| params.subject_alt_names.push(dns("weft-control-plane")));
    let (served, called) =
        handshake(server_of(&with_name, &forge.bundle()), client_of(&with_name, &forge.bundle())).await;
    assert!(served.is_ok() && called.is_ok(), "a DNS name beside the one URI does no harm");
}

#[tokio::test]
async fn a_client_without_certificate_is_refused_where_one_is_required() {
    let forge = Forge::new();
    let (good, bundle) = (forge.good(), forge.bundle());
    let bare = client_config(None, &bundle, &[b"h2"]).unwrap();
    let (served, called) = handshake(server_of(&good, &bundle), bare.clone()).await;
    assert_eq!(served.err(), Some(HandshakeFault::MissingCertificate));
    assert_eq!(called.err(), Some(HandshakeFault::RefusedMissingCertificate));

    let optional = server_config(&good, &bundle, ClientAuth::Optional, &[b"h2"]).unwrap();
    let (served, called) = handshake(optional.clone(), bare).await;
    assert_eq!(peer_id(served.unwrap().get_ref().1.peer_certificates()), Err(PeerError::Missing));
    assert!(called.is_ok());
    let (served, _) = handshake(optional, client_of(&Forge::new().good(), &bundle)).await;
    assert_eq!(served.err(), Some(HandshakeFault::UnknownAuthority), "one that is sent is verified");
}

#[tokio::test]
async fn each_side_learns_why_it_was_refused() {
    let forge = Forge::new();
    let (good, bundle) = (forge.good(), forge.bundle());
    let before = SystemTime::now() - HOUR / 2;
    let table = [
        (forge.leaf(|params| params.not_after = before.into()), HandshakeFault::RefusedExpired),
        (Forge::new().good(), HandshakeFault::RefusedUnknownAuthority),
        (forge.leaf(|params| params.subject_alt_names.clear()), HandshakeFault::RefusedCertificate),
    ];
    for (bad, fault) in table {
        let (_, called) = handshake(server_of(&good, &bundle), client_of(&bad, &bundle)).await;
        assert_eq!(called.err(), Some(fault));
    }
}

#[tokio::test]
async fn another_identity_than_expected_is_refused() {
    let forge = Forge::new();
    let (good, bundle) = (forge.good(), forge.bundle());
    let expecting =
        |text: &str| client_config_expecting(Some(&good), &bundle, SpiffeId::parse(text).unwrap(), &[b"h2"]).unwrap();
    let (served, called) = handshake(server_of(&good, &bundle), expecting(good.id.as_str())).await;
    assert!(served.is_ok() && called.is_ok());
    let (served, called) =
        handshake(server_of(&good, &bundle), expecting("spiffe://weft.local/ns/default/sa/orders2")).await;
    assert_eq!(called.err(), Some(HandshakeFault::UnexpectedIdentity));
    assert_eq!(served.err(), Some(HandshakeFault::RefusedIdentity));
}

#[tokio::test]
async fn the_first_contact_is_pinned_to_the_root() {
    let now = SystemTime::now();
    let domain = TrustDomain::default();
    let authority = Authority::create(domain.clone(), now).unwrap();
    let own = authority.control_plane_svid(&["weft-control-plane"], HOUR, now).unwrap();
    let server = |svid: &Svid| server_config(svid, &authority.bundle(), ClientAuth::Optional, &[b"h2"]).unwrap();
    let pinned = |hash| client_config_pinned(hash, Some(domain.clone()), &[b"h2"]).unwrap();
    let hash = authority.root_sha256();

    let (served, called) = handshake(server(&own), pinned(hash)).await;
    assert!(served.is_ok());
    assert_eq!(peer_id(called.unwrap().get_ref().1.peer_certificates()), Ok(SpiffeId::control_plane(&domain)));
    let (_, called) = handshake(server(&own), client_config_pinned(hash, None, &[b"h2"]).unwrap()).await;
    assert!(called.is_ok(), "the trust domain need not be known");
    let other = TrustDomain::parse("other.local").unwrap();
    let (_, called) = handshake(server(&own), client_config_pinned(hash, Some(other), &[b"h2"]).unwrap()).await;
    assert_eq!(called.err(), Some(HandshakeFault::WrongTrustDomain));

    let (_, called) = handshake(server(&own), pinned([0; 32])).await;
    assert_eq!(called.err(), Some(HandshakeFault::UnknownAuthority), "another root");
    let mut rootless = own.clone();
    rootless.chain.pop();
    let (_, called) = handshake(server(&rootless), pinned(hash)).await;
    assert_eq!(called.err(), Some(HandshakeFault::UnknownAuthority), "no root in the chain");

    let rogue = Authority::create(domain.clone(), now).unwrap();
    let mut impostor = rogue.control_plane_svid(&[], HOUR, now).unwrap();
    impostor.chain.push(authority.bundle().roots()[0].clone());
    let (_, called) = handshake(server(&impostor), pinned(hash)).await;
    assert_eq!(called.err(), Some(HandshakeFault::UnknownAuthority), "the right root beside a rogue chain");

    let key = PrivateKey::generate().unwrap();
    let id = SpiffeId::new(&domain, "default", "orders").unwrap();
    let mut chain = authority.sign(&key.csr().unwrap(), &id, &[], HOUR, now).unwrap();
    chain.push(authority.bundle().roots()[0].clone());
    let (_, called) = handshake(server(&Svid::new(chain, key).unwrap()), pinned(hash)).await;
    assert_eq!(called.err(), Some(HandshakeFault::UnexpectedIdentity), "a workload is not the control plane");
}

#[tokio::test]
async fn roots_overlap_while_they_change() {
    let now = SystemTime::now();
    let domain = TrustDomain::default();
    let old = Authority::create(domain.clone(), now).unwrap();
    let new = Authority::create(domain.clone(), now).unwrap().trusting(old.bundle().roots()[0].clone()).unwrap();
    assert_eq!(new.bundle().roots().len(), 2);
    let issue = |authority: &Authority| {
        let key = PrivateKey::generate().unwrap();
        let id = SpiffeId::new(&domain, "default", "orders").unwrap();
        Svid::new(authority.sign(&key.csr().unwrap(), &id, &[], HOUR, now).unwrap(), key).unwrap()
    };
    let (old_svid, new_svid) = (issue(&old), issue(&new));
    let both = new.bundle();
    let (served, called) = handshake(server_of(&old_svid, &both), client_of(&new_svid, &both)).await;
    assert!(served.is_ok() && called.is_ok(), "old and new meet while both roots are trusted");
    let only_new = TrustBundle::new(domain.clone(), vec![new.bundle().roots()[0].clone()]).unwrap();
    let (served, _) = handshake(server_of(&new_svid, &only_new), client_of(&old_svid, &both)).await;
    assert_eq!(served.err(), Some(HandshakeFault::UnknownAuthority), "revoked by rotation");
    let (_, called) = handshake(server_of(&old_svid, &both), client_of(&new_svid, &only_new)).await;
    assert_eq!(called.err(), Some(HandshakeFault::UnknownAuthority), "revoked by rotation");
}

#[tokio::test]
async fn old_versions_other_protocols_and_plain_text_are_refused() {
    let forge = Forge::new();
    let (good, bundle) = (forge.good(), forge.bundle());
    let (_, called) = handshake(server_of(&good, &bundle), client_config(Some(&good), &bundle, &[b"x"]).unwrap()).await;
    assert_eq!(called.err(), Some(HandshakeFault::NothingInCommon), "ALPN");

    let old = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(bundle.anchors())
        .with_no_client_auth();
    let (served, called) = handshake(server_of(&good, &bundle), Arc::new(old)).await;
    assert_eq!(served.err(), Some(HandshakeFault::NothingInCommon), "TLS 1.2");
    assert!(called.is_err());

    let (mut near, far) = duplex(4096);
    near.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await.unwrap();
    let error = TlsAcceptor::from(server_of(&good, &bundle)).accept(far).await.err().unwrap();
    assert_eq!(HandshakeFault::from_io(&error), HandshakeFault::NotTls);

    let (near, far) = duplex(4096);
    drop(near);
    let error = TlsAcceptor::from(server_of(&good, &bundle)).accept(far).await.err().unwrap();
    assert_eq!(HandshakeFault::from_io(&error), HandshakeFault::Closed);
}

const HOUR: Duration = Duration::from_secs(3600);
