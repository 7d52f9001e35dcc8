//! One HTTP/1 connection's bytes: what has come and was not taken yet, what is to go.
//!
//! An idle connection holds no buffer: one is taken when bytes can be read or are to be written, and let go when all of
//! it was used. Buffers that are held by nobody are still warm in the cache when the next connection needs one.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::Io;

/// Size of a read as long as nothing long flows.
const FIRST_READ: usize = 8 * 1024;
/// Largest read: a long body fills it.
const LARGEST_READ: usize = 64 * 1024;
/// A piece up to this size is copied beside the others; a larger one is written from where it is.
const COPIED: usize = 4 * 1024;
/// No more of a body is taken while so much waits to be written.
const HIGH: usize = 64 * 1024;
/// Pieces in one write.
const SLICES: usize = 16;

thread_local! {
    /// What was read and not yet counted: a message that came whole is copied into as much memory as it needs, which
    /// costs less than to take and give back a buffer for what may come.
    static SCRATCH: RefCell<[u8; FIRST_READ]> = const { RefCell::new([0; FIRST_READ]) };
}

/// The connection's stream and buffers.
#[derive(Debug)]
pub struct Channel {
    io: Io,
    /// Came, not taken yet.
    pub read: BytesMut,
    /// Size of the next read.
    stride: usize,
    /// Whole pieces that go before `tail`.
    queue: VecDeque<Bytes>,
    /// What is being put together.
    tail: BytesMut,
    /// Bytes in `queue`.
    queued: usize,
    /// Bytes that went out, ever.
    pub written: u64,
    /// Something was written that the stream may still hold back.
    unflushed: bool,
}

impl Channel {
    /// Nothing came yet.
    pub fn new(io: Io) -> Self {
        Self {
            io,
            read: BytesMut::new(),
            stride: FIRST_READ,
            queue: VecDeque::new(),
            tail: BytesMut::new(),
            queued: 0,
            written: 0,
            unflushed: false,
        }
    }

    /// Reads more; 0: the peer has ended its stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.stride > FIRST_READ {
            return self.poll_stride(cx);
        }
        let io = &mut self.io;
        let len = SCRATCH.with_borrow_mut(|scratch| {
            let mut space = ReadBuf::new(scratch);
            ready!(Pin::new(io).poll_read(cx, &mut space))?;
            self.read.extend_from_slice(space.filled());
            Poll::Ready(io::Result::Ok(space.filled().len()))
        });
        let len = ready!(len)?;
        if len == FIRST_READ {
            self.stride = FIRST_READ * 2;
        }
        Poll::Ready(Ok(len))
    }

    /// Reads what is most likely a part of something long, into memory that goes on with it.
    fn poll_stride(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.read.reserve(self.stride);
        let read = tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read);
        if let Poll::Ready(Ok(len)) = read
            && len >= self.stride
        {
            self.stride = (self.stride * 2).min(LARGEST_READ);
        }
        read
    }

    /// Between two messages: lets the buffers go, if nothing is in them.
    pub fn rest(&mut self) {
        self.stride = FIRST_READ;
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        if self.tail.is_empty() {
            self.tail = BytesMut::new();
        }
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
    }

    /// Whether the peer has closed or sent something that nobody asked for. Asks nothing of the kernel unless the
    /// reactor has seen an event.
    pub fn is_stale(&mut self) -> bool {
        let mut byte = [0; 1];
        let mut byte = ReadBuf::new(&mut byte);
        !self.read.is_empty()
            || Pin::new(&mut self.io).poll_read(&mut Context::from_waker(Waker::noop()), &mut byte).is_ready()
    }

    /// Where heads and small pieces are put.
    pub fn out(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Adds a piece of a body.
    pub fn put(&mut self, data: Bytes) {
        if data.len() <= COPIED {
            return self.tail.extend_from_slice(&data);
        }
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.queued += tail.len();
            self.queue.push_back(tail);
        }
        self.queued += data.len();
        self.queue.push_back(data);
    }

    /// Bytes that wait to be written.
    pub fn waiting(&self) -> usize {
        self.queued + self.tail.len()
    }

    /// Whether there is room for more of a body.
    pub fn has_room(&self) -> bool {
        self.waiting() < HIGH
    }

    /// Everything was written and flushed.
    pub fn is_flushed(&self) -> bool {
        self.waiting() == 0 && !self.unflushed
    }

    /// Writes until nothing waits any more.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.waiting() > 0 {
            let written = if self.queue.is_empty() {
                ready!(Pin::new(&mut self.io).poll_write(cx, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let pieces = self.queue.iter().map(|piece| &**piece).chain([&*self.tail]);
                let filled = slices.iter_mut().zip(pieces).map(|(slice, piece)| *slice = IoSlice::new(piece)).count();
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..filled]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        self.written += written as u64;
        while let Some(first) = self.queue.front_mut() {
            if written < first.len() {
                first.advance(written);
                self.queued -= written;
                return;
            }
            written -= first.len();
            self.queued -= first.len();
            self.queue.pop_front();
        }
        self.tail.advance(written);
    }

    /// Ends our side of the stream.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// The stream, with what was read ahead.
    pub fn into_io(self) -> Io {
        if self.read.is_empty() { self.io } else { self.io.rewound(self.read.freeze()) }
    }
}
