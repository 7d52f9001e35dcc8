//! What is sent again, how often, and what is not; connections that their server closes at bad times.

use std::{
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::Result;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use weft_tests::{
    App, Load, Mesh,
    app::text,
    caller::{self, Http1},
    witness::{line, metric, metric_reaches},
};

const SERVICE: &str = r"
apiVersion: v1
kind: Service
metadata: { name: orders }
spec: { ports: [{ name: main, port: 80, appProtocol: http }] }
";

fn request(method: Method, path: &str) -> Result<Request<Full<Bytes>>> {
    let body = if method == Method::GET { Full::default() } else { Full::from("body") };
    Ok(Request::builder().method(method).uri(path).header(header::HOST, "orders").body(body)?)
}

fn tries(app: &App, path: &str) -> usize {
    app.seen.lock().iter().filter(|seen| seen.uri == path).count()
}

#[tokio::test]
async fn a_post_answered_503_is_sent_once_and_a_get_up_to_three_times() -> Result<()> {
    let mesh = Mesh::start().await?;
    mesh.apply(&format!(
        "{SERVICE}---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: orders }}
spec:
  parentRefs: [{{ kind: Service, name: orders }}]
  rules:
    - name: by-key
      matches: [{{ path: {{ value: /keyed }} }}]
      backendRefs: [{{ name: orders, port: 80 }}]
    - name: others
      backendRefs: [{{ name: orders, port: 80 }}]
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {{ name: by-key }}
spec:
  targetRefs: [{{ kind: HTTPRoute, group: gateway.networking.k8s.io, name: orders, sectionName: by-key }}]
  retry: {{ idempotent: true }}
"
    ))
    .await?;
    let app = App::http(|_| async { text(StatusCode::SERVICE_UNAVAILABLE, "no") }).await?;
    let _callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    let proxy = caller.ports()?.outbound;
    for (method, path, count) in
        [(Method::POST, "/post", 1), (Method::PATCH, "/patch", 1), (Method::GET, "/get", 3), (Method::PUT, "/put", 3)]
    {
        let answer = caller::send(proxy, request(method, path)?).await?;
        // The application's own answer, so there is no reason of the mesh's.
        assert_eq!((answer.status.as_u16(), answer.text().as_str(), answer.reason().as_str()), (503, "no", ""));
        assert_eq!(tries(&app, path), count, "{path}");
        let attempts = line(&caller, "outbound", path).await?["attempts"].as_array().map_or(0, Vec::len);
        assert_eq!(attempts, count, "{path} in the access log");
    }
    assert_eq!(caller::send(proxy, request(Method::POST, "/keyed")?).await?.status.as_u16(), 503);
    assert_eq!(tries(&app, "/keyed"), 3, "its route says that it may be repeated");
    // The application sees which try it is.
    let numbers: Vec<String> = app.seen.lock().iter().filter(|seen| seen.uri == "/get").map(attempt).collect();
    assert_eq!(numbers, ["1", "2", "3"]);
    metric_reaches(&caller, "weft_retries_suppressed_total", &[("why", "not_idempotent")], 2.0).await
}

fn attempt(seen: &weft_tests::app::Seen) -> String {
    let number = seen.headers.get("x-weft-attempt").map(|value| value.to_str().unwrap().to_owned());
    number.unwrap_or_else(|| "1".to_owned())
}

#[tokio::test]
async fn the_budget_holds_when_everything_fails() -> Result<()> {
    let mesh = Mesh::start().await?;
    mesh.apply(SERVICE).await?;
    let app = App::http(|_| async { text(StatusCode::SERVICE_UNAVAILABLE, "no") }).await?;
    let _callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    let began = Instant::now();
    let load = Load::start(caller.ports()?.outbound, "orders", 16, Duration::ZERO);
    while load.failed() < 2000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let asked = load.stop().await.failed.len() as f64;
    // A second that has begun has its free retries, too.
    let bound = 1.2 * asked + 10.0 * (began.elapsed().as_secs_f64() + 2.0);
    let sent = app.count() as f64;
    assert!(sent <= bound, "{asked} requests became {sent}, over {bound}");
    assert!(sent > asked * 1.05, "nothing was tried again: {asked} requests became {sent}");
    metric_reaches(&caller, "weft_retries_suppressed_total", &[("why", "budget")], 1.0).await
}

/// Answers, and closes the connection after a random while: mostly about when the next request comes.
async fn restless(mut stream: TcpStream, after: Duration) -> Option<TcpStream> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.ok()?;
    let mut first = [0];
    // Looks whether a request has begun, without reading it: a server that closes has not seen it.
    match tokio::time::timeout(after, stream.peek(&mut first)).await {
        Ok(Ok(1)) => Some(stream),
        _closed_or_idle => None,
    }
}

#[tokio::test]
async fn a_server_that_closes_idle_connections_at_random_costs_no_request() -> Result<()> {
    let mesh = Mesh::start().await?;
    let app = App::bytes(|stream, _| restless(stream, Duration::from_micros(fastrand::u64(0..4000)))).await?;
    let callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    let load = Load::start(caller.ports()?.outbound, "orders", 4, Duration::from_millis(1));
    load.answer(5000).await?;
    load.stop().await.assert_whole();
    // It did close connections, and some were in use again.
    let opened = metric(&callee, "weft_connections_opened_total", &[("peer", "app")]).await?;
    assert!((100.0..5000.0).contains(&opened), "{opened} connections for 5000 requests");
    Ok(())
}

#[tokio::test]
async fn what_must_not_be_repeated_does_not_go_to_a_connection_that_is_closed() -> Result<()> {
    let mesh = Mesh::start().await?;
    let closing = Duration::from_millis(3);
    let app = App::bytes(move |stream, _| restless(stream, closing)).await?;
    let _callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    let mut connection = Http1::connect(caller.ports()?.outbound).await?;
    for number in 0..300 {
        let answer = connection.send(request(Method::POST, &format!("/{number}"))?).await?;
        assert_eq!(answer.status, StatusCode::OK, "POST {number}: {answer:?}");
        // Longer than the server waits: it has closed.
        tokio::time::sleep(closing * 4).await;
    }
    assert_eq!(app.count(), 300);
    Ok(())
}

#[tokio::test]
async fn a_server_that_comes_back_is_used_at_once() -> Result<()> {
    let mesh = Mesh::start().await?;
    let failing = Arc::new(AtomicBool::new(true));
    let app = App::http({
        let failing = failing.clone();
        move |_| {
            let status = if failing.load(Ordering::Relaxed) { 503 } else { 200 };
            async move { text(StatusCode::from_u16(status).unwrap(), "") }
        }
    })
    .await?;
    let _callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    let load = Load::start(caller.ports()?.outbound, "orders", 2, Duration::from_millis(2));
    while load.failed() < 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    failing.store(false, Ordering::Relaxed);
    let healed = Instant::now();
    load.answer(1).await?;
    assert!(healed.elapsed() < Duration::from_secs(5), "{:?} until the first answer", healed.elapsed());
    load.stop().await;
    Ok(())
}
