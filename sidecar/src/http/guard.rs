//! Puts [`super::strict`] and the deadlines of reading around the server side of an HTTP/1 connection.
//!
//! A message that is refused never reaches the parser. In place of a refused head the parser gets a small request of
//! ours ([`REFUSED`]), so that the refusal is answered, logged and counted like any other request; after it nothing is
//! read any more. A body that turns out bad ends with an error before its last byte.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::strict::{Framing, Place, Step};
use crate::{io::Io, reason::Reason};

/// Method of the request that stands in for a refused one. It counts only together with [`Signals::refused`].
pub const REFUSED: &str = "WEFT-REFUSED";
const STAND_IN: &[u8] = b"WEFT-REFUSED / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// What a connection's guard and its requests tell each other.
#[derive(Debug, Default)]
pub struct Signals {
    /// 0, or 1 + the index of the reason.
    refused: AtomicU8,
    /// Requests that are being answered.
    busy: AtomicU32,
}

impl Signals {
    /// Why the connection's last message was refused.
    pub fn refused(&self) -> Option<Reason> {
        let index = self.refused.load(Relaxed).checked_sub(1)?;
        Reason::ALL.get(usize::from(index)).copied()
    }

    fn refuse(&self, reason: Reason) {
        let index = u8::try_from(reason.index() + 1).expect("there are fewer than 255 reasons");
        self.refused.store(index, Relaxed);
    }

    /// Counts a request as being answered until the guard is dropped: no idle time passes meanwhile.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Relaxed);
        Busy(Arc::clone(self))
    }

    /// Whether a request is being answered.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Relaxed) > 0
    }
}

/// See [`Signals::busy`].
#[derive(Debug)]
pub struct Busy(Arc<Signals>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Relaxed);
    }
}

/// How long reading may take.
#[derive(Debug, Clone, Copy)]
pub struct ReadTimes {
    /// A whole head, from its first byte.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// Between two pieces of a body.
    pub body: Duration,
}

/// The guarded stream.
#[derive(Debug)]
pub struct Guard {
    io: Io,
    framing: Framing,
    /// Came in, may not pass yet or waits to be taken.
    held: BytesMut,
    /// How many of the held bytes may pass.
    free: usize,
    /// The stream is refused: what is in `held` is the stand-in, and nothing follows it.
    ended: bool,
    signals: Arc<Signals>,
    times: ReadTimes,
    clock: Clock,
}

#[derive(Debug)]
struct Clock {
    sleep: Option<Pin<Box<Sleep>>>,
    place: Place,
    deadline: Instant,
    /// The first head has not come yet: its deadline began at accept.
    first: bool,
}

/// Read at one time while looking for a head.
const PIECE: usize = 4096;

impl Guard {
    /// `first_head_by`: the deadline of the first head; it began at accept and covers TLS.
    pub fn new(io: Io, signals: Arc<Signals>, times: ReadTimes, first_head_by: Instant) -> Self {
        let clock = Clock { sleep: None, place: Place::Head, deadline: first_head_by, first: true };
        Self { io, framing: Framing::default(), held: BytesMut::new(), free: 0, ended: false, signals, times, clock }
    }

    /// Refuses what is being read: a head is replaced by the stand-in, a body ends with an error.
    fn refuse(&mut self, reason: Reason, in_body: bool) -> io::Result<()> {
        self.signals.refuse(reason);
        self.ended = true;
        self.held.clear();
        if in_body {
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason.code()));
        }
        self.held.extend_from_slice(STAND_IN);
        self.free = self.held.len();
        Ok(())
    }

    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let len = self.free.min(buf.remaining());
        buf.put_slice(&self.held[..len]);
        self.held.advance(len);
        self.free -= len;
        if self.held.is_empty() && self.held.capacity() > PIECE {
            self.held = BytesMut::new();
        }
    }

    /// Starts the clock of the place where reading stands, and fires it.
    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let place = self.framing.place(!self.held.is_empty());
        if place == Place::Tunnel {
            return Poll::Pending;
        }
        if self.clock.place != place && !self.clock.first {
            self.clock.place = place;
            self.clock.deadline = Instant::now() + self.allowed(place);
        }
        let deadline = self.clock.deadline;
        let sleep = self.clock.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            if sleep.deadline() != deadline && sleep.deadline() < deadline || sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            ready!(sleep.as_mut().poll(cx));
            if !self.signals.is_busy() || place == Place::Body {
                return Poll::Ready(());
            }
            // A request is being answered: the time does not count.
            let later = Instant::now() + self.times.idle;
            self.clock.deadline = later;
            sleep.as_mut().reset(later);
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn allowed(&self, place: Place) -> Duration {
        match place {
            Place::Between | Place::Tunnel => self.times.idle,
            Place::Head => self.times.head,
            Place::Body => self.times.body,
        }
    }

    /// A piece of a body came or a message ended: its clock starts again.
    fn progress(&mut self) {
        if self.clock.place == Place::Body {
            self.clock.deadline = Instant::now() + self.times.body;
        }
    }

    /// Reads what the machine need not look at straight into the reader's buffer.
    fn poll_blind(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let limit = usize::try_from(self.framing.blind()).unwrap_or(usize::MAX).min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(limit));
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
        let len = part.filled().len();
        buf.advance(len);
        self.framing.passed(len as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Guard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.free > 0 {
                this.give(buf);
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Pending;
            }
            match this.framing.step(&this.held) {
                Step::Pass(len) => {
                    this.clock.first = false;
                    this.free = len;
                    this.progress();
                    continue;
                }
                Step::Drop(len) => {
                    this.held.advance(len);
                    continue;
                }
                Step::Refuse(flaw) => {
                    tracing::debug!(rule = flaw.rule, "request refused");
                    this.refuse(flaw.reason, flaw.in_body)?;
                    continue;
                }
                Step::More => {}
            }
            if let Poll::Ready(read) = this.poll_more(cx, buf) {
                match read? {
                    More::Held => continue,
                    More::Given | More::End => return Poll::Ready(Ok(())),
                }
            }
            ready!(this.poll_clock(cx));
            match this.framing.place(!this.held.is_empty()) {
                Place::Between if !this.clock.first => return Poll::Ready(Ok(())),
                Place::Between | Place::Head => this.refuse(Reason::HeaderTimeout, false)?,
                Place::Body | Place::Tunnel => this.refuse(Reason::BodyTimeout, true)?,
            }
        }
    }
}

enum More {
    /// Bytes were added to those held.
    Held,
    /// Bytes went to the reader.
    Given,
    /// The peer has ended the stream.
    End,
}

impl Guard {
    fn poll_more(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<More>> {
        if self.framing.blind() > 0 {
            let before = buf.filled().len();
            ready!(self.poll_blind(cx, buf))?;
            self.progress();
            return Poll::Ready(Ok(if buf.filled().len() > before { More::Given } else { More::End }));
        }
        self.held.reserve(PIECE);
        let read = ready!(tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.held))?;
        Poll::Ready(Ok(if read > 0 { More::Held } else { More::End }))
    }
}

impl AsyncWrite for Guard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
