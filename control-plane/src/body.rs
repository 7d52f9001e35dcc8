//! A body that holds on to what it gave last.
//!
//! tonic makes the messages of a call in one buffer and cuts them off. When what was cut off is gone by the next message,
//! the buffer is used again, and grown: each stream would keep room for the longest message that it ever sent, which is
//! its first, and say little from then on. While that is still held the next message gets a buffer of its own size.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};

/// An answer's body.
#[derive(Debug)]
pub struct Lent {
    inner: Body,
    last: Bytes,
}

impl Lent {
    /// Gives what `inner` gives.
    pub fn new(inner: Body) -> Self {
        Self { inner, last: Bytes::new() }
    }
}

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        self.last = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref().cloned()).unwrap_or_default();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
