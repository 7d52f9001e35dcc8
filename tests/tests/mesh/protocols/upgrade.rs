//! Protocols that begin as HTTP/1.1: nothing flows before the application has agreed, and everything after.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
};
use weft::launch::wait_for;
use weft_tests::{
    App, Pair, Raw,
    pair::requests,
    raw::{field, status},
};

const ASK: &str = "GET /chat HTTP/1.1\r\nhost: echo\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";

/// An application that reads a head, waits for leave to answer, answers `answer`, and then echoes. All that it reads is
/// noted.
async fn app(answer: &'static str, leave: Arc<Semaphore>, read: Arc<Mutex<Vec<u8>>>) -> Result<App> {
    App::raw(move |stream| answer_and_echo(stream, answer, leave.clone(), read.clone())).await
}

async fn answer_and_echo(mut stream: TcpStream, answer: &str, leave: Arc<Semaphore>, read: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    let (mut asked, mut answered) = (false, false);
    loop {
        tokio::select! {
            Ok(_leave) = leave.acquire(), if asked && !answered => {
                answered = true;
                // A caller that has gone is seen by the next read.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            got = stream.read(&mut buffer) => match got {
                Ok(got @ 1..) => {
                    read.lock().extend_from_slice(&buffer[..got]);
                    asked |= buffer[..got].windows(4).any(|window| window == b"\r\n\r\n");
                    if answered {
                        let _ = stream.write_all(&buffer[..got]).await;
                    }
                }
                Ok(_) | Err(_) => return,
            },
        }
    }
}

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                      sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[tokio::test]
async fn bytes_flow_both_ways_after_the_101_and_not_before() -> Result<()> {
    let (leave, read) = (Arc::new(Semaphore::new(0)), Arc::<Mutex<Vec<u8>>>::default());
    let pair = Pair::start("http", app(SWITCH, leave.clone(), read.clone()).await?).await?;
    let mut connection = Raw::connect(pair.outbound()?).await?;
    // Bytes that come too early: in the packet of the head, and after it.
    connection.write(format!("{ASK}early ")).await?;
    let head = wait_for("the head at the application", Duration::from_secs(10), async || {
        let read = String::from_utf8_lossy(&read.lock()).into_owned();
        read.contains("\r\n\r\n").then_some(read)
    })
    .await?;
    ensure!(field(&head, "upgrade") == Some("websocket"), "{head}");
    connection.write("birds ").await?;
    // For as long as a relay would take by far, nothing comes.
    let early = tokio::time::timeout(Duration::from_millis(500), async {
        while read.lock().ends_with(b"\r\n\r\n") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    ensure!(early.await.is_err(), "before the 101: {:?}", String::from_utf8_lossy(&read.lock()));

    leave.add_permits(1);
    let head = connection.head().await?;
    assert_eq!(status(&head), "101", "{head}");
    assert_eq!(field(&head, "upgrade"), Some("websocket"), "{head}");
    assert_eq!(field(&head, "sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    assert_eq!(connection.exactly("early birds ".len()).await?, "early birds ");
    for index in 0..50 {
        let frame = format!("\u{0}frame {index}\r\n\r\n");
        connection.write(&frame).await?;
        assert_eq!(connection.exactly(frame.len()).await?, frame);
    }
    connection.finish().await?;
    assert_eq!(connection.rest().await?, "");
    wait_for("the tunnel in the metrics", Duration::from_secs(5), async || {
        (requests(&pair.caller, &[("destination", "default/echo"), ("code", "101")]).await.ok()? == 1.0).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_refused_upgrade_is_no_tunnel() -> Result<()> {
    let answers =
        ["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno", "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno"];
    for answer in answers {
        let (leave, read) = (Arc::new(Semaphore::new(1)), Arc::<Mutex<Vec<u8>>>::default());
        let pair = Pair::start("http", app(answer, leave, read.clone()).await?).await?;
        let mut connection = Raw::connect(pair.outbound()?).await?;
        connection.write(format!("{ASK}GET /smuggled HTTP/1.1\r\nhost: echo\r\n\r\n")).await?;
        let (head, body) = connection.answer().await?;
        assert_eq!((status(&head), body.as_str()), (status(answer), "no"), "{head}");
        // It ends: neither a tunnel nor an answer to what came too early.
        let _ = connection.write("GET /smuggled HTTP/1.1\r\nhost: echo\r\n\r\n").await;
        assert_eq!(connection.rest().await?, "");
        let read = String::from_utf8_lossy(&read.lock()).into_owned();
        ensure!(!read.contains("smuggled"), "{read}");
        ensure!(read.matches("HTTP/1.1").count() == 1, "{read}");
    }
    Ok(())
}

#[tokio::test]
async fn a_101_that_nobody_asked_for_is_a_failure() -> Result<()> {
    let (leave, read) = (Arc::new(Semaphore::new(1)), Arc::<Mutex<Vec<u8>>>::default());
    let pair = Pair::start("http", app(SWITCH, leave, read.clone()).await?).await?;
    let mut connection = Raw::connect(pair.outbound()?).await?;
    connection.write("GET / HTTP/1.1\r\nhost: echo\r\n\r\n").await?;
    let (head, body) = connection.answer().await?;
    assert_eq!(status(&head), "502", "{head}{body}");
    Ok(())
}
