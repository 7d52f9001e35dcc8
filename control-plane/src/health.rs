//! `health`: asks the control plane of this data directory whether it is ready, for images without a shell.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail};
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use weft_identity::{SpiffeId, TrustBundle, TrustDomain, files, tls};

/// What is needed of `operator.json`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Known {
    trust_domain: TrustDomain,
    ca: String,
}

#[derive(Deserialize)]
struct Addresses {
    http: SocketAddr,
}

/// Asks `/readyz` of the control plane that has written `addresses.json` in this directory.
/// # Errors
/// It is not ready, with its own words.
pub async fn check(data_dir: &Path, patience: Duration) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(data_dir.join("addresses.json")).with_context(|| {
        format!("no control plane has begun to serve in {}; is --data-dir its data directory?", data_dir.display())
    })?;
    let Addresses { http } = serde_json::from_str(&text).context("addresses.json is damaged")?;
    let known: Known = serde_json::from_str(&files::read_private(&data_dir.join("operator.json"))?)
        .context("operator.json is damaged")?;
    let address = SocketAddr::new(reached_at(http.ip()), http.port());
    let answer = tokio::time::timeout(patience, ask(address, known)).await;
    let answer = answer.with_context(|| format!("{address} does not answer in {patience:?}"))??;
    if !answer.starts_with("HTTP/1.1 200 ") {
        bail!("{address}: {}", answer.split_once("\r\n\r\n").map_or("no HTTP", |(_, said)| said.trim()));
    }
    Ok(())
}

async fn ask(address: SocketAddr, known: Known) -> anyhow::Result<String> {
    let expected = SpiffeId::control_plane(&known.trust_domain);
    let bundle = TrustBundle::from_pem(known.trust_domain, &known.ca).context("operator.json's CA is unusable")?;
    let config = tls::client_config_expecting(None, &bundle, expected, &[b"http/1.1"])?;
    let stream = TcpStream::connect(address).await.with_context(|| format!("{address} cannot be reached"))?;
    let name = ServerName::try_from(weft_proto::connect::SERVER_NAME).context("a constant name")?;
    let mut stream = TlsConnector::from(config).connect(name, stream).await?;
    let question = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(question.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// An address of all interfaces stands for loopback.
fn reached_at(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

/// Most bytes of an answer: a line.
const LONGEST: u64 = 4096;

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{settings::Settings, start};

    #[tokio::test]
    async fn a_control_plane_is_healthy_while_it_runs() {
        let patience = Duration::from_secs(10);
        let folder = tempfile::tempdir().unwrap();
        let error = check(folder.path(), patience).await.unwrap_err().to_string();
        assert!(error.contains("--data-dir"), "{error}");

        let data = folder.path().display().to_string();
        let args = ["weft-control-plane", "--data-dir", &data, "--grpc", "127.0.0.1:0", "--http", "0.0.0.0:0"];
        let running = start::start(&Settings::parse_from(args)).await.unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(running.until(stop.clone()));
        check(folder.path(), patience).await.unwrap();
        stop.cancel();
        serving.await.unwrap().unwrap();
        let error = format!("{:#}", check(folder.path(), patience).await.unwrap_err());
        assert!(error.contains("cannot be reached"), "{error}");
    }
}
