//! Every failure has its reason, and what is refused reaches nobody.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft_xds::resource::{AccessRule, Limits, Permission, Principal, Rbac, RbacAction, StringMatch};

use super::mesh::{Mesh, OK, Setup, answering, app, ask, forward, nowhere, read_message, stage};
use crate::worker::Bounds;

const GET: &str = "GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";

fn short() -> Bounds {
    Bounds { head: Duration::from_millis(150), stream_idle: Duration::from_millis(150), ..Bounds::default() }
}

async fn expect(mesh: &Mesh, request: &str, status: &str, reason: &str) {
    let answer = mesh.ask(request).await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{reason}: {answer}");
    assert!(answer.contains(&format!("weft-reason: {reason}; side=")), "{reason}: {answer}");
    assert!(answer.contains(&format!("\r\n\r\n{reason}: ")), "{reason} is not in the body: {answer}");
    let [caller, callee] = mesh.metrics();
    let counted = format!("reason=\"{reason}\"");
    assert!(caller.contains(&counted) || callee.contains(&counted), "{reason} is not counted");
}

#[test]
fn what_the_caller_gets_wrong() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let many = format!("GET / HTTP/1.1\r\nHost: orders\r\n{}\r\n", "x: y\r\n".repeat(101));
        let large = format!("GET / HTTP/1.1\r\nHost: orders\r\nx: {}\r\n\r\n", "y".repeat(70_000));
        let table = [
            ("GET /a%2fb HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n", "400", "bad_path"),
            ("GET /a\\b HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n", "400", "bad_path"),
            ("GET /%00 HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n", "400", "bad_path"),
            ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "400", "bad_host"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n", "400", "bad_host"),
            ("GET http://orders/ HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n", "400", "bad_host"),
            ("GET / HTTP/1.1\r\nHost: a@b\r\nConnection: close\r\n\r\n", "400", "bad_host"),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                "400",
                "ambiguous_framing",
            ),
            (
                "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
                "400",
                "ambiguous_framing",
            ),
            ("POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: gzip\r\n\r\n", "400", "ambiguous_framing"),
            ("GET / HTTP/1.1\nHost: orders\n\n", "400", "ambiguous_framing"),
            ("GET / HTTP/1.1\r\nHost: orders\r\nno colon\r\n\r\n", "400", "client_protocol_error"),
            ("GET / HTTP/1.1\r\nHost: orders\r\nweft-hops: 16\r\nConnection: close\r\n\r\n", "508", "loop_detected"),
            ("GET / HTTP/1.1\r\nHost: nobody\r\nConnection: close\r\n\r\n", "503", "service_unknown"),
            ("GET / HTTP/1.1\r\nHost: unheard-of\r\nConnection: close\r\n\r\n", "503", "control_plane_unreachable"),
            (&many, "431", "headers_too_large"),
            (&large, "431", "headers_too_large"),
        ];
        for (request, status, reason) in table {
            expect(&mesh, request, status, reason).await;
        }
        assert_eq!(seen.count(), 0, "{:?}", seen.all());
    });
}

#[test]
fn what_is_smuggled_behind_a_good_request_is_refused_after_its_answer() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let answer = mesh
            .ask(
                "POST /good HTTP/1.1\r\nHost: orders\r\nContent-Length: 3\r\n\r\nabc\
                 POST /bad HTTP/1.1\r\nHost: orders\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
                 GET /after HTTP/1.1\r\nHost: orders\r\n\r\n",
            )
            .await;
        let good = answer.find("HTTP/1.1 200").unwrap_or_else(|| panic!("{answer}"));
        let bad = answer.find("HTTP/1.1 400").unwrap_or_else(|| panic!("{answer}"));
        assert!(good < bad && answer.matches("HTTP/1.1").count() == 2, "{answer}");
        assert_eq!(seen.count(), 1, "{:?}", seen.all());
    });
}

#[test]
fn a_body_that_turns_out_bad_never_looks_whole() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let answer = mesh
            .ask("POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3;x\r\ndef\r\n0\r\n\r\n")
            .await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("ambiguous_framing"), "{answer}");
        assert_eq!(seen.count(), 0, "{:?}", seen.all());
    });
}

#[test]
fn where_nobody_is() {
    stage(async {
        let (app, _) = answering(&[OK]).await;
        let none = Setup { endpoints: Some(Vec::new()), ..Setup::default() };
        expect(&Mesh::start(app, &none), GET, "503", "no_endpoints").await;
        let refused = Setup { endpoints: Some(vec![nowhere()]), ..Setup::default() };
        expect(&Mesh::start(app, &refused), GET, "503", "upstream_connect_refused").await;
        expect(&Mesh::start(nowhere(), &Setup::default()), GET, "503", "app_connect_refused").await;
        let route = |route: &mut weft_xds::resource::Route| {
            route.matches.path = weft_xds::resource::PathMatch::Exact("/only".into());
        };
        expect(&Mesh::start(app, &Setup { route, ..Setup::default() }), GET, "404", "no_route").await;
    });
}

#[test]
fn who_is_not_who_was_expected_gets_nothing() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let setup = Setup { expected: "payments", ..Setup::default() };
        expect(&Mesh::start(app, &setup), GET, "503", "upstream_identity_mismatch").await;
        // Plain text behind an address that should be a sidecar's.
        let setup = Setup { endpoints: Some(vec![app]), ..Setup::default() };
        expect(&Mesh::start(app, &setup), GET, "503", "upstream_tls_failed").await;
        assert_eq!(seen.count(), 0, "{:?}", seen.all());
    });
}

#[test]
fn plain_text_is_refused_unless_permitted() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(app, &Setup::default());
        let answer = ask(mesh.inbound, GET).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("plaintext_refused"), "{answer}");
        assert_eq!(seen.count(), 0);
        let mesh = Mesh::start(app, &Setup { permissive: true, ..Setup::default() });
        let answer = ask(mesh.inbound, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(seen.last().contains("x-forwarded-proto: http\r\n") && !seen.last().contains("client-cert"));
        assert!(mesh.metrics()[1].contains("reason=\"permissive\",result=\"plaintext\""), "{}", mesh.metrics()[1]);
    });
}

#[test]
fn access_is_decided_at_the_callee_and_the_answer_names_the_rule() {
    stage(async {
        let (app, seen) = answering(&[OK]).await;
        let port = |port: &mut weft_xds::resource::InboundPort| {
            let exact = |value: &str| StringMatch::Exact { value: value.into(), ignore_case: false };
            port.access = vec![Rbac {
                action: RbacAction::Deny,
                policies: vec![AccessRule {
                    policy: "default/no-admin".into(),
                    rule: "web".into(),
                    principals: vec![Principal::Authenticated(Some(exact("spiffe://weft.local/ns/default/sa/web")))],
                    permissions: vec![Permission::Path(exact("/admin"))],
                }],
                shadow: false,
            }];
        };
        let mesh = Mesh::start(app, &Setup { port, ..Setup::default() });
        for path in ["/admin", "/%61dmin", "/x/../admin", "//admin"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n");
            expect(&mesh, &request, "403", "access_denied").await;
            let answer = mesh.ask(&request).await;
            assert!(
                answer.contains("policy=default/no-admin rule=web caller=spiffe://weft.local/ns/default/sa/web"),
                "{answer}"
            );
        }
        assert!(mesh.ask(GET).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(seen.count(), 1);
        let line = "weft_access_decisions_total{decision=\"deny\",policy=\"default/no-admin\",rule=\"web\"} 8\n";
        assert!(mesh.metrics()[1].contains(line), "{}", mesh.metrics()[1]);
    });
}

#[test]
fn what_takes_too_long() {
    stage(async {
        let silent = app(|mut stream, _| async move {
            read_message(&mut stream).await;
            drop(stream.read_u8().await);
        })
        .await;
        let route = |route: &mut weft_xds::resource::Route| forward(route).timeout = Some(Duration::from_millis(150));
        expect(&Mesh::start(silent, &Setup { route, ..Setup::default() }), GET, "504", "request_timeout").await;
        let route = |route: &mut weft_xds::resource::Route| {
            forward(route).idle_timeout = Some(Duration::from_millis(150));
        };
        expect(&Mesh::start(silent, &Setup { route, ..Setup::default() }), GET, "504", "idle_timeout").await;
        let mesh = Mesh::start(silent, &Setup { bounds: short(), ..Setup::default() });
        expect(&mesh, "GET / HTTP/1.1\r\nHo", "408", "header_timeout").await;
        let (reading, seen) = answering(&[OK]).await;
        let mesh = Mesh::start(reading, &Setup { bounds: short(), ..Setup::default() });
        let answer = mesh.ask("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 10\r\n\r\nabc").await;
        assert!(answer.starts_with("HTTP/1.1 408 ") || answer.starts_with("HTTP/1.1 504 "), "{answer}");
        assert_eq!(seen.count(), 0);
    });
}

#[test]
fn an_idle_connection_is_closed() {
    stage(async {
        let (app, _) = answering(&[OK]).await;
        let bounds = Bounds { keep_alive: Duration::from_millis(50), ..Bounds::default() };
        let mesh = Mesh::start(app, &Setup { bounds, ..Setup::default() });
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
        assert!(read_message(&mut stream).await.unwrap().ends_with("ok"));
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    });
}

#[test]
fn what_the_application_gets_wrong() {
    stage(async {
        let (app, _) = answering(&["garbage\r\n\r\n"]).await;
        expect(&Mesh::start(app, &Setup::default()), GET, "502", "app_protocol_error").await;
        let hangs_up = super::mesh::app(|mut stream, _| async move {
            read_message(&mut stream).await;
        })
        .await;
        let request = "POST / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        expect(&Mesh::start(hangs_up, &Setup::default()), request, "503", "app_reset").await;
    });
}

#[test]
fn an_application_cannot_speak_for_a_sidecar() {
    stage(async {
        let (app, _) = answering(&[
            "HTTP/1.1 200 OK\r\nweft-reason: breaker_open; side=app\r\nx-weft-x: 1\r\ncontent-length: 2\r\n\r\nok",
        ])
        .await;
        let answer = Mesh::start(app, &Setup::default()).ask(GET).await;
        assert!(!answer.contains("weft"), "{answer}");
    });
}

#[test]
fn limits_and_breakers_say_so() {
    stage(async {
        let silent = app(|mut stream, _| async move {
            read_message(&mut stream).await;
            drop(stream.read_u8().await);
        })
        .await;
        let cluster = |cluster: &mut weft_xds::resource::Cluster| {
            cluster.limits = Limits { requests: 1, ..Limits::default() };
        };
        let mesh = Mesh::start(silent, &Setup { cluster, ..Setup::default() });
        let mut held = TcpStream::connect(mesh.outbound).await.unwrap();
        held.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
        while mesh.caller.shared.snapshot.load().clusters["default/orders:80"].limits().requests.used() == 0 {
            tokio::task::yield_now().await;
        }
        expect(&mesh, GET, "503", "overflow_requests").await;

        let cluster = |cluster: &mut weft_xds::resource::Cluster| {
            cluster.limits = Limits { connections: 1, pending: 0, ..Limits::default() };
        };
        let mesh = Mesh::start(silent, &Setup { cluster, ..Setup::default() });
        let mut held = TcpStream::connect(mesh.outbound).await.unwrap();
        held.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
        while mesh.caller.shared.snapshot.load().clusters["default/orders:80"].limits().connections.used() == 0 {
            tokio::task::yield_now().await;
        }
        expect(&mesh, GET, "503", "overflow_pending").await;

        let (failing, seen) = answering(&["HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"]).await;
        let cluster = |cluster: &mut weft_xds::resource::Cluster| cluster.circuit_breaker = Some(Default::default());
        let mesh = Mesh::start(failing, &Setup { cluster, ..Setup::default() });
        for _ in 0..5 {
            assert!(mesh.ask(GET).await.starts_with("HTTP/1.1 500 "));
        }
        expect(&mesh, GET, "503", "breaker_open").await;
        assert_eq!(seen.count(), 5);
        let line = "weft_breaker_transitions_total{cause=\"status\",destination=\"default/orders\",port=\"80\",to=\"open\"} 1\n";
        assert!(mesh.metrics()[0].contains(line), "{}", mesh.metrics()[0]);
    });
}

#[test]
fn a_caller_that_leaves_is_counted_and_frees_what_it_held() {
    stage(async {
        let (heard, told) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let notes = (Rc::clone(&heard), Rc::clone(&told));
        let silent = app(move |mut stream, _| {
            let (heard, told) = notes.clone();
            async move {
                read_message(&mut stream).await;
                heard.set(true);
                // The end of the connection reaches the application, too.
                told.set(stream.read_u8().await.is_err());
            }
        })
        .await;
        let mesh = Mesh::start(silent, &Setup::default());
        let snapshot = mesh.caller.shared.snapshot.load_full();
        let used = || snapshot.clusters["default/orders:80"].limits().requests.used();
        let mut held = TcpStream::connect(mesh.outbound).await.unwrap();
        held.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
        while !heard.get() {
            tokio::task::yield_now().await;
        }
        assert_eq!(used(), 1);
        drop(held);
        while used() > 0 || !told.get() {
            tokio::task::yield_now().await;
        }
        let counted = "reason=\"client_cancelled\"";
        while !mesh.metrics().iter().all(|text| text.contains(counted)) {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn more_connections_than_fit_are_told_so() {
    stage(async {
        let (app, _) = answering(&[OK]).await;
        let bounds = Bounds { connections: 2, ..Bounds::default() };
        let mesh = Mesh::start(app, &Setup { bounds, ..Setup::default() });
        let _held =
            [TcpStream::connect(mesh.outbound).await.unwrap(), TcpStream::connect(mesh.outbound).await.unwrap()];
        while mesh.caller.shared.drain.outbound.open() < 2 {
            tokio::task::yield_now().await;
        }
        expect(&mesh, GET, "503", "overloaded").await;
    });
}
