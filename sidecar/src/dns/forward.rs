//! Asks the host's resolvers. The message goes as it came, but for its number.
//!
//! Each question has a socket of its own, so an unpredictable port, connected to one resolver; an answer counts when its
//! number and its question are those of the query. Resolvers are asked in order; one that did not answer comes last for
//! a while.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UdpSocket},
    time::{Instant, timeout},
};

use super::wire::{self, Query, Shape, code};
use crate::mark;

/// How long one resolver has for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a question may take in all: clients give up after five seconds.
const IN_ALL: Duration = Duration::from_millis(4500);
/// One that did not answer comes last for this long.
const AVOIDED: Duration = Duration::from_secs(10);
/// The most bytes of an answer by UDP that are taken.
const MOST_UDP: usize = 16 * 1024;

/// How a client asks, and so how its resolver is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Datagrams.
    Udp,
    /// A stream.
    Tcp,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answered {
    /// As it came, with the number of the client's query.
    pub bytes: Vec<u8>,
    /// What is known of it.
    pub shape: Shape,
}

/// The resolvers; none yet.
#[derive(Debug, Default)]
pub struct Forward {
    servers: RefCell<Rc<[Server]>>,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    avoided_until: Cell<Option<Instant>>,
}

impl Forward {
    /// Asks these from now on.
    pub fn set(&self, servers: &[SocketAddr]) {
        let server = |address: &SocketAddr| Server { address: *address, avoided_until: Cell::new(None) };
        self.servers.replace(servers.iter().map(server).collect());
    }

    /// Asks, in order, until one answers. An answer that only says that it failed is given when there is no better one.
    pub async fn ask(&self, message: &[u8], query: &Query, over: Over) -> Option<Answered> {
        let servers = self.servers.borrow().clone();
        let end = Instant::now() + IN_ALL;
        let mut failure = None;
        for server in order(&servers) {
            let left = end.saturating_duration_since(Instant::now()).min(PATIENCE);
            let asked = match over {
                Over::Udp => timeout(left, self.by_udp(server.address, message, query)).await,
                Over::Tcp => timeout(left, self.by_tcp(server.address, message, query)).await,
            };
            let outcome = asked.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into()));
            match outcome {
                Ok(answered) => {
                    server.avoided_until.set(None);
                    if !matches!(answered.shape.rcode, code::SERVER_FAILURE | code::NOT_IMPLEMENTED | code::REFUSED) {
                        return Some(answered);
                    }
                    failure.get_or_insert(answered);
                }
                Err(error) => {
                    tracing::debug!(resolver = %server.address, %error, "no answer");
                    server.avoided_until.set(Some(Instant::now() + AVOIDED));
                }
            }
        }
        failure
    }

    async fn by_udp(&self, server: SocketAddr, message: &[u8], query: &Query) -> io::Result<Answered> {
        let socket = Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
        prepare(&socket)?;
        let any: SocketAddr =
            if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        socket.bind(&any.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        socket.connect(server).await?;
        let (message, id) = renumbered(message)?;
        socket.send(&message).await?;
        let payload = query.edns.map_or(0, |edns| usize::from(edns.payload));
        let mut buffer = vec![0; payload.clamp(wire::PLAIN_UDP, MOST_UDP)];
        loop {
            let length = socket.recv(&mut buffer).await?;
            // Anything else was sent by someone who guesses, or is late: the right one may still come.
            if let Some(shape) = wire::shape(&buffer[..length], id, &query.question) {
                buffer.truncate(length);
                wire::set_id(&mut buffer, query.id);
                return Ok(Answered { bytes: buffer, shape });
            }
        }
    }

    async fn by_tcp(&self, server: SocketAddr, message: &[u8], query: &Query) -> io::Result<Answered> {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
        prepare(&socket)?;
        let mut stream: TcpStream = TcpSocket::from_std_stream(socket.into()).connect(server).await?;
        let (message, id) = renumbered(message)?;
        stream.write_all(&framed(&message)).await?;
        let length = stream.read_u16().await?;
        let mut bytes = vec![0; length.into()];
        stream.read_exact(&mut bytes).await?;
        let unfit = || io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question");
        let shape = wire::shape(&bytes, id, &query.question).ok_or_else(unfit)?;
        wire::set_id(&mut bytes, query.id);
        Ok(Answered { bytes, shape })
    }
}

fn prepare(socket: &Socket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    mark::prepare(socket)
}

/// Those that answered last time first.
fn order(servers: &[Server]) -> impl Iterator<Item = &Server> {
    let now = Instant::now();
    let avoided = move |server: &&Server| server.avoided_until.get().is_some_and(|until| now < until);
    let (last, first): (Vec<_>, Vec<_>) = servers.iter().partition(avoided);
    first.into_iter().chain(last)
}

/// The message with a number that nobody can guess.
fn renumbered(message: &[u8]) -> io::Result<(Vec<u8>, u16)> {
    let mut id = [0; 2];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut id)
        .map_err(|_failed| io::Error::other("the system has no random numbers"))?;
    let id = u16::from_be_bytes(id);
    let mut message = message.to_vec();
    wire::set_id(&mut message, id);
    Ok((message, id))
}

/// A message as it goes over TCP: its length first.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(2 + message.len());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&message[..length.into()]);
    out
}
