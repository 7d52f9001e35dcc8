//! Bodies as they come off the wire, of either HTTP version and either direction.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::body::BoxError;
use crate::{
    http1::{client::AnswerBody, server::RequestBody},
    http2::incoming::Received,
};

/// A body that comes in.
#[derive(Debug)]
pub enum Incoming {
    /// There is none.
    Empty,
    /// A caller's, HTTP/1.
    Request(RequestBody),
    /// An upstream's, HTTP/1.
    Answer(AnswerBody),
    /// HTTP/2, either way.
    Http2(Received),
}

impl Incoming {
    /// Goes on sending what belongs to the same message, while nobody takes this body.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::Empty | Self::Request(_) => {}
            Self::Answer(answer) => answer.poll_upload(cx),
            Self::Http2(body) => body.poll_upload(cx),
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Request(body) => body.poll_frame(cx),
            Self::Answer(body) => body.poll_frame(cx),
            Self::Http2(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Request(body) => body.is_end(),
            Self::Answer(body) => body.is_end(),
            Self::Http2(body) => body.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Request(body) => body.left().map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Answer(body) => body.left().map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Http2(body) => body.left().map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
