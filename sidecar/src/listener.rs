//! Accepts connections, finds out what they are, and hands them to HTTP or TCP. One worker's sockets; [`run`] is the
//! data path's entrance.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use bytes::BytesMut;
use futures_util::future::MaybeDone;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use weft_xds::resource::Protocol;

use crate::{
    detect::{Detected, detect},
    http::serve::serve,
    io::Io,
    metrics::Direction,
    reason::Reason,
    record::Record,
    shared::Sockets,
    socket_options, tcp,
    tls::{self, Session},
    upstream::Wire,
    worker::{Conn, DataPath, Origin, Worker, inbound_port},
};

/// Serves one worker's sockets until both sides have drained, or everything is to end. Needs a runtime of one thread with
/// local tasks.
pub async fn run(path: Arc<DataPath>, sockets: Sockets) {
    let abort = path.shared.drain.abort.clone();
    let worker = Worker::new(path);
    let upstreams = sockets.upstreams.into_iter().map(|(socket, authority)| {
        let entrance = Entrance::Fixed(authority);
        accept(&worker, socket, entrance)
    });
    let serving = async {
        tokio::join!(
            accept(&worker, sockets.inbound, Entrance::Inbound),
            accept(&worker, sockets.outbound, Entrance::Outbound),
            futures_util::future::join_all(upstreams),
        )
    };
    tokio::select! {
        () = abort.cancelled() => {}
        _ = serving => {}
        () = sweep(&worker) => {}
    }
}

async fn sweep(worker: &Worker) {
    const EVERY: Duration = Duration::from_secs(1);
    loop {
        tokio::time::sleep(EVERY).await;
        worker.sweep(Clock::now());
    }
}

/// Which socket.
#[derive(Debug, Clone)]
enum Entrance {
    Inbound,
    Outbound,
    Fixed(Box<str>),
}

impl Entrance {
    fn direction(&self) -> Direction {
        match self {
            Self::Inbound => Direction::Inbound,
            Self::Outbound | Self::Fixed(_) => Direction::Outbound,
        }
    }
}

async fn accept(worker: &Rc<Worker>, socket: std::net::TcpListener, entrance: Entrance) {
    let socket = match socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket)) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(%error, ?entrance, "a bound socket cannot be used"),
    };
    let side = worker.path.side(entrance.direction());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(ended) = connections.join_next() => count(worker, ended),
            () = side.draining() => break,
            accepted = socket.accept() => match accepted {
                Ok((tcp, peer)) => {
                    let (worker, entrance) = (Rc::clone(worker), entrance.clone());
                    connections.spawn_local(async move { connection(&worker, tcp, peer, entrance).await });
                }
                Err(error) => pause(&error).await,
            },
        }
    }
    drop(socket);
    while let Some(ended) = connections.join_next().await {
        count(worker, ended);
    }
}

fn count(worker: &Worker, ended: Result<(), tokio::task::JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        worker.path.metrics.task_panicked();
        tracing::error!("a connection's task panicked; the connection is lost");
    }
}

/// Out of descriptors or memory: those that end make room.
async fn pause(error: &io::Error) {
    const TIME: Duration = Duration::from_millis(20);
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tracing::warn!(%error, "no connection can be accepted");
        tokio::time::sleep(TIME).await;
    }
}

async fn connection(worker: &Rc<Worker>, tcp: TcpStream, peer: SocketAddr, entrance: Entrance) {
    let direction = entrance.direction();
    let drain = &worker.path.shared.drain;
    let open = drain.inbound.open() + drain.outbound.open();
    let _counted = worker.path.side(direction).enter();
    let mut connection = worker.downstream(direction).open();
    // A few more than the bound are let in to be told so; beyond those there is no room even for that.
    const TOLD: usize = 16;
    let refuse = (open >= worker.path.bounds.connections).then_some(Reason::Overloaded);
    if refuse.is_some() {
        connection.closing(Reason::Overloaded.code());
        if open >= worker.path.bounds.connections + TOLD {
            return;
        }
    }
    socket_options::prepare(&tcp, peer);
    let head_by = Instant::now() + worker.path.bounds.head;
    match entrance {
        Entrance::Inbound => inbound(worker, tcp, peer, refuse, head_by).await,
        Entrance::Outbound => {
            let conn = Conn::outbound(worker, Origin::Outbound, peer, 0);
            conn.refuse.set(refuse);
            http(&conn, tcp.into(), head_by).await;
        }
        Entrance::Fixed(authority) => {
            let conn = Conn::outbound(worker, Origin::Fixed(authority), peer, 0);
            conn.refuse.set(refuse);
            serve_fixed(&conn, tcp.into()).await;
        }
    }
}

/// HTTP of the version that its first bytes tell.
async fn http(conn: &Rc<Conn>, io: Io, head_by: Instant) {
    let sniffed = sniff(io, head_by).await;
    http_or_refuse(conn, sniffed, head_by).await;
}

async fn http_or_refuse(conn: &Rc<Conn>, sniffed: Sniffed, head_by: Instant) {
    let reason = match sniffed.found {
        Detected::Http1 => return serve(conn, sniffed.io, Wire::Http1, head_by).await,
        Detected::Http2 => return serve(conn, sniffed.io, Wire::Http2, head_by).await,
        // Nothing or half a request line came; closing is all that is due.
        Detected::More if sniffed.closed => return,
        Detected::More => Reason::HeaderTimeout,
        // An odd method or version is refused in HTTP.
        Detected::Opaque => return serve(conn, sniffed.io, Wire::Http1, head_by).await,
        Detected::Tls => Reason::ClientProtocolError,
    };
    let record = Record::tcp(conn);
    record.fail(reason, Some("not HTTP"));
    record.finish();
}

/// For one service: what flows is the service's protocol.
pub async fn serve_fixed(conn: &Rc<Conn>, io: Io) {
    let Origin::Fixed(authority) = &conn.origin else { return };
    let head_by = Instant::now() + conn.worker.path.bounds.head;
    let protocol = match tcp::service_cluster(conn, authority).await {
        Ok(upstream) => upstream.cluster().protocol,
        Err(failed) => {
            // A caller that speaks HTTP is told in HTTP.
            let sniffed = sniff(io, head_by).await;
            if matches!(sniffed.found, Detected::Http1 | Detected::Http2) {
                return http_or_refuse(conn, sniffed, head_by).await;
            }
            let record = Record::tcp(conn);
            record.fail(failed.reason, failed.detail.as_deref());
            return record.finish();
        }
    };
    match protocol {
        Protocol::Tcp => tcp::outbound(conn, authority, io).await,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => http(conn, io, head_by).await,
        Protocol::Detect => {
            let record = Record::tcp(conn);
            let dialing = tcp::dial_service(conn, authority, &record);
            let (sniffed, dialed) = first_bytes(conn, io, authority_port(authority), dialing).await;
            if matches!(sniffed.found, Detected::Http1 | Detected::Http2) {
                record.forget();
                drop(dialed);
                return http_or_refuse(conn, sniffed, head_by).await;
            }
            match dialed.await {
                Ok(dialed) => dialed.carry(conn, sniffed.io, &record).await,
                Err(failed) => record.fail(failed.reason, failed.detail.as_deref()),
            }
            record.finish();
        }
    }
}

fn authority_port(authority: &str) -> u16 {
    authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(80)
}

/// Waits for the caller's first bytes while the other side is being dialed. Who speaks first decides; a caller that is
/// silent waits for the server to speak.
async fn first_bytes<T, D: Future<Output = T>>(
    conn: &Conn,
    io: Io,
    port: u16,
    dialing: D,
) -> (Sniffed, impl Future<Output = T>) {
    let began = Clock::now();
    let mut dialing = Box::pin(futures_util::future::maybe_done(dialing));
    let sniffing = sniff(io, Instant::now() + conn.worker.path.bounds.detection);
    let mut sniffing = Box::pin(sniffing);
    let sniffed = loop {
        tokio::select! {
            biased;
            sniffed = &mut sniffing => break sniffed,
            () = &mut dialing, if matches!(*dialing, MaybeDone::Future(_)) => {}
        }
    };
    drop(sniffing);
    conn.worker.path.metrics.detected(port, began.elapsed(), sniffed.silent);
    let dialed = async move {
        dialing.as_mut().await;
        dialing.as_mut().take_output().expect("what was awaited is done")
    };
    (sniffed, dialed)
}

/// From the mesh: mutual TLS, or plain text where the mesh permits it.
async fn inbound(worker: &Rc<Worker>, tcp: TcpStream, peer: SocketAddr, refuse: Option<Reason>, head_by: Instant) {
    let path = &worker.path;
    let mut first = [0; 1];
    match timeout_at(head_by, tcp.peek(&mut first)).await {
        Ok(Ok(1)) => {}
        // Probes connect and close.
        Ok(Ok(_) | Err(_)) | Err(_) => return,
    }
    const HANDSHAKE: u8 = 0x16;
    if first[0] != HANDSHAKE {
        let permissive = path.shared.snapshot.load().inbound.as_ref().is_some_and(|inbound| inbound.permissive);
        path.metrics.handshake(Direction::Inbound, "plaintext", if permissive { "permissive" } else { "refused" }, "");
        let conn = Conn::inbound(worker, "", peer, None, "");
        conn.refuse.set(if permissive { refuse } else { refuse.or(Some(Reason::PlaintextRefused)) });
        return plain_inbound(&conn, tcp.into(), head_by).await;
    }
    let Some(material) = path.shared.tls.load_full() else {
        return tracing::debug!(%peer, "a connection before there is a certificate");
    };
    let (io, session) = match tls::accept(&material, tcp, head_by).await {
        Ok(accepted) => accepted,
        Err(error) => {
            let reason = error.of_client();
            path.metrics.handshake(Direction::Inbound, "failed", reason.code(), "");
            tracing::debug!(%peer, %error, "handshake refused");
            let record = Record::tcp(&Conn::inbound(worker, "", peer, None, ""));
            record.fail(reason, Some(&error.to_string()));
            return record.finish();
        }
    };
    path.metrics.handshake(Direction::Inbound, session.label(), "", session.group);
    let Session { peer: id, sni, h2, group, .. } = session;
    let conn = Conn::inbound(worker, &sni, peer, Some(id), group);
    conn.refuse.set(refuse);
    let protocol = inbound_port(&path.shared.snapshot.load(), &sni).map(|port| port.protocol);
    match (protocol, h2) {
        (Some(Protocol::Tcp), _) => tcp::inbound(&conn, &sni, io).await,
        // The preface is waited for under the same deadline.
        (_, Some(true)) => http(&conn, io, head_by).await,
        (_, Some(false)) => serve(&conn, io, Wire::Http1, head_by).await,
        (Some(Protocol::Detect), None) => detect_inbound(&conn, &sni, io, head_by).await,
        (_, None) => http(&conn, io, head_by).await,
    }
}

async fn plain_inbound(conn: &Rc<Conn>, io: Io, head_by: Instant) {
    let protocol = inbound_port(&conn.worker.path.shared.snapshot.load(), "").map(|port| port.protocol);
    match (protocol, conn.refuse.get()) {
        (Some(Protocol::Tcp), None) => tcp::inbound(conn, "", io).await,
        (Some(Protocol::Detect), None) => detect_inbound(conn, "", io, head_by).await,
        // What is refused is told so if it speaks HTTP.
        (_, Some(reason)) => {
            let sniffed = sniff(io, head_by).await;
            if matches!(sniffed.found, Detected::Http1 | Detected::Http2) {
                return http_or_refuse(conn, sniffed, head_by).await;
            }
            let record = Record::tcp(conn);
            record.fail(reason, None);
            record.finish();
        }
        (_, None) => http(conn, io, head_by).await,
    }
}

async fn detect_inbound(conn: &Rc<Conn>, sni: &str, io: Io, head_by: Instant) {
    let record = Record::tcp(conn);
    record.goes(&conn.worker.path.service, None);
    let port = inbound_port(&conn.worker.path.shared.snapshot.load(), sni).map_or(0, |port| port.port);
    let (sniffed, app) = first_bytes(conn, io, port, tcp::dial_app(conn, sni, &record)).await;
    if matches!(sniffed.found, Detected::Http1 | Detected::Http2) {
        record.forget();
        drop(app);
        return http_or_refuse(conn, sniffed, head_by).await;
    }
    if sniffed.closed && sniffed.empty {
        // The caller's sidecar dialed ahead and then found HTTP, which goes another way: nothing was asked here.
        record.forget();
        return;
    }
    tcp::carry_to_app(conn, app.await, sniffed.io, &record).await;
    record.finish();
}

/// A stream and what its first bytes say.
struct Sniffed {
    io: Io,
    found: Detected,
    /// The caller has ended the stream already.
    closed: bool,
    /// Not one byte came.
    empty: bool,
    /// Nor will it for now: the time is over.
    silent: bool,
}

/// Reads until the first bytes tell what they are, or the time is over. What was read is put back.
async fn sniff(mut io: Io, by: Instant) -> Sniffed {
    /// More than detection ever needs.
    const MOST: usize = 4096;
    let mut read = BytesMut::with_capacity(1024);
    let (mut found, mut closed) = (Detected::More, false);
    while found == Detected::More && read.len() < MOST && !closed {
        match timeout_at(by, io.read_buf(&mut read)).await {
            Err(_elapsed) => break,
            Ok(Ok(more)) if more > 0 => found = detect(&read),
            Ok(Ok(_) | Err(_)) => closed = true,
        }
    }
    let empty = read.is_empty();
    let silent = empty && !closed;
    Sniffed { io: io.rewound(read.freeze()), found, closed, empty, silent }
}
