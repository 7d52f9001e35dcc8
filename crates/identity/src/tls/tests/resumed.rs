//! Sessions that are taken up again, and when they are not; chains that are known.

use std::net::SocketAddr;

use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::UnixTime;

use super::*;

const NAME: &str = "p80.orders.default.weft";

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn lasting(mut svid: Svid) -> Svid {
    svid.not_after = SystemTime::now() + HOUR;
    svid
}

fn resuming_server(svid: &Svid, bundle: &TrustBundle) -> Arc<ServerConfig> {
    resuming(&server_of(svid, bundle), svid)
}

/// Whether a handshake took up a session; both sides must agree, and each must know the other.
async fn resumes(server: &Arc<ServerConfig>, client: Arc<ClientConfig>) -> bool {
    let (served, called) = handshake(server.clone(), client).await;
    let (served, called) = (served.unwrap(), called.unwrap());
    let now = SystemTime::now();
    let (of_client, resumed) = proved(served.get_ref().1, now).unwrap();
    let (of_server, also) = proved(called.get_ref().1, now).unwrap();
    assert_eq!(resumed, also);
    assert_eq!((of_client.as_str(), of_server.as_str()), (ORDERS, ORDERS));
    assert!(!called.get_ref().1.is_early_data_accepted());
    resumed
}

#[tokio::test]
async fn a_session_is_taken_up_by_the_same_peer_alone() {
    let forge = Forge::new();
    let (svid, bundle) = (lasting(forge.good()), forge.bundle());
    let expected = [SpiffeId::parse(ORDERS).unwrap()];
    let server = resuming_server(&svid, &bundle);
    let sessions = ClientSessions::new(client_of(&svid, &bundle));

    assert!(!resumes(&server, sessions.to(at(1), NAME, &expected)).await, "the first");
    for _ in 0..3 {
        assert!(resumes(&server, sessions.to(at(1), NAME, &expected)).await, "each gives one for the next");
    }
    assert!(!resumes(&server, sessions.to(at(2), NAME, &expected)).await, "another address");
    assert!(!resumes(&server, sessions.to(at(1), "p81.orders.default.weft", &expected)).await, "another name");
    let also = [expected[0].clone(), SpiffeId::parse("spiffe://weft.local/ns/default/sa/billing").unwrap()];
    assert!(!resumes(&server, sessions.to(at(1), NAME, &also)).await, "other identities");
    assert!(!resumes(&server, client_of(&svid, &bundle)).await, "no store");
    assert!(resumes(&server, sessions.to(at(1), NAME, &expected)).await);
    let other = resuming_server(&svid, &bundle);
    assert!(!resumes(&other, sessions.to(at(1), NAME, &expected)).await, "another server at the same address");
}

#[tokio::test]
async fn no_session_outlives_its_epoch() {
    let forge = Forge::new();
    let (svid, bundle) = (lasting(forge.good()), forge.bundle());
    let expected = [SpiffeId::parse(ORDERS).unwrap()];
    let server = resuming_server(&svid, &bundle);
    let sessions = ClientSessions::new(client_of(&svid, &bundle));
    assert!(!resumes(&server, sessions.to(at(1), NAME, &expected)).await);

    let renewed = lasting(forge.good());
    let next = ClientSessions::new(client_of(&renewed, &bundle));
    assert!(!resumes(&server, next.to(at(1), NAME, &expected)).await, "the client has a new certificate");
    let renewed = resuming_server(&renewed, &bundle);
    assert!(!resumes(&renewed, sessions.to(at(1), NAME, &expected)).await, "the server has a new certificate");

    // The old roots are gone from the server's bundle: what the old session proved counts for nothing.
    let server = resuming_server(&svid, &bundle);
    let sessions = ClientSessions::new(client_of(&svid, &bundle));
    assert!(!resumes(&server, sessions.to(at(1), NAME, &expected)).await);
    assert!(resumes(&server, sessions.to(at(1), NAME, &expected)).await);
    let strict = resuming_server(&svid, &Forge::new().bundle());
    let (served, _) = handshake(strict, sessions.to(at(1), NAME, &expected)).await;
    assert_eq!(served.err(), Some(HandshakeFault::UnknownAuthority));
}

#[tokio::test]
async fn a_session_prolongs_no_certificate() {
    let forge = Forge::new();
    let (svid, bundle) = (lasting(forge.below(|_| {}, |_| {})), forge.bundle());
    let expected = [SpiffeId::parse(ORDERS).unwrap()];
    let server = resuming_server(&svid, &bundle);
    let sessions = ClientSessions::new(client_of(&svid, &bundle));
    assert!(!resumes(&server, sessions.to(at(1), NAME, &expected)).await);
    let (served, called) = handshake(server.clone(), sessions.to(at(1), NAME, &expected)).await;
    let (served, called) = (served.unwrap(), called.unwrap());
    for side in [&**served.get_ref().1 as &CommonState, &**called.get_ref().1] {
        assert!(proved(side, SystemTime::now()).is_ok_and(|(_, resumed)| resumed));
        assert_eq!(proved(side, SystemTime::now() + 2 * HOUR), Err(HandshakeFault::Expired));
    }

    let mut over = svid.clone();
    over.not_after = SystemTime::now();
    let server = resuming_server(&over, &bundle);
    let sessions = ClientSessions::new(client_of(&svid, &bundle));
    for _ in 0..2 {
        assert!(!resumes(&server, sessions.to(at(1), NAME, &expected)).await, "beyond the server's certificate");
    }
}

#[tokio::test]
async fn peers_and_their_sessions_are_bounded() {
    let forge = Forge::new();
    let (svid, bundle) = (lasting(forge.good()), forge.bundle());
    let expected = [SpiffeId::parse(ORDERS).unwrap()];
    let server = resuming_server(&svid, &bundle);
    let sessions = ClientSessions::new(client_of(&svid, &bundle));
    assert!(!resumes(&server, sessions.to(at(1), NAME, &expected)).await);
    for port in 2..300 {
        sessions.to(at(port), NAME, &expected);
    }
    assert!(!resumes(&server, sessions.to(at(1), NAME, &expected)).await, "the one used longest ago made room");
}

#[test]
fn a_known_chain_is_verified_again_when_anything_differs() {
    let forge = Forge::new();
    let verifier = Verifier::new(Anchor::roots(&forge.bundle()), Expected::TrustDomain(TrustDomain::default()));
    let verify = |svid: &Svid, now: SystemTime| {
        let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
        let verdict = verifier.verify_client_cert(&svid.chain[0], &svid.chain[1..], now);
        verdict.map(drop).map_err(|error| HandshakeFault::from_rustls(&error))
    };
    let now = SystemTime::now();
    let short = |params: &mut CertificateParams| params.not_after = (now + HOUR / 2).into();
    let good = forge.below(short, |_| {});
    for _ in 0..2 {
        assert_eq!(verify(&good, now), Ok(()));
    }
    assert_eq!(verify(&good, now + HOUR * 3 / 4), Err(HandshakeFault::Expired), "the issuer's certificate is over");
    assert_eq!(verify(&good, now - HOUR * 2), Err(HandshakeFault::NotYetValid));
    assert_eq!(verify(&good, now), Ok(()), "within its time again");

    let mut damaged = good.clone();
    let mut bytes = damaged.chain[0].to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    damaged.chain[0] = bytes.into();
    assert_eq!(verify(&damaged, now), Err(HandshakeFault::BadCertificate));
    let mut alone = good.clone();
    alone.chain.truncate(1);
    assert_eq!(verify(&alone, now), Err(HandshakeFault::UnknownAuthority));

    let client_only = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    let client_only = forge.leaf(client_only);
    assert_eq!(verify(&client_only, now), Ok(()));
    let name = ServerName::try_from(NAME).unwrap();
    let as_server = rustls::client::danger::ServerCertVerifier::verify_server_cert(
        &verifier,
        &client_only.chain[0],
        &[],
        &name,
        &[],
        UnixTime::now(),
    );
    assert_eq!(as_server.map_err(|error| HandshakeFault::from_rustls(&error)).err(), Some(HandshakeFault::BadKeyUsage));
}

const ORDERS: &str = "spiffe://weft.local/ns/default/sa/orders";
