//! The one normalisation of path and host: made before routing and policy, and what is sent on.
//!
//! What could be read in two ways is refused, not guessed: escaped slashes and backslashes, NUL, control bytes, bad
//! percent signs, `..;` segments, hosts with user info. Nothing is allocated unless something changes.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A request target in origin form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'a> {
    /// Normalised.
    pub path: Cow<'a, str>,
    /// As it came, without the `?`.
    pub query: Option<&'a str>,
}

/// Why a request target is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It does not begin with `/`.
    #[error("the target is not a path")]
    NotOrigin,
    /// It holds a `#`.
    #[error("the target holds a fragment")]
    Fragment,
    /// It holds a backslash, plain or escaped.
    #[error("the path holds a backslash")]
    Backslash,
    /// It holds an escaped slash.
    #[error("the path holds an escaped slash")]
    EscapedSlash,
    /// It holds a NUL, plain or escaped.
    #[error("the path holds a NUL")]
    Nul,
    /// It holds a space or control byte.
    #[error("the target holds a space or control byte")]
    Control,
    /// A percent sign without two hexadecimal digits.
    #[error("the path holds a bad percent escape")]
    Percent,
    /// A dot segment with parameters, which some servers take for a dot segment.
    #[error("the path holds a dot segment with parameters")]
    DotParameter,
}

impl<'a> Target<'a> {
    /// Normalises a target: escapes of unreserved characters are undone, those that stay are written in upper case,
    /// what a path may not hold plainly is escaped; dot segments are taken out, runs of slashes made one. The query
    /// stays as it is.
    /// # Errors
    /// [`TargetError`], when it can be read in two ways.
    pub fn parse(raw: &'a str) -> Result<Self, TargetError> {
        let (path, query) = match memchr::memchr(b'?', raw.as_bytes()) {
            Some(at) => (&raw[..at], Some(&raw[at + 1..])),
            None => (raw, None),
        };
        if !path.starts_with('/') {
            return Err(TargetError::NotOrigin);
        }
        let query_bytes = query.unwrap_or_default().as_bytes();
        if query_bytes.contains(&b'#') {
            return Err(TargetError::Fragment);
        }
        if query_bytes.iter().any(|&byte| byte <= b' ' || byte == 0x7f) {
            return Err(TargetError::Control);
        }
        let decoded = decode(path)?;
        let clean = match decoded {
            Cow::Borrowed(path) => clean(path),
            Cow::Owned(path) => Cow::Owned(clean(&path).into_owned()),
        };
        let parameters = memchr::memchr(b';', clean.as_bytes()).is_some();
        if parameters && clean.split('/').any(|segment| segment.starts_with(".;") || segment.starts_with("..;")) {
            return Err(TargetError::DotParameter);
        }
        Ok(Self { path: clean, query })
    }

    /// Path and query, as sent on.
    pub fn path_and_query(&self) -> Cow<'_, str> {
        with_query(&self.path, self.query)
    }
}

/// Joins path and query.
pub(super) fn with_query<'a>(path: &'a str, query: Option<&str>) -> Cow<'a, str> {
    match query {
        None => Cow::Borrowed(path),
        Some(query) => Cow::Owned([path, "?", query].concat()),
    }
}

/// Undoes and evens out escapes.
fn decode(path: &str) -> Result<Cow<'_, str>, TargetError> {
    let bytes = path.as_bytes();
    let first = normal(bytes);
    if first == bytes.len() {
        return Ok(Cow::Borrowed(path));
    }
    let mut out = String::with_capacity(path.len() + 8);
    out.push_str(&path[..first]);
    let mut rest = &bytes[first..];
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                let [high, low, after @ ..] = after else { return Err(TargetError::Percent) };
                let (Some(high), Some(low)) = (hex(*high), hex(*low)) else { return Err(TargetError::Percent) };
                rest = after;
                match high << 4 | low {
                    0 => return Err(TargetError::Nul),
                    b'/' => return Err(TargetError::EscapedSlash),
                    b'\\' => return Err(TargetError::Backslash),
                    byte if unreserved(byte) => out.push(char::from(byte)),
                    byte => escape(byte, &mut out),
                }
            }
            0 => return Err(TargetError::Nul),
            b'\\' => return Err(TargetError::Backslash),
            b'#' => return Err(TargetError::Fragment),
            ..=b' ' | 0x7f => return Err(TargetError::Control),
            byte if byte == b'/' || plain(byte) => out.push(char::from(byte)),
            byte => escape(byte, &mut out),
        }
    }
    Ok(Cow::Owned(out))
}

/// Length of what needs no change at the beginning. It ends between characters: all it passes over is ASCII.
fn normal(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        at += match &bytes[at..] {
            [b'%', digits @ ..] if escape_stays(digits) => 3,
            [byte, ..] if *byte == b'/' || plain(*byte) => 1,
            _ => return at,
        };
    }
}

/// Two digits in upper case, of a byte that stays escaped.
fn escape_stays(digits: &[u8]) -> bool {
    let [high @ (b'0'..=b'9' | b'A'..=b'F'), low @ (b'0'..=b'9' | b'A'..=b'F'), ..] = digits else { return false };
    let byte = hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low);
    byte.is_some_and(|byte| !unreserved(byte) && !matches!(byte, 0 | b'/' | b'\\'))
}

/// Takes out dot segments and makes runs of slashes one.
pub(super) fn clean(path: &str) -> Cow<'_, str> {
    if is_clean(path) {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "" | "." => {}
            ".." => out.truncate(out.rfind('/').unwrap_or(0)),
            segment => {
                out.push('/');
                out.push_str(segment);
                continue;
            }
        }
        if last {
            out.push('/'); // what named a directory still does
        }
    }
    if out.is_empty() {
        out.push('/');
    }
    Cow::Owned(out)
}

fn is_clean(path: &str) -> bool {
    // Without a dot or another slash after any slash there is nothing to look at more closely.
    if !path.as_bytes().windows(2).any(|pair| pair[0] == b'/' && matches!(pair[1], b'/' | b'.')) {
        return true;
    }
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        if matches!(segment, "." | "..") || segment.is_empty() && !last {
            return false;
        }
    }
    true
}

fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What a segment may hold plainly.
fn plain(byte: u8) -> bool {
    unreserved(byte) || matches!(byte, b'!' | b'$' | b'&'..=b',' | b';' | b'=' | b':' | b'@')
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

fn escape(byte: u8, out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// A host with or without port, normalised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority<'a> {
    host: Cow<'a, str>,
    kind: Host,
    port: Option<u16>,
}

/// What kind of host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// A name.
    Name,
    /// An address.
    Ip(IpAddr),
}

/// Why a host is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// There is none.
    #[error("the host is empty")]
    Empty,
    /// It is longer than a name may be, or a part of it is.
    #[error("the host is too long")]
    TooLong,
    /// It holds user info.
    #[error("the host holds user info")]
    UserInfo,
    /// It holds what a name may not.
    #[error("the host is not a name or address")]
    Invalid,
    /// The port is not a number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

impl<'a> Authority<'a> {
    /// Normalises `host[:port]`: lower case, one trailing dot dropped, addresses in their shortest form.
    /// # Errors
    /// [`HostError`].
    pub fn parse(raw: &'a str) -> Result<Self, HostError> {
        if raw.contains('@') {
            return Err(HostError::UserInfo);
        }
        if let Some(rest) = raw.strip_prefix('[') {
            let (address, port) = rest.split_once(']').ok_or(HostError::Invalid)?;
            let address: Ipv6Addr = address.parse().map_err(|_| HostError::Invalid)?;
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(HostError::Invalid)?) };
            let port = port.map(parse_port).transpose()?;
            return Ok(Self { host: Cow::Owned(format!("[{address}]")), kind: Host::Ip(address.into()), port });
        }
        let (host, port) = match raw.split_once(':') {
            Some((host, port)) => (host, Some(parse_port(port)?)),
            None => (raw, None),
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.is_empty() {
            return Err(HostError::Empty);
        }
        if host.len() > MAX_NAME {
            return Err(HostError::TooLong);
        }
        let last = host.rsplit('.').next().unwrap_or(host);
        if last.as_bytes()[..last.len().min(1)].iter().any(u8::is_ascii_digit) && numeric(last) {
            // Whoever reads such a name as an address must read the same address as we do.
            let address: Ipv4Addr = host.parse().map_err(|_| HostError::Invalid)?;
            return Ok(Self { host: Cow::Borrowed(host), kind: Host::Ip(address.into()), port });
        }
        for label in host.split('.') {
            if label.is_empty()
                || !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            {
                return Err(HostError::Invalid);
            }
            if label.len() > MAX_LABEL {
                return Err(HostError::TooLong);
            }
        }
        let upper = host.bytes().any(|byte| byte.is_ascii_uppercase());
        let host = if upper { Cow::Owned(host.to_ascii_lowercase()) } else { Cow::Borrowed(host) };
        Ok(Self { host, kind: Host::Name, port })
    }

    /// The host; an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Name or address.
    pub fn kind(&self) -> Host {
        self.kind
    }

    /// The port, when one was named.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The same without a lifetime.
    pub fn into_owned(self) -> Authority<'static> {
        Authority { host: Cow::Owned(self.host.into_owned()), kind: self.kind, port: self.port }
    }
}

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// Decimal or `0x…`: what the C library would take for a part of an address.
fn numeric(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

fn parse_port(port: &str) -> Result<u16, HostError> {
    if port.is_empty() || port.len() > 5 || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(HostError::Port);
    }
    port.parse().ok().filter(|&port| port != 0).ok_or(HostError::Port)
}

/// Longest name, RFC 1035.
const MAX_NAME: usize = 253;
/// Longest label, RFC 1035.
const MAX_LABEL: usize = 63;
