//! Follows HTTP/1 message boundaries byte by byte and refuses what can be read in two ways.
//!
//! Pure: bytes in, "so many may pass" or a flaw out. [`super::guard`] puts it around a connection, so that the parser
//! behind it only ever sees messages whose end both agree on. It parses nothing else: meaning is left to hyper.

use crate::reason::Reason;

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flaw {
    /// The reason to answer.
    pub reason: Reason,
    /// Which rule was broken.
    pub rule: &'static str,
    /// In a body, whose head has passed already.
    pub in_body: bool,
}

/// How far the bytes were understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many bytes (at least one) may pass.
    Pass(usize),
    /// So many bytes are to be dropped: empty lines before a request.
    Drop(usize),
    /// More bytes are needed; none may pass yet.
    More,
    /// The message is refused. What passed before stays.
    Refuse(Flaw),
}

/// Where in the stream of messages the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Between two messages.
    Between,
    /// In a head that is not complete.
    Head,
    /// In a body.
    Body,
    /// After an upgrade or CONNECT: no longer HTTP/1 unless it is refused, and then the connection ends.
    Tunnel,
}

/// The state machine.
#[derive(Debug)]
pub struct Framing {
    state: State,
    /// Bytes of the current head or trailers that are known to be whole lines.
    scanned: usize,
    /// Start of the current line in the head.
    line: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    Chunk(Chunk),
    Tunnel,
    Refused(Flaw),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size {
        value: u64,
        digits: u8,
    },
    SizeLf {
        value: u64,
    },
    Data(u64),
    DataCr,
    DataLf,
    /// In a trailer line, `bytes` into the trailers, `line` into the line.
    Trailer {
        bytes: u32,
        line: u32,
    },
    TrailerLf {
        bytes: u32,
        empty: bool,
    },
}

/// Most bytes of a head.
pub const MAX_HEAD: usize = 64 * 1024;
/// Most header fields.
pub const MAX_FIELDS: usize = 100;

const fn ambiguous(rule: &'static str) -> Flaw {
    Flaw { reason: Reason::AmbiguousFraming, rule, in_body: false }
}

const fn malformed(rule: &'static str) -> Flaw {
    Flaw { reason: Reason::ClientProtocolError, rule, in_body: false }
}

const fn too_large(rule: &'static str) -> Flaw {
    Flaw { reason: Reason::HeadersTooLarge, rule, in_body: false }
}

const fn bad_host(rule: &'static str) -> Flaw {
    Flaw { reason: Reason::BadHost, rule, in_body: false }
}

impl Default for Framing {
    fn default() -> Self {
        Self { state: State::Head, scanned: 0, line: 0 }
    }
}

impl Framing {
    /// Where the next byte stands; `held` tells whether bytes of a head were already seen.
    pub fn place(&self, held: bool) -> Place {
        match self.state {
            State::Head if held => Place::Head,
            State::Head => Place::Between,
            State::Length(_) | State::Chunk(_) => Place::Body,
            State::Tunnel | State::Refused(_) => Place::Tunnel,
        }
    }

    /// Bytes that may pass without being looked at.
    pub fn blind(&self) -> u64 {
        match self.state {
            State::Length(left) | State::Chunk(Chunk::Data(left)) => left,
            State::Tunnel => u64::MAX,
            State::Head | State::Chunk(_) | State::Refused(_) => 0,
        }
    }

    /// Notes that `len` bytes, at most [`Framing::blind`], have passed.
    pub fn passed(&mut self, len: u64) {
        match &mut self.state {
            State::Length(left) => {
                *left -= len;
                if *left == 0 {
                    self.next_message();
                }
            }
            State::Chunk(Chunk::Data(left)) => {
                *left -= len;
                if *left == 0 {
                    self.state = State::Chunk(Chunk::DataCr);
                }
            }
            State::Tunnel | State::Head | State::Chunk(_) | State::Refused(_) => {}
        }
    }

    /// Looks at `bytes`: all that came and did not pass yet. A head passes as a whole or not at all, and what passes
    /// never reaches into the next message.
    pub fn step(&mut self, bytes: &[u8]) -> Step {
        match self.state {
            State::Refused(flaw) => Step::Refuse(flaw),
            _ if bytes.is_empty() => Step::More,
            State::Head => self.head(bytes),
            State::Chunk(chunk) if !matches!(chunk, Chunk::Data(_)) => self.chunk(bytes),
            State::Length(_) | State::Chunk(_) | State::Tunnel => {
                let len = usize::try_from(self.blind()).unwrap_or(usize::MAX).min(bytes.len());
                self.passed(len as u64);
                Step::Pass(len)
            }
        }
    }

    fn next_message(&mut self) {
        *self = Self::default();
    }

    fn refuse(&mut self, flaw: Flaw) -> Step {
        self.state = State::Refused(flaw);
        Step::Refuse(flaw)
    }

    fn head(&mut self, bytes: &[u8]) -> Step {
        if bytes.starts_with(b"\r\n") {
            // Nothing was in the line: `scanned` cannot be beyond it.
            self.scanned = 0;
            return Step::Drop(2);
        }
        while let Some(at) = memchr::memchr(b'\n', &bytes[self.scanned..]) {
            let end = self.scanned + at;
            if end == 0 || bytes[end - 1] != b'\r' {
                return self.refuse(ambiguous("bare LF in the head"));
            }
            let empty = end - 1 == self.line;
            self.scanned = end + 1;
            if empty {
                return if self.scanned > MAX_HEAD {
                    self.refuse(too_large("head over 64 KiB"))
                } else {
                    self.head_complete(&bytes[..end + 1])
                };
            }
            self.line = end + 1;
        }
        self.scanned = bytes.len();
        if bytes.len() > MAX_HEAD {
            return self.refuse(too_large("head over 64 KiB"));
        }
        Step::More
    }

    fn head_complete(&mut self, head: &[u8]) -> Step {
        match Head::check(head) {
            Err(flaw) => self.refuse(flaw),
            Ok(after) => {
                self.next_message();
                self.state = after;
                Step::Pass(head.len())
            }
        }
    }

    fn chunk(&mut self, bytes: &[u8]) -> Step {
        for (at, &byte) in bytes.iter().enumerate() {
            let State::Chunk(chunk) = self.state else {
                // The message ended before this byte.
                return Step::Pass(at);
            };
            if matches!(chunk, Chunk::Data(_)) {
                return Step::Pass(at);
            }
            match chunk.next(byte) {
                Ok(Some(next)) => self.state = State::Chunk(next),
                Ok(None) => self.next_message(),
                Err(flaw) => {
                    let flaw = Flaw { in_body: true, ..flaw };
                    self.state = State::Refused(flaw);
                    return if at > 0 { Step::Pass(at) } else { Step::Refuse(flaw) };
                }
            }
        }
        Step::Pass(bytes.len())
    }
}

impl Chunk {
    const START: Self = Self::Size { value: 0, digits: 0 };

    /// The state after `byte`; `None`: the message is complete.
    fn next(self, byte: u8) -> Result<Option<Self>, Flaw> {
        Ok(Some(match (self, byte) {
            (Self::Size { value, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == 15 {
                    return Err(ambiguous("chunk size of more than 15 digits"));
                }
                let digit = char::from(byte).to_digit(16).expect("the arm takes hexadecimal digits");
                Self::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Self::Size { digits: 0, .. }, _) => return Err(ambiguous("chunk size without digits")),
            (Self::Size { value, .. }, b'\r') => Self::SizeLf { value },
            (Self::Size { .. }, b';') => return Err(ambiguous("chunk extension")),
            (Self::Size { .. }, _) => return Err(ambiguous("chunk size with other than digits")),
            (Self::SizeLf { value: 0 }, b'\n') => Self::Trailer { bytes: 0, line: 0 },
            (Self::SizeLf { value }, b'\n') => Self::Data(value),
            (Self::SizeLf { .. }, _) => return Err(ambiguous("CR without LF in a chunk line")),
            (Self::Data(left), _) => Self::Data(left),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::START,
            (Self::DataCr | Self::DataLf, _) => return Err(ambiguous("chunk data longer than its size")),
            (Self::Trailer { bytes, line }, b'\r') => Self::TrailerLf { bytes, empty: line == 0 },
            (Self::Trailer { .. }, b'\n' | 0) => return Err(ambiguous("bare LF or NUL in a trailer")),
            (Self::Trailer { line: 0, .. }, b' ' | b'\t') => return Err(ambiguous("folded trailer")),
            (Self::Trailer { bytes, line }, _) if (bytes as usize) < MAX_HEAD => {
                Self::Trailer { bytes: bytes + 1, line: line + 1 }
            }
            (Self::Trailer { .. }, _) => return Err(too_large("trailers over 64 KiB")),
            (Self::TrailerLf { empty: true, .. }, b'\n') => return Ok(None),
            (Self::TrailerLf { bytes, .. }, b'\n') => Self::Trailer { bytes, line: 0 },
            (Self::TrailerLf { .. }, _) => return Err(ambiguous("CR without LF in a trailer")),
        }))
    }
}

/// What a complete head says of the message's end.
#[derive(Default)]
struct Head {
    length: Option<u64>,
    chunked: bool,
    hosts: u8,
    upgrade: bool,
    fields: usize,
}

impl Head {
    /// `head` ends with the empty line; every LF in it follows a CR.
    fn check(head: &[u8]) -> Result<State, Flaw> {
        let mut lines = head[..head.len() - 2].split(|byte| *byte == b'\n').map(|line| &line[..line.len().max(1) - 1]);
        let request = lines.next().unwrap_or_default();
        let (connect, old) = request_line(request)?;
        let mut seen = Self::default();
        for line in lines.filter(|line| !line.is_empty()) {
            seen.field(line)?;
        }
        if seen.length.is_some() && seen.chunked {
            return Err(ambiguous("both Content-Length and Transfer-Encoding"));
        }
        if old && seen.chunked {
            return Err(ambiguous("HTTP/1.0 with Transfer-Encoding"));
        }
        if !old && seen.hosts == 0 {
            return Err(bad_host("no Host"));
        }
        Ok(match seen.length {
            Some(0) | None if connect || seen.upgrade && !seen.chunked => State::Tunnel,
            _ if connect => return Err(ambiguous("CONNECT with a body")),
            _ if seen.chunked => State::Chunk(Chunk::START),
            Some(0) | None => State::Head,
            Some(length) => State::Length(length),
        })
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Flaw> {
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(too_large("more than 100 header fields"));
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(ambiguous("folded header line"));
        }
        let Some(colon) = memchr::memchr(b':', line) else {
            return Err(malformed("header line without colon"));
        };
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        if name.last().is_some_and(|last| matches!(last, b' ' | b'\t')) {
            return Err(ambiguous("space before the colon"));
        }
        if name.is_empty() || !name.iter().all(|byte| token(*byte)) {
            return Err(malformed("header name that is no token"));
        }
        if value.iter().any(|byte| matches!(byte, 0..=8 | 10..=31 | 127)) {
            return Err(ambiguous("control byte in a header value"));
        }
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(),
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrade |= !value.eq_ignore_ascii_case(b"h2c");
                Ok(())
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.length(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.encoding(value),
            _ => Ok(()),
        }
    }

    fn host(&mut self) -> Result<(), Flaw> {
        self.hosts += 1;
        if self.hosts > 1 { Err(bad_host("two Hosts")) } else { Ok(()) }
    }

    fn length(&mut self, value: &[u8]) -> Result<(), Flaw> {
        if self.length.is_some() {
            return Err(ambiguous("two Content-Lengths"));
        }
        if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
            return Err(ambiguous("Content-Length that is no plain number"));
        }
        self.length = Some(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')));
        Ok(())
    }

    fn encoding(&mut self, value: &[u8]) -> Result<(), Flaw> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(ambiguous("Transfer-Encoding that is not exactly chunked"));
        }
        self.chunked = true;
        Ok(())
    }
}

/// (is CONNECT, is HTTP/1.0)
fn request_line(line: &[u8]) -> Result<(bool, bool), Flaw> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(malformed("request line that is not three words"));
    };
    if method.is_empty() || !method.iter().all(|byte| token(*byte)) {
        return Err(malformed("method that is no token"));
    }
    if target.is_empty() || target.iter().any(|byte| matches!(byte, 0..=32 | 127)) {
        return Err(malformed("control byte in the target"));
    }
    match version {
        b"HTTP/1.1" => Ok((method == b"CONNECT", false)),
        b"HTTP/1.0" => Ok((method == b"CONNECT", true)),
        _ => Err(malformed("version other than HTTP/1.1 and HTTP/1.0")),
    }
}

fn token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
#[path = "strict_tests.rs"]
mod tests;
