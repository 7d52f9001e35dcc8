//! `weft certificate`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use weft_identity::{PrivateKey, Svid, TrustBundle, TrustDomain, tls, token::JoinToken};
use weft_proto::weft::v1::{IssueRequest, certificate_service_client::CertificateServiceClient};

use crate::{credential::Connection, failure::Failure};

/// Get a certificate for a client that is not a Weft sidecar.
///
/// A stock Envoy or a proxyless gRPC program talks to the control plane with a certificate of its own. This makes a key
/// here, has it certified with a join token, and writes svid.pem, svid.key (0600) and bundle.pem.
///
/// Example:
///   WEFT_JOIN_TOKEN=$(weft token create --service gateway) weft certificate --out certs/
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Folder for the three files.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// File that holds the join token; otherwise it is taken from WEFT_JOIN_TOKEN.
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
}

/// Gets the certificate.
///
/// # Errors
/// As the exit codes of `weft --help` say.
pub async fn run(connection: &Connection, options: Options) -> Result<(), Failure> {
    let text = match &options.join_token_file {
        Some(file) => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
        None => std::env::var("WEFT_JOIN_TOKEN")
            .context("no join token: set WEFT_JOIN_TOKEN or --join-token-file (see `weft token create`)")?,
    };
    let address = match &connection.control_plane {
        Some(address) => address.clone(),
        None => connection.credential()?.grpc,
    };
    let Issued { svid, bundle, until } = issue(&address, text.trim()).await?;
    svid.save(&options.out).map_err(anyhow::Error::from)?;
    bundle.save(&options.out.join("bundle.pem")).map_err(anyhow::Error::from)?;
    eprintln!("{} until {until}", svid.id);
    Ok(())
}

/// What a join token gives.
pub struct Issued {
    /// Certificate and key.
    pub svid: Svid,
    /// Roots of the mesh.
    pub bundle: TrustBundle,
    /// When the certificate expires, RFC 3339.
    pub until: String,
}

/// Makes a key here, and has it certified by the control plane at `address`.
///
/// # Errors
/// When the token is used up, or the control plane is not the one that it names.
pub async fn issue(address: &str, join_token: &str) -> Result<Issued, Failure> {
    let token = JoinToken::parse(join_token).map_err(anyhow::Error::from)?;
    let tls = tls::client_config_pinned(token.ca_sha256(), None, &[b"h2"]).map_err(anyhow::Error::from)?;
    let channel = weft_proto::connect::channel(address, tls).map_err(anyhow::Error::from)?;
    let key = PrivateKey::generate().map_err(anyhow::Error::from)?;
    let request = IssueRequest { csr: key.csr().map_err(anyhow::Error::from)?, join_token: join_token.to_owned() };
    let issued = CertificateServiceClient::new(channel).issue(request).await?.into_inner();
    let svid = Svid::new(issued.chain.into_iter().map(Into::into).collect(), key).map_err(anyhow::Error::from)?;
    let trust_domain: TrustDomain = issued.trust_domain.parse().map_err(anyhow::Error::from)?;
    let roots: Vec<_> = issued.trust_bundle.into_iter().map(Into::into).collect();
    let bundle = TrustBundle::new(trust_domain, roots).map_err(anyhow::Error::from)?;
    Ok(Issued { svid, bundle, until: issued.not_after })
}
