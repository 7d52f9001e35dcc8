//! One connection: TCP, then mTLS where the destination is a workload of the mesh.

use std::{io, sync::Arc, time::Duration};

use weft_identity::SpiffeId;

use super::Destination;
use crate::{
    io::Io,
    mark,
    metrics::Direction,
    reason::Reason,
    shared::Alpn,
    socket_options,
    tls::{self, TlsFailure},
    worker::Worker,
};

/// A connection that came about.
#[derive(Debug)]
pub struct Link {
    /// The stream.
    pub io: Io,
    /// Who the peer proved to be; `None`: plain text.
    pub peer: Option<Arc<SpiffeId>>,
    /// The handshake agreed on `h2` (`None`: on nothing).
    pub h2: Option<bool>,
}

/// Why no connection came about.
#[derive(Debug, Clone)]
pub struct ConnectFailure {
    /// The reason to answer.
    pub reason: Reason,
    /// For the log.
    pub detail: Box<str>,
}

/// Connects.
/// # Errors
/// [`ConnectFailure`].
pub async fn connect(worker: &Worker, to: &Destination, alpn: Alpn) -> Result<Link, ConnectFailure> {
    let within = to.connect_timeout(worker.path.bounds.app_connect);
    let tcp = match tokio::time::timeout(within, mark::connect(to.address())).await {
        Err(_elapsed) => return Err(failure(to, Cause::Timeout, format!("no connection within {within:?}"))),
        Ok(Err(error)) => return Err(failure(to, Cause::of(&error), error.to_string())),
        Ok(Ok(tcp)) => tcp,
    };
    socket_options::prepare(&tcp, to.address());
    let Some((sni, expected)) = to.tls() else {
        return Ok(Link { io: tcp.into(), peer: None, h2: None });
    };
    let material = worker.path.shared.tls.load_full();
    let Some(material) = material else {
        let detail = "this sidecar has no certificate yet".into();
        return Err(ConnectFailure { reason: Reason::UpstreamTlsFailed, detail });
    };
    // A handshake costs both sides computing time: under load it may take longer than a SYN.
    let within = within.saturating_mul(3).max(Duration::from_secs(1));
    let metrics = &worker.path.metrics;
    match tls::connect(&material, (tcp, to.address()), sni, alpn, expected, within).await {
        Ok((io, session)) => {
            metrics.handshake(Direction::Outbound, session.label(), "", session.group);
            Ok(Link { io, peer: Some(session.peer), h2: session.h2 })
        }
        Err(error) => {
            metrics.handshake(Direction::Outbound, "failed", error.label(), "");
            let reason = match &error {
                TlsFailure::Identity { .. } => Reason::UpstreamIdentityMismatch,
                TlsFailure::Fault(_) | TlsFailure::Timeout => Reason::UpstreamTlsFailed,
            };
            Err(ConnectFailure { reason, detail: error.to_string().into() })
        }
    }
}

enum Cause {
    Refused,
    Timeout,
    Other,
}

impl Cause {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Other,
        }
    }
}

fn failure(to: &Destination, cause: Cause, detail: String) -> ConnectFailure {
    let reason = match (to, cause) {
        (Destination::Workload(..), Cause::Refused) => Reason::UpstreamConnectRefused,
        (Destination::Workload(..), Cause::Timeout) => Reason::UpstreamConnectTimeout,
        (Destination::Workload(..), Cause::Other) => Reason::UpstreamConnectFailed,
        (Destination::App(_), Cause::Timeout) => Reason::AppConnectTimeout,
        (Destination::App(_), Cause::Refused | Cause::Other) => Reason::AppConnectRefused,
        (Destination::External(_), _) => Reason::ExternalConnectFailed,
    };
    ConnectFailure { reason, detail: detail.into() }
}
