//! Raw bytes: echoes, large transfers, and connections that come and go.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::Caller;
use crate::backend::{BULK, ECHO, SEND, STRIDE};

/// A small message.
const MESSAGE: [u8; 64] = [ECHO; 64];

/// Echoes on one connection.
pub struct Echo(TcpStream);

impl Echo {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("connect")?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }
}

impl Caller for Echo {
    async fn call(&mut self) -> Result<()> {
        let mut back = [0; MESSAGE.len()];
        self.0.write_all(&MESSAGE).await.context("send")?;
        self.0.read_exact(&mut back).await.context("the echo")?;
        ensure!(back == MESSAGE, "what came back is not what was sent");
        Ok(())
    }
}

/// A new connection for each echo: with mutual TLS between the proxies, a handshake each.
pub struct Passer(pub SocketAddr);

impl Caller for Passer {
    async fn call(&mut self) -> Result<()> {
        Echo::open(self.0).await?.call().await
    }
}

/// A new connection for each large transfer.
pub struct Download {
    address: SocketAddr,
    buffer: Box<[u8]>,
}

impl Download {
    /// From this port.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, buffer: vec![0; STRIDE].into() }
    }
}

impl Caller for Download {
    async fn call(&mut self) -> Result<()> {
        let mut stream = TcpStream::connect(self.address).await.context("connect")?;
        stream.write_all(&[SEND]).await?;
        let mut total = 0;
        loop {
            match stream.read(&mut self.buffer).await? {
                0 => break,
                read => total += read,
            }
        }
        ensure!(total == BULK, "the transfer ended after {total} bytes");
        Ok(())
    }
}
