//! Upgrades and CONNECT.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft_xds::resource::{Egress, Protocol};

use super::mesh::{Mesh, OK, Setup, answering, app, ask, read_message, stage};
use crate::snapshot::Snapshot;

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";

#[test]
fn an_upgrade_crosses_both_sidecars() {
    stage(async {
        let app = app(|mut stream, _| async move {
            let request = read_message(&mut stream).await.unwrap();
            assert!(request.contains("upgrade: websocket\r\n") && request.contains("sec-websocket-key: x\r\n"));
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello";
            stream.write_all(switch).await.unwrap();
            let mut byte = [0; 4];
            stream.read_exact(&mut byte).await.unwrap();
            byte.reverse();
            stream.write_all(&byte).await.unwrap();
            // The caller ends its side, and still gets what comes.
            assert_eq!(stream.read(&mut byte).await.unwrap(), 0);
            stream.write_all(b"bye").await.unwrap();
        })
        .await;
        let mesh = Mesh::start(app, &Setup::default());
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        stream.write_all(UPGRADE.as_bytes()).await.unwrap();
        let answer = read_message(&mut stream).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("upgrade: websocket\r\n"), "{answer}");
        stream.write_all(b"\x81\x00ab").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"helloba\x00\x81bye");
    });
}

#[test]
fn nothing_is_tunnelled_before_the_backend_agrees() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        // Bytes that follow at once, and would be a request of their own if they were read as one.
        let answer = mesh.ask(&format!("{UPGRADE}GET /smuggled HTTP/1.1\r\nHost: orders\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert_eq!(seen.count(), 1, "{:?}", seen.all());
    });
}

#[test]
fn a_switch_that_nobody_asked_for_is_no_answer() {
    stage(async {
        let (app, _) =
            answering(&["HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let answer = mesh.ask("GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    });
}

#[test]
fn connect_to_a_service_is_ended_here_and_http_inside_is_proxied() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        stream.write_all(b"CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\n").await.unwrap();
        let answer = read_message(&mut stream).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        for _ in 0..2 {
            stream.write_all(b"GET /in HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
            assert!(read_message(&mut stream).await.unwrap().ends_with("ok"));
        }
        assert!(seen.last().contains("weft-hops: 2\r\n"), "{}", seen.last());
    });
}

#[test]
fn connect_to_a_service_carries_bytes_where_the_service_does() {
    stage(async {
        let app = app(|mut stream, _| async move {
            stream.write_all(b"220 ready\r\n").await.unwrap();
            let mut line = [0; 4];
            stream.read_exact(&mut line).await.unwrap();
            stream.write_all(&line).await.unwrap();
        })
        .await;
        for protocol in [Protocol::Tcp, Protocol::Detect] {
            let mesh = Mesh::start(app, &Setup { protocol, ..Setup::default() });
            let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
            stream.write_all(b"CONNECT orders HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
            assert!(read_message(&mut stream).await.unwrap().starts_with("HTTP/1.1 200 OK\r\n"));
            let mut line = [0; 11];
            stream.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"220 ready\r\n", "{protocol:?}");
            stream.write_all(b"QUIT").await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"QUIT");
        }
    });
}

#[test]
fn a_mesh_that_lets_nothing_out_says_so() {
    stage(async {
        let (app, _) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let before = mesh.caller.shared.snapshot.load_full();
        let closed = Snapshot { egress: Egress::Registered, ..(*before).clone() };
        mesh.caller.shared.snapshot.store(Arc::new(closed));
        for request in [
            "CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: 192.0.2.1:443\r\n\r\n",
            "CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n",
            "GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n",
        ] {
            let answer = mesh.ask(request).await;
            assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("external_refused"), "{request}: {answer}");
            assert!(answer.contains("not registered"), "{answer}");
        }
        let answer = mesh.ask("GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
}

#[test]
fn connect_reaches_neither_loopback_nor_the_sidecar() {
    stage(async {
        let (app, _) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let own = mesh.inbound;
        for host in
            ["127.0.0.1:80", "localhost:80", "[::1]:80", "0.0.0.0:80", "[::ffff:127.0.0.1]:80", &own.to_string()]
        {
            let answer = mesh.ask(&format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("external_refused"), "{host}: {answer}");
            let answer =
                mesh.ask(&format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("external_refused"), "{host}: {answer}");
        }
        let answer = mesh.ask("CONNECT nobody:80 HTTP/1.1\r\nHost: nobody:80\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("connection: close"), "{answer}");
    });
}

#[test]
fn connect_is_not_taken_from_the_mesh() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup { permissive: true, ..Setup::default() });
        let answer = ask(mesh.inbound, "CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert_eq!(seen.count(), 0);
    });
}
