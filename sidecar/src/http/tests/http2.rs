//! HTTP/2 and gRPC through two sidecars, and from one version to the other.

use std::{cell::Cell, convert::Infallible, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use weft_xds::resource::Protocol;

use super::mesh::{ClientBody, LocalExec, Mesh, OK, Setup, answering, ask, full, http2_client, stage};

/// An HTTP/2 application that sends every piece back as it comes, then its trailers.
async fn echo() -> SocketAddr {
    super::mesh::app(|stream, _| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            let (parts, body) = request.into_parts();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            trailers.insert("x-path", HeaderValue::from_str(parts.uri.path()).unwrap());
            let authority = parts.uri.authority().map(ToString::to_string).unwrap_or_default();
            trailers.insert("x-authority", HeaderValue::from_str(&authority).unwrap());
            let frames = body
                .into_data_stream()
                .map(|piece| Ok::<_, Infallible>(Frame::data(piece.unwrap_or_default())))
                .chain(futures_util::stream::once(async move { Ok(Frame::trailers(trailers)) }));
            let mut response = Response::new(StreamBody::new(frames));
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            Ok::<_, Infallible>(response)
        });
        drop(hyper::server::conn::http2::Builder::new(LocalExec).serve_connection(TokioIo::new(stream), service).await);
    })
    .await
}

fn fed() -> (mpsc::Sender<Bytes>, ClientBody) {
    let (send, receive) = mpsc::channel(4);
    let pieces = futures_util::stream::unfold(receive, |mut receive: mpsc::Receiver<Bytes>| async move {
        receive.recv().await.map(|piece| (Ok::<_, Infallible>(Frame::data(piece)), receive))
    });
    (send, Box::pin(StreamBody::new(pieces)))
}

#[test]
fn grpc_streams_both_ways_with_trailers() {
    stage(async {
        let mesh = Mesh::start(echo().await, &Setup { protocol: Protocol::Grpc, ..Setup::default() });
        let mut client = http2_client(mesh.outbound).await;
        let (send, body) = fed();
        let request = Request::post("http://orders/shop.Orders/Watch")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let mut answer = answer.into_body();
        for piece in ["one", "two", "three"] {
            send.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
            let frame = answer.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), piece);
        }
        drop(send);
        let trailers = answer.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(trailers["x-path"], "/shop.Orders/Watch");
        assert_eq!(trailers["x-authority"], "orders");
        let [caller, _] = mesh.metrics();
        assert!(caller.contains("grpc_status=\"0\",protocol=\"grpc\""), "{caller}");
    });
}

#[test]
fn one_connection_carries_many_streams() {
    stage(async {
        let mesh = Mesh::start(echo().await, &Setup { protocol: Protocol::Http2, ..Setup::default() });
        let client = http2_client(mesh.outbound).await;
        let calls = (0..50).map(|n| {
            let mut client = client.clone();
            async move {
                let request = Request::post(format!("http://orders/{n}")).body(full("hello")).unwrap();
                let answer = client.send_request(request).await.unwrap();
                let collected = answer.into_body().collect().await.unwrap();
                assert_eq!(collected.trailers().unwrap()["x-path"], format!("/{n}"));
                assert_eq!(collected.to_bytes(), "hello");
            }
        });
        futures_util::future::join_all(calls).await;
        let [caller, callee] = mesh.metrics();
        assert!(
            caller.contains("weft_connections_opened_total{direction=\"outbound\",peer=\"upstream\"} 1\n"),
            "{caller}"
        );
        assert!(callee.contains("weft_connections_opened_total{direction=\"inbound\",peer=\"app\"} 1\n"), "{callee}");
    });
}

#[test]
fn http2_reaches_an_http1_application() {
    stage(async {
        let (app, seen) = answering(&[
            "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\ncontent-length: 2\r\n\r\nok",
        ])
        .await;
        let mesh = Mesh::start(app, &Setup::default());
        let mut client = http2_client(mesh.outbound).await;
        let request = Request::post("http://orders/a").header("cookie", "a=1").body(full("abc")).unwrap();
        let answer = client.send_request(request).await.unwrap();
        assert!(!answer.headers().contains_key("x-hop") && !answer.headers().contains_key("keep-alive"));
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
        let request = seen.last();
        assert!(request.starts_with("POST /a HTTP/1.1\r\n") && request.ends_with("abc"), "{request}");
        assert!(request.contains("host: orders\r\n") && request.contains("content-length: 3\r\n"), "{request}");
    });
}

#[test]
fn http1_reaches_an_http2_application() {
    stage(async {
        let mesh = Mesh::start(echo().await, &Setup { protocol: Protocol::Http2, ..Setup::default() });
        let answer =
            mesh.ask("POST /x HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("abc"), "{answer}");
    });
}

#[test]
fn two_authorities_are_one_too_many() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let mut client = http2_client(mesh.outbound).await;
        let request = Request::get("http://orders/").header("host", "payments").body(full("")).unwrap();
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        assert!(answer.headers()["weft-reason"].to_str().unwrap().starts_with("bad_host; side=app; after="));
        assert_eq!(seen.count(), 0);
    });
}

#[test]
fn grpc_callers_are_told_in_grpc() {
    stage(async {
        let mesh = Mesh::start(super::mesh::nowhere(), &Setup { protocol: Protocol::Grpc, ..Setup::default() });
        let mut client = http2_client(mesh.outbound).await;
        for (host, status, reason) in
            [("orders", "14", "app_connect_refused"), ("nobody", "14", "service_unknown"), ("a_b..c", "3", "bad_host")]
        {
            let request = Request::post("http://orders/a.B/C")
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            let request = match host {
                "a_b..c" => request.header("host", host),
                host => request.uri(format!("http://{host}/a.B/C")),
            };
            let answer = client.send_request(request.body(full("")).unwrap()).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK, "{host}");
            assert_eq!(answer.headers()["grpc-status"], status, "{host}");
            let said = answer.headers()["weft-reason"].to_str().unwrap();
            assert!(said.starts_with(reason), "{host}: {said}");
        }
    });
}

#[test]
fn a_drained_side_sends_goaway() {
    stage(async {
        let mesh = Mesh::start(echo().await, &Setup { protocol: Protocol::Http2, ..Setup::default() });
        let mut client = http2_client(mesh.outbound).await;
        let (send, body) = fed();
        let answer = client.send_request(Request::post("http://orders/").body(body).unwrap()).await.unwrap();
        mesh.caller.shared.drain.outbound.drain();
        // What runs goes on.
        let mut answer = answer.into_body();
        send.send(Bytes::from_static(b"late")).await.unwrap();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "late");
        drop(send);
        assert!(answer.frame().await.unwrap().unwrap().is_trailers());
        while !client.is_closed() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn the_outbound_port_takes_both_versions() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let answer = ask(mesh.outbound, "GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await;
        assert!(answer.ends_with("ok"));
        let mut client = http2_client(mesh.outbound).await;
        let answer = client.send_request(Request::get("http://orders/").body(full("")).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(seen.count(), 2);
    });
}

#[test]
fn a_server_that_goes_away_politely_costs_no_request() {
    stage(async {
        // Each connection takes three requests, then says GOAWAY.
        let app = super::mesh::app(|stream, _| async move {
            let left = Rc::new(Cell::new(3));
            let seen = Rc::clone(&left);
            let service = service_fn(move |_request: Request<Incoming>| {
                seen.set(seen.get() - 1);
                async { Ok::<_, Infallible>(Response::new(full("ok"))) }
            });
            let served = hyper::server::conn::http2::Builder::new(LocalExec);
            let mut served = std::pin::pin!(served.serve_connection(TokioIo::new(stream), service));
            let enough = std::future::poll_fn(|cx| {
                // Looked at whenever the connection moves.
                cx.waker().wake_by_ref();
                if left.get() <= 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            });
            tokio::select! {
                _ = served.as_mut() => return,
                () = enough => served.as_mut().graceful_shutdown(),
            }
            drop(served.await);
        })
        .await;
        let mesh = Mesh::start(app, &Setup { protocol: Protocol::Http2, ..Setup::default() });
        let client = http2_client(mesh.outbound).await;
        for round in 0..20 {
            let calls = (0..5).map(|_| {
                let mut client = client.clone();
                async move {
                    let request = Request::post("http://orders/pay").body(full("3")).unwrap();
                    let answer = client.send_request(request).await.unwrap();
                    let reason = answer.headers().get("weft-reason").cloned();
                    assert_eq!(answer.status(), StatusCode::OK, "round {round}: {reason:?}");
                    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
                }
            });
            futures_util::future::join_all(calls).await;
        }
    });
}
