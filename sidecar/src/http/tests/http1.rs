//! HTTP/1.1 through two sidecars.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::mesh::{Mesh, OK, Setup, answering, app, ask, read_message, stage};

#[test]
fn a_request_crosses_both_sidecars() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let answer = mesh
            .ask(
                "GET /a/./b?q=1 HTTP/1.1\r\nHost: Orders\r\nConnection: close, x-drop\r\nx-drop: 1\r\nx-keep: 2\r\n\
                 x-forwarded-for: 6.6.6.6\r\nx-forwarded-client-cert: URI=spiffe://evil\r\nx-weft-attempt: 9\r\n\
                 x-forwarded-proto: gopher\r\nweft-reason: no_route\r\n\r\n",
            )
            .await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok"), "{answer}");
        let request = seen.last();
        assert!(request.starts_with("GET /a/b?q=1 HTTP/1.1\r\n"), "{request}");
        for line in [
            "host: orders\r\n",
            "x-keep: 2\r\n",
            "x-forwarded-for: 127.0.0.1\r\n",
            "x-forwarded-proto: https\r\n",
            "weft-hops: 2\r\n",
            "traceparent: 00-",
            "x-forwarded-client-cert: By=spiffe://weft.local/ns/default/sa/orders;URI=spiffe://weft.local/ns/default/sa/web\r\n",
        ] {
            assert!(request.contains(line), "{line:?} is missing in {request}");
        }
        for gone in ["x-drop", "evil", "x-weft", "gopher", "6.6.6.6", "weft-reason", "connection:"] {
            assert!(!request.contains(gone), "{gone:?} reached the application: {request}");
        }
        let [caller, callee] = mesh.metrics();
        let line = "weft_requests_total{code=\"200\",destination=\"default/orders\",direction=\"outbound\",\
                    grpc_status=\"\",protocol=\"http1\",reason=\"\",route=\"default\",source=\"default/web\",tls=\"mutual\"} 1";
        assert!(caller.contains(line), "{caller}");
        assert!(
            callee.contains("weft_tls_handshakes_total{direction=\"inbound\",group=\"X25519MLKEM768\""),
            "{callee}"
        );
    });
}

#[test]
fn every_way_to_name_a_service() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        for request in [
            "GET http://orders/x HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n",
            "GET http://orders:80/x HTTP/1.1\r\nHost: ORDERS\r\nConnection: close\r\n\r\n",
            "GET /x HTTP/1.1\r\nHost: orders.default.svc.cluster.local\r\nConnection: close\r\n\r\n",
            "GET /x HTTP/1.1\r\nHost: orders.default.mesh.:80\r\nConnection: close\r\n\r\n",
            "GET http://orders/x HTTP/1.0\r\n\r\n",
        ] {
            let answer = mesh.ask(request).await;
            assert!(answer.contains(" 200 OK\r\n"), "{request}: {answer}");
        }
        let answer = ask(mesh.local, "GET /x HTTP/1.1\r\nHost: 127.0.0.1:9\r\nConnection: close\r\n\r\n").await;
        assert!(answer.contains(" 200 OK\r\n"), "{answer}");
        assert!(seen.last().contains("host: orders.default:80\r\n"), "{}", seen.last());
        assert_eq!(seen.count(), 6);
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    stage(async {
        let (app, seen) = answering(&[
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
        ])
        .await;
        let mesh = Mesh::start(app, &Setup::default());
        let answer = mesh
            .ask(
                "POST /1 HTTP/1.1\r\nHost: orders\r\nContent-Length: 3\r\n\r\nabc\
                 POST /2 HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ndef\r\n0\r\n\r\n\
                 GET /3 HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n",
            )
            .await;
        let at = |part: &str| answer.find(part).unwrap_or_else(|| panic!("no {part:?} in {answer}"));
        assert!(at("one") < at("two") && at("two") < at("HTTP/1.1 204"), "{answer}");
        let seen = seen.all();
        assert!(seen[0].ends_with("abc") && seen[1].contains("def") && seen[2].starts_with("GET /3"), "{seen:?}");
    });
}

#[test]
fn answers_without_a_body() {
    stage(async {
        let (app, _) = answering(&[
            "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            OK,
        ])
        .await;
        let mesh = Mesh::start(app, &Setup::default());
        let answer = mesh
            .ask(
                "HEAD / HTTP/1.1\r\nHost: orders\r\n\r\nGET / HTTP/1.1\r\nHost: orders\r\n\r\n\
                 GET / HTTP/1.1\r\nHost: orders\r\n\r\nGET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n",
            )
            .await;
        assert!(answer.contains("content-length: 1234\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 4, "{answer}");
        assert!(answer.ends_with("ok"), "{answer}");
    });
}

#[test]
fn one_request_one_answer_with_100_continue() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        let head = "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut interim = [0; 25];
        stream.read_exact(&mut interim).await.unwrap();
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"abc").await.unwrap();
        let answer = read_message(&mut stream).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
        assert_eq!(seen.count(), 1);
        assert!(!seen.last().contains("expect") && seen.last().ends_with("abc"), "{}", seen.last());
    });
}

#[test]
fn trailers_pass() {
    stage(async {
        let (app, seen) = answering(&[
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
        ])
        .await;
        let mesh = Mesh::start(app, &Setup::default());
        let answer = mesh
            .ask(
                "POST / HTTP/1.1\r\nHost: orders\r\nTE: trailers\r\nConnection: close, TE\r\nTrailer: x-up, host\r\n\
                 Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-up: 1\r\nhost: evil\r\n\r\n",
            )
            .await;
        assert!(answer.contains("0\r\nx-sum: 7\r\n\r\n"), "{answer}");
        assert!(seen.last().contains("x-up: 1") && !seen.last().contains("evil"), "{}", seen.last());
    });
}

#[test]
fn bodies_stream_both_ways() {
    stage(async {
        // Answers each piece as it comes: nothing may wait for the end of the other direction.
        let app = app(|mut stream, _| async move {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                head.push(char::from(stream.read_u8().await.unwrap()));
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            let mut piece = [0; 7];
            for _ in 0..3 {
                stream.read_exact(&mut piece).await.unwrap();
                stream.write_all(&piece).await.unwrap();
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        })
        .await;
        let mesh = Mesh::start(app, &Setup::default());
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        let mut got = String::new();
        for piece in ["2\r\naa\r\n", "2\r\nbb\r\n", "2\r\ncc\r\n"] {
            stream.write_all(piece.as_bytes()).await.unwrap();
            while !got.ends_with(piece) {
                got.push(char::from(stream.read_u8().await.unwrap()));
            }
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
    });
}

#[test]
fn a_megabyte_passes_whole() {
    stage(async {
        const SIZE: usize = 1 << 20;
        let app = app(|mut stream, _| async move {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                head.push(char::from(stream.read_u8().await.unwrap()));
            }
            let mut body = vec![0; SIZE];
            stream.read_exact(&mut body).await.unwrap();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&body).await.unwrap();
        })
        .await;
        let mesh = Mesh::start(app, &Setup::default());
        let body: String = (0..SIZE).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
        let head = format!("POST / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nContent-Length: {SIZE}\r\n\r\n");
        let (mut read, mut write) = TcpStream::connect(mesh.outbound).await.unwrap().into_split();
        let sent = body.clone();
        tokio::task::spawn_local(async move {
            write.write_all(head.as_bytes()).await.unwrap();
            write.write_all(sent.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        });
        let mut answer = Vec::new();
        read.read_to_end(&mut answer).await.unwrap();
        assert!(answer.ends_with(body.as_bytes()), "{} bytes", answer.len());
    });
}

#[test]
fn connections_are_kept_and_used_again() {
    stage(async {
        let (app, _) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        for _ in 0..5 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
            assert!(read_message(&mut stream).await.unwrap().ends_with("ok"));
        }
        let [caller, callee] = mesh.metrics();
        assert!(
            caller.contains("weft_connections_opened_total{direction=\"outbound\",peer=\"upstream\"} 1\n"),
            "{caller}"
        );
        assert!(callee.contains("weft_connections_opened_total{direction=\"inbound\",peer=\"app\"} 1\n"), "{callee}");
    });
}

#[test]
fn a_drained_side_says_goodbye() {
    stage(async {
        let (app, _) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
        assert!(read_message(&mut stream).await.unwrap().ends_with("ok"));
        mesh.caller.shared.drain.outbound.drain();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
    });
}
