//! First bytes → TLS, HTTP/1, HTTP/2 or opaque. Pure; waiting for the bytes is the caller's.

/// What a connection's first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    /// A TLS ClientHello.
    Tls,
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 preface (prior knowledge).
    Http2,
    /// Anything else.
    Opaque,
    /// Not enough bytes to tell.
    More,
}

/// The HTTP/2 connection preface.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A request line longer than this is taken for HTTP without having seen its end.
const LINE_SEEN: usize = 512;

const METHODS: [&[u8]; 9] =
    [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH "];

/// What `first`, the bytes so far, say.
///
/// A method alone is not taken for HTTP: SMTP's `EHLO name` and Redis' inline `GET key` look like one. Where the end of
/// the first line is there it must name HTTP/1.
pub fn detect(first: &[u8]) -> Detected {
    if first.is_empty() {
        return Detected::More;
    }
    if first[0] == 0x16 {
        return match first {
            // Handshake record, version 3.x, ClientHello.
            [_, 3, _, _, _, 1, ..] => Detected::Tls,
            [_] | [_, 3] | [_, 3, _] | [_, 3, _, _] | [_, 3, _, _, _] => Detected::More,
            _ => Detected::Opaque,
        };
    }
    if prefixes(PREFACE, first) {
        return if first.len() >= PREFACE.len() { Detected::Http2 } else { Detected::More };
    }
    match METHODS.iter().find(|method| prefixes(method, first)) {
        None => Detected::Opaque,
        Some(method) if first.len() < method.len() => Detected::More,
        Some(_) => match memchr::memchr(b'\n', first) {
            Some(end) => line(&first[..end]),
            None if first.len() >= LINE_SEEN => Detected::Http1,
            None => Detected::More,
        },
    }
}

fn line(line: &[u8]) -> Detected {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    if version.starts_with(b"HTTP/1.") { Detected::Http1 } else { Detected::Opaque }
}

/// One begins with the other, as far as the shorter goes.
fn prefixes(known: &[u8], first: &[u8]) -> bool {
    let shorter = known.len().min(first.len());
    known[..shorter] == first[..shorter]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell() {
        let table: &[(&[u8], Detected)] = &[
            (b"", Detected::More),
            (b"\x16", Detected::More),
            (b"\x16\x03\x01\x02\x00\x01", Detected::Tls),
            (b"\x16\x03\x01\x02\x00\x02", Detected::Opaque),
            (b"\x16\x07", Detected::Opaque),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00", Detected::Http2),
            (b"PRI * HT", Detected::More),
            (b"PR", Detected::More),
            (b"P", Detected::More),
            (b"PROXY TCP4", Detected::Opaque),
            (b"GET / HTTP/1.1\r\n", Detected::Http1),
            (b"OPTIONS * HTTP/1.0\n", Detected::Http1),
            (b"GET / HT", Detected::More),
            (b"GET key\r\n", Detected::Opaque),
            (b"EHLO mail.example\r\n", Detected::Opaque),
            (b"SSH-2.0-x\r\n", Detected::Opaque),
            (b"*1\r\n$4\r\nPING\r\n", Detected::Opaque),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Detected::Opaque),
        ];
        for (first, expected) in table {
            assert_eq!(detect(first), *expected, "{:?}", String::from_utf8_lossy(first));
        }
    }

    #[test]
    fn a_long_request_line_is_http() {
        let long = [b"GET /".as_slice(), &[b'a'; LINE_SEEN]].concat();
        assert_eq!(detect(&long), Detected::Http1);
    }

    proptest::proptest! {
        /// What more bytes say never contradicts what fewer said.
        #[test]
        fn more_bytes_never_change_a_verdict(bytes: Vec<u8>, cut in 0usize..64) {
            let cut = cut.min(bytes.len());
            let early = detect(&bytes[..cut]);
            if early != Detected::More {
                proptest::prop_assert_eq!(early, detect(&bytes));
            }
        }
    }
}
