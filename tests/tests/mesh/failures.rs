//! What a caller sees when a callee fails, and what its sidecar says about it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    sync::Notify,
};
use weft::launch::Reserved;
use weft_tests::{
    App, Mesh,
    app::text,
    caller,
    witness::{assert_reason, line, metric_reaches},
};

/// An answer without a body of interest, on a connection that ends.
fn post(host: &str, path: &str) -> Result<Request<Full<Bytes>>> {
    Ok(Request::post(path).header(header::HOST, host).body(Full::from("body"))?)
}

/// Gets `path` up to where the answer ends, which is expected to be too early.
async fn broken(proxy: std::net::SocketAddr, path: &str, begun: &Notify) -> Result<(StatusCode, usize, bool)> {
    let stream = TcpStream::connect(proxy).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(path).header(header::HOST, "orders").body(Full::<Bytes>::default())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let mut body = response.into_body();
    let mut bytes = 0;
    while let Some(frame) = tokio::time::timeout(caller::PATIENCE, body.frame()).await? {
        match frame {
            Ok(frame) => {
                bytes += frame.into_data().map_or(0, |data| data.len());
                begun.notify_one();
            }
            Err(_broken) => return Ok((status, bytes, false)),
        }
    }
    Ok((status, bytes, true))
}

/// Begins an answer as asked for by the path, and breaks off.
async fn break_off(mut stream: TcpStream, path: String) -> Option<TcpStream> {
    let head = if path.contains("chunked") {
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n"
    } else {
        "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    };
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(&[b'x'; 1000]).await.ok()?;
    if path.contains("reset") {
        // Nothing is left to be sent, so that only the reset follows.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok()?;
    }
    if path.contains("whole-chunk") {
        stream.write_all(b"\r\n").await.ok()?;
    }
    if path.contains("hang") {
        std::future::pending::<()>().await;
    }
    None
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_complete() -> Result<()> {
    let mesh = Mesh::start().await?;
    let app = App::bytes(|stream, seen| break_off(stream, seen.uri)).await?;
    let mut callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    let proxy = caller.ports()?.outbound;
    for path in ["/length-closed", "/length-reset", "/chunked-closed", "/chunked-reset", "/chunked-whole-chunk"] {
        let (status, bytes, complete) = broken(proxy, path, &Notify::new()).await?;
        assert!(status == StatusCode::OK && bytes <= 1000 && !complete, "{path}: {status}, {bytes} bytes, {complete}");
        assert_reason(&caller, path, 200, "upstream_reset").await?;
        let callee_line = line(&callee, "inbound", path).await?;
        assert_eq!(callee_line["reason"], "app_reset", "{callee_line}");
    }
    // The same when it is the callee's sidecar that is killed.
    let begun = Arc::new(Notify::new());
    let asking = tokio::spawn({
        let begun = begun.clone();
        async move { broken(proxy, "/length-hang", &begun).await }
    });
    begun.notified().await;
    callee.kill().await;
    let (status, bytes, complete) = asking.await??;
    assert!(status == StatusCode::OK && bytes <= 1000 && !complete, "{status}, {bytes} bytes, {complete}");
    assert_eq!(line(&caller, "outbound", "/length-hang").await?["reason"], "upstream_reset");
    Ok(())
}

#[tokio::test]
async fn an_application_that_is_down_is_named_and_another_one_answers_instead() -> Result<()> {
    let mesh = Mesh::start().await?;
    let app = App::named("two").await?;
    // Nobody listens at the first one's address, and nobody can be given it meanwhile.
    let down = Reserved::new()?;
    let mut first = mesh.sidecar(spec("orders-1", down.address.port())).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    let proxy = caller.ports()?.outbound;
    for method in [Method::GET, Method::POST] {
        let path = format!("/{method}");
        let mut request = post("orders", &path)?;
        *request.method_mut() = method;
        let answer = caller::send(proxy, request).await?;
        assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (503, "app_connect_refused"), "{answer:?}");
        assert!(answer.headers["weft-reason"].to_str()?.contains("; side=app; after="), "{answer:?}");
        assert_reason(&caller, &path, 503, "app_connect_refused").await?;
        assert_eq!(line(&first, "inbound", &path).await?["reason"], "app_connect_refused");
    }

    let _second = mesh.callee("orders-2", "orders", "http", &app).await?;
    mesh.known(&caller, "orders", 2).await?;
    for number in 0..40 {
        let answer = caller::send(proxy, post("orders", &format!("/elsewhere/{number}"))?).await?;
        assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "two"), "{answer:?}");
    }
    assert_eq!(app.seen.lock().iter().filter(|seen| seen.uri.starts_with("/elsewhere")).count(), 40);

    // Nor does a sidecar that is gone without a word cost a request.
    first.kill().await;
    for number in 0..40 {
        let answer = caller::send(proxy, post("orders", &format!("/gone/{number}"))?).await?;
        assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "two"), "{answer:?}");
    }
    Ok(())
}

fn spec(name: &str, app_port: u16) -> weft::launch::WorkloadSpec {
    weft::launch::WorkloadSpec {
        name: name.to_owned(),
        service: "orders".to_owned(),
        ports: format!("main=80:{app_port}/http"),
        // The application is down from the start: the sidecar is to say so to callers, not to keep silent.
        env: vec![("WEFT_HEALTH_CHECK", "off".to_owned())],
        ..weft::launch::WorkloadSpec::default()
    }
}

#[tokio::test]
async fn a_sidecar_that_cannot_be_reached_is_named() -> Result<()> {
    let mesh = Mesh::start_with(&["--lease", "60s"]).await?;
    let app = App::named("one").await?;
    let mut callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    let proxy = caller.ports()?.outbound;
    mesh.known(&caller, "orders", 1).await?;
    assert_eq!(caller::get(proxy, "orders", "/before").await?.status, StatusCode::OK);
    // Killed, its lease not yet over: it is still an endpoint.
    callee.kill().await;
    let answer = caller::send(proxy, post("orders", "/after")?).await?;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (503, "upstream_connect_refused"), "{answer:?}");
    assert_reason(&caller, "/after", 503, "upstream_connect_refused").await
}

const TIMED: &str = r"
apiVersion: v1
kind: Service
metadata: { name: orders }
spec: { ports: [{ name: main, port: 80, appProtocol: http }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders }
spec:
  parentRefs: [{ kind: Service, name: orders }]
  rules:
    - matches: [{ path: { value: /whole } }]
      timeouts: { request: 300ms }
      backendRefs: [{ name: orders, port: 80 }]
    - matches: [{ path: { value: /each } }]
      timeouts: { request: 10s, backendRequest: 300ms }
      backendRefs: [{ name: orders, port: 80 }]
";

#[tokio::test]
async fn a_slow_application_meets_the_time_limits_of_its_route() -> Result<()> {
    let mesh = Mesh::start().await?;
    mesh.apply(TIMED).await?;
    let app = App::http(|request| async move {
        if request.uri().path().ends_with("/slow") {
            std::future::pending::<()>().await;
        }
        text(StatusCode::OK, "in time")
    })
    .await?;
    let callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    let proxy = caller.ports()?.outbound;
    for path in ["/whole/quick", "/each/quick"] {
        assert_eq!(caller::get(proxy, "orders", path).await?.status, StatusCode::OK, "{path}");
    }

    let asked = Instant::now();
    let answer = caller::get(proxy, "orders", "/whole/slow").await?;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (504, "request_timeout"), "{answer:?}");
    assert!((Duration::from_millis(300)..Duration::from_secs(3)).contains(&asked.elapsed()), "{:?}", asked.elapsed());
    assert_reason(&caller, "/whole/slow", 504, "request_timeout").await?;
    // The callee's application is told that nobody waits any more.
    assert_eq!(line(&callee, "inbound", "/whole/slow").await?["reason"], "client_cancelled");

    // A try that took too long is followed by another only if that does no harm.
    let tries = |path: &str| app.seen.lock().iter().filter(|seen| seen.uri == path).count();
    let answer = caller::get(proxy, "orders", "/each/slow").await?;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (504, "try_timeout"), "{answer:?}");
    assert_eq!(tries("/each/slow"), 3);
    assert_reason(&caller, "/each/slow", 504, "try_timeout").await?;
    let answer = caller::send(proxy, post("orders", "/each/post/slow")?).await?;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (504, "try_timeout"), "{answer:?}");
    assert_eq!(tries("/each/post/slow"), 1);
    Ok(())
}

#[tokio::test]
async fn a_reset_before_the_answer_is_tried_again_only_where_that_does_no_harm() -> Result<()> {
    let mesh = Mesh::start().await?;
    let app = App::bytes(|mut stream, seen| async move {
        if seen.uri.starts_with("/warm") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.ok()?;
            return Some(stream);
        }
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok()?;
        None
    })
    .await?;
    let callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    let proxy = caller.ports()?.outbound;
    let tries = |path: &str| app.seen.lock().iter().filter(|seen| seen.uri == path).count();

    // On a pooled connection just as on a new one.
    for path in ["/fresh", "/pooled"] {
        let answer = caller::send(proxy, post("orders", path)?).await?;
        assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (503, "app_reset"), "{answer:?}");
        assert_eq!(tries(path), 1, "a POST is sent once");
        assert_reason(&caller, path, 503, "app_reset").await?;
        assert_eq!(line(&callee, "inbound", path).await?["reason"], "app_reset");
        assert_eq!(caller::get(proxy, "orders", "/warm").await?.status, StatusCode::OK);
    }
    let answer = caller::get(proxy, "orders", "/get").await?;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (503, "app_reset"), "{answer:?}");
    // Three tries of the caller's sidecar; the callee's repeats at most what may have met a closed pooled connection.
    assert!((3..=4).contains(&tries("/get")), "{} tries", tries("/get"));
    metric_reaches(&caller, "weft_attempts_total", &[("kind", "retry"), ("result", "app_reset")], 2.0).await
}

#[tokio::test]
async fn what_does_not_listen_at_all_is_told_from_what_does_not_accept() -> Result<()> {
    let mesh = Mesh::start().await?;
    // A listener whose queue is full: connections to it neither come about nor are refused.
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let full = socket.listen(0)?;
    let address = full.local_addr()?;
    let mut waiting = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        waiting.push(stream?);
    }
    let _callee = mesh.sidecar(spec("orders-1", address.port())).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    let answer = caller::send(caller.ports()?.outbound, post("orders", "/full")?).await?;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (503, "app_connect_timeout"), "{answer:?}");
    assert_reason(&caller, "/full", 503, "app_connect_timeout").await
}
