//! One type for every byte stream of the data path, so that HTTP and TCP code exists once.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A byte stream: plain, or TLS either way.
#[derive(Debug)]
pub struct Io {
    /// Bytes that were read ahead and are to be read again.
    ahead: Bytes,
    stream: Stream,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Server(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    Client(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Io {
    /// The same stream with `ahead` to be read first.
    pub fn rewound(mut self, ahead: Bytes) -> Self {
        self.ahead = ahead;
        self
    }
}

impl From<TcpStream> for Io {
    fn from(stream: TcpStream) -> Self {
        Self { ahead: Bytes::new(), stream: Stream::Plain(stream) }
    }
}

impl From<tokio_rustls::server::TlsStream<TcpStream>> for Io {
    fn from(stream: tokio_rustls::server::TlsStream<TcpStream>) -> Self {
        Self { ahead: Bytes::new(), stream: Stream::Server(Box::new(stream)) }
    }
}

impl From<tokio_rustls::client::TlsStream<TcpStream>> for Io {
    fn from(stream: tokio_rustls::client::TlsStream<TcpStream>) -> Self {
        Self { ahead: Bytes::new(), stream: Stream::Client(Box::new(stream)) }
    }
}

macro_rules! on {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().stream {
            Stream::Plain($stream) => $call,
            Stream::Server($stream) => $call,
            Stream::Client($stream) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.has_remaining() {
            let len = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..len]);
            self.ahead.advance(len);
            if self.ahead.is_empty() {
                self.ahead = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        on!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Server(stream) => stream.is_write_vectored(),
            Stream::Client(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// Counts bytes as they pass.
#[derive(Debug)]
pub struct Counted<F> {
    io: Io,
    /// Called with (received, sent).
    count: F,
}

impl<F: FnMut(usize, usize) + Unpin> Counted<F> {
    /// `count` is called with the bytes received and sent, one of them 0.
    pub fn new(io: Io, count: F) -> Self {
        Self { io, count }
    }
}

impl<F: FnMut(usize, usize) + Unpin> AsyncRead for Counted<F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        (self.count)(buf.filled().len() - before, 0);
        Poll::Ready(Ok(()))
    }
}

impl<F: FnMut(usize, usize) + Unpin> AsyncWrite for Counted<F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        (self.count)(0, written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
