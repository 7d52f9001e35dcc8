//! Raw TCP over mTLS, and detection.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft_xds::resource::Protocol;

use super::mesh::{Mesh, OK, Setup, answering, app, nowhere, read_message, stage};

async fn whole(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[test]
fn bytes_flow_both_ways_and_each_side_ends_by_itself() {
    stage(async {
        let app = app(|mut stream, _| async move {
            let mut all = String::new();
            stream.read_to_string(&mut all).await.unwrap();
            // The caller has ended its side long since.
            stream.write_all(all.to_uppercase().as_bytes()).await.unwrap();
        })
        .await;
        for protocol in [Protocol::Tcp, Protocol::Detect] {
            let mesh = Mesh::start(app, &Setup { protocol, ..Setup::default() });
            let mut stream = TcpStream::connect(mesh.local).await.unwrap();
            stream.write_all(b"select 1;").await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(whole(stream).await, "SELECT 1;", "{protocol:?}");
            let [caller, callee] = mesh.metrics();
            for (text, direction) in [(caller, "outbound"), (callee, "inbound")] {
                for io in ["received", "sent"] {
                    let line = format!(
                        "weft_bytes_total{{destination=\"default/orders\",direction=\"{direction}\",io=\"{io}\",source=\"default/web\"}} 9\n"
                    );
                    assert!(text.contains(&line), "{line} is missing in {text}");
                }
            }
        }
    });
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    stage(async {
        let app = app(|mut stream, _| async move {
            stream.write_all(b"5.7 mysql").await.unwrap();
        })
        .await;
        for protocol in [Protocol::Tcp, Protocol::Detect] {
            let mesh = Mesh::start(app, &Setup { protocol, ..Setup::default() });
            assert_eq!(whole(TcpStream::connect(mesh.local).await.unwrap()).await, "5.7 mysql", "{protocol:?}");
        }
    });
}

#[test]
fn http_is_detected_on_a_port_that_names_nothing() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup { protocol: Protocol::Detect, ..Setup::default() });
        for address in [mesh.local, mesh.outbound] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
            assert!(read_message(&mut stream).await.unwrap().ends_with("ok"));
            assert!(seen.last().contains("x-forwarded-client-cert"), "{}", seen.last());
        }
    });
}

#[test]
fn nobody_there_ends_the_connection() {
    stage(async {
        let setup = Setup { protocol: Protocol::Tcp, endpoints: Some(vec![nowhere()]), ..Setup::default() };
        let mesh = Mesh::start(nowhere(), &setup);
        assert_eq!(whole(TcpStream::connect(mesh.local).await.unwrap()).await, "");
        let [caller, _] = mesh.metrics();
        assert!(caller.contains("reason=\"upstream_connect_refused\""), "{caller}");
    });
}

#[test]
fn others_are_tried_while_nobody_accepts() {
    stage(async {
        let (app, _) = answering(&[OK]).await;
        let callee = Mesh::start(app, &Setup { protocol: Protocol::Tcp, permissive: true, ..Setup::default() });
        let setup = Setup {
            protocol: Protocol::Tcp,
            endpoints: Some(vec![nowhere(), callee.inbound]),
            cluster: |cluster| cluster.tls = None,
            ..Setup::default()
        };
        let mesh = Mesh::start(nowhere(), &setup);
        for _ in 0..4 {
            let mut stream = TcpStream::connect(mesh.local).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
            assert!(read_message(&mut stream).await.unwrap().ends_with("ok"));
        }
    });
}
