//! A body on its way out.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;

use crate::http::body::{Body, BoxError};

/// Sends a body, as fast as its source and the peer let it.
#[derive(Debug)]
pub(super) struct Outflow {
    stream: SendStream<Bytes>,
    body: Body,
    /// A piece that has no room yet, and whether it is the last.
    waits: Option<(Bytes, bool)>,
    /// Pieces that were sent.
    pub(super) pieces: u64,
}

/// Why a body is not sent whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// It broke off; the stream was reset.
    Source,
    /// The peer wants no more of it, or the connection has ended.
    Peer,
}

impl Outflow {
    pub(super) fn new(stream: SendStream<Bytes>, body: Body) -> Self {
        Self { stream, body, waits: None, pieces: 0 }
    }

    /// The peer gives no room.
    pub(super) fn is_blocked(&self) -> bool {
        self.waits.is_some()
    }

    /// Sends what there is; ready at its end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            if self.waits.is_some() && ready!(self.poll_waiting(cx))? {
                return Poll::Ready(Ok(()));
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                // A peer that wants no more must be noticed while the source is slow.
                Poll::Pending => return self.stream.poll_reset(cx).map(|_reason| Err(Stopped::Peer)),
            };
            let last = match frame {
                None => self.put(Bytes::new(), true)?,
                Some(Err(error)) => {
                    self.stream.send_reset(reason(&error));
                    return Poll::Ready(Err(Stopped::Source));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.offer(data)?,
                    Err(frame) => match frame.into_trailers() {
                        Ok(fields) => {
                            self.stream.send_trailers(fields).map_err(|_ended| Stopped::Peer)?;
                            true
                        }
                        // Neither data nor trailers: there is no third kind.
                        Err(_unknown) => false,
                    },
                },
            };
            if last {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Sends a piece, or keeps it until there is room; whether it was sent and the last.
    fn offer(&mut self, data: Bytes) -> Result<bool, Stopped> {
        let last = self.body.is_end_stream();
        if data.is_empty() {
            return if last { self.put(data, true) } else { Ok(false) };
        }
        // The first piece is sent whether there is room or not: it waits as well over there as here, and mostly there is.
        if self.pieces == 0 {
            return self.put(data, last);
        }
        // To be told of room at once, by a waker that was left for later, would be to be polled for nothing.
        if self.stream.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready() {
            return Err(Stopped::Peer);
        }
        // All that is asked for is that there be room at all: what a stream asks for and has no use for yet, others lack.
        self.stream.reserve_capacity(1);
        self.waits = Some((data, last));
        Ok(false)
    }

    /// Sends the piece that waits once there is room; whether it was the last.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Stopped>> {
        while self.stream.capacity() == 0 {
            match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_more))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(Stopped::Peer)),
                Poll::Pending => {
                    // Nobody takes the body now; what belongs to the same message goes on.
                    self.body.poll_upload(cx);
                    return Poll::Pending;
                }
            }
        }
        let (data, last) = self.waits.take().expect("asked for when a piece waits");
        Poll::Ready(self.put(data, last))
    }

    fn put(&mut self, data: Bytes, last: bool) -> Result<bool, Stopped> {
        self.pieces += 1;
        self.stream.send_data(data, last).map_err(|_ended| Stopped::Peer)?;
        Ok(last)
    }
}

/// What the peer is told of a body that broke off: the same as was told to us, where that was HTTP/2.
fn reason(error: &BoxError) -> Reason {
    error.downcast_ref::<h2::Error>().and_then(h2::Error::reason).unwrap_or(Reason::INTERNAL_ERROR)
}
