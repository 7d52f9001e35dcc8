//! A connection on which a test says and reads exact bytes.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use crate::caller::PATIENCE;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection, with what was read and not yet taken.
pub struct Raw {
    stream: Box<dyn Stream>,
    read: Vec<u8>,
}

impl Raw {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }

    /// Over a stream that is there.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { stream: Box::new(stream), read: Vec::new() }
    }

    /// Writes.
    ///
    /// # Errors
    /// When the other side has closed.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.stream.write_all(bytes.as_ref()).await?;
        Ok(self.stream.flush().await?)
    }

    /// Ends the writing side.
    ///
    /// # Errors
    /// When the other side has closed.
    pub async fn finish(&mut self) -> Result<()> {
        Ok(self.stream.shutdown().await?)
    }

    /// Reads up to and including `end`.
    ///
    /// # Errors
    /// When it does not come in [`PATIENCE`], or the connection ends before.
    pub async fn until(&mut self, end: &str) -> Result<String> {
        let end = end.as_bytes();
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end) {
                return Ok(self.take(at + end.len()));
            }
            if !self.more().await? {
                bail!("the connection ended after {:?}", self.take(self.read.len()));
            }
        }
    }

    /// Reads a head: up to and including its empty line.
    ///
    /// # Errors
    /// As [`Raw::until`].
    pub async fn head(&mut self) -> Result<String> {
        self.until("\r\n\r\n").await
    }

    /// Reads a head and as many bytes of body as its `content-length` says.
    ///
    /// # Errors
    /// As [`Raw::until`].
    pub async fn answer(&mut self) -> Result<(String, String)> {
        let head = self.head().await?;
        let length = field(&head, "content-length").map_or(Ok(0), |length| length.parse())?;
        Ok((head, self.exactly(length).await?))
    }

    /// Reads so many bytes.
    ///
    /// # Errors
    /// As [`Raw::until`].
    pub async fn exactly(&mut self, len: usize) -> Result<String> {
        while self.read.len() < len {
            if !self.more().await? {
                bail!("the connection ended after {} of {len} bytes", self.read.len());
            }
        }
        Ok(self.take(len))
    }

    /// Reads to the end; a reset is one, too.
    ///
    /// # Errors
    /// When it does not end in [`PATIENCE`].
    pub async fn rest(&mut self) -> Result<String> {
        while self.more().await? {}
        Ok(self.take(self.read.len()))
    }

    /// Whether something has come; waits a tenth of a second for it.
    pub async fn has_answer(&mut self) -> bool {
        let wait = std::time::Duration::from_millis(100);
        !self.read.is_empty() || matches!(tokio::time::timeout(wait, self.more()).await, Ok(_come_or_closed))
    }

    async fn more(&mut self) -> Result<bool> {
        let reading = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await;
        let read = reading.with_context(|| format!("nothing came after {:?}", String::from_utf8_lossy(&self.read)))?;
        Ok(read.is_ok_and(|read| read > 0))
    }

    fn take(&mut self, len: usize) -> String {
        String::from_utf8_lossy(&self.read.drain(..len).collect::<Vec<_>>()).into_owned()
    }
}

/// A header's value in a head.
pub fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The status in a head.
pub fn status(head: &str) -> &str {
    head.split(' ').nth(1).unwrap_or_default()
}
