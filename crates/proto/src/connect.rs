//! A gRPC channel to the control plane over a given rustls configuration.
//!
//! Who the control plane must be is the configuration's to decide: its verifier checks a SPIFFE ID, so the host name that
//! was dialled proves nothing, and SNI is the same for all.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// A channel to `addr` (`HOST:PORT`; an IPv6 address in brackets). Nothing is dialled before the first call; after a
/// lost connection the next call dials again, and a name is resolved each time.
///
/// A failed dial is an [`io::Error`] in the causes of the call's status, with rustls's own error within it.
///
/// # Errors
/// [`AddressError`] when `addr` is not of that form.
pub fn channel(addr: &str, tls: Arc<ClientConfig>) -> Result<Channel, AddressError> {
    channel_prepared(addr, tls, |_| Ok(()))
}

/// A socket that is about to connect can be prepared.
pub type Prepare = fn(&TcpSocket) -> io::Result<()>;

/// The same over sockets that are prepared before they connect.
///
/// # Errors
/// As [`channel`].
pub fn channel_prepared(addr: &str, tls: Arc<ClientConfig>, prepare: Prepare) -> Result<Channel, AddressError> {
    let valid = addr.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        !host.is_empty() && (bracketed || !host.contains(':')) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if !valid {
        return Err(AddressError(addr.to_owned()));
    }
    let mut tls = Arc::unwrap_or_clone(tls);
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let (connector, addr) = (TlsConnector::from(Arc::new(tls)), Arc::<str>::from(addr));
    let dial = move |_: Uri| {
        let (connector, addr) = (connector.clone(), addr.clone());
        async move {
            let stream = connect(&addr, prepare).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(SERVER_NAME).expect("a constant DNS name");
            Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    };
    // The scheme of the endpoint is http, or tonic would want to do TLS itself; requests say https.
    let endpoint = Endpoint::from_static("http://weft-control-plane")
        .origin(Uri::from_static("https://weft-control-plane"))
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(dial)))
}

/// Tries each address of a name, as `TcpStream::connect` does.
async fn connect(addr: &str, prepare: Prepare) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, format!("{addr} has no address"));
    for address in tokio::net::lookup_host(addr).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        prepare(&socket)?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The address is not `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError(String);

impl std::fmt::Display for AddressError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` is not HOST:PORT (an IPv6 address needs brackets)", self.0)
    }
}

impl std::error::Error for AddressError {}

/// SNI and DNS SAN of every control plane.
pub const SERVER_NAME: &str = "weft-control-plane";
/// Bound on dialling and the TLS handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent connection is probed after this time, and given up after as long again: a control plane whose machine is gone
/// is noticed within 20 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
