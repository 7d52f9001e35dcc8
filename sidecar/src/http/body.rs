//! Bodies: what comes from a caller, kept for a replay up to a bound, and what goes back to it.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::{answer::Answer, headers, incoming::Incoming};
use crate::record::Entry;

/// Why a body breaks off.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Every body that the data path sends, either way.
#[derive(Debug)]
pub enum Body {
    /// Nothing.
    Empty,
    /// A few bytes of ours.
    Full(Bytes),
    /// A caller's body on its way to an upstream.
    Upload(Upload),
    /// An upstream's body on its way to the caller.
    Answer(Box<Answer>),
}

impl Body {
    /// Goes on sending what belongs to the same message, while nobody takes this body.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if let Self::Answer(answer) = self {
            answer.poll_upload(cx);
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Upload(upload) => upload.poll_frame(cx),
            Self::Answer(answer) => answer.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Upload(upload) => upload.is_end(),
            Self::Answer(answer) => answer.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Upload(upload) => upload.size_hint(),
            Self::Answer(answer) => answer.size_hint(),
        }
    }
}

/// A caller's body: its source, and what of it is kept for a replay.
#[derive(Debug)]
pub struct Source {
    incoming: RefCell<Incoming>,
    kept: RefCell<Vec<Bytes>>,
    kept_bytes: Cell<usize>,
    /// Most bytes that are kept; beyond, nothing is, and there is no replay.
    limit: usize,
    overflowed: Cell<bool>,
    trailers: RefCell<Option<HeaderMap>>,
    ended: Cell<bool>,
    failed: Cell<bool>,
    /// Of the newest [`Upload`]; older ones fail.
    generation: Cell<u32>,
    record: Rc<Entry>,
}

impl Source {
    /// `limit`: bytes that may be kept.
    pub fn new(incoming: Incoming, limit: usize, record: Rc<Entry>) -> Rc<Self> {
        Rc::new(Self {
            incoming: RefCell::new(incoming),
            kept: RefCell::default(),
            kept_bytes: Cell::new(0),
            limit,
            overflowed: Cell::new(false),
            trailers: RefCell::default(),
            ended: Cell::new(false),
            failed: Cell::new(false),
            generation: Cell::new(0),
            record,
        })
    }

    /// The body from its beginning, for one try. Those handed out before fail from now on.
    pub fn upload(self: &Rc<Self>) -> Upload {
        let generation = self.generation.get() + 1;
        self.generation.set(generation);
        Upload { source: Rc::clone(self), generation, next: 0, yielded: 0, trailers_sent: false }
    }

    /// Whether the body can be sent once more from its beginning.
    pub fn replayable(&self) -> bool {
        !self.overflowed.get() && !self.failed.get()
    }

    /// The caller has sent all of it.
    pub fn ended(&self) -> bool {
        self.ended.get()
    }

    /// The caller's side broke off.
    pub fn failed(&self) -> bool {
        self.failed.get()
    }

    fn keep(&self, data: &Bytes) {
        if self.overflowed.get() {
            return;
        }
        let bytes = self.kept_bytes.get() + data.len();
        if bytes > self.limit {
            self.overflowed.set(true);
            self.kept.take();
            return;
        }
        self.kept_bytes.set(bytes);
        self.kept.borrow_mut().push(data.clone());
    }
}

/// A caller's body on its way to one upstream.
#[derive(Debug)]
pub struct Upload {
    source: Rc<Source>,
    generation: u32,
    /// Index of the next kept piece.
    next: usize,
    yielded: u64,
    trailers_sent: bool,
}

impl Upload {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let source = &*self.source;
        if source.generation.get() != self.generation {
            return Poll::Ready(Some(Err("the request is being sent elsewhere".into())));
        }
        if let Some(piece) = source.kept.borrow().get(self.next) {
            self.next += 1;
            self.yielded += piece.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if source.failed.get() {
            return Poll::Ready(Some(Err("the caller's body broke off".into())));
        }
        if source.ended.get() {
            let trailers = source.trailers.borrow().clone().filter(|_| !self.trailers_sent);
            self.trailers_sent = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let mut incoming = source.incoming.borrow_mut();
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        let ended = incoming.is_end_stream();
        drop(incoming);
        source.record.progress();
        let frame = match frame {
            None => {
                source.ended.set(true);
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                source.failed.set(true);
                return Poll::Ready(Some(Err(error)));
            }
            Some(Ok(frame)) => frame,
        };
        if ended {
            source.ended.set(true);
        }
        match frame.into_data() {
            Ok(data) => {
                source.record.received(data.len());
                source.keep(&data);
                self.next = source.kept.borrow().len();
                self.yielded += data.len() as u64;
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Err(frame) => match frame.into_trailers() {
                Ok(mut trailers) => {
                    headers::strip_trailers(&mut trailers);
                    self.trailers_sent = true;
                    source.ended.set(true);
                    *source.trailers.borrow_mut() = Some(trailers.clone());
                    Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                }
                // Neither data nor trailers: there is no third kind.
                Err(_unknown) => Poll::Ready(None),
            },
        }
    }

    fn is_end(&self) -> bool {
        let source = &*self.source;
        source.generation.get() == self.generation
            && source.ended.get()
            && self.next >= source.kept.borrow().len()
            && (self.trailers_sent || source.trailers.borrow().is_none())
    }

    fn size_hint(&self) -> SizeHint {
        // What is kept came before what the source still has.
        let kept: usize = self.source.kept.borrow().iter().skip(self.next).map(Bytes::len).sum();
        match self.source.incoming.borrow().size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + kept as u64),
            None => SizeHint::default(),
        }
    }
}
