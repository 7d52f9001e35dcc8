//! What TLS proved of the other end of a connection. The server puts it into the extensions of each request.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use rustls_pki_types::CertificateDer;
use tonic::Status;
use weft_identity::{SpiffeId, cert, tls};

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it connects from.
    pub address: SocketAddr,
    /// What its certificate proved; `None`: it presented none.
    pub identity: Option<SpiffeId>,
    /// When that certificate expires.
    pub certificate_expiry: Option<SystemTime>,
    /// The certificates, leaf first, which the handshake verified.
    pub certificates: Option<Arc<[CertificateDer<'static>]>>,
}

impl Peer {
    /// A peer whose handshake is done.
    pub fn new(address: SocketAddr, certificates: Option<&[CertificateDer<'static>]>) -> Self {
        let certificates = certificates.filter(|certificates| !certificates.is_empty());
        let identity = certificates.and_then(|certificates| match tls::peer_id(Some(certificates)) {
            Ok(identity) => Some(identity),
            Err(error) => {
                // The verifier has let it through, so it has one.
                tracing::error!(%address, %error, "a verified certificate without identity");
                None
            }
        });
        let validity = certificates.and_then(|certificates| cert::validity(&certificates[0]).ok());
        Self {
            address,
            identity,
            certificate_expiry: validity.map(|(_, not_after)| not_after),
            certificates: certificates.map(Arc::from),
        }
    }

    /// The peer of a request.
    /// # Errors
    /// The request did not come through [`crate::serve`].
    pub fn of<T>(request: &tonic::Request<T>) -> Result<&Self, Status> {
        request.extensions().get().ok_or_else(|| Status::internal("the connection of this request is not known"))
    }

    /// The identity, where one is needed.
    /// # Errors
    /// It presented no certificate. UNAUTHENTICATED.
    pub fn proven(&self) -> Result<&SpiffeId, Status> {
        self.identity.as_ref().ok_or_else(|| {
            Status::unauthenticated("this call needs a client certificate of the mesh; get one with a join token first")
        })
    }
}
