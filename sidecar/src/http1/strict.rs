//! What a request's head may look like: whatever can be read in two ways is refused.
//!
//! Pure: bytes in, the head's end and how its body ends out, or a flaw. Nothing that is refused here reaches the parser
//! behind it, so both always agree on where a message ends.

use crate::reason::Reason;

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flaw {
    /// The reason to answer.
    pub reason: Reason,
    /// Which rule was broken.
    pub rule: &'static str,
}

/// How far the bytes were understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanned {
    /// The head ends after so many bytes.
    Head(usize),
    /// So many bytes are to be dropped: empty lines before a request.
    Drop(usize),
    /// More bytes are needed.
    More,
}

/// Looks for the end of a head, each byte once.
#[derive(Debug, Default)]
pub struct Scan {
    /// Bytes that are known to be whole lines.
    scanned: usize,
    /// Start of the current line.
    line: usize,
}

/// What a head says of what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follows {
    /// The body.
    pub body: Length,
    /// CONNECT, or another protocol is asked for: after this head the stream is no longer HTTP/1, unless it is refused,
    /// and then the connection ends.
    pub switches: bool,
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// After so many bytes.
    Sized(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection. Only answers do.
    Close,
}

/// Most bytes of a head.
pub const MAX_HEAD: usize = 64 * 1024;
/// Most header fields.
pub const MAX_FIELDS: usize = 100;

pub(super) const fn ambiguous(rule: &'static str) -> Flaw {
    Flaw { reason: Reason::AmbiguousFraming, rule }
}

pub(super) const fn malformed(rule: &'static str) -> Flaw {
    Flaw { reason: Reason::ClientProtocolError, rule }
}

pub(super) const fn too_large(rule: &'static str) -> Flaw {
    Flaw { reason: Reason::HeadersTooLarge, rule }
}

pub(super) const fn bad_host(rule: &'static str) -> Flaw {
    Flaw { reason: Reason::BadHost, rule }
}

impl Scan {
    /// Looks at `bytes`: all that came and does not belong to a message before.
    /// # Errors
    /// The head is too large, or its lines do not end properly.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Scanned, Flaw> {
        if bytes.starts_with(b"\r\n") {
            // Nothing was in the line: `scanned` cannot be beyond it.
            self.scanned = 0;
            return Ok(Scanned::Drop(2));
        }
        while let Some(at) = memchr::memchr(b'\n', &bytes[self.scanned..]) {
            let end = self.scanned + at;
            if end == 0 || bytes[end - 1] != b'\r' {
                return Err(ambiguous("bare LF in the head"));
            }
            let empty = end - 1 == self.line;
            self.scanned = end + 1;
            if empty {
                let head = self.scanned;
                *self = Self::default();
                return if head > MAX_HEAD { Err(too_large("head over 64 KiB")) } else { Ok(Scanned::Head(head)) };
            }
            self.line = end + 1;
        }
        self.scanned = bytes.len();
        if bytes.len() > MAX_HEAD { Err(too_large("head over 64 KiB")) } else { Ok(Scanned::More) }
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

/// Checks a whole head: it ends with the empty line, and every LF in it follows a CR.
/// # Errors
/// What is wrong with it.
pub fn check(head: &[u8]) -> Result<Follows, Flaw> {
    Head::check(head)
}

impl Head {
    fn check(head: &[u8]) -> Result<Follows, Flaw> {
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
        let bodyless = !seen.chunked && matches!(seen.length, Some(0) | None);
        if connect && !bodyless {
            return Err(ambiguous("CONNECT with a body"));
        }
        let body = if seen.chunked { Length::Chunked } else { Length::Sized(seen.length.unwrap_or(0)) };
        Ok(Follows { body, switches: connect || seen.upgrade && bodyless })
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
        if any_control(value) {
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

/// What a byte may stand for, looked up rather than asked: every byte of every head is.
static BYTES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let ascii = byte as u8;
        if ascii.is_ascii_alphanumeric() {
            table[byte] |= TOKEN;
        }
        if byte <= 8 || 10 <= byte && byte <= 31 || byte == 127 {
            table[byte] |= CONTROL;
        }
        byte += 1;
    }
    let marks = b"!#$%&'*+-.^_`|~";
    let mut mark = 0;
    while mark < marks.len() {
        table[marks[mark] as usize] |= TOKEN;
        mark += 1;
    }
    table
};
const TOKEN: u8 = 1;
/// Not a part of any field's value.
const CONTROL: u8 = 2;

fn token(byte: u8) -> bool {
    BYTES[usize::from(byte)] & TOKEN != 0
}

/// Looks at all of them without a branch for each.
fn any_control(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |seen, byte| seen | BYTES[usize::from(*byte)]) & CONTROL != 0
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
