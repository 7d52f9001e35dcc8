//! Raw connections through two sidecars, and ports whose protocol is found out from the first bytes.

use std::time::Duration;

use anyhow::{Result, ensure};
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft::launch::{metrics, wait_for};
use weft_tests::{
    App, Pair, Raw,
    caller::{Http1, Http2},
    pair::requests,
    raw::status,
};

/// Reads to the end, and only then answers how much came.
async fn count(mut stream: TcpStream) {
    let mut sum: u64 = 0;
    let mut length: u64 = 0;
    let mut buffer = vec![0; 64 * 1024];
    // A reset ends it like an end; the count then says what was missing.
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        length += read as u64;
        sum = buffer[..read].iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    }
    // Whoever has gone does not want to know.
    let _ = stream.write_all(format!("{length} {sum}").as_bytes()).await;
}

#[tokio::test]
async fn an_end_of_the_callers_side_leaves_the_other_open() -> Result<()> {
    let pair = Pair::start("tcp", App::raw(count).await?).await?;
    let sent: Vec<u8> = (0..3 << 20).map(|_| fastrand::u8(..)).collect();
    let sum = sent.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let mut connection = Raw::connect(pair.upstream()?).await?;
    connection.write(&sent).await?;
    connection.finish().await?;
    assert_eq!(connection.rest().await?, format!("{} {sum}", sent.len()));
    let labels = [("source", "default/client"), ("destination", "default/echo")];
    for sidecar in [&pair.caller, &pair.callee] {
        wait_for("the bytes in the metrics", Duration::from_secs(5), async || {
            let scrape = metrics::scrape(sidecar.ports().ok()?.metrics).await.ok()?;
            let bytes = scrape.sum("weft_bytes_total", &[&labels[..], &[("io", "received")]].concat());
            (bytes == sent.len() as f64).then_some(())
        })
        .await?;
        let labels = [("destination", "default/echo"), ("protocol", "tcp"), ("tls", "mutual"), ("reason", "")];
        ensure!(requests(sidecar, &labels).await? == 1.0, "the connection is not counted");
    }
    Ok(())
}

#[tokio::test]
async fn an_end_of_the_applications_side_leaves_the_other_open() -> Result<()> {
    let (told, mut heard) = tokio::sync::mpsc::channel(1);
    let app = App::raw(move |mut stream| {
        let told = told.clone();
        async move {
            let _ = stream.write_all(b"bye").await;
            let _ = stream.shutdown().await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            // The sidecar looks whether the application listens by connecting and closing.
            if !rest.is_empty() {
                let _ = told.send(String::from_utf8_lossy(&rest).into_owned()).await;
            }
        }
    })
    .await?;
    let pair = Pair::start("tcp", app).await?;
    let mut connection = Raw::connect(pair.upstream()?).await?;
    assert_eq!(connection.rest().await?, "bye");
    connection.write("one more thing").await?;
    connection.finish().await?;
    let heard = tokio::time::timeout(Duration::from_secs(10), heard.recv()).await?;
    assert_eq!(heard.as_deref(), Some("one more thing"));
    Ok(())
}

#[tokio::test]
async fn connect_carries_raw_bytes_to_a_tcp_service() -> Result<()> {
    let pair = Pair::start("tcp", App::raw(count).await?).await?;
    let mut connection = Raw::connect(pair.outbound()?).await?;
    connection.write("CONNECT echo:80 HTTP/1.1\r\nhost: echo:80\r\n\r\n").await?;
    let head = connection.head().await?;
    assert_eq!(status(&head), "200", "{head}");
    connection.write("GET / is no request here").await?;
    connection.finish().await?;
    ensure!(connection.rest().await?.starts_with("24 "));
    let labels = [("destination", "default/echo"), ("protocol", "tcp"), ("tls", "mutual")];
    wait_for("the connection in the metrics", Duration::from_secs(5), async || {
        (requests(&pair.caller, &labels).await.ok()? == 1.0).then_some(())
    })
    .await
}

/// A mail-like server for who is silent, an echo for bytes, a web server for HTTP.
async fn versatile(mut stream: TcpStream) {
    let mut first = [0; 4];
    match tokio::time::timeout(Duration::from_millis(300), stream.peek(&mut first)).await {
        Err(_silent) => {
            let _ = stream.write_all(b"220 hello\r\n").await;
            let mut line = [0; 6];
            let _ = stream.read_exact(&mut line).await;
            let _ = stream.write_all(b"221 bye\r\n").await;
        }
        Ok(_) if first.starts_with(b"GET") || first.starts_with(b"PRI") => {
            let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                anyhow::Ok(http::Response::new(Full::new(bytes::Bytes::from(format!("{:?}", request.version())))))
            });
            // How it ends is seen by the caller.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        }
        Ok(_) => {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    }
}

#[tokio::test]
async fn first_bytes_tell_what_a_connection_is() -> Result<()> {
    let pair = Pair::start("detect", App::raw(versatile).await?).await?;
    let upstream = pair.upstream()?;

    let mut silent = Raw::connect(upstream).await?;
    assert_eq!(silent.until("\r\n").await?, "220 hello\r\n", "the server speaks first");
    silent.write("QUIT\r\n").await?;
    assert_eq!(silent.rest().await?, "221 bye\r\n");
    drop(silent);

    let mut opaque = Raw::connect(upstream).await?;
    for bytes in ["*1\r\n$4\r\nPING\r\n", "GET lives later in this stream HTTP/1.1\r\n\r\n"] {
        opaque.write(bytes).await?;
        assert_eq!(opaque.exactly(bytes.len()).await?, bytes);
    }
    opaque.finish().await?;
    assert_eq!(opaque.rest().await?, "");

    let mut http1 = Http1::connect(upstream).await?;
    for _ in 0..2 {
        let answer = http1.get("echo", "/").await?;
        ensure!((answer.status, answer.text().as_str()) == (StatusCode::OK, "HTTP/1.1"), "{answer:?}");
    }
    let mut http2 = Http2::connect(upstream).await?;
    let answer = http2.send(Request::get("http://echo/").body(Full::default())?).await?;
    ensure!((answer.status, answer.text().as_str()) == (StatusCode::OK, "HTTP/2.0"), "{answer:?}");
    // By name at the outbound port likewise.
    let answer = Http1::connect(pair.outbound()?).await?.get("echo", "/").await?;
    ensure!((answer.status, answer.text().as_str()) == (StatusCode::OK, "HTTP/1.1"), "{answer:?}");

    for (protocol, count) in [("tcp", 2.0), ("http1", 3.0), ("http2", 1.0)] {
        for sidecar in [&pair.caller, &pair.callee] {
            wait_for(&format!("{count} of {protocol}"), Duration::from_secs(5), async || {
                let labels = [("destination", "default/echo"), ("protocol", protocol), ("tls", "mutual")];
                (requests(sidecar, &labels).await.ok()? == count).then_some(())
            })
            .await?;
        }
    }
    Ok(())
}
