//! Bytes → the pieces of a body. Pure.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::{
    chunk::{Chunk, Extensions},
    head::{FIELDS, fields},
    strict::{Flaw, Length, malformed},
};

/// Follows one body to its end.
#[derive(Debug)]
pub struct Decoder(State);

#[derive(Debug)]
enum State {
    /// It has ended.
    Done,
    Sized(u64),
    Chunked {
        at: Chunk,
        extensions: Extensions,
        /// Lines of trailers so far.
        trailers: BytesMut,
    },
    Close,
}

/// A piece of a body.
#[derive(Debug)]
pub enum Piece {
    /// Bytes, never none.
    Data(Bytes),
    /// The trailers that end it.
    Trailers(HeaderMap),
    /// Its end.
    End,
    /// More bytes are needed.
    More,
}

impl Decoder {
    /// At the beginning of a body.
    pub fn new(length: Length, extensions: Extensions) -> Self {
        Self(match length {
            Length::Sized(0) => State::Done,
            Length::Sized(bytes) => State::Sized(bytes),
            Length::Chunked => State::Chunked { at: Chunk::START, extensions, trailers: BytesMut::new() },
            Length::Close => State::Close,
        })
    }

    /// Of a message without one.
    pub const fn done() -> Self {
        Self(State::Done)
    }

    /// Whether all of it was taken.
    pub fn is_done(&self) -> bool {
        matches!(self.0, State::Done)
    }

    /// Bytes that are left, where that is known.
    pub fn left(&self) -> Option<u64> {
        match self.0 {
            State::Done => Some(0),
            State::Sized(left) => Some(left),
            State::Chunked { .. } | State::Close => None,
        }
    }

    /// The stream has ended: whether the body may end there.
    pub fn closed(&mut self) -> bool {
        if matches!(self.0, State::Close) {
            self.0 = State::Done;
        }
        self.is_done()
    }

    /// Takes the next piece out of `bytes`.
    /// # Errors
    /// Chunked framing that is not plain.
    pub fn decode(&mut self, bytes: &mut BytesMut) -> Result<Piece, Flaw> {
        match &mut self.0 {
            State::Done => Ok(Piece::End),
            _ if bytes.is_empty() => Ok(Piece::More),
            State::Close => Ok(Piece::Data(bytes.split().freeze())),
            State::Sized(left) => {
                let data = take(bytes, *left);
                *left -= data.len() as u64;
                if *left == 0 {
                    self.0 = State::Done;
                }
                Ok(Piece::Data(data))
            }
            State::Chunked { at, extensions, trailers } => {
                let piece = chunked(at, extensions, trailers, bytes)?;
                if matches!(piece, Piece::Trailers(_) | Piece::End) {
                    self.0 = State::Done;
                }
                Ok(piece)
            }
        }
    }
}

fn take(bytes: &mut BytesMut, most: u64) -> Bytes {
    let len = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_to(len).freeze()
}

fn chunked(
    at: &mut Chunk,
    extensions: &mut Extensions,
    trailers: &mut BytesMut,
    bytes: &mut BytesMut,
) -> Result<Piece, Flaw> {
    let mut passed = 0;
    while let Some(&byte) = bytes.get(passed) {
        if let Chunk::Data(left) = at {
            bytes.advance(passed);
            let data = take(bytes, *left);
            *left -= data.len() as u64;
            if *left == 0 {
                *at = Chunk::DataCr;
            }
            return Ok(Piece::Data(data));
        }
        if matches!(at, Chunk::Trailer { .. } | Chunk::TrailerLf { .. }) {
            trailers.extend_from_slice(&[byte]);
        }
        passed += 1;
        match at.next(byte, extensions)? {
            Some(next) => *at = next,
            None => {
                bytes.advance(passed);
                return end(trailers.split().freeze());
            }
        }
    }
    bytes.advance(passed);
    Ok(Piece::More)
}

/// `lines` end with the empty one.
fn end(lines: Bytes) -> Result<Piece, Flaw> {
    if lines.len() == 2 {
        return Ok(Piece::End);
    }
    let mut space = [httparse::EMPTY_HEADER; FIELDS];
    let bad = malformed("trailers that are no header fields");
    match httparse::parse_headers(&lines, &mut space) {
        Ok(httparse::Status::Complete((_, parsed))) => Ok(Piece::Trailers(fields(&lines, parsed).ok_or(bad)?)),
        Ok(httparse::Status::Partial) | Err(_) => Err(bad),
    }
}
