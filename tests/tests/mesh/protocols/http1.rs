//! HTTP/1.1 through two sidecars.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use tokio::sync::Semaphore;
use weft::launch::wait_for;
use weft_tests::{
    App, Pair, Raw,
    app::{Body, text},
    caller::Http1,
    pair::requests,
    raw::{field, status},
};

#[tokio::test]
async fn one_connection_carries_many_requests() -> Result<()> {
    let pair = Pair::start("http", App::named("hello").await?).await?;
    let mut connection = Http1::connect(pair.outbound()?).await?;
    for index in 0..100 {
        let answer = connection.get("echo", &format!("/{index}")).await?;
        ensure!((answer.status, answer.text().as_str()) == (StatusCode::OK, "hello"), "{answer:?}");
    }
    let paths: Vec<String> = pair.app.seen.lock().iter().map(|seen| seen.uri.clone()).collect();
    assert_eq!(paths, (0..100).map(|index| format!("/{index}")).collect::<Vec<_>>(), "each once, in order");
    assert!(pair.app.seen.lock().iter().all(|seen| seen.version == Version::HTTP_11));
    let labels = [("source", "default/client"), ("destination", "default/echo"), ("code", "200"), ("tls", "mutual")];
    for sidecar in [&pair.caller, &pair.callee] {
        wait_for("100 requests in the metrics", Duration::from_secs(5), async || {
            (requests(sidecar, &labels).await.ok()? == 100.0).then_some(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn large_bodies_arrive_whole_both_ways() -> Result<()> {
    let pair = Pair::start("http", App::echo().await?).await?;
    let sent: Bytes = (0..6 << 20).map(|_| fastrand::u8(..)).collect::<Vec<u8>>().into();
    let mut connection = Http1::connect(pair.outbound()?).await?;
    for _ in 0..2 {
        let request = Request::post("/").header(header::HOST, "echo").body(Full::new(sent.clone()))?;
        let answer = connection.send(request).await?;
        ensure!(answer.status == StatusCode::OK && answer.reason().is_empty(), "{:?}", answer.headers);
        assert!(answer.body == sent, "{} of {} bytes, or others", answer.body.len(), sent.len());
    }
    Ok(())
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() -> Result<()> {
    let pair = Pair::start("http", App::echo().await?).await?;
    let mut connection = Raw::connect(pair.outbound()?).await?;
    let head = "POST / HTTP/1.1\r\nhost: echo\r\nte: trailers\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n";
    for _ in 0..2 {
        connection.write(head).await?;
        // The answer to the first chunk comes before the second is sent: nothing waits for the end.
        connection.write("5\r\nhello\r\n").await?;
        let answer = connection.head().await?;
        assert_eq!(status(&answer), "200", "{answer}");
        assert_eq!(field(&answer, "transfer-encoding"), Some("chunked"), "{answer}");
        assert_eq!(connection.until("\r\nhello\r\n").await?, "5\r\nhello\r\n");
        connection.write("6\r\n world\r\n0\r\nX-Sum: 42\r\nHost: forged\r\n\r\n").await?;
        let end = connection.until("\r\n\r\n").await?.to_ascii_lowercase();
        assert_eq!(end, "6\r\n world\r\n0\r\nx-sum: 42\r\n\r\n");
    }
    assert_eq!(pair.app.count(), 2);
    Ok(())
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_in_order() -> Result<()> {
    let app = App::http(|request| async move {
        match request.uri().path() {
            "/204" => text(StatusCode::NO_CONTENT, ""),
            "/304" => text(StatusCode::NOT_MODIFIED, ""),
            path => text(StatusCode::OK, format!("page {path}")),
        }
    })
    .await?;
    let pair = Pair::start("http", app).await?;
    let mut connection = Raw::connect(pair.outbound()?).await?;
    for _ in 0..2 {
        let requests: String = [("HEAD", "/head"), ("GET", "/204"), ("GET", "/304"), ("GET", "/last")]
            .map(|(method, path)| format!("{method} {path} HTTP/1.1\r\nhost: echo\r\n\r\n"))
            .concat();
        connection.write(requests).await?;
        let head = connection.head().await?;
        assert_eq!((status(&head), field(&head, "content-length")), ("200", Some("10")), "{head}");
        for code in ["204", "304"] {
            let head = connection.head().await?;
            assert_eq!(status(&head), code, "{head}");
        }
        let (head, body) = connection.answer().await?;
        assert_eq!((status(&head), body.as_str()), ("200", "page /last"), "{head}");
    }
    assert_eq!(pair.app.count(), 8);
    Ok(())
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() -> Result<()> {
    // The slow request is answered only when the test says so, which it does once all have been sent.
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let app = App::http(move |request| {
        let gate = held.clone();
        async move {
            let path = request.uri().path().to_owned();
            if path == "/slow" {
                gate.acquire().await.expect("the test holds the semaphore").forget();
            }
            text(StatusCode::OK, path)
        }
    })
    .await?;
    let pair = Pair::start("http", app).await?;
    let mut connection = Raw::connect(pair.outbound()?).await?;
    let paths = ["/slow", "/1", "/2", "/3", "/4", "/5"];
    for path in paths {
        connection.write(format!("GET {path} HTTP/1.1\r\nhost: echo\r\n\r\n")).await?;
    }
    let app = &pair.app;
    wait_for("the slow request", Duration::from_secs(10), async || (app.count() >= 1).then_some(())).await?;
    gate.add_permits(1);
    for path in paths {
        let (head, body) = connection.answer().await?;
        assert_eq!((status(&head), body.as_str()), ("200", path), "{head}");
    }
    assert_eq!(pair.app.count(), paths.len());
    Ok(())
}

/// `/no` is refused without a look at its body; else the body is what is answered.
async fn careful(request: Request<hyper::body::Incoming>) -> Response<Body> {
    if request.uri().path() == "/no" {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "too large");
    }
    match request.into_body().collect().await {
        Ok(body) => text(StatusCode::OK, body.to_bytes()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

#[tokio::test]
async fn a_body_that_waits_for_100_continue_is_asked_for() -> Result<()> {
    let pair = Pair::start("http", App::http(careful).await?).await?;
    let mut connection = Raw::connect(pair.outbound()?).await?;
    let ask =
        |path: &str| format!("PUT {path} HTTP/1.1\r\nhost: echo\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    for _ in 0..2 {
        connection.write(ask("/yes")).await?;
        let head = connection.head().await?;
        assert_eq!(status(&head), "100", "{head}");
        connection.write("hello").await?;
        let (head, body) = connection.answer().await?;
        assert_eq!((status(&head), body.as_str()), ("200", "hello"), "{head}");
    }
    // Refused: one answer, whether or not a 100 came first.
    connection.write(ask("/no")).await?;
    let mut head = connection.head().await?;
    let asked_for = status(&head) == "100";
    if asked_for {
        head = connection.head().await?;
    }
    assert_eq!(status(&head), "413", "{head}");
    let length = field(&head, "content-length").unwrap_or_default().parse()?;
    assert_eq!(connection.exactly(length).await?, "too large");
    // A body that was asked for is sent; one that was not may or may not follow, so that the connection must end.
    let body = if asked_for { "hello" } else { "" };
    let next = format!("{body}GET /next HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n");
    // It may have been closed by now.
    let _ = connection.write(next).await;
    let rest = connection.rest().await?;
    ensure!(rest.is_empty() || asked_for && status(&rest) == "200", "after a refused body: {rest}");
    ensure!(rest.matches("HTTP/1.1 ").count() <= 1, "{rest}");
    Ok(())
}

#[tokio::test]
async fn an_answer_before_the_body_ends_is_passed_on() -> Result<()> {
    let pair = Pair::start("http", App::http(careful).await?).await?;
    let mut connection = Raw::connect(pair.outbound()?).await?;
    connection.write("POST /no HTTP/1.1\r\nhost: echo\r\ncontent-length: 10000000\r\n\r\nhello").await?;
    let (head, body) = connection.answer().await?;
    assert_eq!((status(&head), body.as_str()), ("413", "too large"), "{head}");
    // A second caller is not held up by the rest that never comes.
    let answer = Http1::connect(pair.outbound()?).await?.get("echo", "/yes").await?;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert!(pair.app.seen.lock().iter().map(|seen| &seen.method).eq([&Method::POST, &Method::GET]));
    Ok(())
}
