//! Calls a sidecar as another sidecar would, and as somebody who is not in the mesh would.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, anyhow};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use weft_identity::{SpiffeId, tls};

use super::report::Call;
use crate::commands::certificate::Issued;

/// For a connection, and for a handshake.
const CONNECT: Duration = Duration::from_secs(3);
/// For an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Most of an answer in plain text that is read.
const HEAD_BYTES: usize = 16 << 10;

/// What is called.
pub struct Callee {
    /// `namespace/service/instance`.
    pub workload: String,
    /// Its service.
    pub namespace: String,
    /// Its service.
    pub service: String,
    /// Where its sidecar listens.
    pub address: SocketAddr,
    /// What it must prove.
    pub identity: SpiffeId,
    /// Port of the service.
    pub port: u16,
    /// `http`, `http2`, `grpc`, `tcp` or empty.
    pub protocol: String,
    /// Where its application listens.
    pub app: SocketAddr,
}

impl Callee {
    /// Whether a request of HTTP/1.1 is understood.
    pub fn speaks_http1(&self) -> bool {
        matches!(self.protocol.as_str(), "http" | "")
    }
}

/// Why a callee was not proved.
pub enum Unproved {
    /// No connection: nothing was learnt about it.
    Unreachable(String),
    /// It answered, and it is not what it should be.
    Refused(String),
}

/// Makes the handshake, both sides proving who they are, and sends a request when `path` names one.
///
/// # Errors
/// [`Unproved`].
pub async fn mutual(issued: &Issued, callee: &Callee, path: Option<&str>) -> Result<Call, Unproved> {
    let stream = match timeout(CONNECT, TcpStream::connect(callee.address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Unproved::Unreachable(error.to_string())),
        Err(_elapsed) => return Err(Unproved::Unreachable(format!("no answer in {} s", CONNECT.as_secs()))),
    };
    handshake(issued, callee, path, stream).await.map_err(|error| Unproved::Refused(format!("{error:#}")))
}

async fn handshake(issued: &Issued, callee: &Callee, path: Option<&str>, stream: TcpStream) -> Result<Call> {
    let alpn: &[&[u8]] = match callee.protocol.as_str() {
        "http" | "" if path.is_some() => &[b"http/1.1"],
        "http2" | "grpc" => &[b"h2"],
        _ => &[],
    };
    let config = tls::client_config_expecting(Some(&issued.svid), &issued.bundle, callee.identity.clone(), alpn)?;
    let sni = weft_xds::resource::sni(&callee.namespace, &callee.service, callee.port);
    let name = ServerName::try_from(sni).context("the service's name")?;
    let shaken = timeout(CONNECT, TlsConnector::from(config).connect(name, stream)).await;
    let mut stream = shaken.map_err(|_elapsed| anyhow!("no handshake in {} s", CONNECT.as_secs()))??;
    let (_, connection) = stream.get_ref();
    let mut call = Call {
        workload: callee.workload.clone(),
        port: callee.port,
        address: callee.address.to_string(),
        caller: issued.svid.id.to_string(),
        callee: tls::peer_id(connection.peer_certificates())?.to_string(),
        tls: version(connection.protocol_version()),
        group: connection
            .negotiated_key_exchange_group()
            .map(|group| format!("{:?}", group.name()))
            .unwrap_or_default(),
        cipher: connection.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite())).unwrap_or_default(),
        answer: None,
    };
    match path {
        Some(path) if callee.speaks_http1() => call.answer = Some(request(stream, callee, path).await?),
        // In TLS 1.3 a refused certificate is told after the client is done: only silence says that it was taken.
        _ => accepted(&mut stream).await?,
    }
    Ok(call)
}

/// Waits a moment for an alert; a server that waits for the client, or speaks first, has taken the certificate.
async fn accepted(stream: &mut tokio_rustls::client::TlsStream<TcpStream>) -> Result<()> {
    const MOMENT: Duration = Duration::from_millis(300);
    match timeout(MOMENT, stream.read(&mut [0; 1])).await {
        Ok(Err(error)) => Err(error).context("the callee took the connection back"),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

fn version(version: Option<rustls::ProtocolVersion>) -> String {
    match version {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3".to_owned(),
        other => format!("{other:?}"),
    }
}

async fn request(stream: tokio_rustls::client::TlsStream<TcpStream>, callee: &Callee, path: &str) -> Result<String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = http::Request::get(path)
        .header(http::header::HOST, format!("{}.{}:{}", callee.service, callee.namespace, callee.port))
        .header(http::header::USER_AGENT, concat!("weft-check/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<bytes::Bytes>::new())
        .with_context(|| format!("--path {path}"))?;
    let answered = timeout(ANSWER, sender.send_request(request)).await;
    driver.abort();
    let answer = answered.map_err(|_elapsed| anyhow!("no answer in {} s", ANSWER.as_secs()))??;
    let reason = answer.headers().get("weft-reason").and_then(|reason| reason.to_str().ok());
    Ok(match reason {
        Some(reason) => format!("{} ({reason})", answer.status()),
        None => answer.status().to_string(),
    })
}

/// What became of plain text.
#[derive(Debug, PartialEq, Eq)]
pub enum Plain {
    /// Nobody takes the connection.
    Unreachable,
    /// Taken, and refused or closed: how.
    Refused(String),
    /// Answered, or kept open: how.
    Accepted(String),
}

/// Says something in plain text.
pub async fn plain(address: SocketAddr, host: &str) -> Plain {
    let Ok(Ok(mut stream)) = timeout(CONNECT, TcpStream::connect(address)).await else {
        return Plain::Unreachable;
    };
    let head = format!(
        "GET / HTTP/1.1\r\nhost: {host}\r\nuser-agent: weft-check/{}\r\nconnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(head.as_bytes()).await?;
        let mut part = [0; 4096];
        while answer.len() < HEAD_BYTES {
            match stream.read(&mut part).await? {
                0 => break,
                count => answer.extend_from_slice(&part[..count]),
            }
        }
        std::io::Result::Ok(())
    };
    match timeout(CONNECT, exchange).await {
        Ok(Err(_)) if answer.is_empty() => Plain::Refused("closed".to_owned()),
        Ok(_) => judge(&answer),
        Err(_elapsed) if answer.is_empty() => Plain::Accepted("it keeps the connection".to_owned()),
        Err(_elapsed) => judge(&answer),
    }
}

/// What the answer to plain text means.
fn judge(answer: &[u8]) -> Plain {
    if answer.is_empty() {
        return Plain::Refused("closed".to_owned());
    }
    let text = String::from_utf8_lossy(answer);
    let line = text.lines().next().unwrap_or_default().trim();
    if text.contains("plaintext_refused") {
        return Plain::Refused(format!("{}, plaintext_refused", line.trim_start_matches("HTTP/1.1 ")));
    }
    Plain::Accepted(line.chars().take(80).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_counts_as_one() {
        let refusal = "HTTP/1.1 403 Forbidden\r\nweft-reason: plaintext_refused; side=callee\r\n\r\n";
        assert_eq!(judge(refusal.as_bytes()), Plain::Refused("403 Forbidden, plaintext_refused".into()));
        assert_eq!(judge(b""), Plain::Refused("closed".into()));
        assert_eq!(judge(b"HTTP/1.1 403 Forbidden\r\n\r\n"), Plain::Accepted("HTTP/1.1 403 Forbidden".into()));
        assert_eq!(judge(b"+PONG\r\n"), Plain::Accepted("+PONG".into()));
    }
}
