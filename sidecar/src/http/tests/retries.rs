//! What is tried again, and what never is.

use std::{rc::Rc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft_xds::resource::RetryPolicy;

use super::mesh::{Mesh, OK, Setup, answering, app, forward, nowhere, read_message, stage};
use crate::worker::Bounds;

const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy";

fn quick(route: &mut weft_xds::resource::Route) {
    forward(route).retry = Some(RetryPolicy {
        backoff_base: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
        ..RetryPolicy::default()
    });
}

fn post(body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

const GET: &str = "GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";

#[test]
fn a_post_answered_503_is_sent_once() {
    stage(async {
        let (app, seen) = answering(&[UNAVAILABLE]).await;
        let mesh = Mesh::start(app, &Setup { route: quick, ..Setup::default() });
        let answer = mesh.ask(&post("pay")).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("busy"), "{answer}");
        assert_eq!(seen.count(), 1);
        let [caller, _] = mesh.metrics();
        assert!(
            caller.contains("weft_retries_suppressed_total") && caller.contains("why=\"not_idempotent\""),
            "{caller}"
        );
    });
}

#[test]
fn a_get_answered_503_is_sent_up_to_three_times() {
    stage(async {
        let (app, seen) = answering(&[UNAVAILABLE, UNAVAILABLE, OK]).await;
        let mesh = Mesh::start(app, &Setup { route: quick, ..Setup::default() });
        let answer = mesh.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let seen = seen.all();
        assert_eq!(seen.len(), 3);
        assert!(!seen[0].contains("x-weft-attempt"));
        assert!(seen[1].contains("x-weft-attempt: 2\r\n") && seen[2].contains("x-weft-attempt: 3\r\n"), "{seen:?}");
    });
}

#[test]
fn bodies_are_sent_again_whole() {
    stage(async {
        let (app, seen) = answering(&[UNAVAILABLE, OK]).await;
        let route = |route: &mut weft_xds::resource::Route| {
            quick(route);
            if let Some(retry) = &mut forward(route).retry {
                retry.idempotent = true;
            }
        };
        let mesh = Mesh::start(app, &Setup { route, ..Setup::default() });
        assert!(mesh.ask(&post("twice")).await.starts_with("HTTP/1.1 200 "));
        let seen = seen.all();
        assert!(seen.len() == 2 && seen.iter().all(|request| request.ends_with("twice")), "{seen:?}");
    });
}

#[test]
fn a_body_over_the_bound_is_sent_once() {
    stage(async {
        let (app, seen) = answering(&[UNAVAILABLE, OK]).await;
        let route = |route: &mut weft_xds::resource::Route| {
            quick(route);
            if let Some(retry) = &mut forward(route).retry {
                retry.idempotent = true;
                retry.body_bytes = 4;
            }
        };
        let mesh = Mesh::start(app, &Setup { route, ..Setup::default() });
        assert!(mesh.ask(&post("twice")).await.starts_with("HTTP/1.1 503 "));
        assert_eq!(seen.count(), 1);
        assert!(mesh.metrics()[0].contains("why=\"body\""));
    });
}

#[test]
fn what_nobody_took_goes_elsewhere_whatever_its_method() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let callee = Mesh::start(app, &Setup { permissive: true, ..Setup::default() });
        let setup = Setup {
            endpoints: Some(vec![nowhere(), callee.inbound]),
            cluster: |cluster| cluster.tls = None,
            ..Setup::default()
        };
        let mesh = Mesh::start(nowhere(), &setup);
        for _ in 0..4 {
            assert!(mesh.ask(&post("pay")).await.starts_with("HTTP/1.1 200 "));
        }
        assert_eq!(seen.count(), 4);
    });
}

#[test]
fn what_the_application_never_saw_is_sent_again() {
    stage(async {
        // The callee's sidecar answers app_connect_refused: the application was not there.
        let mesh = Mesh::start(nowhere(), &Setup { route: quick, ..Setup::default() });
        let answer = mesh.ask(&post("pay")).await;
        assert!(answer.contains("weft-reason: app_connect_refused; side=app; after="), "{answer}");
        let [caller, _] = mesh.metrics();
        let tries = "weft_attempts_total{destination=\"default/orders\",direction=\"outbound\",kind=\"retry\",\
                     result=\"app_connect_refused\",source=\"default/web\"} 2\n";
        assert!(caller.contains(tries), "{caller}");
        assert!(caller.contains("reason=\"app_connect_refused\",route=\"default\""), "{caller}");
    });
}

/// A server that ends each connection right after its n-th answer, without a word.
async fn hangs_up_after(answers: u32) -> std::net::SocketAddr {
    app(move |mut stream, _| async move {
        for _ in 0..answers {
            if read_message(&mut stream).await.is_none() {
                return;
            }
            stream.write_all(OK.as_bytes()).await.unwrap();
        }
    })
    .await
}

#[test]
fn a_server_that_hangs_up_costs_no_request() {
    stage(async {
        for answers in [1, 2, 3] {
            let mesh = Mesh::start(hangs_up_after(answers).await, &Setup::default());
            let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
            for n in 0..40 {
                let request = if n % 2 == 0 {
                    "GET / HTTP/1.1\r\nHost: orders\r\n\r\n"
                } else {
                    "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 3\r\n\r\npay"
                };
                stream.write_all(request.as_bytes()).await.unwrap();
                let answer = read_message(&mut stream).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 200 "), "request {n} of {answers}: {answer}");
            }
        }
    });
}

#[test]
fn a_connection_that_ends_under_a_request_is_replayed_only_when_safe() {
    stage(async {
        // Every second request of a connection is read and then hung up on.
        let heard = Rc::new(std::cell::Cell::new(0));
        let count = Rc::clone(&heard);
        let app = app(move |mut stream, _| {
            let heard = Rc::clone(&count);
            async move {
                if read_message(&mut stream).await.is_some() {
                    heard.set(heard.get() + 1);
                    stream.write_all(OK.as_bytes()).await.unwrap();
                }
                if read_message(&mut stream).await.is_some() {
                    heard.set(heard.get() + 1);
                }
            }
        })
        .await;
        let mesh = Mesh::start(app, &Setup { route: quick, ..Setup::default() });
        assert!(mesh.ask(GET).await.starts_with("HTTP/1.1 200 "));
        assert!(mesh.ask(GET).await.starts_with("HTTP/1.1 200 "), "a GET is replayed");
        assert_eq!(heard.get(), 3);
        let answer = mesh.ask(&post("pay")).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("app_reset"), "{answer}");
        assert_eq!(heard.get(), 4, "a POST that was read is not sent again");
    });
}

#[test]
fn nothing_is_repeated_once_an_answer_began() {
    stage(async {
        let (app, seen) = answering(&["HTTP/1.1 200 OK\r\ncontent-length: 10\r\nconnection: close\r\n\r\nhalf"]).await;
        let mesh = Mesh::start(app, &Setup { route: quick, ..Setup::default() });
        let answer = mesh.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("half"), "{answer}");
        assert_eq!(seen.count(), 1);
        let [caller, callee] = mesh.metrics();
        assert!(
            callee.contains("reason=\"app_reset\"") && caller.contains("reason=\"upstream_reset\""),
            "{caller}{callee}"
        );
    });
}

#[test]
fn a_try_has_its_own_timeout() {
    stage(async {
        let app = app(|mut stream, number| async move {
            read_message(&mut stream).await;
            if number == 0 {
                // Never answers.
                drop(stream.read_u8().await);
            } else {
                stream.write_all(OK.as_bytes()).await.unwrap();
            }
        })
        .await;
        let route = |route: &mut weft_xds::resource::Route| {
            quick(route);
            if let Some(retry) = &mut forward(route).retry {
                retry.per_try_timeout = Some(Duration::from_millis(200));
            }
        };
        let mesh = Mesh::start(app, &Setup { route, bounds: Bounds::default(), ..Setup::default() });
        assert!(mesh.ask(GET).await.starts_with("HTTP/1.1 200 "));
        assert!(mesh.metrics()[0].contains("result=\"try_timeout\""));
    });
}

#[test]
fn an_endpoint_that_is_always_late_is_taken_out() {
    stage(async {
        let silent = app(|mut stream, _| async move { while read_message(&mut stream).await.is_some() {} }).await;
        let (quick_app, seen) = answering(&[OK]).await;
        let route = |route: &mut weft_xds::resource::Route| {
            quick(route);
            if let Some(retry) = &mut forward(route).retry {
                retry.per_try_timeout = Some(Duration::from_millis(50));
            }
        };
        let cluster = |cluster: &mut weft_xds::resource::Cluster| {
            cluster.tls = None;
            cluster.endpoint_breaker = Some(Default::default());
        };
        let endpoints = Some(vec![silent, quick_app]);
        let mesh = Mesh::start(quick_app, &Setup { route, cluster, endpoints, ..Setup::default() });
        for n in 0..14 {
            assert!(mesh.ask(GET).await.starts_with("HTTP/1.1 200 "), "request {n}");
        }
        assert_eq!(seen.count(), 14);
        let line = "weft_ejections_total{cause=\"timeout\",destination=\"default/orders\",port=\"80\"} 1\n";
        assert!(mesh.metrics()[0].contains(line), "{}", mesh.metrics()[0]);
    });
}
