//! A resolver for tests: says what it is told to, and counts.

use std::{cell::Cell, net::SocketAddr, rc::Rc};

use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        Name, RData, Record,
        rdata::{A, SOA},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::spawn_local,
};

use crate::dns::forward::framed;

/// One thing that it says.
pub struct Said {
    /// The message.
    pub message: Message,
    raw: Option<Vec<u8>>,
}

impl Said {
    /// An answer to a query with these records, all of the query's name.
    pub fn answer(query: &Message, records: &[(RData, u32)]) -> Self {
        let mut message = Message::response(query.metadata.id, OpCode::Query);
        message.metadata.recursion_desired = query.metadata.recursion_desired;
        message.metadata.authoritative = true;
        message.add_queries(query.queries.clone());
        let name = &query.queries[0].name;
        message.add_answers(records.iter().map(|(data, ttl)| Record::from_rdata(name.clone(), *ttl, data.clone())));
        if let Some(edns) = &query.edns {
            message.set_edns(edns.clone());
        }
        Self { message, raw: None }
    }

    /// These bytes.
    pub fn raw(bytes: &[u8]) -> Self {
        Self { message: Message::query(), raw: Some(bytes.to_vec()) }
    }

    fn bytes(&self) -> Vec<u8> {
        self.raw.clone().unwrap_or_else(|| self.message.to_vec().unwrap())
    }
}

/// An address and its TTL.
pub fn a(address: [u8; 4], ttl: u32) -> (RData, u32) {
    (RData::A(A(address.into())), ttl)
}

/// What says for how long an absence may be remembered.
pub fn soa(zone: &str, ttl: u32, minimum: u32) -> Record {
    let name = Name::from_ascii(zone).unwrap();
    Record::from_rdata(name.clone(), ttl, RData::SOA(SOA::new(name.clone(), name, 1, 1, 1, 1, minimum)))
}

/// A running resolver.
pub struct Upstream {
    pub address: SocketAddr,
    asked: Rc<Cell<usize>>,
    failing: Rc<Cell<bool>>,
}

impl Upstream {
    /// `say`: from a query, and whether it came by TCP, to all that is said.
    pub async fn start(say: impl Fn(&Message, bool) -> Vec<Said> + 'static) -> Self {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).await.unwrap();
        let (asked, failing) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let say = {
            let (asked, failing) = (asked.clone(), failing.clone());
            Rc::new(move |bytes: &[u8], tcp| {
                let query = Message::from_vec(bytes).unwrap();
                asked.set(asked.get() + 1);
                if failing.get() {
                    let mut answer = Said::answer(&query, &[]);
                    answer.message.metadata.response_code = ResponseCode::ServFail;
                    return vec![answer];
                }
                say(&query, tcp)
            })
        };
        let by_tcp = say.clone();
        spawn_local(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
                for said in say(&buffer[..length], false) {
                    udp.send_to(&said.bytes(), peer).await.unwrap();
                }
            }
        });
        spawn_local(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let length = stream.read_u16().await.unwrap();
                let mut bytes = vec![0; length.into()];
                stream.read_exact(&mut bytes).await.unwrap();
                for said in by_tcp(&bytes, true) {
                    stream.write_all(&framed(&said.bytes())).await.unwrap();
                }
            }
        });
        Self { address, asked, failing }
    }

    /// Queries so far.
    pub fn asked(&self) -> usize {
        self.asked.get()
    }

    /// Fails from now on.
    pub fn fail(&self) {
        self.failing.set(true);
    }
}
