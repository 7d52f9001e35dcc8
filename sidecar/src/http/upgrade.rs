//! What becomes of an HTTP/1 connection that is no longer HTTP/1: WebSocket and its like, and CONNECT.
//!
//! Nothing is tunnelled before the backend has agreed: the caller's stream is handed over only after the 101 (or our 200).

use std::{net::SocketAddr, rc::Rc, time::Instant};

use weft_xds::resource::Egress;

use super::{
    answer::{Failed, Served},
    classify::{Call, Whither},
    reply::Reply,
    request::unknown,
};
use crate::{
    balance::Outcome,
    demand::DemandError,
    io::Io,
    listener,
    reason::Reason,
    record::{Entry, Record},
    route::{Authority, Host},
    shared::Alpn,
    tcp,
    upstream::{self, Destination},
    worker::{Conn, Origin},
};

/// What a connection turns into after its last answer.
#[derive(Debug)]
pub enum Tunnel {
    /// The backend has switched protocols.
    Switched {
        /// The backend's side.
        upstream: Box<Io>,
        /// Written when the tunnel ends.
        record: Record,
        /// Held until then.
        served: Served,
    },
    /// CONNECT to a service: whatever comes is treated like a connection to that service.
    Mesh {
        /// Canonical authority.
        authority: Box<str>,
    },
    /// CONNECT to the outside world.
    Outside {
        /// The other side.
        upstream: Box<Io>,
    },
}

impl Tunnel {
    /// Carries bytes between the caller's side and the other until both have ended.
    pub async fn run(self, conn: &Rc<Conn>, downstream: Io) {
        match self {
            Self::Switched { upstream, record, mut served } => {
                let ended = tcp::relay(conn, downstream, *upstream, &record, tcp::Idle::Never).await;
                served.finish(Outcome::Success, Instant::now());
                tcp::note(&record, ended);
                record.finish();
            }
            Self::Mesh { authority } => {
                let inner = Conn::outbound(&conn.worker, Origin::Fixed(authority), conn.peer, conn.depth + 1);
                Box::pin(listener::serve_fixed(&inner, downstream)).await;
            }
            Self::Outside { upstream } => {
                let record = Record::tcp(conn);
                record.goes("external", None);
                let ended = tcp::relay(conn, downstream, *upstream, &record, tcp::Idle::Tcp).await;
                tcp::note(&record, ended);
                record.finish();
            }
        }
    }
}

/// Finds the address of a host outside the mesh that may be called.
/// # Errors
/// `external_refused` for loopback and this process itself, and where the mesh lets nothing out, `external_connect_failed` when there is none.
pub async fn outside(conn: &Conn, authority: &Authority<'_>, record: &Entry) -> Result<SocketAddr, Failed> {
    record.goes("external", None);
    if conn.worker.path.shared.snapshot.load().egress == Egress::Registered {
        let detail = format!("the mesh lets nothing out that is not registered: {authority}");
        return Err(Failed::told(Reason::ExternalRefused, detail));
    }
    let port = authority.port().unwrap_or(80);
    let found: Vec<SocketAddr> = match authority.kind() {
        Host::Ip(ip) => vec![SocketAddr::new(ip, port)],
        Host::Name => match tokio::net::lookup_host((authority.host(), port)).await {
            Ok(found) => found.collect(),
            Err(error) => return Err(Failed::told(Reason::ExternalConnectFailed, error.to_string())),
        },
    };
    let allowed = found.iter().find(|address| !conn.worker.path.forbidden(**address));
    match (allowed, found.is_empty()) {
        (Some(address), _) => Ok(*address),
        (None, false) => Err(Reason::ExternalRefused.into()),
        (None, true) => Err(Failed::told(Reason::ExternalConnectFailed, "the name has no address")),
    }
}

/// CONNECT: to a service it is ended here, and what flows inside is a connection like any other; to the outside world
/// it is a tunnel.
pub(super) async fn connect(conn: &Rc<Conn>, call: Call, record: &Record) -> Result<Reply, Failed> {
    if conn.depth > 0 {
        return Err(Reason::LoopDetected.into());
    }
    if let Whither::Mesh { key, certainly } = &call.named.whither {
        let shared = &conn.worker.path.shared;
        match shared.demand.ensure(shared, key).await {
            Ok(_ready) => {
                record.goes(&conn.worker.path.service, None);
                return Ok(Reply::Connected(Tunnel::Mesh { authority: key.clone() }));
            }
            Err(DemandError::NotFound) if !certainly => {}
            Err(error) => return Err(unknown(error, key)),
        }
    }
    let address = outside(conn, &call.named.authority, record).await?;
    let stream = upstream::connect(&conn.worker, &Destination::External(address), Alpn::None)
        .await
        .map_err(|failure| Failed::with(failure.reason, failure.detail))?;
    Ok(Reply::Connected(Tunnel::Outside { upstream: Box::new(stream.io) }))
}
