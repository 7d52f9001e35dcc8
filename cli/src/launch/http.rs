//! One small HTTP call, for admin and metrics ports.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;

/// Calls an admin or metrics port, with the header that changes need.
///
/// # Errors
/// When it does not answer with success within five seconds.
pub async fn call(address: SocketAddr, method: Method, path: &str) -> Result<String> {
    let exchange = async {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, address.to_string())
            .header("weft-admin", "1")
            .body(Full::<Bytes>::default())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        driver.abort();
        let text = String::from_utf8_lossy(&body).into_owned();
        anyhow::ensure!(status.is_success(), "{path} answered {status}: {text}");
        Ok(text)
    };
    tokio::time::timeout(Duration::from_secs(5), exchange).await.context("no answer in 5 s")?
}
