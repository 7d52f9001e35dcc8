//! HTTP/2 with prior knowledge through two sidecars, to applications that speak it and to those that do not.

use std::sync::Arc;

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::Full;
use tokio::sync::Barrier;
use weft_tests::{App, Pair, app::text, caller::Http2};

/// Streams that are open at one time.
const STREAMS: usize = 50;

#[tokio::test]
async fn streams_of_one_connection_run_side_by_side() -> Result<()> {
    for (protocol, version) in [("http2", Version::HTTP_2), ("http", Version::HTTP_11)] {
        // Nobody is answered before all have arrived.
        let all = Arc::new(Barrier::new(STREAMS));
        let app = App::http(move |request| {
            let all = all.clone();
            async move {
                all.wait().await;
                text(StatusCode::OK, request.uri().path().to_owned())
            }
        })
        .await?;
        let pair = Pair::start(protocol, app).await?;
        let connection = Http2::connect(pair.outbound()?).await?;
        let calls = (0..STREAMS).map(|index| {
            let mut connection = connection.clone();
            async move {
                let path = format!("/{index}");
                let request = Request::get(format!("http://echo{path}")).body(Full::default())?;
                let answer = connection.send(request).await?;
                ensure!((answer.status, answer.text()) == (StatusCode::OK, path), "{answer:?}");
                anyhow::Ok(())
            }
        });
        futures_util::future::try_join_all(calls).await?;
        assert_eq!(pair.app.count(), STREAMS);
        ensure!(pair.app.seen.lock().iter().all(|seen| seen.version == version), "{protocol}: other than {version:?}");
    }
    Ok(())
}

#[tokio::test]
async fn large_bodies_arrive_whole_both_ways_at_once() -> Result<()> {
    let pair = Pair::start("http2", App::echo().await?).await?;
    let connection = Http2::connect(pair.outbound()?).await?;
    let calls = (0..4).map(|_| {
        let mut connection = connection.clone();
        async move {
            let sent: Bytes = (0..2 << 20).map(|_| fastrand::u8(..)).collect::<Vec<u8>>().into();
            let answer = connection.send(Request::post("http://echo/").body(Full::new(sent.clone()))?).await?;
            ensure!(answer.status == StatusCode::OK && answer.reason().is_empty(), "{:?}", answer.headers);
            ensure!(answer.body == sent, "{} of {} bytes, or others", answer.body.len(), sent.len());
            anyhow::Ok(())
        }
    });
    futures_util::future::try_join_all(calls).await?;
    Ok(())
}

#[tokio::test]
async fn what_http2_forbids_does_not_reach_an_http1_application() -> Result<()> {
    let pair = Pair::start("http", App::named("hello").await?).await?;
    let hostile: [(&str, &str); 5] = [
        ("transfer-encoding", "chunked"),
        ("connection", "keep-alive"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("host", "other"),
    ];
    for (name, value) in hostile {
        let stream = tokio::net::TcpStream::connect(pair.outbound()?).await?;
        let (client, connection) = h2::client::handshake(stream).await?;
        let running = tokio::spawn(connection);
        let mut client = client.ready().await?;
        let request = Request::post("http://echo/").header(name, value).body(())?;
        // The client library may refuse to say it, which proves nothing either way.
        if let Ok((answer, mut body)) = client.send_request(request, false) {
            // Likewise when the stream has been reset by then.
            let _ = body.send_data(Bytes::from_static(b"5\r\nhello\r\n0\r\n\r\n"), true);
            match answer.await {
                Ok(answer) => ensure!(answer.status() == StatusCode::BAD_REQUEST, "{name}: {answer:?}"),
                Err(error) => ensure!(error.is_reset() || error.is_go_away(), "{name}: {error}"),
            }
        }
        running.abort();
    }
    // A content-length that is not the data's.
    for (length, data) in [("3", "hello"), ("9", "hello")] {
        let stream = tokio::net::TcpStream::connect(pair.outbound()?).await?;
        let (client, connection) = h2::client::handshake(stream).await?;
        let running = tokio::spawn(connection);
        let mut client = client.ready().await?;
        let request = Request::post("http://echo/").header("content-length", length).body(())?;
        let (answer, mut body) = client.send_request(request, false)?;
        let _ = body.send_data(Bytes::from(data), true);
        match answer.await {
            Ok(answer) => ensure!(!answer.status().is_success(), "{length}: {answer:?}"),
            Err(error) => ensure!(error.is_reset() || error.is_go_away(), "{length}: {error}"),
        }
        running.abort();
    }
    let mut connection = Http2::connect(pair.outbound()?).await?;
    let answer = connection.send(Request::get("http://echo/last").body(Full::default())?).await?;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let seen = pair.app.seen.lock();
    for seen in seen.iter() {
        ensure!(!seen.headers.contains_key("transfer-encoding") || seen.headers.get("content-length").is_none());
        ensure!(seen.headers.get("te").is_none() && seen.headers.get("upgrade").is_none(), "{seen:?}");
    }
    Ok(())
}
