//! Accepts connections, finds out what they are, and hands them to HTTP or TCP. One worker's sockets; [`run`] is the
//! data path's entrance.
//!
//! Transparent mode looks at one thing more: where a connection was meant to go before rules redirected it
//! ([`original`]). [`outbound`] and [`inbound`] say what follows from that.

mod first;
mod inbound;
mod original;
mod outbound;
mod probe;

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

pub use self::{original::Passing, outbound::serve_fixed, probe::is_probe};
use crate::{
    capture::Family,
    metrics::Direction,
    reason::Reason,
    shared::Sockets,
    socket_options,
    worker::{Conn, DataPath, Origin, Worker},
};

/// Serves one worker's sockets until both sides have drained, or everything is to end. Needs a runtime of one thread with
/// local tasks.
pub async fn run(path: Arc<DataPath>, sockets: Sockets) {
    let abort = path.shared.drain.abort.clone();
    let worker = Worker::new(path);
    let inbound = sockets.inbound.into_iter().map(|socket| (socket, Entrance::Inbound));
    let outbound = sockets.outbound.into_iter().map(|socket| (socket, Entrance::Outbound));
    let upstreams = sockets.upstreams.into_iter().map(|(socket, authority)| (socket, Entrance::Fixed(authority)));
    let all = inbound.chain(outbound).chain(upstreams).map(|(socket, entrance)| accept(&worker, socket, entrance));
    let serving = futures_util::future::join_all(all);
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
    let shared = &worker.path.shared;
    let meant = match &entrance {
        // Without rules nothing is redirected, and the kernel is not asked.
        Entrance::Inbound | Entrance::Outbound if shared.settings.transparent.on => original::destination(&tcp),
        Entrance::Inbound | Entrance::Outbound | Entrance::Fixed(_) => None,
    };
    if let (Entrance::Outbound, Some(family)) = (&entrance, meant.and_then(Family::probed)) {
        // Nobody's traffic: it is counted nowhere, and there is nothing to say on it.
        shared.capture.arrived(family);
        return original::reset(&tcp);
    }
    let direction = entrance.direction();
    let drain = &shared.drain;
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
    match (entrance, meant) {
        (Entrance::Inbound, None) => inbound::serve(worker, tcp, peer, refuse, head_by).await,
        (Entrance::Inbound, Some(meant)) => {
            Box::pin(inbound::redirected(worker, tcp, peer, meant.port(), refuse, head_by)).await;
        }
        (Entrance::Outbound, Some(meant)) if !outbound::is_itself(&tcp, meant, peer) => {
            Box::pin(outbound::redirected(worker, tcp, peer, meant, refuse)).await;
        }
        (Entrance::Outbound, _) => {
            let conn = Conn::outbound(worker, Origin::Outbound, peer, 0);
            conn.refuse.set(refuse);
            first::http(&conn, tcp.into(), head_by).await;
        }
        (Entrance::Fixed(authority), _) => {
            let conn = Conn::outbound(worker, Origin::Fixed(authority), peer, 0);
            conn.refuse.set(refuse);
            serve_fixed(&conn, tcp.into()).await;
        }
    }
}
