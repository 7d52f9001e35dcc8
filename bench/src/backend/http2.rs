//! HTTP/2 without TLS: small answers, and gRPC echoes.

use anyhow::Result;
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpStream;

use super::SMALL;
use crate::load::http2::WINDOW;

/// One connection, until it ends.
///
/// # Errors
/// When the proxy is gone or breaks the protocol.
pub async fn serve(stream: TcpStream) -> Result<()> {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(1000)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        match request.uri().path() {
            "/bench.Echo/Unary" | "/bench.Echo/Stream" => {
                // How a call ends is the caller's to notice.
                tokio::spawn(async move { drop(echo(request, respond).await) });
            }
            _ => small(respond)?,
        }
    }
    Ok(())
}

fn small(mut respond: SendResponse<Bytes>) -> Result<()> {
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
    respond.send_response(response, false)?.send_data(Bytes::from_static(SMALL.as_bytes()), true)?;
    Ok(())
}

/// Sends every chunk back as it comes: for a unary call, all of its one message.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let mut body = request.into_body();
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut send = respond.send_response(response, false)?;
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        if !chunk.is_empty() {
            send.send_data(chunk, false)?;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    send.send_trailers(trailers)?;
    Ok(())
}
