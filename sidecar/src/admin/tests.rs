//! The pages, asked as a browser or a script would.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};

use super::*;
use crate::{
    demand::Demand,
    settings::{Cli, Settings},
};

fn admin() -> (Admin, tokio::sync::mpsc::Receiver<Box<str>>) {
    let args = ["weft-sidecar", "--service", "orders", "--control-plane", "127.0.0.1:1", "--port", "80"];
    let flags = <Cli as clap::Parser>::try_parse_from(args).unwrap().flags;
    let settings = Settings::new(flags, Some("weft1.id.topsecret.hash".to_owned()), 1).unwrap();
    let (demand, wanted) = Demand::new(settings.on_demand_wait);
    let shared = Shared::new(settings, demand);
    let registry = metrics::registry("weft");
    let admin = Admin {
        certs: Certs::new(shared.clone(), &registry).unwrap(),
        metrics: Metrics::new(&registry),
        held: Arc::default(),
        log: LogHandle::detached(),
        shutdown: Shutdown::new(),
        leave: None,
        shared,
        registry,
    };
    (admin, wanted)
}

async fn ask(routes: &Routes, method: &str, path: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = routes.answer(request.body(Full::new(Bytes::new())).unwrap()).await;
    let (head, body) = answer.into_parts();
    (head.status, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

const HERE: (&str, &str) = ("host", "127.0.0.1:15000");
const CHANGE: (&str, &str) = ("weft-admin", "1");

#[tokio::test]
async fn only_this_machine_and_only_on_purpose() {
    let (admin, _wanted) = admin();
    let routes = admin.clone().routes();
    for path in ["/ready", "/live", "/config_dump", "/clusters", "/certs", "/stats", "/logging"] {
        assert_eq!(ask(&routes, "GET", path, &[("host", "rebound.example")]).await.0, StatusCode::FORBIDDEN, "{path}");
    }
    for path in ["/quit", "/drain", "/logging?filter=debug"] {
        assert_eq!(ask(&routes, "POST", path, &[HERE]).await.0, StatusCode::FORBIDDEN, "{path}");
    }
    assert!(!admin.shutdown.graceful.is_cancelled());
    assert_eq!(ask(&routes, "GET", "/quit", &[HERE, CHANGE]).await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(ask(&routes, "POST", "/quit", &[HERE, CHANGE]).await.0, StatusCode::ACCEPTED);
    assert!(admin.shutdown.graceful.is_cancelled());
}

#[tokio::test]
async fn not_ready_says_what_is_missing() {
    let (admin, _wanted) = admin();
    let (status, text) = ask(&admin.clone().metrics_routes(), "GET", "/ready", &[("host", "prometheus")]).await;
    assert_eq!((status, text.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "not ready: no certificate yet\n"));
    assert_eq!(ask(&admin.routes(), "GET", "/live", &[HERE]).await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_metrics_port_has_metrics_and_nothing_else() {
    let (admin, _wanted) = admin();
    let routes = admin.metrics_routes();
    let (status, text) = ask(&routes, "GET", "/metrics", &[("host", "prometheus")]).await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("weft_build_info") && text.contains("weft_certificate_renewals_total"), "{text}");
    for path in ["/config_dump", "/quit", "/drain", "/logging", "/certs"] {
        assert_eq!(ask(&routes, "POST", path, &[HERE, CHANGE]).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(ask(&routes, "POST", "/metrics", &[]).await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn no_page_shows_a_secret() {
    let (admin, _wanted) = admin();
    let routes = admin.routes();
    for path in ["/config_dump", "/certs", "/clusters", "/stats"] {
        let (status, text) = ask(&routes, "GET", path, &[HERE]).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert!(!text.contains("topsecret"), "{path}: {text}");
    }
}

#[tokio::test]
async fn draining_makes_it_not_ready() {
    let (admin, _wanted) = admin();
    let shared = admin.shared.clone();
    assert_eq!(ask(&admin.routes(), "POST", "/drain", &[HERE, CHANGE]).await.0, StatusCode::ACCEPTED);
    shared.drain.inbound.draining().await;
    assert_eq!(shared.missing(), Some("draining"));
}
