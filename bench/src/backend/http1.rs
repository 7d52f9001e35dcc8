//! HTTP/1.1 with answers made beforehand.

use std::sync::{Arc, LazyLock};

use anyhow::{Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{BULK, SMALL};
use crate::load::content_length;

static ANSWER: LazyLock<Vec<u8>> = LazyLock::new(|| answer(""));
static LAST_ANSWER: LazyLock<Vec<u8>> = LazyLock::new(|| answer("connection: close\r\n"));

fn answer(extra: &str) -> Vec<u8> {
    let length = SMALL.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n{extra}content-length: {length}\r\n\r\n{SMALL}")
        .into_bytes()
}

/// One connection, until it ends.
///
/// # Errors
/// When the proxy sends what this cannot read, or is gone.
pub async fn serve(mut stream: TcpStream, stride: Arc<[u8]>) -> Result<()> {
    let mut buffer = vec![0; 16 << 10];
    let mut filled = 0;
    loop {
        let Some(end) = memchr::memmem::find(&buffer[..filled], b"\r\n\r\n").map(|at| at + 4) else {
            ensure!(filled < buffer.len(), "the request's head does not end");
            match stream.read(&mut buffer[filled..]).await? {
                0 => return Ok(()),
                read => filled += read,
            }
            continue;
        };
        let head = &buffer[..end];
        let last = memchr::memmem::find(head, b"lose\r\n").is_some();
        let bulk = head.starts_with(b"GET /bulk ");
        let body = if head.starts_with(b"POST ") { content_length(head)? } else { 0 };
        let here = body.min(filled - end);
        let kept = end + here;
        buffer.copy_within(kept..filled, 0);
        filled -= kept;
        if body > here {
            discard(&mut stream, body - here).await?;
        }
        if bulk {
            send_bulk(&mut stream, &stride).await?;
        } else {
            stream.write_all(if last { &LAST_ANSWER } else { &ANSWER }).await?;
        }
        if last {
            stream.shutdown().await?;
            return Ok(());
        }
    }
}

async fn discard(stream: &mut TcpStream, mut left: usize) -> Result<()> {
    let mut sink = vec![0; super::STRIDE];
    while left > 0 {
        let most = left.min(sink.len());
        let read = stream.read(&mut sink[..most]).await?;
        ensure!(read > 0, "the connection ended within the body");
        left -= read;
    }
    Ok(())
}

async fn send_bulk(stream: &mut TcpStream, stride: &[u8]) -> Result<()> {
    stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {BULK}\r\n\r\n").as_bytes()).await?;
    for _ in 0..BULK / stride.len() {
        stream.write_all(stride).await?;
    }
    Ok(())
}
