//! What is refused, and what comes out of what is not, however the bytes are cut.

use bytes::{Buf, BytesMut};
use http::Method;
use proptest::prelude::*;

use super::{
    chunk::Extensions,
    decode::{Decoder, Piece},
    head,
    strict::{Flaw, Length, MAX_FIELDS, MAX_HEAD, Scan, Scanned, read},
};
use crate::{http::marks::Marks, reason::Reason};

/// Where a stream of requests stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Between,
    Within,
    Tunnel,
}

/// Reads requests as the server does: heads, then the data of bodies, in one.
fn feed(stream: &[u8], piece: usize) -> (Vec<u8>, Option<Flaw>, Place) {
    let (mut held, mut out) = (BytesMut::new(), Vec::new());
    let (mut scan, mut body, mut switched) = (Scan::default(), Decoder::done(), false);
    for bytes in stream.chunks(piece.max(1)) {
        held.extend_from_slice(bytes);
        loop {
            let step = if switched {
                out.extend(held.split());
                Ok(false)
            } else if body.is_done() {
                next_head(&mut scan, &mut held, &mut body, &mut switched, &mut out)
            } else {
                body.decode(&mut held).map(|piece| match piece {
                    Piece::Data(data) => {
                        out.extend_from_slice(&data);
                        true
                    }
                    Piece::Trailers(fields) => {
                        out.extend(fields.keys().flat_map(|name| name.as_str().bytes()));
                        true
                    }
                    Piece::End => true,
                    Piece::More => false,
                })
            };
            match step {
                Ok(true) => {}
                Ok(false) => break,
                Err(flaw) => return (out, Some(flaw), Place::Tunnel),
            }
        }
    }
    let between = held.is_empty() && body.is_done();
    let place = if switched {
        Place::Tunnel
    } else if between {
        Place::Between
    } else {
        Place::Within
    };
    (out, None, place)
}

fn next_head(
    scan: &mut Scan,
    held: &mut BytesMut,
    body: &mut Decoder,
    switched: &mut bool,
    out: &mut Vec<u8>,
) -> Result<bool, Flaw> {
    match scan.step(held)? {
        Scanned::More => Ok(false),
        Scanned::Drop(len) => {
            held.advance(len);
            Ok(true)
        }
        Scanned::Head { len, lines } => {
            let bytes = held.split_to(len).freeze();
            let (_line, follows) = read(&bytes, |_name, _value| Ok(()))?;
            *body = Decoder::new(follows.body, Extensions::Refused);
            *switched = follows.switches;
            assert_eq!(lines, bytes.iter().filter(|byte| **byte == b'\n').count());
            out.extend_from_slice(&bytes);
            Ok(true)
        }
    }
}

const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Streams, and what is read instead of their chunked bodies.
const GOOD: &[(&str, &str)] = &[
    ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", ""),
    ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", ""),
    ("GET / HTTP/1.0\r\n\r\n", ""),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", ""),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n", ""),
    ("3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", "abc0123456789"),
    ("0\r\nX-Trailer: 1\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "x-trailerGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("GET / HTTP/1.1\r\nHost:a\r\nX-Empty:\r\nX-Tab: a\tb\r\n\r\n", ""),
    ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", ""),
];

#[test]
fn good_messages_are_read_whole_however_they_are_cut() {
    for (stream, read) in GOOD {
        let (stream, expected) = if read.is_empty() {
            ((*stream).to_owned(), stream.trim_start_matches("\r\n").to_owned())
        } else {
            (format!("{CHUNKED}{stream}"), format!("{CHUNKED}{read}"))
        };
        for piece in 1..=stream.len() {
            let (passed, flaw, place) = feed(stream.as_bytes(), piece);
            assert_eq!(flaw, None, "{stream:?} cut at {piece}");
            assert_eq!(String::from_utf8_lossy(&passed), expected);
            assert_eq!(place, Place::Between, "{stream:?}");
        }
    }
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    use Reason::{AmbiguousFraming as A, BadHost as H, ClientProtocolError as M};
    let heads = [
        (A, "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"),
        (A, "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"),
        (A, "Content-Length: 3\r\nContent-Length: 3\r\n"),
        (A, "Content-Length: 3\r\nContent-Length: 4\r\n"),
        (A, "Content-Length: 3, 3\r\n"),
        (A, "Content-Length: +3\r\n"),
        (A, "Content-Length: -3\r\n"),
        (A, "Content-Length: 0x3\r\n"),
        (A, "Content-Length: 3 4\r\n"),
        (A, "Content-Length:\r\n"),
        (A, "Content-Length: 99999999999999999999\r\n"),
        (A, "Transfer-Encoding: chunked, chunked\r\n"),
        (A, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        (A, "Transfer-Encoding: gzip, chunked\r\n"),
        (A, "Transfer-Encoding: xchunked\r\n"),
        (A, "Transfer-Encoding: identity\r\n"),
        (A, "Transfer-Encoding: \"chunked\"\r\n"),
        (A, "Transfer-Encoding:\r\n"),
        (A, "Transfer-Encoding : chunked\r\n"),
        (A, "Content-Length\t: 3\r\n"),
        (A, "X: a\r\n folded\r\n"),
        (A, "X: a\r\n\tTransfer-Encoding: chunked\r\n"),
        (A, "X: a\nContent-Length: 3\r\n"),
        (A, "X: a\rContent-Length: 3\r\n"),
        (A, "X: a\0b\r\n"),
        (H, "Host: b\r\n"),
        (M, ": empty\r\n"),
        (M, "no colon\r\n"),
        (M, "X Y: b\r\n"),
        (M, "X\0Y: b\r\n"),
    ];
    for (reason, lines) in heads {
        let stream = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\nabc");
        for piece in 1..=stream.len() {
            let (passed, flaw, _) = feed(stream.as_bytes(), piece);
            assert_eq!(flaw.map(|flaw| flaw.reason), Some(reason), "{lines:?}");
            assert!(passed.is_empty(), "{lines:?}: bytes of a refused head passed");
        }
    }
}

#[test]
fn request_lines_are_three_words() {
    for line in [
        "GET /",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 x",
        "GET / HTTP/2.0",
        "G\0T / HTTP/1.1",
        "GET /\x01 HTTP/1.1",
        " / HTTP/1.1",
    ] {
        let (_, flaw, _) = feed(format!("{line}\r\nHost: a\r\n\r\n").as_bytes(), 7);
        assert_eq!(flaw.map(|flaw| flaw.reason), Some(Reason::ClientProtocolError), "{line:?}");
    }
    assert_eq!(feed(b"GET / HTTP/1.1\r\n\r\n", 5).1.map(|flaw| flaw.reason), Some(Reason::BadHost));
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(feed(old, 5).1.map(|flaw| flaw.reason), Some(Reason::AmbiguousFraming));
}

#[test]
fn chunks_have_plain_sizes() {
    let bodies = [
        "g\r\n",
        "\r\n",
        "+1\r\n",
        "-1\r\n",
        "0x1\r\n",
        " 1\r\n",
        "1 \r\n",
        "1\n",
        "1\rx",
        "1;a\nb\r\n",
        "1;a=b\r\n",
        "ffffffffffffffff\r\n",
        "10000000000000000\r\n",
        "1\r\nab\r\n",
        "1\r\na\n",
        "1\r\na\rx",
        "0\r\nX: a\n\r\n",
        "0\r\n folded\r\n\r\n",
        "0\r\nX: a\rb\r\n\r\n",
        "0\r\nX: \0\r\n\r\n",
    ];
    for body in bodies {
        let stream = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        for piece in 1..=stream.len() {
            let (_, flaw, _) = feed(stream.as_bytes(), piece);
            assert_eq!(flaw.map(|flaw| flaw.reason), Some(Reason::AmbiguousFraming), "{body:?}");
        }
    }
}

#[test]
fn heads_are_bounded() {
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(MAX_FIELDS));
    assert_eq!(feed(many.as_bytes(), 4096).1.map(|flaw| flaw.reason), Some(Reason::HeadersTooLarge));
    let enough = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(MAX_FIELDS - 1));
    assert_eq!(feed(enough.as_bytes(), 4096).1, None);
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(MAX_HEAD));
    assert_eq!(feed(long.as_bytes(), 4096).1.map(|flaw| flaw.reason), Some(Reason::HeadersTooLarge));
    let endless = vec![b'a'; MAX_HEAD + 1];
    assert_eq!(feed(&endless, 4096).1.map(|flaw| flaw.reason), Some(Reason::HeadersTooLarge));
}

#[test]
fn after_an_upgrade_nothing_is_http() {
    for head in [
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    ] {
        let (passed, flaw, place) = feed(format!("{head}\0\x01\r\r\n").as_bytes(), 9);
        assert_eq!((flaw, place), (None, Place::Tunnel));
        assert_eq!(passed.len(), head.len() + 5);
    }
    let body = "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(feed(body.as_bytes(), 9).1.map(|flaw| flaw.reason), Some(Reason::AmbiguousFraming));
}

proptest! {
    /// How the bytes are cut changes neither what passes nor the verdict.
    #[test]
    fn cuts_change_nothing(
        lines in prop::collection::vec(prop::sample::select(vec![
            "Content-Length: 3", "Transfer-Encoding: chunked", "X: y", "X : y", "Content-Length: 0", " fold", "A:\0",
        ]), 0..4),
        body in prop::sample::select(vec!["", "abc", "3\r\nabc\r\n0\r\n\r\n", "1\nX", "0\r\n\r\n", "GET / HTTP/1.1\r\nHost: b\r\n\r\n"]),
        piece in 1usize..40,
    ) {
        let head: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let stream = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n{body}");
        let (whole, flaw, _) = feed(stream.as_bytes(), stream.len());
        let (cut, cut_flaw, _) = feed(stream.as_bytes(), piece);
        prop_assert_eq!(flaw, cut_flaw);
        prop_assert_eq!(whole, cut);
    }

    /// Whatever comes, what passes is a prefix of it (apart from empty lines), and nothing panics.
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>, piece in 1usize..32) {
        let (passed, _, _) = feed(&bytes, piece);
        prop_assert!(passed.len() <= bytes.len());
    }

    /// A parser that others use accepts every head that passes, and sees the same.
    #[test]
    fn what_passes_is_what_a_parser_reads(
        name in "[!-~ ]{1,6}", value in "[ -~\t\u{80}-\u{ff}]{0,8}", target in "/[!-~]{0,6}",
    ) {
        let stream = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\n\r\n");
        let (passed, flaw, _) = feed(stream.as_bytes(), 11);
        if flaw.is_none() && !passed.is_empty() {
            let mut space = [httparse::EMPTY_HEADER; 4];
            let mut parsed = httparse::Request::new(&mut space);
            prop_assert_eq!(parsed.parse(&passed), Ok(httparse::Status::Complete(passed.len())));
            let read: Vec<_> = parsed.headers.iter().map(|field| (field.name.to_ascii_lowercase(), field.value)).collect();
            prop_assert_eq!(parsed.path, Some(&*target));
            let parts = match head::request(&passed.clone().into(), 4) {
                Ok((parts, _follows)) => parts,
                Err(flaw) => {
                    prop_assert_eq!(flaw.rule, "a target that is no URI");
                    return Ok(());
                }
            };
            let ours: Vec<_> =
                parts.headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes())).collect();
            prop_assert_eq!(ours, read);
            prop_assert_eq!(parts.uri.path_and_query().map_or("", |path| path.as_str()), target.split('#').next().unwrap());
        }
    }
}

fn answer(method: &Method, text: &str) -> Result<(u16, Length, bool, usize), &'static str> {
    let mut bytes = BytesMut::from(text);
    let mut answered = head::answer(&mut bytes).map_err(|flaw| flaw.rule)?.ok_or("more")?;
    let has = Marks::of(&answered.fields);
    let (length, clear) = head::answer_length(method, &mut answered, has).map_err(|flaw| flaw.rule)?;
    Ok((answered.status.as_u16(), length, clear, bytes.len()))
}

#[test]
fn where_an_answer_ends() {
    use Length::{Chunked, Close, Sized};
    let (get, head) = (Method::GET, Method::HEAD);
    let cases = [
        (&get, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", Ok((200, Sized(3), true, 3))),
        (&get, "HTTP/1.1 200\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\n", Ok((200, Sized(3), true, 0))),
        (&head, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", Ok((200, Sized(0), true, 0))),
        (&get, "HTTP/1.1 204 No Content\r\ncontent-length: 3\r\n\r\n", Ok((204, Sized(0), true, 0))),
        (&get, "HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n", Ok((304, Sized(0), true, 0))),
        (&get, "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, Chunked\r\n\r\n", Ok((200, Chunked, true, 0))),
        (
            &get,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
            Ok((200, Chunked, false, 0)),
        ),
        (&get, "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Ok((200, Chunked, false, 0))),
        (&get, "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", Ok((200, Close, false, 0))),
        (&get, "HTTP/1.1 200 OK\r\n\r\nabc", Ok((200, Close, false, 3))),
        (
            &get,
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
            Err("Content-Lengths that disagree"),
        ),
        (&get, "HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\n", Err("a Content-Length that is no plain number")),
        (&get, "HTTP/2 200 OK\r\n\r\n", Err("an answer that is no HTTP/1")),
        (&get, "SSH-2.0-x\r\n", Err("an answer that is no HTTP/1")),
        (&get, "HTTP/1.1 200 OK\r\ncontent-le", Err("more")),
    ];
    for (method, text, expected) in cases {
        assert_eq!(answer(method, text), expected, "{method} {text:?}");
    }
}

#[test]
fn which_connections_persist() {
    let fields = |value: &str| {
        let mut fields = http::HeaderMap::new();
        if !value.is_empty() {
            fields.insert("connection", value.parse().unwrap());
        }
        fields
    };
    use http::Version;
    for (version, value, expected) in [
        (Version::HTTP_11, "", true),
        (Version::HTTP_11, "x, Close", false),
        (Version::HTTP_11, "keep-alive", true),
        (Version::HTTP_10, "", false),
        (Version::HTTP_10, "Keep-Alive", true),
    ] {
        let fields = fields(value);
        assert_eq!(head::persists(version, &fields, !fields.is_empty()), expected, "{version:?} {value:?}");
    }
}

#[test]
fn extensions_of_answers_are_skipped_and_bounded() {
    let read = |stream: &str| {
        let mut bytes = BytesMut::from(stream);
        let mut body = Decoder::new(Length::Chunked, Extensions::Skipped { bytes: 0 });
        let mut out = Vec::new();
        loop {
            match body.decode(&mut bytes).map_err(|flaw| flaw.rule)? {
                Piece::Data(data) => out.extend_from_slice(&data),
                Piece::End => return Ok(out),
                Piece::More | Piece::Trailers(_) => return Err("not the end"),
            }
        }
    };
    assert_eq!(read("3;a=b\r\nabc\r\n0;x\r\n\r\n"), Ok(b"abc".to_vec()));
    assert_eq!(read("3;a\nb\r\nabc\r\n0\r\n\r\n"), Err("bare LF or NUL in a chunk extension"));
    let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(20_000));
    assert_eq!(read(&long), Err("chunk extensions over 16 KiB"));
}

proptest! {
    /// What is written is read back the same, in pieces of any size.
    #[test]
    fn chunks_that_are_written_are_read(pieces: Vec<Vec<u8>>, cut in 1usize..50) {
        let mut stream = BytesMut::new();
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            head::put_chunk_size(&mut stream, piece.len());
            stream.extend_from_slice(piece);
            stream.extend_from_slice(b"\r\n");
        }
        stream.extend_from_slice(b"0\r\n\r\n");
        let mut body = Decoder::new(Length::Chunked, Extensions::Refused);
        let (mut held, mut out) = (BytesMut::new(), Vec::new());
        for bytes in stream.chunks(cut) {
            held.extend_from_slice(bytes);
            while let Piece::Data(data) = body.decode(&mut held).map_err(|flaw| TestCaseError::fail(flaw.rule))? {
                out.extend_from_slice(&data);
            }
        }
        prop_assert!(body.is_done() && held.is_empty());
        prop_assert_eq!(out, pieces.concat());
    }

    #[test]
    fn any_answer_is_survived(bytes: Vec<u8>) {
        let mut text = BytesMut::from(&b"HTTP/1.1 200 OK\r\n"[..]);
        text.extend_from_slice(&bytes);
        let _ = head::answer(&mut text);
    }

    #[test]
    fn numbers_are_written_as_they_are(number: u64) {
        let mut digits = [0; 20];
        let expected = number.to_string();
        prop_assert_eq!(head::decimal(&mut digits, number), expected.as_bytes());
    }
}

/// The answer's head comes when only the request's head was read; its body, when the request's was. All of the request
/// was taken by then, and most of it waits to be written.
#[tokio::test]
async fn a_request_goes_on_while_its_answer_comes() {
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const LONG: usize = 1 << 20;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    socket2::SockRef::from(&stream).set_send_buffer_size(4096).unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    let client = super::client::Client::new(stream.into());
    let (method, path, fields) = (Method::POST, "/".parse().unwrap(), http::HeaderMap::new());
    let request = super::client::Outgoing { method: &method, path: &path, fields: &fields, own: &fields };
    let sending = async {
        let body = crate::http::body::Body::Full(vec![b'x'; LONG].into());
        let answer = client.exchange(request, body).await.expect("an answer");
        assert!(!client.is_reusable(), "most of the request has still to go out");
        answer.into_body().collect().await.expect("its body").to_bytes()
    };
    let answering = async {
        let (mut read, mut piece) = (Vec::new(), [0; 1024]);
        while !read.windows(4).any(|end| end == b"\r\n\r\n") {
            let len = peer.read(&mut piece).await.unwrap();
            read.extend_from_slice(&piece[..len]);
        }
        peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await.unwrap();
        let head = read.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        let mut rest = vec![0; LONG - (read.len() - head)];
        peer.read_exact(&mut rest).await.unwrap();
        peer.write_all(b"ok").await.unwrap();
    };
    let both = async { tokio::join!(sending, answering) };
    let (answer, ()) =
        tokio::time::timeout(std::time::Duration::from_secs(20), both).await.expect("neither side hangs");
    assert_eq!(&answer[..], b"ok");
    assert!(client.is_reusable());
}
