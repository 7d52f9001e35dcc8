//! Long bodies, slow readers, and what happens on one side of a message while the other still runs.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::mesh::{Mesh, OK, Setup, answering, app, ask, read_message, stage};

/// More than all buffers on the way hold together.
const LONG: usize = 24 << 20;

/// The n-th byte of a long body.
fn byte(place: usize) -> u8 {
    (place % 251) as u8
}

fn long() -> Vec<u8> {
    (0..LONG).map(byte).collect()
}

async fn until_head_ends(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// An application that answers every request with a long body, chunked or of known length.
async fn long_answers(chunked: bool) -> std::net::SocketAddr {
    app(move |mut stream, _| async move {
        while read_message(&mut stream).await.is_some() {
            let body = long();
            let head =
                if chunked { "transfer-encoding: chunked".to_owned() } else { format!("content-length: {LONG}") };
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes()).await.unwrap();
            if !chunked {
                stream.write_all(&body).await.unwrap();
                continue;
            }
            for piece in body.chunks(100_001) {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await.unwrap();
                stream.write_all(piece).await.unwrap();
                stream.write_all(b"\r\n").await.unwrap();
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
    })
    .await
}

#[test]
fn a_long_answer_reaches_a_slow_reader_whole() {
    stage(async {
        let app = long_answers(false).await;
        let mesh = Mesh::start(app, &Setup::default());
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        for _ in 0..2 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
            let head = until_head_ends(&mut stream).await;
            assert!(head.contains(&format!("content-length: {LONG}\r\n")), "{head}");
            let (mut place, mut piece) = (0, vec![0; 1 << 20]);
            while place < LONG {
                // All that the sidecars could send ahead has filled the sockets: they wait.
                tokio::task::yield_now().await;
                let read = stream.read(&mut piece).await.unwrap();
                assert!(read > 0, "the answer ended after {place} bytes");
                assert!(piece[..read].iter().enumerate().all(|(at, got)| *got == byte(place + at)), "at {place}");
                place += read;
            }
            assert_eq!(place, LONG);
        }
    });
}

#[test]
fn a_long_answer_in_chunks_is_whole() {
    stage(async {
        let app = long_answers(true).await;
        let mesh = Mesh::start(app, &Setup::default());
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await.unwrap();
        let head = until_head_ends(&mut stream).await;
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        let mut place = 0;
        loop {
            let mut size = Vec::new();
            while !size.ends_with(b"\r\n") {
                size.push(stream.read_u8().await.unwrap());
            }
            let size = usize::from_str_radix(std::str::from_utf8(&size).unwrap().trim(), 16).unwrap();
            let mut piece = vec![0; size + 2];
            stream.read_exact(&mut piece).await.unwrap();
            assert!(piece.ends_with(b"\r\n"));
            if size == 0 {
                break;
            }
            assert!(piece[..size].iter().enumerate().all(|(at, got)| *got == byte(place + at)), "at {place}");
            place += size;
        }
        assert_eq!(place, LONG);
    });
}

#[test]
fn a_long_request_is_whole_and_may_be_answered_while_it_comes() {
    stage(async {
        // Sends everything back as it comes: both directions run at once.
        let app = app(|mut stream, _| async move {
            let head = until_head_ends(&mut stream).await;
            assert!(head.contains(&format!("content-length: {LONG}\r\n")), "{head}");
            stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {LONG}\r\n\r\n").as_bytes()).await.unwrap();
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        })
        .await;
        let mesh = Mesh::start(app, &Setup::default());
        let stream = TcpStream::connect(mesh.outbound).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let sending = tokio::task::spawn_local(async move {
            let head = format!("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: {LONG}\r\n\r\n");
            writer.write_all(head.as_bytes()).await.unwrap();
            writer.write_all(&long()).await.unwrap();
            writer
        });
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(reader.read_u8().await.unwrap());
        }
        let mut body = vec![0; LONG];
        reader.read_exact(&mut body).await.unwrap();
        assert!(body == long(), "what came back is not what was sent");
        drop(sending.await.unwrap());
    });
}

#[test]
fn an_answer_that_does_not_wait_for_the_body_arrives() {
    stage(async {
        let app = app(|mut stream, _| async move {
            until_head_ends(&mut stream).await;
            let answer = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig";
            stream.write_all(answer).await.unwrap();
            // Never reads the body; the caller has its answer before this side closes.
            stream.shutdown().await.unwrap();
            let mut rest = vec![0; 64 << 10];
            while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
        })
        .await;
        let mesh = Mesh::start(app, &Setup::default());
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: {LONG}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
        let answer = until_head_ends(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        let mut body = [0; 3];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"big");
    });
}

#[test]
fn requests_sent_ahead_wait_their_turn() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        // Far more than is read ahead.
        let one = format!("GET /{} HTTP/1.1\r\nHost: orders\r\n\r\n", "x".repeat(2000));
        let many = one.repeat(199) + &one.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        let answer = ask(mesh.outbound, &many).await;
        assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 200);
        assert_eq!(seen.count(), 200);
    });
}

#[test]
fn a_caller_that_leaves_within_an_answer_is_noticed() {
    stage(async {
        let left = std::rc::Rc::new(tokio::sync::Notify::new());
        let noticed = std::rc::Rc::clone(&left);
        let app = app(move |mut stream, _| {
            let noticed = std::rc::Rc::clone(&noticed);
            async move {
                until_head_ends(&mut stream).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nfirst").await.unwrap();
                // Nothing more comes; the sidecar's end of the connection tells.
                let mut byte = [0; 1];
                while stream.read(&mut byte).await.is_ok_and(|read| read > 0) {}
                noticed.notify_one();
            }
        })
        .await;
        let mesh = Mesh::start(app, &Setup::default());
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
        until_head_ends(&mut stream).await;
        let mut first = [0; 5];
        stream.read_exact(&mut first).await.unwrap();
        drop(stream);
        left.notified().await;
        let [caller, callee] = mesh.metrics();
        for (side, metrics) in [("outbound", caller), ("inbound", callee)] {
            let counted = metrics.lines().any(|line| {
                line.starts_with("weft_requests_total") && line.contains(side) && line.contains("client_cancelled")
            });
            assert!(counted, "{metrics}");
        }
    });
}

#[test]
fn what_is_left_of_a_refused_body_does_not_cost_the_answer() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        // The host is no service's: the answer needs nothing of the body.
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        let body = "x".repeat(100_000);
        let head = format!("POST / HTTP/1.1\r\nHost: nobody\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        let refused = until_head_ends(&mut stream).await;
        assert!(refused.starts_with("HTTP/1.1 404 ") || refused.starts_with("HTTP/1.1 503 "), "{refused}");
        // The body was short enough to be read to its end, so that the connection serves on.
        stream.write_all(body.as_bytes()).await.unwrap();
        stream.write_all(b"GET /next HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert!(rest.contains("HTTP/1.1 200 OK\r\n") && rest.ends_with("ok"), "{rest}");
        assert_eq!(seen.count(), 1);
    });
}
