//! Breakers and limits: of a service, of an endpoint.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use tokio::sync::Semaphore;
use weft::launch::{Workload, wait_for};
use weft_tests::{
    App, Mesh,
    app::text,
    caller::{self, PATIENCE},
    witness::{assert_reason, metric, metric_reaches},
};

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{ name: orders }}
spec: {{ ports: [{{ name: main, port: 80, appProtocol: http }}] }}
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {{ name: orders }}
spec:
  targetRefs: [{{ kind: Service, name: orders }}]
  {spec}
"
    )
}

/// An application that fails while told so, and counts.
async fn fickle(name: &'static str) -> Result<(App, Arc<AtomicBool>)> {
    let failing = Arc::new(AtomicBool::new(false));
    let told = failing.clone();
    let app = App::http(move |_| {
        let status = if told.load(Ordering::Relaxed) { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        async move { text(status, name) }
    })
    .await?;
    Ok((app, failing))
}

async fn post(caller: &Workload, path: &str) -> Result<caller::Answer> {
    let request = Request::post(path).header(header::HOST, "orders").body(Full::<Bytes>::default())?;
    caller::send(caller.ports()?.outbound, request).await
}

#[tokio::test]
async fn the_breaker_of_a_service_opens_probes_and_closes() -> Result<()> {
    let mesh = Mesh::start().await?;
    mesh.apply(&policy("circuitBreaker: { consecutiveFailures: 4, recoveryTime: 2s, successesToClose: 2 }")).await?;
    let (app, failing) = fickle("one").await?;
    let _callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    let transitions = async |to: &str| metric(&caller, "weft_breaker_transitions_total", &[("to", to)]).await;

    // Failures that are not in a row do not open it.
    for round in 0..3 {
        failing.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(post(&caller, "/row").await?.status.as_u16(), 500, "round {round}");
        }
        failing.store(false, Ordering::Relaxed);
        assert_eq!(post(&caller, "/row").await?.status.as_u16(), 200, "round {round}");
    }
    failing.store(true, Ordering::Relaxed);
    for _ in 0..4 {
        assert_eq!(post(&caller, "/opening").await?.status.as_u16(), 500);
    }
    let before = app.count();
    let answer = post(&caller, "/open").await?;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (503, "breaker_open"), "{answer:?}");
    assert_reason(&caller, "/open", 503, "breaker_open").await?;
    assert_eq!(app.count(), before, "nothing reaches a service whose breaker is open");
    assert_eq!(transitions("open").await?, 1.0);

    // It probes, the probe fails, and it is open again.
    wait_for("a probe", PATIENCE, async || (post(&caller, "/probe").await.ok()?.status.as_u16() == 500).then_some(()))
        .await?;
    assert_eq!((transitions("half_open").await?, transitions("open").await?), (1.0, 2.0));
    assert_eq!(post(&caller, "/again").await?.reason(), "breaker_open");

    // The service heals: two successes close it.
    failing.store(false, Ordering::Relaxed);
    wait_for("a success", PATIENCE, async || (post(&caller, "/heal").await.ok()?.status.as_u16() == 200).then_some(()))
        .await?;
    assert_eq!(transitions("closed").await?, 0.0, "one success is not enough");
    assert_eq!(post(&caller, "/healed").await?.status.as_u16(), 200);
    assert_eq!(transitions("closed").await?, 1.0);
    Ok(())
}

#[tokio::test]
async fn a_failing_endpoint_is_taken_out_and_comes_back() -> Result<()> {
    let mesh = Mesh::start().await?;
    mesh.apply(&policy("loadBalancer: { roundRobin: {} }\n  outlierDetection: { consecutiveFailures: 3 }")).await?;
    let (good, _) = fickle("good").await?;
    let (bad, failing) = fickle("bad").await?;
    let _good = mesh.callee("orders-1", "orders", "http", &good).await?;
    let _bad = mesh.callee("orders-2", "orders", "http", &bad).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 2).await?;
    wait_for("answers from both", PATIENCE, async || {
        post(&caller, "/").await.ok();
        (good.count() > 0 && bad.count() > 0).then_some(())
    })
    .await?;
    failing.store(true, Ordering::Relaxed);
    wait_for("its ejection", PATIENCE, async || {
        post(&caller, "/").await.ok();
        (metric(&caller, "weft_ejections_total", &[]).await.ok()? >= 1.0).then_some(())
    })
    .await?;
    metric_reaches(&caller, "weft_endpoints", &[("state", "open")], 1.0).await?;
    // Out: what fails now are its probes alone, one at a time and each later than the last.
    let mut failed = 0;
    for _ in 0..50 {
        failed += usize::from(post(&caller, "/").await?.status.as_u16() == 500);
    }
    assert!(failed <= 5, "{failed} of 50 went to the endpoint that was taken out");

    failing.store(false, Ordering::Relaxed);
    let before = bad.count();
    wait_for("its return", PATIENCE, async || {
        post(&caller, "/").await.ok();
        (bad.count() >= before + 5).then_some(())
    })
    .await?;
    assert_eq!(metric(&caller, "weft_endpoints", &[("state", "ready")]).await?, 2.0);
    Ok(())
}

/// An application that answers when it is let.
async fn held() -> Result<(App, Arc<Semaphore>, Arc<AtomicUsize>)> {
    let (gate, inside) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (opens, counts) = (gate.clone(), inside.clone());
    let app = App::http(move |_| {
        let (gate, inside) = (opens.clone(), counts.clone());
        async move {
            inside.fetch_add(1, Ordering::Relaxed);
            gate.acquire().await.unwrap().forget();
            text(StatusCode::OK, "let through")
        }
    })
    .await?;
    Ok((app, gate, inside))
}

#[tokio::test]
async fn requests_over_the_limit_are_refused_with_its_name() -> Result<()> {
    let mesh = Mesh::start().await?;
    mesh.apply(&policy("connectionPool: { maxRequests: 2 }")).await?;
    let (app, gate, inside) = held().await?;
    let _callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = Arc::new(mesh.caller("client").await?);
    mesh.known(&caller, "orders", 1).await?;
    let ask = |path: &'static str| {
        let caller = caller.clone();
        tokio::spawn(async move { post(&caller, path).await })
    };
    let (first, second) = (ask("/first"), ask("/second"));
    wait_for("two in flight", PATIENCE, async || (inside.load(Ordering::Relaxed) == 2).then_some(())).await?;
    let gauge = |name| metric(&caller, name, &[("limit", "requests")]);
    assert_eq!((gauge("weft_limit_in_use").await?, gauge("weft_limit_max").await?), (2.0, 2.0));
    let answer = post(&caller, "/third").await?;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (503, "overflow_requests"), "{answer:?}");
    assert_reason(&caller, "/third", 503, "overflow_requests").await?;
    assert_eq!(gauge("weft_limit_rejected_total").await?, 1.0);
    gate.add_permits(10);
    assert_eq!((first.await??.status.as_u16(), second.await??.status.as_u16()), (200, 200));
    assert_eq!(post(&caller, "/fourth").await?.status.as_u16(), 200);
    assert_eq!(gauge("weft_limit_in_use").await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn requests_wait_for_a_connection_and_only_so_many() -> Result<()> {
    let mesh = Mesh::start().await?;
    mesh.apply(&policy("connectionPool: { maxConnections: 1, maxPendingRequests: 1 }")).await?;
    let (app, gate, inside) = held().await?;
    let _callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = Arc::new(mesh.caller("client").await?);
    mesh.known(&caller, "orders", 1).await?;
    let ask = |path: &'static str| {
        let caller = caller.clone();
        tokio::spawn(async move { post(&caller, path).await })
    };
    let first = ask("/first");
    wait_for("one in flight", PATIENCE, async || (inside.load(Ordering::Relaxed) == 1).then_some(())).await?;
    let second = ask("/second");
    metric_reaches(&caller, "weft_limit_in_use", &[("limit", "pending")], 1.0).await?;
    let answer = post(&caller, "/third").await?;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (503, "overflow_pending"), "{answer:?}");
    assert_reason(&caller, "/third", 503, "overflow_pending").await?;
    gate.add_permits(10);
    assert_eq!((first.await??.status.as_u16(), second.await??.status.as_u16()), (200, 200));
    assert_eq!(metric(&caller, "weft_limit_in_use", &[("limit", "connections")]).await?, 1.0);
    Ok(())
}
