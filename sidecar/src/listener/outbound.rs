//! From the application: to a service that is known before a byte was read, or out of the mesh.

use std::{net::SocketAddr, rc::Rc, time::Instant as Clock};

use tokio::{net::TcpStream, time::Instant};
use weft_xds::resource::{Egress, Protocol};

use super::{
    first::{first_bytes, http, http_or_refuse, refuse, sniff},
    original::{canonical, dial, reset},
};
use crate::{
    io::Io,
    metrics::AttemptKind,
    reason::Reason,
    record::{Record, Try},
    socket_options, tcp, vip,
    worker::{Conn, Origin, Worker},
};

/// What a redirected connection means.
#[derive(Debug, PartialEq, Eq)]
enum Meant {
    /// A service, or one endpoint of it: the canonical authority, or the address.
    Service(Box<str>),
    /// A virtual address that was given to nobody.
    Nobody,
    /// A host outside the mesh.
    Outside,
}

/// Whether the application meant the sidecar's own outbound port, under an address of this machine's that is not loopback:
/// the source of such a connection is that address, too.
pub(super) fn is_itself(tcp: &TcpStream, meant: SocketAddr, peer: SocketAddr) -> bool {
    meant.ip() == peer.ip().to_canonical() && tcp.local_addr().is_ok_and(|own| own.port() == meant.port())
}

/// A connection that rules have redirected. Where the application meant it to go decides, whatever is said on it.
pub(super) async fn redirected(
    worker: &Rc<Worker>,
    tcp: TcpStream,
    peer: SocketAddr,
    to: SocketAddr,
    overloaded: Option<Reason>,
) {
    let path = &worker.path;
    let by = Instant::now() + path.bounds.detection;
    if path.passing.is_own(peer) {
        let conn = Conn::outbound(worker, Origin::Outbound, peer, 0);
        tracing::error!(%to, "a connection of the sidecar's own was redirected to itself: the rules must let pass what has \
                              its mark, or is of its user");
        return refuse(&conn, tcp.into(), Reason::LoopDetected, Some("redirected to itself"), by).await;
    }
    let to = canonical(to);
    match meant(worker, to).await {
        Meant::Service(authority) => {
            let conn = Conn::outbound(worker, Origin::Original(authority), peer, 0);
            conn.refuse.set(overloaded);
            serve_fixed(&conn, tcp.into()).await;
        }
        Meant::Nobody => {
            let conn = Conn::outbound(worker, Origin::Outbound, peer, 0);
            let detail = format!("{to} is the virtual address of no service");
            refuse(&conn, tcp.into(), Reason::ServiceUnknown, Some(&detail), by).await;
        }
        Meant::Outside => {
            let conn = Conn::outbound(worker, Origin::Outbound, peer, 0);
            let refused = path.forbidden(to) || path.shared.snapshot.load().egress == Egress::Registered;
            match overloaded.or(refused.then_some(Reason::ExternalRefused)) {
                None => outside(&conn, tcp, to).await,
                Some(reason) => {
                    let record = format!("{to} is not in the mesh");
                    refuse(&conn, tcp.into(), reason, Some(&record), by).await;
                }
            }
        }
    }
}

/// Asks the virtual addresses, then the control plane. Whoever is not known, or cannot be asked for, is outside: an
/// application must not lose its database because the control plane is away.
async fn meant(worker: &Worker, to: SocketAddr) -> Meant {
    let shared = &worker.path.shared;
    if let Some(host) = shared.vips.host(to.ip()) {
        return Meant::Service(format!("{host}:{}", to.port()).into());
    }
    if vip::is_virtual(to.ip()) {
        return Meant::Nobody;
    }
    let address = to.to_string();
    match shared.demand.at(shared, &address).await {
        Ok(_ready) => Meant::Service(address.into()),
        Err(error) => {
            tracing::trace!(%to, %error, "not in the mesh");
            Meant::Outside
        }
    }
}

/// Carries a connection to where the application meant it to go. Not one byte is waited for: the server may speak first.
async fn outside(conn: &Rc<Conn>, downstream: TcpStream, to: SocketAddr) {
    /// As for calls by name.
    const CONNECT: std::time::Duration = std::time::Duration::from_secs(5);
    let record = Record::tcp(conn);
    record.goes("external", None);
    let began = Clock::now();
    let dialing = dial(&conn.worker.path.passing, to);
    let dialed = match tokio::time::timeout(CONNECT, dialing).await {
        Ok(Ok(dialed)) => Ok(dialed),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err(format!("no connection within {CONNECT:?}")),
    };
    let took = began.elapsed();
    record.waited(took);
    record.connected(took);
    let result = if dialed.is_ok() { "ok" } else { Reason::ExternalConnectFailed.code() };
    record.tried(Try { endpoint: to, kind: AttemptKind::First, result, took });
    match dialed {
        Ok((upstream, _passed)) => {
            socket_options::prepare(&upstream, to);
            let _open = conn.worker.pools.external().open();
            let ended = tcp::relay(conn, downstream.into(), upstream.into(), &record, tcp::Idle::Tcp).await;
            tcp::note(&record, ended);
        }
        Err(detail) => {
            record.fail(Reason::ExternalConnectFailed, Some(&detail));
            reset(&downstream);
        }
    }
    record.finish();
}

/// For one service: what flows is the service's protocol.
pub async fn serve_fixed(conn: &Rc<Conn>, io: Io) {
    let (Origin::Fixed(authority) | Origin::Original(authority)) = &conn.origin else { return };
    let head_by = Instant::now() + conn.worker.path.bounds.head;
    let protocol = match tcp::service_cluster(conn, authority).await {
        Ok(goal) => goal.upstream.cluster().protocol,
        Err(failed) => {
            // A caller that speaks HTTP is told in HTTP. One that waits for the server to speak must not wait for long.
            let by = match conn.origin {
                Origin::Original(_) => Instant::now() + conn.worker.path.bounds.detection,
                _ => head_by,
            };
            let sniffed = sniff(io, by).await;
            if sniffed.is_http() {
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
            if sniffed.is_http() {
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
