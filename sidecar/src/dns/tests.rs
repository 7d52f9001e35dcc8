//! The server over real sockets, with resolvers of its own behind it.

mod bytes;
mod resolver;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use prometheus::Registry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};
use weft_xds::resource::VirtualHost;

use self::resolver::{Said, Upstream, a, soa};
use super::{answer::Answers, forward::framed, metrics::Metrics, server::Listening};
use crate::{
    demand::Demand,
    settings::{Cli, Settings},
    shared::Shared,
    snapshot::{Host, Snapshot, VhostState},
};

/// A server in front of resolvers.
struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    answers: Rc<Answers>,
}

/// Runs a test on a thread's own runtime, as the server does.
fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap()
        .block_on(test);
}

fn serve(resolvers: &[SocketAddr]) -> Server {
    let args = ["weft-sidecar", "--service", "web", "--control-plane", "127.0.0.1:1", "--mark", "off"];
    let flags = <Cli as clap::Parser>::try_parse_from(args).unwrap().flags;
    let (demand, wanted) = Demand::new(Duration::from_secs(2));
    std::mem::forget(wanted);
    let shared = Shared::new(Settings::new(flags, None, 1).unwrap(), demand);
    let answers = Rc::new(Answers::new(shared.clone(), Metrics::register(&Registry::new()).unwrap()));
    answers.set_servers(resolvers);
    let listening = Listening::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let address = listening.address;
    tokio::task::spawn_local(listening.serve(answers.clone()));
    Server { address, shared, answers }
}

impl Server {
    /// Services that exist.
    fn services(&self, hosts: &[&str]) {
        let virtual_hosts = hosts.iter().map(|host| {
            let routes =
                VirtualHost { name: "x".into(), domains: vec![(*host).into()], routes: Vec::new(), endpoint: None };
            let host = Host::new(Arc::new(routes), Instant::now());
            (format!("dns:{}", host.routes.domains[0]).into(), VhostState::Found(Arc::new(host)))
        });
        let snapshot = Snapshot { revision: 1, virtual_hosts: virtual_hosts.collect(), ..Snapshot::default() };
        self.shared.snapshot.store(Arc::new(snapshot));
    }

    async fn bytes(&self, query: &[u8]) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket.send(query).await.unwrap();
        let mut buffer = vec![0; 65_535];
        let received = tokio::time::timeout(Duration::from_secs(8), socket.recv(&mut buffer)).await.ok()?;
        buffer.truncate(received.unwrap());
        Some(buffer)
    }

    async fn ask(&self, query: &Message) -> Message {
        let bytes = self.bytes(&query.to_vec().unwrap()).await.expect("an answer");
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!(answer.metadata.id, query.metadata.id);
        answer
    }

    async fn lookup(&self, name: &str) -> Message {
        self.ask(&query(name, RecordType::A)).await
    }

    fn counted(&self, ended: super::metrics::Ended) -> u64 {
        self.answers.metrics().count(ended)
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    };
    message.answers.iter().filter_map(|record| address(&record.data)).collect()
}

#[test]
fn names_of_the_mesh() {
    run(async {
        let server = serve(&[]);
        server.services(&["orders.default"]);
        let vip = server.shared.vips.of("orders.default").unwrap();
        for name in ["OrDers.", "orders.default.", "orders.default.svc.cluster.local.", "orders.default.mesh."] {
            let asked = query(name, RecordType::A);
            let answer = server.ask(&asked).await;
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired);
            assert_eq!(addresses(&answer), [IpAddr::from(vip.v4)], "{name}");
            assert_eq!(answer.answers[0].ttl, 30);
            // Case as asked, byte by byte.
            assert_eq!(answer.queries[0].name.to_string(), name);
            assert_eq!(answer.answers[0].name.to_string(), name);
        }
        let none = server.ask(&with_edns(query("orders.", RecordType::TXT), 1232)).await;
        assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NoError, 0));
        assert!(matches!(&none.authorities[0].data, RData::SOA(soa) if soa.minimum == 30));
        assert!(none.edns.is_some());
        let [a, b, c, d] = vip.v4.octets();
        let reverse = server.ask(&query(&format!("{d}.{c}.{b}.{a}.in-addr.arpa."), RecordType::PTR)).await;
        assert!(matches!(&reverse.answers[0].data, RData::PTR(name) if name.to_string() == "orders.default.mesh."));
        let nobody = server.ask(&query("9.9.9.241.in-addr.arpa.", RecordType::PTR)).await;
        assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(server.counted(super::metrics::Ended::Mesh), 7);
    });
}

#[test]
fn other_names_are_forwarded_and_remembered_with_their_time_running_down() {
    run(async {
        let upstream = Upstream::start(|query, _| vec![Said::answer(query, &[a([192, 0, 2, 7], 100)])]).await;
        let server = serve(&[upstream.address]);
        let first = server.lookup("example.com.").await;
        assert_eq!((addresses(&first), first.answers[0].ttl), (vec![IpAddr::from([192, 0, 2, 7])], 100));
        loop {
            let again = server.lookup("EXAMPLE.com.").await;
            assert_eq!(again.queries[0].name.to_string(), "EXAMPLE.com.", "as asked");
            assert!(!again.metadata.authoritative);
            let ttl = again.answers[0].ttl;
            assert!((90..=100).contains(&ttl), "{ttl}");
            if ttl < 100 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(upstream.asked(), 1);
        // Another type, and a client that speaks EDNS, are other questions.
        server.ask(&query("example.com.", RecordType::AAAA)).await;
        server.ask(&with_edns(query("example.com.", RecordType::A), 1232)).await;
        assert_eq!(upstream.asked(), 3);
        let mut mine = Edns::new();
        mine.options_mut().insert(hickory_proto::rr::rdata::opt::EdnsOption::Unknown(10, vec![1; 8]));
        let mut cookie = query("example.com.", RecordType::A);
        cookie.set_edns(mine);
        server.ask(&cookie).await;
        server.ask(&cookie).await;
        assert_eq!(upstream.asked(), 5, "what only one client said is not answered from memory");
    });
}

#[test]
fn absence_is_remembered_as_long_as_its_authority_says() {
    run(async {
        let upstream = Upstream::start(|query, _| {
            let name = query.queries[0].name.to_string();
            let mut answer = Said::answer(query, &[]);
            answer.message.metadata.response_code =
                if name.starts_with('n') { ResponseCode::NXDomain } else { ResponseCode::NoError };
            if !name.starts_with("nosoa") {
                answer.message.add_authority(soa("example.com.", 600, 60));
            }
            vec![answer]
        })
        .await;
        let server = serve(&[upstream.address]);
        for (name, rcode) in
            [("nx.example.com.", ResponseCode::NXDomain), ("empty.example.com.", ResponseCode::NoError)]
        {
            let before = upstream.asked();
            for _ in 0..3 {
                let answer = server.lookup(name).await;
                assert_eq!((answer.metadata.response_code, answer.answers.len()), (rcode, 0), "{name}");
                assert_eq!(answer.authorities.len(), 1);
            }
            assert_eq!(upstream.asked(), before + 1, "{name}");
        }
        let before = upstream.asked();
        for _ in 0..2 {
            server.lookup("nosoa.example.com.").await;
        }
        assert_eq!(upstream.asked(), before + 2, "without SOA nobody says for how long");
    });
}

#[test]
fn what_is_too_long_for_a_datagram_comes_by_tcp() {
    run(async {
        let upstream = Upstream::start(|query, tcp| {
            let records: Vec<_> = (0..100).map(|n| a([192, 0, 2, n], 60)).collect();
            let mut answer = Said::answer(query, if tcp { &records } else { &[] });
            answer.message.metadata.truncation = !tcp;
            vec![answer]
        })
        .await;
        let server = serve(&[upstream.address]);
        let short = server.lookup("big.example.com.").await;
        assert!(short.metadata.truncation && short.answers.is_empty());
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // Two questions at once on one stream.
        let asked = [query("big.example.com.", RecordType::A), query("other.example.com.", RecordType::A)];
        for message in &asked {
            stream.write_all(&framed(&message.to_vec().unwrap())).await.unwrap();
        }
        let mut ids = Vec::new();
        for _ in &asked {
            let length = stream.read_u16().await.unwrap();
            let mut bytes = vec![0; length.into()];
            stream.read_exact(&mut bytes).await.unwrap();
            let answer = Message::from_vec(&bytes).unwrap();
            assert_eq!(answer.answers.len(), 100);
            ids.push(answer.metadata.id);
        }
        ids.sort_unstable();
        let mut expected: Vec<u16> = asked.iter().map(|message| message.metadata.id).collect();
        expected.sort_unstable();
        assert_eq!(ids, expected);
        // What came by TCP is remembered, but still does not fit a datagram.
        let again = server.lookup("big.example.com.").await;
        assert!(again.metadata.truncation && again.answers.is_empty());
        let wide = server.ask(&with_edns(query("big.example.com.", RecordType::A), 4096)).await;
        assert!(wide.metadata.truncation, "another question, which its resolver truncates");
    });
}

#[test]
fn answers_to_other_questions_are_ignored() {
    run(async {
        let upstream = Upstream::start(|query, _| {
            let wrong = || Said::answer(query, &[a([203, 0, 113, 66], 60)]);
            let mut id = wrong();
            id.message.metadata.id = query.metadata.id.wrapping_add(1);
            let mut name = wrong();
            name.message.queries[0].name = Name::from_ascii("evil.example.com.").unwrap();
            let mut kind = wrong();
            kind.message.queries[0].query_type = RecordType::AAAA;
            let mut not_an_answer = wrong();
            not_an_answer.message.metadata.message_type = MessageType::Query;
            vec![id, name, kind, not_an_answer, Said::raw(b"short"), Said::answer(query, &[a([192, 0, 2, 7], 60)])]
        })
        .await;
        let server = serve(&[upstream.address]);
        assert_eq!(addresses(&server.lookup("example.com.").await), [IpAddr::from([192, 0, 2, 7])]);
    });
}

#[test]
fn the_next_resolver_is_asked_when_one_does_not_answer() {
    run(async {
        let fails = Upstream::start(|query, _| {
            let mut answer = Said::answer(query, &[]);
            answer.message.metadata.response_code = ResponseCode::ServFail;
            vec![answer]
        })
        .await;
        let silent = Upstream::start(|_, _| Vec::new()).await;
        let good = Upstream::start(|query, _| vec![Said::answer(query, &[a([192, 0, 2, 7], 60)])]).await;
        let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let server = serve(&[nobody, fails.address, silent.address, good.address]);
        assert_eq!(addresses(&server.lookup("one.example.com.").await).len(), 1);
        assert_eq!((fails.asked(), silent.asked(), good.asked()), (1, 1, 1));
        let began = Instant::now();
        assert_eq!(addresses(&server.lookup("two.example.com.").await).len(), 1);
        assert!(began.elapsed() < Duration::from_secs(1), "the silent one comes last now");
        assert_eq!((fails.asked(), silent.asked(), good.asked()), (2, 1, 2));
    });
}

#[test]
fn what_was_known_is_better_than_nothing() {
    run(async {
        let upstream = Upstream::start(|query, _| vec![Said::answer(query, &[a([192, 0, 2, 7], 1)])]).await;
        let server = serve(&[upstream.address]);
        server.lookup("example.com.").await;
        upstream.fail();
        let stale = loop {
            let answer = server.lookup("example.com.").await;
            if server.counted(super::metrics::Ended::Stale) > 0 {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(addresses(&stale), [IpAddr::from([192, 0, 2, 7])]);
        assert!(stale.answers[0].ttl <= 30);
        let never = server.lookup("never.example.com.").await;
        assert_eq!(never.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(server.counted(super::metrics::Ended::Failed), 1);
    });
}

#[test]
fn what_cannot_be_read_is_told_so_or_dropped() {
    run(async {
        let server = serve(&[]);
        let mut twice = query("a.", RecordType::A);
        twice.add_query(Query::query(Name::from_ascii("b.").unwrap(), RecordType::A));
        assert_eq!(server.ask(&twice).await.metadata.response_code, ResponseCode::FormErr);
        let mut notify = query("a.", RecordType::A);
        notify.metadata.op_code = OpCode::Notify;
        assert_eq!(server.ask(&notify).await.metadata.response_code, ResponseCode::NotImp);
        let transfer = server.ask(&query("orders.", RecordType::AXFR)).await;
        assert_eq!(transfer.metadata.response_code, ResponseCode::Refused);
        // An answer, and less than a header: nothing comes back, and the server goes on.
        let mut answer = query("a.", RecordType::A);
        answer.metadata.message_type = MessageType::Response;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(server.address).await.unwrap();
        socket.send(&answer.to_vec().unwrap()).await.unwrap();
        socket.send(b"short").await.unwrap();
        socket.send(&twice.to_vec().unwrap()).await.unwrap();
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).await.unwrap();
        assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.response_code, ResponseCode::FormErr);
        assert_eq!(server.counted(super::metrics::Ended::Refused), 6);
    });
}

#[test]
fn too_many_at_one_time_are_told_so_and_the_mesh_still_answers() {
    run(async {
        let silent = Upstream::start(|_, _| Vec::new()).await;
        let server = serve(&[silent.address]);
        server.services(&["orders.default"]);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(server.address).await.unwrap();
        let mut buffer = [0; 512];
        let mut sent = 0;
        let refused = loop {
            sent += 1;
            assert!(sent <= 3000, "none of so many was refused");
            socket.send(&query(&format!("n{sent}.example.com."), RecordType::A).to_vec().unwrap()).await.unwrap();
            // Lets the server run.
            let answer = tokio::time::timeout(Duration::from_micros(100), socket.recv(&mut buffer)).await;
            if let Ok(length) = answer {
                break Message::from_vec(&buffer[..length.unwrap()]).unwrap();
            }
        };
        assert_eq!(refused.metadata.response_code, ResponseCode::ServFail);
        assert!(server.counted(super::metrics::Ended::Overload) > 0);
        assert_eq!(addresses(&server.lookup("orders.").await).len(), 1);
    });
}

#[test]
fn a_name_that_is_not_known_waits_for_the_control_plane_not_longer_than_it_must() {
    run(async {
        let upstream = Upstream::start(|query, _| vec![Said::answer(query, &[a([192, 0, 2, 7], 60)])]).await;
        let server = serve(&[upstream.address]);
        // Away: forwarded at once.
        let began = Instant::now();
        assert_eq!(addresses(&server.lookup("one.default.").await), [IpAddr::from(Ipv4Addr::new(192, 0, 2, 7))]);
        assert!(began.elapsed() < Duration::from_millis(500));
        // There, but silent.
        server.shared.demand.set_connected(true);
        let began = Instant::now();
        assert_eq!(addresses(&server.lookup("two.default.").await), [IpAddr::from(Ipv4Addr::new(192, 0, 2, 7))]);
        assert!((900..2000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        // It answers meanwhile: the resolver's answer does not count.
        let (asked, ()) = tokio::join!(server.lookup("three.default."), async {
            while upstream.asked() < 3 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            server.services(&["three.default"]);
            server.shared.demand.settle("dns:three.default", crate::demand::Outcome::Live);
        });
        assert_eq!(addresses(&asked), [IpAddr::from(server.shared.vips.of("three.default").unwrap().v4)]);
    });
}
