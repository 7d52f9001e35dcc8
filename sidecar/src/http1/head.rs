//! Heads: bytes → `http` types, which share the bytes, and back. Pure.

use std::mem::MaybeUninit;

use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header, request::Parts,
    uri::PathAndQuery,
};

use super::strict::{self, Flaw, Follows, Length, malformed};
use crate::http::{headers, marks::Marks};

/// Most fields of a head that the parser has room for; what may come in is bounded more tightly.
pub const FIELDS: usize = 128;
/// Fields that this sidecar adds: room for them is made at once.
const ADDED: usize = 3;

/// First size of the buffer that a head is written to; allocators hand out what is below 1 KiB most quickly.
const FIRST_WRITE: usize = 900;

/// Reads a request's whole head, of so many `lines`.
/// # Errors
/// What [`strict`] refuses, and what the types do not take after all.
pub fn request(head: &Bytes, lines: usize) -> Result<(Parts, Follows), Flaw> {
    const BAD: Flaw = malformed("header fields that no parser takes");
    // The request line and the empty line are no fields.
    let mut fields = HeaderMap::with_capacity(lines.saturating_sub(2) + ADDED);
    let (line, follows) = strict::read(head, |name, value| {
        let name = field_name(name).ok_or(BAD)?;
        fields.append(name, HeaderValue::from_maybe_shared(head.slice_ref(value)).map_err(|_value| BAD)?);
        Ok(())
    })?;
    let (mut request, ()) = Request::new(()).into_parts();
    request.method = Method::from_bytes(line.method).map_err(|_token| BAD)?;
    request.uri = Uri::from_maybe_shared(head.slice_ref(line.target)).map_err(|_uri| BAD_TARGET)?;
    request.version = if line.old { Version::HTTP_10 } else { Version::HTTP_11 };
    request.headers = fields;
    Ok((request, follows))
}

const BAD_TARGET: Flaw = malformed("a target that is no URI");

/// Head of an answer.
#[derive(Debug)]
pub struct Answered {
    /// Status.
    pub status: StatusCode,
    /// HTTP/1.0 or 1.1.
    pub version: Version,
    /// Fields.
    pub fields: HeaderMap,
}

/// Takes an answer's head off `bytes`; `None` while it is not complete.
/// # Errors
/// What is no HTTP/1 answer.
pub fn answer(bytes: &mut BytesMut) -> Result<Option<Answered>, Flaw> {
    let mut spans = [Span::default(); FIELDS];
    let (len, status, version, count) = {
        let mut space = [const { MaybeUninit::uninit() }; FIELDS];
        let mut parsed = httparse::Response::new(&mut []);
        let result =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, &mut space);
        let len = match result {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(malformed("an answer of more than 128 fields")),
            Err(_) => return Err(malformed("an answer that is no HTTP/1")),
        };
        let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.ok_or(malformed("an answer whose status is none"))?;
        for (span, field) in spans.iter_mut().zip(parsed.headers.iter()) {
            *span = Span::of(bytes, field);
        }
        (len, status, version(parsed.version), parsed.headers.len())
    };
    // The fields share the bytes, which for that are taken out of the buffer.
    let head = bytes.split_to(len).freeze();
    let mut fields = HeaderMap::with_capacity(count + ADDED);
    for span in &spans[..count] {
        let (name, value) = span.field(&head).ok_or(malformed("an answer with a field that is none"))?;
        fields.append(name, value);
    }
    Ok(Some(Answered { status, version, fields }))
}

/// Where in a head a field stands.
#[derive(Clone, Copy, Default)]
struct Span {
    name: (u32, u32),
    value: (u32, u32),
}

impl Span {
    fn of(head: &[u8], field: &httparse::Header<'_>) -> Self {
        let at = |part: &[u8]| {
            let start = part.as_ptr().addr().saturating_sub(head.as_ptr().addr());
            let place = |place: usize| u32::try_from(place).unwrap_or(u32::MAX);
            (place(start), place(start + part.len()))
        };
        Self { name: at(field.name.as_bytes()), value: at(field.value) }
    }

    fn field(&self, head: &Bytes) -> Option<(HeaderName, HeaderValue)> {
        let [name, value] = [self.name, self.value].map(|(start, end)| start as usize..end as usize);
        let name = field_name(head.get(name)?)?;
        head.get(value.clone())?;
        Some((name, HeaderValue::from_maybe_shared(head.slice(value)).ok()?))
    }
}

/// A field's name. Those that nearly every head has are known by sight, in the two ways in which they are written; the
/// library reads them byte by byte, and allocates for those that are not in its own list.
fn field_name(bytes: &[u8]) -> Option<HeaderName> {
    Some(match bytes {
        b"host" | b"Host" => header::HOST,
        b"accept" | b"Accept" => header::ACCEPT,
        b"user-agent" | b"User-Agent" => header::USER_AGENT,
        b"accept-encoding" | b"Accept-Encoding" => header::ACCEPT_ENCODING,
        b"connection" | b"Connection" => header::CONNECTION,
        b"content-type" | b"Content-Type" => header::CONTENT_TYPE,
        b"content-length" | b"Content-Length" => header::CONTENT_LENGTH,
        b"date" | b"Date" => header::DATE,
        b"server" | b"Server" => header::SERVER,
        b"traceparent" => headers::TRACEPARENT,
        b"weft-hops" => headers::HOPS,
        b"x-forwarded-for" | b"X-Forwarded-For" => headers::FORWARDED_FOR,
        b"x-forwarded-proto" | b"X-Forwarded-Proto" => headers::FORWARDED_PROTO,
        other => return HeaderName::from_bytes(other).ok(),
    })
}

fn version(minor: Option<u8>) -> Version {
    if minor == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 }
}

/// `parsed` points into `head`, whose bytes the values share.
pub(super) fn fields(head: &Bytes, parsed: &[httparse::Header<'_>]) -> Option<HeaderMap> {
    let mut fields = HeaderMap::with_capacity(parsed.len() + ADDED);
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        fields.append(name, HeaderValue::from_maybe_shared(head.slice_ref(field.value)).ok()?);
    }
    Some(fields)
}

/// How an answer's body ends (RFC 9112, 6.3). Where both say something, chunks win, and `reusable` is false.
/// # Errors
/// Lengths that disagree or are none.
pub fn answer_length(method: &Method, answer: &mut Answered, has: Marks) -> Result<(Length, bool), Flaw> {
    let status = answer.status;
    let bodyless = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if bodyless {
        return Ok((Length::Sized(0), true));
    }
    let length = if has.has(Marks::CONTENT_LENGTH) { content_length(&answer.fields)? } else { None };
    let coded = has.has(Marks::TRANSFER_ENCODING);
    let last = coded.then(|| answer.fields.get_all(header::TRANSFER_ENCODING).iter().next_back()).flatten();
    let Some(last) = last else {
        return Ok((length.map_or(Length::Close, Length::Sized), length.is_some()));
    };
    let chunked = last.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
    let chunked = chunked.trim_ascii().eq_ignore_ascii_case(b"chunked");
    answer.fields.remove(header::CONTENT_LENGTH);
    let reusable = length.is_none() && answer.version == Version::HTTP_11;
    Ok(if chunked { (Length::Chunked, reusable) } else { (Length::Close, false) })
}

fn content_length(fields: &HeaderMap) -> Result<Option<u64>, Flaw> {
    let mut found = None;
    for value in fields.get_all(header::CONTENT_LENGTH) {
        let bytes = value.as_bytes();
        if bytes.is_empty() || bytes.len() > 18 || !bytes.iter().all(u8::is_ascii_digit) {
            return Err(malformed("a Content-Length that is no plain number"));
        }
        let length = bytes.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        if found.is_some_and(|found| found != length) {
            return Err(malformed("Content-Lengths that disagree"));
        }
        found = Some(length);
    }
    Ok(found)
}

/// Whether the connection may serve another message after this one. `said`: there is a `Connection` field.
pub fn persists(version: Version, fields: &HeaderMap, said: bool) -> bool {
    if !said {
        return version == Version::HTTP_11;
    }
    match version {
        Version::HTTP_10 => headers::connection_names(fields, "keep-alive"),
        _ => !headers::connection_names(fields, "close"),
    }
}

/// Writes a request line.
pub fn put_request_line(out: &mut BytesMut, method: &Method, path: &PathAndQuery) {
    let (method, path) = (method.as_str(), path.as_str());
    out.reserve((method.len() + path.len() + 16).max(FIRST_WRITE));
    out.put_slice(method.as_bytes());
    out.put_u8(b' ');
    out.put_slice(path.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
}

/// Writes a status line.
pub fn put_status_line(out: &mut BytesMut, version: Version, status: StatusCode) {
    out.reserve(FIRST_WRITE);
    out.put_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
    out.put_slice(b"\r\n");
}

/// Writes a field.
pub fn put_field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// What was among the fields that were written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Put {
    /// `connection`.
    pub connection: bool,
    /// `date`.
    pub date: bool,
    /// `trailer`.
    pub trailer: bool,
    /// `content-length`, which was left out.
    pub length: bool,
}

/// Writes all fields but those that say where the message ends, and those that `own` has others of.
pub fn put_fields(out: &mut BytesMut, fields: &HeaderMap, own: Option<&HeaderMap>) -> Put {
    let mut put = Put::default();
    for (name, value) in fields {
        put.connection |= *name == header::CONNECTION;
        put.date |= *name == header::DATE;
        put.trailer |= *name == header::TRAILER;
        put.length |= *name == header::CONTENT_LENGTH;
        if !is_framing(name) && !own.is_some_and(|own| own.contains_key(name)) {
            put_field(out, name.as_str(), value.as_bytes());
        }
    }
    put
}

/// Whether a field says where the message ends: the body that is sent decides that.
pub fn is_framing(name: &HeaderName) -> bool {
    *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING
}

/// Writes `content-length`.
pub fn put_length(out: &mut BytesMut, length: u64) {
    let mut digits = [0; 20];
    put_field(out, "content-length", decimal(&mut digits, length));
}

/// Writes a chunk's size line.
pub fn put_chunk_size(out: &mut BytesMut, mut size: usize) {
    let mut digits = [0; 16];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[size & 15];
        size >>= 4;
        if size == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// Digits of a number.
pub fn decimal(digits: &mut [u8; 20], mut number: u64) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).expect("less than ten");
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}
