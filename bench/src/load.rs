//! A lean HTTP/1.1 client, so that what is measured is the proxies.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// What a run of requests came to.
pub struct Outcome {
    /// Requests answered with 200.
    pub requests: u64,
    /// From the first to the last.
    pub elapsed: Duration,
    /// Microseconds from request to the end of its answer.
    pub latency: Histogram<u64>,
}

/// One kept-alive connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn open(proxy: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(proxy).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 64 << 10] })
    }

    /// `GET path`; the length of the answer's body.
    ///
    /// # Errors
    /// When the answer is not 200 or has no length.
    pub async fn get(&mut self, path: &str) -> Result<usize> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: echo\r\nuser-agent: bench\r\naccept: */*\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        let mut filled = 0;
        let head = loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            ensure!(read > 0, "the connection ended before the answer");
            filled += read;
            if let Some(end) = memchr::memmem::find(&self.buffer[..filled], b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(filled < self.buffer.len(), "the answer's head does not end");
        };
        let text = std::str::from_utf8(&self.buffer[..head])?;
        if !text.starts_with("HTTP/1.1 200") {
            bail!("answered {}", text.lines().next().unwrap_or_default());
        }
        let length: usize = text
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length:").map(|value| value.trim().to_owned())
            })
            .ok_or_else(|| anyhow::anyhow!("the answer has no content-length"))?
            .parse()?;
        let mut left = length.saturating_sub(filled - head);
        while left > 0 {
            let read = self.stream.read(&mut self.buffer).await?;
            ensure!(read > 0, "the connection ended within the answer");
            left = left.saturating_sub(read);
        }
        Ok(length)
    }
}

/// Keeps `connections` busy for `time`, each sending as soon as it has been answered.
///
/// # Errors
/// At the first request that is not answered well.
pub async fn closed_loop(proxy: SocketAddr, connections: usize, time: Duration) -> Result<Outcome> {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let mut connection = Connection::open(proxy).await?;
        tasks.spawn(async move {
            let mut latency = Histogram::<u64>::new(3)?;
            while began.elapsed() < time {
                let sent = Instant::now();
                connection.get("/").await?;
                latency.record(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX))?;
            }
            anyhow::Ok(latency)
        });
    }
    let mut latency = Histogram::<u64>::new(3)?;
    while let Some(joined) = tasks.join_next().await {
        latency.add(joined??)?;
    }
    Ok(Outcome { requests: latency.len(), elapsed: began.elapsed(), latency })
}
