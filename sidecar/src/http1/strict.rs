//! What a request's head may look like: whatever can be read in two ways is refused.
//!
//! Pure: bytes in, the head's end, its fields and how its body ends out, or a flaw. Whoever makes types of a head takes
//! the fields from here: there is no second reading that could differ from this one.

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
    /// The head ends.
    Head {
        /// After so many bytes.
        len: usize,
        /// Its lines, the request line and the empty one among them.
        lines: usize,
    },
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
    /// Whole lines so far.
    lines: usize,
}

/// What a head says of what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follows {
    /// The body.
    pub body: Length,
    /// CONNECT, or another protocol is asked for: after this head the stream is no longer HTTP/1, unless it is refused,
    /// and then the connection ends.
    pub switches: bool,
    /// There is a `Connection` field.
    pub connection: bool,
    /// There is an `Expect` field.
    pub expect: bool,
}

/// The request line.
#[derive(Debug, Clone, Copy)]
pub struct RequestLine<'h> {
    /// A token.
    pub method: &'h [u8],
    /// Printable bytes.
    pub target: &'h [u8],
    /// HTTP/1.0.
    pub old: bool,
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
            self.lines += 1;
            if empty {
                let Self { scanned: len, lines, .. } = std::mem::take(self);
                return if len > MAX_HEAD {
                    Err(too_large("head over 64 KiB"))
                } else {
                    Ok(Scanned::Head { len, lines })
                };
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
    connection: bool,
    expect: bool,
    fields: usize,
}

/// Reads a whole head: it ends with the empty line, and every LF in it follows a CR. `field` is given each field, the
/// value without the space around it; what it refuses is refused.
/// # Errors
/// What is wrong with it.
pub fn read<'h>(
    head: &'h [u8],
    mut field: impl FnMut(&'h [u8], &'h [u8]) -> Result<(), Flaw>,
) -> Result<(RequestLine<'h>, Follows), Flaw> {
    let mut rest = head;
    let line = request_line(next_line(&mut rest))?;
    let mut seen = Head::default();
    loop {
        let text = next_line(&mut rest);
        if text.is_empty() {
            break;
        }
        let (name, value) = seen.field(text)?;
        field(name, value)?;
    }
    Ok((line, seen.follows(line)?))
}

/// Takes a line off, without its CR LF. At the end there is none, which looks like an empty one.
fn next_line<'h>(rest: &mut &'h [u8]) -> &'h [u8] {
    let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
    let (line, after) = rest.split_at(end);
    *rest = after;
    &line[..line.len().saturating_sub(2)]
}

impl Head {
    fn follows(&self, line: RequestLine<'_>) -> Result<Follows, Flaw> {
        let connect = line.method == b"CONNECT";
        if self.length.is_some() && self.chunked {
            return Err(ambiguous("both Content-Length and Transfer-Encoding"));
        }
        if line.old && self.chunked {
            return Err(ambiguous("HTTP/1.0 with Transfer-Encoding"));
        }
        if !line.old && self.hosts == 0 {
            return Err(bad_host("no Host"));
        }
        let bodyless = !self.chunked && matches!(self.length, Some(0) | None);
        if connect && !bodyless {
            return Err(ambiguous("CONNECT with a body"));
        }
        let body = if self.chunked { Length::Chunked } else { Length::Sized(self.length.unwrap_or(0)) };
        let switches = connect || self.upgrade && bodyless;
        Ok(Follows { body, switches, connection: self.connection, expect: self.expect })
    }

    /// Name and value of a field's line, which is not empty.
    fn field<'h>(&mut self, line: &'h [u8]) -> Result<(&'h [u8], &'h [u8]), Flaw> {
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(too_large("more than 100 header fields"));
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(ambiguous("folded header line"));
        }
        // No colon is part of a token: one look at each byte finds the end of the name and what is wrong with it.
        let Some(end) = line.iter().position(|byte| !token(*byte)) else {
            return Err(malformed("header line without colon"));
        };
        if end == 0 || line[end] != b':' {
            return Err(bad_name(line));
        }
        let (name, value) = (&line[..end], trim(&line[end + 1..]));
        if any_control(value) {
            return Err(ambiguous("control byte in a header value"));
        }
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host()?,
            6 if name.eq_ignore_ascii_case(b"expect") => self.expect = true,
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.upgrade |= !value.eq_ignore_ascii_case(b"h2c"),
            10 if name.eq_ignore_ascii_case(b"connection") => self.connection = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => self.length(value)?,
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.encoding(value)?,
            _ => {}
        }
        Ok((name, value))
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

fn request_line(line: &[u8]) -> Result<RequestLine<'_>, Flaw> {
    const WORDS: Flaw = malformed("request line that is not three words");
    let Some(first) = memchr::memchr(b' ', line) else { return Err(WORDS) };
    let Some(last) = memchr::memrchr(b' ', line).filter(|last| *last > first) else { return Err(WORDS) };
    let (method, target, version) = (&line[..first], &line[first + 1..last], &line[last + 1..]);
    if memchr::memchr(b' ', target).is_some() {
        return Err(WORDS);
    }
    if method.is_empty() || !method.iter().all(|byte| token(*byte)) {
        return Err(malformed("method that is no token"));
    }
    if target.is_empty() || any_control(target) || memchr::memchr(b'\t', target).is_some() {
        return Err(malformed("control byte in the target"));
    }
    match version {
        b"HTTP/1.1" => Ok(RequestLine { method, target, old: false }),
        b"HTTP/1.0" => Ok(RequestLine { method, target, old: true }),
        _ => Err(malformed("version other than HTTP/1.1 and HTTP/1.0")),
    }
}

/// Which bytes a token may consist of, looked up rather than asked: every byte of every name is.
static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"!#$%&'*+-.^_`|~";
    let mut mark = 0;
    while mark < marks.len() {
        table[marks[mark] as usize] = true;
        mark += 1;
    }
    table
};

fn token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// Whether there is a byte that is not a part of any field's value. Looks at all of them, without a branch for each, so
/// that it becomes a few instructions for sixteen bytes.
fn any_control(bytes: &[u8]) -> bool {
    bytes.iter().fold(false, |seen, byte| seen | (*byte < 32) & (*byte != b'\t') | (*byte == 127))
}

fn bad_name(line: &[u8]) -> Flaw {
    match memchr::memchr(b':', line) {
        None => malformed("header line without colon"),
        Some(colon) if line[..colon].last().is_some_and(|last| matches!(last, b' ' | b'\t')) => {
            ambiguous("space before the colon")
        }
        Some(_) => malformed("header name that is no token"),
    }
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
