//! Hostile bytes at both ports: refused with a reason, nothing reaches the application, others are served on.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use http::StatusCode;
use http_body_util::BodyExt;
use weft::launch::{Workload, wait_for};
use weft_tests::{
    App, Pair, Raw,
    app::text,
    caller::Http1,
    identity::Identity,
    pair::{logged, requests},
    raw::{field, status},
};

const SNI: &str = "p80.echo.default.weft";

/// Counts requests that arrive whole; those that break off are what a proxy cannot take back.
async fn app(whole: Arc<AtomicUsize>) -> Result<App> {
    App::http(move |request| {
        let whole = whole.clone();
        async move {
            match request.into_body().collect().await {
                Ok(_) => whole.fetch_add(1, SeqCst),
                Err(_broken_off) => 0,
            };
            text(StatusCode::OK, "hello")
        }
    })
    .await
}

struct Case {
    bytes: Vec<u8>,
    reason: &'static str,
}

/// Requests whose head is at fault.
fn heads() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |reason, bytes: String| cases.push(Case { bytes: bytes.into_bytes(), reason });
    let fields = |fields: &str| format!("POST / HTTP/1.1\r\nhost: echo\r\n{fields}\r\n\r\n0\r\n\r\n");
    for ambiguous in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5, 5",
        "content-length: +5",
        "content-length: -1",
        "content-length: 0x5",
        "content-length: 5 5",
        "content-length:",
        "content-length: 99999999999999999999",
        "content-length : 5",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: identity",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: \u{b}chunked",
        "transfer-encoding : chunked",
        "transfer-encoding\t: chunked",
        "transfer-encoding:\r\n chunked",
        "x: a\r\n b",
        "x: a\0b",
        "x: a\rb",
        "x: a\nb: c",
        "x: a\u{7f}",
    ] {
        case("ambiguous_framing", fields(ambiguous));
    }
    case("ambiguous_framing", "GET / HTTP/1.1\nhost: echo\n\n".into());
    case("ambiguous_framing", "POST / HTTP/1.0\r\nhost: echo\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into());
    for malformed in [": x", "x y: z", "no colon", "x\u{e9}: y"] {
        case("client_protocol_error", fields(malformed));
    }
    for line in ["GET  / HTTP/1.1", "GET / HTTP/1.1 x", "GET / HTTP/3.0", "GET / http/1.1", "G(T / HTTP/1.1"] {
        case("client_protocol_error", format!("{line}\r\nhost: echo\r\n\r\n"));
    }
    case("bad_host", "GET / HTTP/1.1\r\nhost: echo\r\nhost: echo\r\n\r\n".into());
    case("bad_host", "GET / HTTP/1.1\r\nhost: echo\r\nHost: other\r\n\r\n".into());
    case("bad_host", "GET / HTTP/1.1\r\nx: y\r\n\r\n".into());
    case("bad_host", "GET http://echo/ HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n".into());
    for path in ["/a%2fb", "/a%2Fb", "/a%5cb", "/a\\b", "/a%00b", "/a%zz", "/a%2", "/..;/b", "/a/.;x/b"] {
        case("bad_path", format!("GET {path} HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n"));
    }
    case("headers_too_large", fields(&format!("x: {}", "a".repeat(70 << 10))));
    case("headers_too_large", fields(&(0..101).map(|index| format!("x-{index}: y")).collect::<Vec<_>>().join("\r\n")));
    cases
}

/// Requests whose body is at fault, where the head has passed.
fn bodies() -> Vec<Case> {
    [
        "5;ext=1\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloworld\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: y\n\r\n",
        "5\r\nhello\r\n0\r\n x: y\r\n\r\n",
    ]
    .map(|body| {
        let head = "POST / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: chunked\r\n\r\n";
        Case { bytes: format!("{head}{body}").into_bytes(), reason: "ambiguous_framing" }
    })
    .into()
}

/// Plays all cases, each on a connection of its own, while another goes on being served.
async fn play(
    sidecar: &Workload,
    pair: &Pair,
    whole: &AtomicUsize,
    connect: impl AsyncFn() -> Result<Raw>,
) -> Result<()> {
    let mut good = Http1::connect(pair.outbound()?).await?;
    let mut expected: BTreeMap<&str, f64> = BTreeMap::new();
    for Case { bytes, reason } in heads().into_iter().chain(bodies()) {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        let before = whole.load(SeqCst);
        let mut connection = connect().await?;
        // It may be refused, and closed, before its last byte.
        let _ = connection.write(&bytes).await;
        // To its end: the connection is closed.
        let answer = connection.rest().await?;
        let told = field(&answer, "weft-reason").and_then(|told| told.split(';').next());
        ensure!(
            status(&answer).starts_with('4') && told == Some(reason),
            "{shown:?} is answered {answer:?}, not {reason}"
        );
        ensure!(answer.matches("HTTP/1.1 ").count() == 1, "{shown:?}: more than one answer: {answer}");
        ensure!(whole.load(SeqCst) == before, "{shown:?} reached the application");
        *expected.entry(reason).or_default() += 1.0;
        let answer = good.get("echo", "/good").await?;
        ensure!(answer.status == StatusCode::OK, "after {shown:?}: {answer:?}");
    }
    for (reason, count) in expected {
        wait_for(&format!("{count} times {reason}"), Duration::from_secs(5), async || {
            let counted = requests(sidecar, &[("reason", reason)]).await.ok()?;
            let lines = logged(sidecar, &[&format!("\"reason\":\"{reason}\""), "\"side\":\"app\""]);
            (counted == count && lines as f64 == count).then_some(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn hostile_bytes_of_the_application_are_refused() -> Result<()> {
    let whole = Arc::<AtomicUsize>::default();
    let pair = Pair::start("http", app(whole.clone()).await?).await?;
    play(&pair.caller, &pair, &whole, async || Raw::connect(pair.outbound()?).await).await
}

#[tokio::test]
async fn hostile_bytes_of_the_mesh_are_refused() -> Result<()> {
    let whole = Arc::<AtomicUsize>::default();
    let pair = Pair::start("http", app(whole.clone()).await?).await?;
    let identity = Identity::join(&pair.mesh, "default", "mallory").await?;
    let inbound = pair.callee.ports()?.inbound;
    // That such a caller is served at all, so that the refusals mean something.
    let mut connection = identity.connect(inbound, SNI).await?;
    connection.write("GET /good HTTP/1.1\r\nhost: echo\r\nx-forwarded-client-cert: URI=spiffe://weft.local/ns/default/sa/admin\r\n\r\n").await?;
    let (head, body) = connection.answer().await?;
    assert_eq!((status(&head), body.as_str()), ("200", "hello"), "{head}");
    let seen = pair.app.seen.lock().last().cloned().expect("one request");
    let said: Vec<_> =
        seen.headers.get_all("x-forwarded-client-cert").iter().filter_map(|said| said.to_str().ok()).collect();
    assert_eq!(said, ["By=spiffe://weft.local/ns/default/sa/echo;URI=spiffe://weft.local/ns/default/sa/mallory"]);
    play(&pair.callee, &pair, &whole, async || identity.connect(inbound, SNI).await).await
}

#[tokio::test]
async fn a_head_that_does_not_end_is_given_up() -> Result<()> {
    let pair = Pair::start("http", App::named("hello").await?).await?;
    let mut slow = Raw::connect(pair.outbound()?).await?;
    let mut silent = Raw::connect(pair.outbound()?).await?;
    slow.write("GET / HTTP/1.1\r\nhost: echo\r\nx: ").await?;
    let dribble = async {
        // A byte now and then does not move the deadline.
        while slow.write("a").await.is_ok() && !slow.has_answer().await {}
        slow.rest().await
    };
    let answer = dribble.await?;
    assert_eq!(
        (status(&answer), field(&answer, "weft-reason").and_then(|told| told.split(';').next())),
        ("408", Some("header_timeout")),
        "{answer}"
    );
    silent.rest().await?;
    ensure!(requests(&pair.caller, &[("reason", "header_timeout")]).await? >= 1.0);
    assert_eq!(pair.app.count(), 0);
    Ok(())
}

#[tokio::test]
async fn plain_text_at_the_inbound_port_is_refused() -> Result<()> {
    let pair = Pair::start("http", App::named("hello").await?).await?;
    let mut connection = Raw::connect(pair.callee.ports()?.inbound).await?;
    connection.write("GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n").await?;
    let answer = connection.rest().await?;
    assert_eq!(
        (status(&answer), field(&answer, "weft-reason").and_then(|told| told.split(';').next())),
        ("403", Some("plaintext_refused")),
        "{answer}"
    );
    assert_eq!(pair.app.count(), 0);
    Ok(())
}
