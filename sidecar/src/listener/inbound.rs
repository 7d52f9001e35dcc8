//! From the mesh to the application: mutual TLS, or plain text where the mesh permits it.
//!
//! In transparent mode rules redirect here what others send to the application's own ports; the port that they meant then
//! says which of the service's ports that is.

use std::{net::SocketAddr, rc::Rc};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use weft_xds::resource::Protocol;

use super::{
    first::{first_bytes, http, http_or_refuse, refuse, sniff},
    original::reset,
    probe,
};
use crate::{
    io::Io,
    metrics::Direction,
    reason::Reason,
    record::Record,
    settings::ProbeKind,
    tcp,
    tls::{self, Session},
    upstream::Wire,
    worker::{Conn, Origin, Worker, inbound_port},
};

/// First byte of a TLS handshake.
const HANDSHAKE: u8 = 0x16;

/// A connection to the inbound port itself.
pub(super) async fn serve(
    worker: &Rc<Worker>,
    tcp: TcpStream,
    peer: SocketAddr,
    refuse: Option<Reason>,
    head_by: Instant,
) {
    match first_byte(&tcp, head_by).await {
        None => {}
        Some(HANDSHAKE) => mutual(worker, tcp, peer, refuse, head_by).await,
        Some(_) => {
            let permissive = permissive(worker);
            plain(worker, permissive);
            let conn = Conn::inbound(worker, "", peer, None, "");
            conn.refuse.set(if permissive { refuse } else { refuse.or(Some(Reason::PlaintextRefused)) });
            plain_inbound(&conn, tcp.into(), head_by).await;
        }
    }
}

/// A connection that was meant for a port of the application.
pub(super) async fn redirected(
    worker: &Rc<Worker>,
    tcp: TcpStream,
    peer: SocketAddr,
    meant: u16,
    overloaded: Option<Reason>,
    head_by: Instant,
) {
    if permissive(worker) {
        // Whoever is a sidecar calls the inbound port: TLS here is the application's own.
        plain(worker, true);
        return match sni_of(worker, meant) {
            Some(sni) => {
                let conn = Conn::inbound(worker, &sni, peer, None, "");
                conn.refuse.set(overloaded);
                plain_inbound(&conn, tcp.into(), head_by).await;
            }
            None => {
                let conn = Conn::inbound(worker, "", peer, None, "");
                match overloaded {
                    Some(reason) => super::first::refuse(&conn, tcp.into(), reason, None, head_by).await,
                    None => tcp::inbound_at(&conn, meant, tcp.into()).await,
                }
            }
        };
    }
    let probes = &worker.path.shared.settings.transparent;
    let (mut connects, mut asks) = (false, false);
    for probe in probe::of(probes, meant, peer) {
        match probe.kind {
            ProbeKind::Tcp => connects = true,
            ProbeKind::Http(_) | ProbeKind::Grpc => asks = true,
        }
    }
    if connects && let Err(failed) = tcp::app_listens(worker, meant).await {
        tracing::debug!(port = meant, %peer, reason = failed.reason.code(), "a probe finds nobody");
        return reset(&tcp);
    }
    let Some(first) = first_byte(&tcp, head_by).await else { return };
    if first == HANDSHAKE {
        return mutual(worker, tcp, peer, overloaded, head_by).await;
    }
    if asks && overloaded.is_none() {
        worker.path.metrics.handshake(Direction::Inbound, "plaintext", "probe", "");
        let conn = Conn::plain(worker, Origin::Probe(meant), peer);
        let sniffed = sniff(tcp.into(), head_by).await;
        // Each request is asked whether it is a probe.
        if sniffed.is_http() {
            return http_or_refuse(&conn, sniffed, head_by).await;
        }
        return refuse(&conn, sniffed.io, Reason::PlaintextRefused, None, head_by).await;
    }
    plain(worker, false);
    let conn = Conn::inbound(worker, "", peer, None, "");
    refuse(&conn, tcp.into(), overloaded.unwrap_or(Reason::PlaintextRefused), None, head_by).await;
}

/// `None`: none came.
async fn first_byte(tcp: &TcpStream, by: Instant) -> Option<u8> {
    let mut first = [0; 1];
    match timeout_at(by, tcp.peek(&mut first)).await {
        Ok(Ok(1)) => Some(first[0]),
        // Probes connect and close.
        Ok(Ok(_) | Err(_)) | Err(_) => None,
    }
}

fn permissive(worker: &Worker) -> bool {
    worker.path.shared.snapshot.load().inbound.as_ref().is_some_and(|inbound| inbound.permissive)
}

fn plain(worker: &Worker, permissive: bool) {
    let reason = if permissive { "permissive" } else { "refused" };
    worker.path.metrics.handshake(Direction::Inbound, "plaintext", reason, "");
}

/// The server name of the service's port behind which the application listens there.
fn sni_of(worker: &Worker, app_port: u16) -> Option<Box<str>> {
    let settings = &worker.path.shared.settings;
    let port = settings.ports.iter().find(|port| port.app_port == app_port)?.port;
    let snapshot = worker.path.shared.snapshot.load();
    let known = &snapshot.inbound.as_ref()?.ports;
    known.iter().find(|known| known.port == port && *known.service == *worker.path.service).map(|port| port.sni.clone())
}

async fn mutual(worker: &Rc<Worker>, tcp: TcpStream, peer: SocketAddr, refuse: Option<Reason>, head_by: Instant) {
    let path = &worker.path;
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
        (_, Some(false)) => crate::http::serve::serve(&conn, io, Wire::Http1, head_by).await,
        (Some(Protocol::Detect), None) => detect_inbound(&conn, &sni, io, head_by).await,
        (_, None) => http(&conn, io, head_by).await,
    }
}

async fn plain_inbound(conn: &Rc<Conn>, io: Io, head_by: Instant) {
    let Origin::Inbound(sni) = &conn.origin else { return };
    let protocol = inbound_port(&conn.worker.path.shared.snapshot.load(), sni).map(|port| port.protocol);
    match (protocol, conn.refuse.get()) {
        (Some(Protocol::Tcp), None) => tcp::inbound(conn, sni, io).await,
        (Some(Protocol::Detect), None) => detect_inbound(conn, sni, io, head_by).await,
        // What is refused is told so if it speaks HTTP.
        (_, Some(reason)) => refuse(conn, io, reason, None, head_by).await,
        (_, None) => http(conn, io, head_by).await,
    }
}

async fn detect_inbound(conn: &Rc<Conn>, sni: &str, io: Io, head_by: Instant) {
    let record = Record::tcp(conn);
    record.goes(&conn.worker.path.service, None);
    let port = inbound_port(&conn.worker.path.shared.snapshot.load(), sni).map_or(0, |port| port.port);
    let (sniffed, app) = first_bytes(conn, io, port, tcp::dial_app(conn, sni, &record)).await;
    if sniffed.is_http() {
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
