//! HTTP/1.1: one connection, requests made beforehand, one write each.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Caller, content_length};
use crate::backend::{BULK, STRIDE};

/// Where requests go in.
#[derive(Clone, Debug)]
pub struct Target {
    /// The caller's proxy.
    pub address: SocketAddr,
    /// What `host` or `:authority` names.
    pub authority: String,
    /// Path of small requests.
    pub path: String,
}

impl Target {
    /// A small request; `extra`: further header lines, each with its end.
    pub fn request(&self, extra: &str) -> Bytes {
        let Self { authority, path, .. } = self;
        let text =
            format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: bench\r\naccept: */*\r\n{extra}\r\n");
        text.into()
    }
}

/// One kept-alive connection with its request.
pub struct Connection {
    stream: TcpStream,
    request: Bytes,
    buffer: Box<[u8]>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn open(target: &Target) -> Result<Self> {
        Self::open_for(target.address, target.request("")).await
    }

    async fn open_for(address: SocketAddr, request: Bytes) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("connect")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, request, buffer: vec![0; 4 << 10].into() })
    }

    /// Sends the request and reads its answer to the end; the length of its body.
    ///
    /// # Errors
    /// When the answer is not 200 or has no length.
    pub async fn get(&mut self) -> Result<usize> {
        self.stream.write_all(&self.request).await.context("send")?;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<usize> {
        let mut filled = 0;
        let head = loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await.context("receive")?;
            ensure!(read > 0, "the connection ended before the answer");
            filled += read;
            if let Some(end) = memchr::memmem::find(&self.buffer[..filled], b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(filled < self.buffer.len(), "the answer's head does not end");
        };
        if !self.buffer.starts_with(b"HTTP/1.1 200") {
            let text = String::from_utf8_lossy(&self.buffer[..head]);
            bail!("answered {}", text.lines().next().unwrap_or_default());
        }
        let length = content_length(&self.buffer[..head])?;
        let mut left = length.saturating_sub(filled - head);
        while left > 0 {
            let read = self.stream.read(&mut self.buffer).await?;
            ensure!(read > 0, "the connection ended within the answer");
            left = left.saturating_sub(read);
        }
        Ok(length)
    }
}

impl Caller for Connection {
    async fn call(&mut self) -> Result<()> {
        self.get().await.map(drop)
    }
}

/// So many connections to one target.
///
/// # Errors
/// When one cannot be had.
pub async fn connections(target: &Target, count: usize) -> Result<Vec<Connection>> {
    let mut opened = Vec::with_capacity(count);
    for _ in 0..count {
        opened.push(Connection::open(target).await?);
    }
    Ok(opened)
}

/// A caller that comes, asks once and goes.
pub struct Passer {
    address: SocketAddr,
    request: Bytes,
}

impl Passer {
    /// For this target.
    pub fn new(target: &Target) -> Self {
        Self { address: target.address, request: target.request("connection: close\r\n") }
    }
}

impl Caller for Passer {
    async fn call(&mut self) -> Result<()> {
        Connection::open_for(self.address, self.request.clone()).await?.get().await.map(drop)
    }
}

/// Large answers on one connection.
pub struct Download(Connection);

impl Download {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn open(target: &Target) -> Result<Self> {
        let target = Target { path: "/bulk".to_owned(), ..target.clone() };
        let mut connection = Connection::open(&target).await?;
        connection.buffer = vec![0; STRIDE].into();
        Ok(Self(connection))
    }
}

impl Caller for Download {
    async fn call(&mut self) -> Result<()> {
        let length = self.0.get().await?;
        ensure!(length == BULK, "the large answer has {length} bytes");
        Ok(())
    }
}

/// Large bodies on one connection.
pub struct Upload {
    connection: Connection,
    stride: Box<[u8]>,
}

impl Upload {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn open(target: &Target) -> Result<Self> {
        let authority = &target.authority;
        let head = format!("POST /upload HTTP/1.1\r\nhost: {authority}\r\ncontent-length: {BULK}\r\n\r\n");
        let connection = Connection::open_for(target.address, head.into()).await?;
        Ok(Self { connection, stride: vec![b'x'; STRIDE].into() })
    }
}

impl Caller for Upload {
    async fn call(&mut self) -> Result<()> {
        let stream = &mut self.connection.stream;
        stream.write_all(&self.connection.request).await?;
        for _ in 0..BULK / STRIDE {
            stream.write_all(&self.stride).await?;
        }
        self.connection.answer().await.map(drop)
    }
}
