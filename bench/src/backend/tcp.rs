//! Raw bytes: back, or a large transfer.

use std::sync::Arc;

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{BULK, SEND};

/// One connection, until it ends.
///
/// # Errors
/// When the proxy is gone.
pub async fn serve(mut stream: TcpStream, stride: Arc<[u8]>) -> Result<()> {
    let mut buffer = vec![0; 4 << 10];
    let mut first = true;
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if std::mem::take(&mut first) && buffer[0] == SEND {
            for _ in 0..BULK / stride.len() {
                stream.write_all(&stride).await?;
            }
            stream.shutdown().await?;
            return Ok(());
        }
        stream.write_all(&buffer[..read]).await?;
    }
}
