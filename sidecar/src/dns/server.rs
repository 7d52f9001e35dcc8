//! The sockets on which applications ask: datagrams and streams, on loopback alone.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, mpsc},
    task::spawn_local,
    time::timeout,
};

use super::{
    answer::{Answers, Later, Now},
    forward::{Over, framed},
};

/// Queries that wait for others at one time; one more is told that the server failed.
const AT_ONCE: usize = 1024;
/// Streams at one time; one more is closed.
const STREAMS: usize = 64;
/// Queries of one stream that wait at one time; the next is read when one is done.
const PIPELINED: usize = 16;
/// A stream that says nothing for so long is closed, and so is one that does not take its answers.
const IDLE: Duration = Duration::from_secs(10);
/// After an error of a socket that is not the peer's.
const PAUSE: Duration = Duration::from_millis(100);

/// Bound sockets.
#[derive(Debug)]
pub struct Listening {
    /// As bound.
    pub address: SocketAddr,
    /// Each address's two sockets.
    pub(super) sockets: Vec<(std::net::UdpSocket, std::net::TcpListener)>,
}

impl Listening {
    /// Binds `asked`, which the settings have found to be a loopback address; with `both` the loopback address of the other family as well, if the host has it.
    /// # Errors
    /// Of the system.
    pub fn bind(asked: SocketAddr, both: bool) -> io::Result<Self> {
        let first = pair(asked)?;
        let address = first.0.local_addr()?;
        let mut sockets = vec![first];
        if both {
            let other: IpAddr =
                if asked.is_ipv4() { Ipv6Addr::LOCALHOST.into() } else { std::net::Ipv4Addr::LOCALHOST.into() };
            match pair(SocketAddr::new(other, address.port())) {
                Ok(pair) => sockets.push(pair),
                // A host without IPv6 redirects none.
                Err(error) => tracing::debug!(%other, %error, "no DNS there"),
            }
        }
        Ok(Self { address, sockets })
    }

    /// Whether applications may ask over IPv6.
    pub fn ipv6(&self) -> bool {
        self.sockets.iter().any(|(udp, _)| udp.local_addr().is_ok_and(|address| address.is_ipv6()))
    }

    /// Serves for ever.
    pub async fn serve(self, answers: Rc<Answers>) -> io::Result<()> {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let streams = Arc::new(Semaphore::new(STREAMS));
        for (udp, tcp) in self.sockets {
            let (udp, tcp) = (Rc::new(UdpSocket::from_std(udp)?), TcpListener::from_std(tcp)?);
            spawn_local(datagrams(udp, answers.clone(), places.clone()));
            spawn_local(connections(tcp, answers.clone(), places.clone(), streams.clone()));
        }
        std::future::pending().await
    }
}

/// One port for both: with port 0, the second socket may find it taken.
fn pair(asked: SocketAddr) -> io::Result<(std::net::UdpSocket, std::net::TcpListener)> {
    let mut tries = if asked.port() == 0 { 16 } else { 1 };
    loop {
        tries -= 1;
        let udp = std::net::UdpSocket::bind(asked)?;
        match std::net::TcpListener::bind(udp.local_addr()?) {
            Ok(tcp) => {
                udp.set_nonblocking(true)?;
                tcp.set_nonblocking(true)?;
                return Ok((udp, tcp));
            }
            Err(error) if tries == 0 => return Err(error),
            Err(_taken) => {}
        }
    }
}

async fn datagrams(socket: Rc<UdpSocket>, answers: Rc<Answers>, places: Arc<Semaphore>) {
    // A query that is longer is none.
    let mut buffer = [0; 4096];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "DNS over UDP");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        match at_once(&answers, &buffer[..length], Over::Udp) {
            Now::Answer(answer) => send(&socket, &answer, peer).await,
            Now::Nothing => {}
            Now::Later(later) => {
                let Ok(place) = places.clone().try_acquire_owned() else {
                    send(&socket, &answers.overloaded(&later), peer).await;
                    continue;
                };
                let (socket, answers) = (socket.clone(), answers.clone());
                spawn_local(async move {
                    let answer = finish(&answers, later).await;
                    send(&socket, &answer, peer).await;
                    drop(place);
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.send_to(answer, peer).await {
        // The client asks again.
        tracing::debug!(%peer, %error, "a DNS answer was not sent");
    }
}

async fn connections(listener: TcpListener, answers: Rc<Answers>, places: Arc<Semaphore>, streams: Arc<Semaphore>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Ok(place) = streams.clone().try_acquire_owned() else {
                    tracing::debug!(%peer, "too many DNS connections");
                    continue;
                };
                let (answers, places) = (answers.clone(), places.clone());
                spawn_local(async move {
                    if let Err(error) = connection(stream, &answers, &places).await {
                        tracing::debug!(%peer, %error, "DNS over TCP");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "DNS over TCP");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, answers: &Rc<Answers>, places: &Arc<Semaphore>) -> io::Result<()> {
    let late = |_late| io::Error::from(io::ErrorKind::TimedOut);
    let (mut reader, mut writer) = stream.into_split();
    let (done, mut ready) = mpsc::channel::<Vec<u8>>(PIPELINED);
    let writing = spawn_local(async move {
        while let Some(answer) = ready.recv().await {
            timeout(IDLE, writer.write_all(&framed(&answer))).await.map_err(late)??;
        }
        Ok::<_, io::Error>(())
    });
    let pipelined = Arc::new(Semaphore::new(PIPELINED));
    loop {
        let own = pipelined.clone().acquire_owned().await.map_err(io::Error::other)?;
        let length = match timeout(IDLE, reader.read_u16()).await {
            Ok(Ok(length)) => usize::from(length),
            // The client is done; what it asked for is still answered.
            Ok(Err(_)) | Err(_) => break,
        };
        let mut message = vec![0; length];
        timeout(IDLE, reader.read_exact(&mut message)).await.map_err(late)??;
        match at_once(answers, &message, Over::Tcp) {
            Now::Nothing => break,
            Now::Answer(answer) => {
                if done.send(answer).await.is_err() {
                    break;
                }
            }
            Now::Later(later) => {
                let (done, answers, place) = (done.clone(), answers.clone(), places.clone().try_acquire_owned());
                spawn_local(async move {
                    let answer = match &place {
                        Ok(_place) => finish(&answers, later).await,
                        Err(_full) => answers.overloaded(&later),
                    };
                    // The connection may have ended meanwhile.
                    drop(done.send(answer).await);
                    drop((place, own));
                });
            }
        }
    }
    drop(done);
    writing.await.map_err(io::Error::other)?
}

/// A query whose handling panics is not answered; all others are.
fn at_once(answers: &Answers, message: &[u8], over: Over) -> Now {
    catch_unwind(AssertUnwindSafe(|| answers.now(message, over, Instant::now()))).unwrap_or_else(|_panic| {
        answers.metrics().panics.inc();
        tracing::error!("a DNS query panicked");
        Now::Nothing
    })
}

async fn finish(answers: &Answers, later: Later) -> Vec<u8> {
    let _counted = Panicking(&answers.metrics().panics);
    answers.later(later).await
}

/// Counts what unwinds through it; its task ends, and no other.
struct Panicking<'a>(&'a prometheus::IntCounter);

impl Drop for Panicking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.inc();
        }
    }
}
