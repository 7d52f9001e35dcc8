//! Two sides over TCP: sessions, identities, and the stream above them.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use weft_identity::{
    PrivateKey, Svid, TrustDomain,
    ca::Authority,
    tls::{ClientAuth, client_config, resuming, server_config},
};

use super::*;

const SNI: &str = "p80.orders.default.weft";

fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "default", account).unwrap()
}

fn material(ca: &Authority, account: &str) -> TlsMaterial {
    let key = PrivateKey::generate().unwrap();
    let life = Duration::from_secs(3600);
    let chain = ca.sign(&key.csr().unwrap(), &id(account), &[], life, SystemTime::now()).unwrap();
    let svid = Svid::new(chain, key).unwrap();
    let bundle = ca.bundle();
    let server = server_config(&svid, &bundle, ClientAuth::Required, &[b"h2", b"http/1.1"]).unwrap();
    let client = |alpn: Alpn| client_config(Some(&svid), &bundle, alpn.protocols()).unwrap();
    let clients = [client(Alpn::None), client(Alpn::Http1), client(Alpn::H2)];
    TlsMaterial::new(1, id(account), resuming(&server, &svid), clients)
}

struct Place {
    listener: TcpListener,
}

type End = Result<(Io, Session), TlsFailure>;

impl Place {
    async fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    /// The server's end and the client's.
    async fn meet(&self, server: &TlsMaterial, client: &TlsMaterial, expected: &[SpiffeId]) -> (End, End) {
        let address = self.listener.local_addr().unwrap();
        let limit = Duration::from_secs(20);
        let serve = async {
            let (tcp, _) = self.listener.accept().await.unwrap();
            accept(server, tcp, Instant::now() + limit).await
        };
        let call = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            connect(client, (tcp, address), SNI, Alpn::None, expected, limit).await
        };
        tokio::join!(serve, call)
    }

    /// Whether a session was taken up; a byte goes to the client, before which the next one's ticket goes.
    async fn resumed(&self, server: &TlsMaterial, client: &TlsMaterial, expected: &[SpiffeId]) -> bool {
        let (served, called) = self.meet(server, client, expected).await;
        let ((mut server, of_client), (mut client, of_server)) = (served.unwrap(), called.unwrap());
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
        assert_eq!((of_client.peer.as_str(), of_server.peer.as_str()), (id("web").as_str(), id("orders").as_str()));
        assert_eq!(of_client.resumed, of_server.resumed);
        assert_eq!(of_client.sni, SNI.into());
        of_client.resumed
    }
}

#[tokio::test]
async fn sessions_are_taken_up_by_those_who_made_them() {
    let ca = Authority::create(TrustDomain::default(), SystemTime::now()).unwrap();
    let (server, client) = (material(&ca, "orders"), material(&ca, "web"));
    let (place, expected) = (Place::new().await, [id("orders")]);
    assert!(!place.resumed(&server, &client, &expected).await);
    assert!(place.resumed(&server, &client, &expected).await);
    assert!(!place.resumed(&server, &client, &[id("orders"), id("billing")]).await, "others would do as well");
    assert!(!place.resumed(&server, &material(&ca, "web"), &expected).await, "a new certificate of the client");
    assert!(!place.resumed(&material(&ca, "orders"), &client, &expected).await, "a new certificate of the server");
}

#[tokio::test]
async fn somebody_else_leaves_no_session() {
    let ca = Authority::create(TrustDomain::default(), SystemTime::now()).unwrap();
    let (server, client) = (material(&ca, "orders"), material(&ca, "web"));
    let place = Place::new().await;
    for _ in 0..2 {
        let (served, called) = place.meet(&server, &client, &[id("billing")]).await;
        let failure = called.unwrap_err();
        assert!(matches!(failure, TlsFailure::Identity { .. }), "{failure}");
        assert!(served.is_ok_and(|(_, session)| !session.resumed));
    }
    assert!(!place.resumed(&server, &client, &[id("orders")]).await);
}

#[tokio::test]
async fn what_is_written_arrives_whatever_its_length() {
    let ca = Authority::create(TrustDomain::default(), SystemTime::now()).unwrap();
    let place = Place::new().await;
    let (served, called) = place.meet(&material(&ca, "orders"), &material(&ca, "web"), &[id("orders")]).await;
    let ((mut server, _), (mut client, _)) = (served.unwrap(), called.unwrap());
    let text: Vec<u8> = (0..400_000_u32).map(|n| (n * 7 + n / 251) as u8).collect();
    let send = async {
        let mut rest = &text[..];
        for len in [1, 2047, 2048, 2049, 16_384, 65_535, 65_537, 120_000] {
            client.write_all(&rest[..len]).await.unwrap();
            rest = &rest[len..];
        }
        while !rest.is_empty() {
            let (a, b) = rest.split_at(rest.len() / 3);
            let written = client.write_vectored(&[io::IoSlice::new(a), io::IoSlice::new(b)]).await.unwrap();
            assert!(written > 0);
            rest = &rest[written..];
        }
        client.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (read, ()) = tokio::join!(server.read_to_end(&mut received), send);
    read.unwrap();
    assert!(received == text);
    server.write_all(b"still open").await.unwrap();
    server.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "still open");
}
