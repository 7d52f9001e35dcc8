use proptest::prelude::*;

use super::*;

/// Feeds `stream` in pieces cut at `cuts`; what passed, and how it ended.
fn feed(stream: &[u8], piece: usize) -> (Vec<u8>, Option<Flaw>, Place) {
    let mut framing = Framing::default();
    let (mut held, mut passed) = (Vec::new(), Vec::new());
    for bytes in stream.chunks(piece.max(1)) {
        held.extend_from_slice(bytes);
        loop {
            match framing.step(&held) {
                Step::Pass(len) => passed.extend(held.drain(..len)),
                Step::Drop(len) => drop(held.drain(..len)),
                Step::More => break,
                Step::Refuse(flaw) => return (passed, Some(flaw), Place::Tunnel),
            }
        }
    }
    (passed, None, framing.place(!held.is_empty()))
}

const GOOD: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\nX-Trailer: 1\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost:a\r\nX-Empty:\r\nX-Tab: a\tb\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
];

#[test]
fn good_messages_pass_whole_however_they_are_cut() {
    for stream in GOOD {
        let expected = stream.trim_start_matches("\r\n").as_bytes();
        for piece in 1..=stream.len() {
            let (passed, flaw, place) = feed(stream.as_bytes(), piece);
            assert_eq!(flaw, None, "{stream:?} cut at {piece}");
            assert_eq!(passed, expected);
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
            let (passed, flaw, _) = feed(stream.as_bytes(), piece);
            assert_eq!(flaw.map(|flaw| flaw.reason), Some(Reason::AmbiguousFraming), "{body:?}");
            assert!(!passed.ends_with(b"0\r\n\r\n"), "{body:?}: a refused message looks complete");
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

    /// hyper's parser, httparse, accepts every head that passes, and sees the same end.
    #[test]
    fn what_passes_is_what_the_parser_reads(
        name in "[!-~ ]{1,6}", value in "[ -~\t]{0,8}", target in "/[!-~]{0,6}",
    ) {
        let stream = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\n\r\n");
        let (passed, flaw, _) = feed(stream.as_bytes(), 11);
        if flaw.is_none() && !passed.is_empty() {
            let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
            let mut request = httparse::Request::new(&mut fields);
            let parsed = request.parse(&passed).expect("what passes parses");
            prop_assert_eq!(parsed, httparse::Status::Complete(passed.len()));
        }
    }
}
