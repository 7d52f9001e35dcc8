//! Whom a request asks for: spellings of a service's name, forward-proxy forms, CONNECT, what is refused.

use std::time::Duration;

use anyhow::{Result, ensure};
use http::{Request, StatusCode, header};
use http_body_util::Full;
use weft::launch::wait_for;
use weft_tests::{
    App, Pair, Raw, caller,
    pair::{logged, requests},
    raw::{field, status},
};

#[tokio::test]
async fn a_service_answers_to_all_of_its_names() -> Result<()> {
    let pair = Pair::start("http", App::named("hello").await?).await?;
    let names = [
        "echo",
        "ECHO",
        "echo:80",
        "echo.default",
        "echo.default.",
        "echo.default:80",
        "echo.default.svc",
        "echo.default.svc.cluster.local",
        "Echo.Default.SVC.cluster.local.:80",
        "echo.default.mesh",
    ];
    for name in names {
        let answer = caller::get(pair.outbound()?, name, "/").await?;
        ensure!((answer.status, answer.text().as_str()) == (StatusCode::OK, "hello"), "{name}: {answer:?}");
    }
    // As to a forward proxy: the whole URI in the request line.
    for (uri, host) in [("http://echo/a?b=c", "echo"), ("http://Echo.default:80/a?b=c", "echo.default")] {
        let request = Request::get(uri).header(header::HOST, host).body(Full::default())?;
        let answer = caller::send(pair.outbound()?, request).await?;
        ensure!(answer.status == StatusCode::OK, "{uri}: {answer:?}");
        assert_eq!(pair.app.seen.lock().last().map(|seen| seen.uri.clone()).as_deref(), Some("/a?b=c"), "{uri}");
    }
    assert_eq!(pair.app.count(), names.len() + 2);
    Ok(())
}

#[tokio::test]
async fn a_name_that_leads_nowhere_says_why() -> Result<()> {
    let pair = Pair::start("http", App::named("hello").await?).await?;
    let outbound = pair.outbound()?;
    let table = [
        ("nobody", StatusCode::SERVICE_UNAVAILABLE, "service_unknown"),
        ("echo.elsewhere.svc", StatusCode::SERVICE_UNAVAILABLE, "service_unknown"),
        ("echo:81", StatusCode::SERVICE_UNAVAILABLE, "service_unknown"),
        ("localhost", StatusCode::FORBIDDEN, "external_refused"),
        ("127.0.0.1:9", StatusCode::FORBIDDEN, "external_refused"),
        ("[::1]:9", StatusCode::FORBIDDEN, "external_refused"),
        ("[::ffff:127.0.0.1]:9", StatusCode::FORBIDDEN, "external_refused"),
        ("0.0.0.0:9", StatusCode::FORBIDDEN, "external_refused"),
        ("echo@nobody", StatusCode::BAD_REQUEST, "bad_host"),
        ("echo..default", StatusCode::BAD_REQUEST, "bad_host"),
        ("echo:80:80", StatusCode::BAD_REQUEST, "bad_host"),
    ];
    for (host, code, reason) in table {
        let text =
            caller::raw(outbound, format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())
                .await?;
        assert_eq!(status(&text), code.as_str(), "{host}: {text}");
        let told = field(&text, "weft-reason").unwrap_or_default();
        ensure!(told.split(';').next() == Some(reason), "{host}: {told}");
        ensure!(requests(&pair.caller, &[("reason", reason)]).await? >= 1.0, "{host}: {reason} is not in the metrics");
        let parts = [format!("\"authority\":\"{host}\""), format!("\"reason\":\"{reason}\"")];
        wait_for(&format!("a line for {host}"), Duration::from_secs(5), async || {
            (logged(&pair.caller, &parts.each_ref().map(String::as_str)) == 1).then_some(())
        })
        .await?;
    }
    assert_eq!(pair.app.count(), 0);
    Ok(())
}

#[tokio::test]
async fn nothing_on_loopback_is_reached_through_the_sidecar() -> Result<()> {
    let pair = Pair::start("http", App::named("hello").await?).await?;
    let outbound = pair.outbound()?;
    let ports = pair.caller.ports()?;
    for target in [pair.app.address, ports.admin, ports.outbound, ports.inbound] {
        let port = target.port();
        for host in ["127.0.0.1", "localhost", "127.1.2.3", "[::1]", "[::ffff:7f00:1]", "0.0.0.0"] {
            for request in [
                format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n"),
                format!("GET http://{host}:{port}/ HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n"),
            ] {
                let answer = caller::raw(outbound, request.as_bytes()).await?;
                assert_eq!(status(&answer), "403", "{request}{answer}");
                assert_eq!(
                    field(&answer, "weft-reason").and_then(|told| told.split(';').next()),
                    Some("external_refused")
                );
            }
        }
    }
    assert_eq!(pair.app.count(), 0);
    Ok(())
}

#[tokio::test]
async fn connect_to_a_service_is_not_a_way_round_the_mesh() -> Result<()> {
    let pair = Pair::start("http", App::named("hello").await?).await?;
    let mut connection = Raw::connect(pair.outbound()?).await?;
    connection.write("CONNECT echo:80 HTTP/1.1\r\nhost: echo:80\r\n\r\n").await?;
    let head = connection.head().await?;
    assert_eq!(status(&head), "200", "{head}");
    for host in ["echo", "whatever.the.application.calls.it"] {
        connection.write(format!("GET /inside HTTP/1.1\r\nhost: {host}\r\n\r\n")).await?;
        let (head, body) = connection.answer().await?;
        assert_eq!((status(&head), body.as_str()), ("200", "hello"), "{head}");
    }
    let labels =
        [("source", "default/client"), ("destination", "default/echo"), ("protocol", "http1"), ("code", "200")];
    ensure!(requests(&pair.caller, &labels).await? == 2.0, "not counted");
    ensure!(app_identity(&pair.app).contains("sa/client"));

    let deny = r#"
apiVersion: weft.mesh/v1alpha1
kind: AccessPolicy
metadata: { name: closed }
spec:
  targetRefs: [{ kind: Service, name: echo }]
  action: DENY
  rules: [{ name: inside, to: [{ paths: [/inside] }] }]
"#;
    pair.mesh.control_plane.apply(deny, "closed", 10).await?;
    connection.write("GET /inside HTTP/1.1\r\nhost: echo\r\n\r\n").await?;
    let (head, _body) = connection.answer().await?;
    assert_eq!(status(&head), "403", "{head}");
    assert_eq!(pair.app.count(), 2);

    // What is no service is not connected to.
    let answer = caller::raw(pair.outbound()?, b"CONNECT nobody:80 HTTP/1.1\r\nhost: nobody:80\r\n\r\n").await?;
    assert_eq!(status(&answer), "503", "{answer}");
    Ok(())
}

fn app_identity(app: &App) -> String {
    let seen = app.seen.lock();
    let said = seen.last().and_then(|seen| seen.headers.get("x-forwarded-client-cert"));
    said.and_then(|said| said.to_str().ok()).unwrap_or_default().to_owned()
}
