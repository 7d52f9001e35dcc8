//! Bytes both ways between two streams, in strides that are as long as the flow is fast.
//!
//! What is read is held in a lent buffer only until it has been written: a relay that waits for bytes holds no memory.
//! A stride is read until the source has no more or the buffer is full, so that many TLS records become one write.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::lend::Lent;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the caller.
    Up,
    /// To the caller.
    Down,
}

/// Strides of one direction before the thread's other connections get their turn.
const IN_ONE_TURN: usize = 4;
/// A rest of up to this length that a slow receiver has not taken moves to memory of its own length.
const SMALL_REST: usize = 16 * 1024;

/// Carries bytes both ways until both streams have ended; the end of one direction leaves the other open. `moved` is
/// told once for each stride how many bytes came from the caller, or went to it.
/// # Errors
/// What either stream answers.
pub(super) async fn carry<D, U>(mut downstream: D, mut upstream: U, moved: impl Fn(Way, usize)) -> io::Result<()>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Flow::default(), Flow::default());
    poll_fn(|cx| {
        let up = up.poll(cx, &mut downstream, &mut upstream, |read, _| moved(Way::Up, read))?;
        let down = down.poll(cx, &mut upstream, &mut downstream, |_, written| moved(Way::Down, written))?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    rest: Rest,
    /// What was written may still be on its way.
    unflushed: bool,
    state: State,
    /// The source broke off after bytes that are still to be written.
    broken: Option<io::Error>,
}

/// What was read and has not been taken yet.
#[derive(Debug, Default)]
enum Rest {
    #[default]
    Nothing,
    /// In the buffer that it was read into, `from..to`.
    Lent(Lent, usize, usize),
    /// Copied, from the index on.
    Own(Box<[u8]>, usize),
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The source has ended; the destination is to be told.
    Ended,
    Closed,
}

impl Flow {
    /// Moves what can be moved. `moved` is told (bytes read, bytes written), one of them 0.
    fn poll<S, T>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut S,
        to: &mut T,
        moved: impl Fn(usize, usize),
    ) -> Poll<io::Result<()>>
    where
        S: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        for _ in 0..IN_ONE_TURN {
            ready!(self.poll_write(cx, to, &moved))?;
            if let Some(error) = self.broken.take() {
                return Poll::Ready(Err(error));
            }
            match self.state {
                State::Open => {}
                State::Ended => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Closed;
                }
                State::Closed => {}
            }
            if self.state == State::Closed {
                return Poll::Ready(Ok(()));
            }
            match self.poll_read(cx, from)? {
                Poll::Ready(0) => {}
                Poll::Ready(bytes) => moved(bytes, 0),
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads a stride, or what there is of it. 0: nothing more comes.
    fn poll_read<S: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, from: &mut S) -> Poll<io::Result<usize>> {
        let mut lent = Lent::new();
        let mut buffer = ReadBuf::new(&mut lent);
        loop {
            let before = buffer.filled().len();
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() == before => {
                    self.state = State::Ended;
                    break;
                }
                Poll::Ready(Ok(())) if buffer.remaining() > 0 => {}
                Poll::Ready(Ok(())) => break,
                Poll::Pending if before > 0 => break,
                Poll::Pending => return Poll::Pending,
                // It would not be told a second time.
                Poll::Ready(Err(error)) => {
                    self.broken = Some(error);
                    break;
                }
            }
        }
        let read = buffer.filled().len();
        if read > 0 {
            self.rest = Rest::Lent(lent, 0, read);
        }
        Poll::Ready(Ok(read))
    }

    /// Writes what is held.
    fn poll_write<T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut T,
        moved: &impl Fn(usize, usize),
    ) -> Poll<io::Result<()>> {
        loop {
            let bytes = self.rest.bytes();
            if bytes.is_empty() {
                self.rest = Rest::Nothing;
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut *to).poll_write(cx, bytes)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(written) => {
                    self.rest.advance(written);
                    self.unflushed = true;
                    moved(0, written);
                }
                Poll::Pending => {
                    self.rest.shrink();
                    return Poll::Pending;
                }
            }
        }
    }
}

impl Rest {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Nothing => &[],
            Self::Lent(lent, from, to) => &lent[*from..*to],
            Self::Own(bytes, from) => &bytes[*from..],
        }
    }

    fn advance(&mut self, by: usize) {
        match self {
            Self::Nothing => {}
            Self::Lent(_, from, _) | Self::Own(_, from) => *from += by,
        }
    }

    fn shrink(&mut self) {
        if let Self::Lent(lent, from, to) = self
            && *to - *from <= SMALL_REST
        {
            *self = Self::Own(lent[*from..*to].into(), 0);
        }
    }
}

#[cfg(test)]
mod tests;
