//! A TLS stream over TCP that reads and writes in long strides.
//!
//! Two habits of what is below it cost more than the encryption, and are avoided here. rustls asks its transport for
//! 4 KiB at a time, so that one record of 16 KiB takes five system calls: [`Ahead`] reads what there is, up to 64 KiB,
//! and hands it out in pieces. And rustls copies what is to be encrypted to an odd address; for copies of more than 2112
//! bytes the C library uses an instruction (`rep movsb`) that is several times slower there on some processors: what is
//! written is therefore offered in pieces of 2 KiB, which become the same records.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

use crate::lend::Lent;

/// Longest piece in which bytes are offered to rustls.
const PIECE: usize = 2048;
/// Pieces of one write: 64 KiB, which is what rustls holds before it has been written.
const PIECES: usize = 32;

/// A TLS connection, of either side.
#[derive(Debug)]
pub struct Stream {
    tls: TlsStream<Ahead>,
    /// All that came was taken: there is nothing to read before the socket has more.
    dry: bool,
}

impl<T: Into<TlsStream<Ahead>>> From<T> for Stream {
    fn from(stream: T) -> Self {
        Self { tls: stream.into(), dry: false }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // To ask the socket alone costs a quarter of what it costs to ask through TLS, and most questions are in vain.
        if self.dry && self.tls.get_ref().0.tcp.poll_read_ready(cx).is_pending() {
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.tls).poll_read(cx, buf);
        self.dry = read.is_pending();
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.len() <= PIECE {
            return Pin::new(&mut self.tls).poll_write(cx, buf);
        }
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut pieces = [IoSlice::new(&[]); PIECES];
        let all = bufs.iter().flat_map(|buf| buf.chunks(PIECE));
        let count = pieces.iter_mut().zip(all).map(|(slot, piece)| *slot = IoSlice::new(piece)).count();
        Pin::new(&mut self.tls).poll_write_vectored(cx, &pieces[..count])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// TCP below TLS: reads as much as there is, and keeps what was not asked for until it is. Holds memory only then.
#[derive(Debug)]
pub struct Ahead {
    tcp: TcpStream,
    /// What was read ahead, `from..to`.
    kept: Option<(Lent, usize, usize)>,
}

impl Ahead {
    /// Nothing read yet.
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, kept: None }
    }
}

impl AsyncRead for Ahead {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (lent, mut from, to) = match self.kept.take() {
            Some(kept) => kept,
            None => {
                let mut lent = Lent::new();
                let mut ahead = ReadBuf::new(&mut lent);
                ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut ahead))?;
                let read = ahead.filled().len();
                (lent, 0, read)
            }
        };
        let len = buf.remaining().min(to - from);
        buf.put_slice(&lent[from..from + len]);
        from += len;
        if from < to {
            self.kept = Some((lent, from, to));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
