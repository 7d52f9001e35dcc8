//! A body as it comes in.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{HeaderMap, header};
use http_body::Frame;

use super::outflow::{Outflow, Stopped};
use crate::http::body::BoxError;

/// Streams that have come to their end. h2 wakes its connection for each that is let go, though all has been said: they
/// are let go when it runs the next time.
#[derive(Debug)]
pub(super) struct Finished(RefCell<Option<Vec<RecvStream>>>);

impl Default for Finished {
    fn default() -> Self {
        Self(RefCell::new(Some(Vec::new())))
    }
}

impl Finished {
    pub(super) fn keep(&self, stream: RecvStream) {
        if let Some(streams) = &mut *self.0.borrow_mut() {
            streams.push(stream);
        }
    }

    pub(super) fn clear(&self) {
        if let Some(streams) = &mut *self.0.borrow_mut() {
            streams.clear();
        }
    }

    /// No more is kept: the connection is to end.
    pub(super) fn close(&self) {
        self.0.take();
    }
}

/// A body of either direction. Taking an answer's also sends what is left of its request.
#[derive(Debug)]
pub struct Received {
    /// There, but while this is dropped.
    stream: Option<RecvStream>,
    /// What `content-length` says is still to come.
    left: Option<u64>,
    /// All data came; trailers may follow.
    data_over: bool,
    /// Of an answer: the request's body, while it is not sent whole.
    upload: Option<Box<Outflow>>,
    /// The caller's body broke off.
    broke: bool,
    finished: Option<Rc<Finished>>,
}

impl Drop for Received {
    fn drop(&mut self) {
        if let (Some(stream), Some(finished)) = (self.stream.take(), &self.finished)
            && self.upload.is_none()
            && stream.is_end_stream()
        {
            finished.keep(stream);
        }
    }
}

impl Received {
    /// `fields`: of the head.
    pub(super) fn new(
        stream: RecvStream,
        fields: &HeaderMap,
        upload: Option<Box<Outflow>>,
        finished: Option<Rc<Finished>>,
    ) -> Self {
        // That it is a number, and that it is true, is looked at by h2.
        let left = fields.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { stream: Some(stream), left, data_over: false, upload, broke: false, finished }
    }

    /// Goes on sending the request's body.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        let Some(upload) = &mut self.upload else { return };
        if let Poll::Ready(ended) = upload.poll(cx) {
            self.broke = ended == Err(Stopped::Source);
            // A peer that wants no more may answer all the same: who reads the answer learns all that is to be known.
            self.upload = None;
        }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.poll_upload(cx);
        if self.broke {
            return Poll::Ready(Some(Err("the caller's body broke off".into())));
        }
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        if !self.data_over {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // What is taken makes room. It cannot be more than came.
                    let _ = stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(ended(error)),
                None => self.data_over = true,
            }
        }
        match ready!(stream.poll_trailers(cx)) {
            Ok(fields) => Poll::Ready(fields.map(|fields| Ok(Frame::trailers(fields)))),
            Err(error) => Poll::Ready(ended(error)),
        }
    }

    pub(crate) fn is_end(&self) -> bool {
        self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    pub(crate) fn left(&self) -> Option<u64> {
        self.left
    }
}

/// A peer that resets with NO_ERROR has said all that it had to say: it wants no more of ours.
fn ended(error: h2::Error) -> Option<Result<Frame<Bytes>, BoxError>> {
    (error.reason() != Some(Reason::NO_ERROR)).then(|| Err(error.into()))
}
