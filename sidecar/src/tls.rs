//! mTLS handshakes, and who the peer proved to be. Which identity is right is decided here, before the first byte.

mod stream;

pub use self::stream::Stream;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::CommonState;
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_identity::{SpiffeId, tls::HandshakeFault};

use self::stream::Ahead;
use crate::{
    io::Io,
    reason::Reason,
    shared::{Alpn, TlsMaterial},
};

/// What a handshake settled.
#[derive(Debug, Clone)]
pub struct Session {
    /// Who the peer is.
    pub peer: Arc<SpiffeId>,
    /// Server name that the client sent; empty when none.
    pub sni: Box<str>,
    /// `h2` was agreed on (`None`: nothing was).
    pub h2: Option<bool>,
    /// Key exchange group.
    pub group: &'static str,
    /// The session of an earlier connection was taken up.
    pub resumed: bool,
}

impl Session {
    /// Label in metrics.
    pub fn label(&self) -> &'static str {
        if self.resumed { "resumed" } else { "ok" }
    }
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsFailure {
    /// rustls or the peer refused.
    #[error("{0}")]
    Fault(HandshakeFault),
    /// It took too long.
    #[error("the handshake took too long")]
    Timeout,
    /// The peer is somebody else.
    #[error("expected {expected}, the peer is {found}")]
    Identity {
        /// Who it should be.
        expected: Box<str>,
        /// Who it is.
        found: Box<str>,
    },
}

impl TlsFailure {
    /// Label in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Fault(fault) => fault.as_str(),
            Self::Timeout => "timeout",
            Self::Identity { .. } => HandshakeFault::UnexpectedIdentity.as_str(),
        }
    }

    /// The reason, when the peer is a client of ours.
    pub fn of_client(&self) -> Reason {
        match self {
            Self::Timeout => Reason::HeaderTimeout,
            Self::Identity { .. } => Reason::PeerCertificateInvalid,
            Self::Fault(fault) => match fault {
                HandshakeFault::MissingCertificate => Reason::PeerCertificateMissing,
                HandshakeFault::Expired | HandshakeFault::NotYetValid => Reason::PeerCertificateExpired,
                HandshakeFault::UnknownAuthority => Reason::PeerCertificateUnknownAuthority,
                HandshakeFault::WrongTrustDomain => Reason::PeerCertificateWrongTrustDomain,
                HandshakeFault::BadIdentity
                | HandshakeFault::UnexpectedIdentity
                | HandshakeFault::CaAsLeaf
                | HandshakeFault::BadKeyUsage
                | HandshakeFault::ConstraintViolated
                | HandshakeFault::BadCertificate => Reason::PeerCertificateInvalid,
                HandshakeFault::NothingInCommon
                | HandshakeFault::NotTls
                | HandshakeFault::RefusedMissingCertificate
                | HandshakeFault::RefusedExpired
                | HandshakeFault::RefusedUnknownAuthority
                | HandshakeFault::RefusedIdentity
                | HandshakeFault::RefusedCertificate
                | HandshakeFault::RefusedOther
                | HandshakeFault::Closed
                | HandshakeFault::Other => Reason::TlsHandshakeFailed,
            },
        }
    }
}

/// Takes a client's handshake.
/// # Errors
/// [`TlsFailure`].
pub async fn accept(tls: &TlsMaterial, tcp: TcpStream, deadline: Instant) -> Result<(Io, Session), TlsFailure> {
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.server));
    let stream = match tokio::time::timeout_at(deadline, acceptor.accept(Ahead::new(tcp))).await {
        Err(_elapsed) => return Err(TlsFailure::Timeout),
        Ok(Err(error)) => return Err(fault(&error)),
        Ok(Ok(stream)) => stream,
    };
    let (_, connection) = stream.get_ref();
    let (peer, resumed) = proved(connection)?;
    let session = Session {
        peer,
        sni: connection.server_name().unwrap_or_default().into(),
        h2: connection.alpn_protocol().map(|name| name == b"h2"),
        group: group(connection.negotiated_key_exchange_group()),
        resumed,
    };
    Ok((Stream::from(stream).into(), session))
}

/// Makes a handshake with another sidecar, at `address`, which must prove one of `expected`.
/// # Errors
/// [`TlsFailure`].
pub async fn connect(
    tls: &TlsMaterial,
    (tcp, address): (TcpStream, SocketAddr),
    sni: &str,
    alpn: Alpn,
    expected: &[SpiffeId],
    within: Duration,
) -> Result<(Io, Session), TlsFailure> {
    let name = ServerName::try_from(sni.to_owned()).map_err(|_invalid| TlsFailure::Fault(HandshakeFault::Other))?;
    let connector = TlsConnector::from(tls.sessions(alpn).to(address, sni, expected));
    let stream = match tokio::time::timeout(within, connector.connect(name, Ahead::new(tcp))).await {
        Err(_elapsed) => return Err(TlsFailure::Timeout),
        Ok(Err(error)) => return Err(fault(&error)),
        Ok(Ok(stream)) => stream,
    };
    let (_, connection) = stream.get_ref();
    let (peer, resumed) = proved(connection)?;
    if !expected.contains(&*peer) {
        let expected: Vec<&str> = expected.iter().map(SpiffeId::as_str).collect();
        return Err(TlsFailure::Identity { expected: expected.join(" or ").into(), found: peer.as_str().into() });
    }
    let session = Session {
        peer,
        sni: sni.into(),
        h2: connection.alpn_protocol().map(|name| name == b"h2"),
        group: group(connection.negotiated_key_exchange_group()),
        resumed,
    };
    Ok((Stream::from(stream).into(), session))
}

fn proved(connection: &CommonState) -> Result<(Arc<SpiffeId>, bool), TlsFailure> {
    let (id, resumed) = weft_identity::tls::proved(connection, SystemTime::now()).map_err(TlsFailure::Fault)?;
    Ok((Arc::new(id), resumed))
}

fn fault(error: &io::Error) -> TlsFailure {
    TlsFailure::Fault(HandshakeFault::from_io(error))
}

fn group(group: Option<&'static dyn rustls::crypto::SupportedKxGroup>) -> &'static str {
    use rustls::NamedGroup;
    match group.map(|group| group.name()) {
        Some(NamedGroup::X25519MLKEM768) => "X25519MLKEM768",
        Some(NamedGroup::X25519) => "X25519",
        Some(NamedGroup::secp256r1) => "secp256r1",
        Some(_) => "other",
        None => "",
    }
}

#[cfg(test)]
mod tests;
