//! A caller with a certificate of the mesh and no sidecar: for bytes that a sidecar would never send.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use weft_identity::{PrivateKey, Svid, TrustBundle, TrustDomain, tls, token::JoinToken};
use weft_proto::weft::v1::{IssueRequest, certificate_service_client::CertificateServiceClient};

use crate::{Mesh, Raw};

/// Certificate, key and roots.
pub struct Identity {
    svid: Svid,
    bundle: TrustBundle,
}

impl Identity {
    /// Gets one with a join token, as a sidecar does.
    ///
    /// # Errors
    /// When the control plane gives none.
    pub async fn join(mesh: &Mesh, namespace: &str, account: &str) -> Result<Self> {
        let text = mesh.control_plane.token(namespace, account).await?;
        let pinned = tls::client_config_pinned(JoinToken::parse(&text)?.ca_sha256(), None, &[b"h2"])?;
        let channel = weft_proto::connect::channel(&mesh.control_plane.grpc().to_string(), pinned)?;
        let key = PrivateKey::generate()?;
        let request = IssueRequest { csr: key.csr()?, join_token: text };
        let issued = CertificateServiceClient::new(channel).issue(request).await?.into_inner();
        let svid = Svid::new(issued.chain.into_iter().map(Into::into).collect(), key)?;
        let trust_domain: TrustDomain = issued.trust_domain.parse()?;
        let bundle = TrustBundle::new(trust_domain, issued.trust_bundle.into_iter().map(Into::into).collect())?;
        Ok(Self { svid, bundle })
    }

    /// Connects to a sidecar's inbound port, as a sidecar would for HTTP/1.1.
    ///
    /// # Errors
    /// When the handshake fails.
    pub async fn connect(&self, inbound: SocketAddr, sni: &str) -> Result<Raw> {
        let config = tls::client_config(Some(&self.svid), &self.bundle, &[b"http/1.1"])?;
        let stream = TcpStream::connect(inbound).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(sni.to_owned()).context("a name of TLS")?;
        Ok(Raw::over(tokio_rustls::TlsConnector::from(config).connect(name, stream).await?))
    }
}
