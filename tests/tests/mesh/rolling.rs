//! Workloads that are stopped and started under load.

use std::time::{Duration, Instant};

use anyhow::Result;
use http::StatusCode;
use weft_tests::{App, Load, Mesh, app::text, caller};

/// Longer than a drain takes: its pause for the news to spread, and the requests in flight.
const DRAINED: Duration = Duration::from_secs(15);

#[tokio::test]
async fn ten_thousand_requests_during_rolling_restarts_and_none_is_lost() -> Result<()> {
    let mesh = Mesh::start().await?;
    let (mut apps, mut workloads) = (Vec::new(), Vec::new());
    for name in ["orders-1", "orders-2", "orders-3"] {
        let app = App::named(name).await?;
        workloads.push(mesh.callee(name, "orders", "http", &app).await?);
        apps.push(app);
    }
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 3).await?;
    let load = Load::start(caller.ports()?.outbound, "orders", 6, Duration::from_millis(1));
    let mut round = 0;
    while round == 0 || load.answered() < 10_000 {
        for (workload, app) in workloads.iter_mut().zip(&apps) {
            load.answer(200).await?;
            let process = workload.process_mut().expect("it runs");
            process.signal(nix::sys::signal::Signal::SIGTERM);
            let status = process.ended(DRAINED).await?;
            assert!(status.success(), "{status}: {}", process.log_tail());
            let before = app.count();
            load.answer(200).await?;
            assert_eq!(app.count(), before, "nothing goes to a workload that has ended");
            workload.restart(&mesh.control_plane, false).await?;
            workload.ready().await?;
            mesh.known(&caller, "orders", 3).await?;
        }
        round += 1;
        anyhow::ensure!(load.failed() == 0, "{:?}", load.stop().await.failed);
    }
    let tally = load.stop().await;
    tally.assert_whole();
    assert!(tally.answered >= 10_000);
    Ok(())
}

#[tokio::test]
async fn a_request_in_flight_ends_after_sigterm_and_new_ones_go_elsewhere() -> Result<()> {
    let mesh = Mesh::start().await?;
    let app = App::http(|request| async move {
        if request.uri().path() == "/slow" {
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        text(StatusCode::OK, "leaving")
    })
    .await?;
    let other = App::named("staying").await?;
    let mut leaving = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    let proxy = caller.ports()?.outbound;
    let slow = tokio::spawn(async move { caller::get(proxy, "orders", "/slow").await });
    weft::launch::wait_for("the slow request", caller::PATIENCE, async || (app.count() == 1).then_some(())).await?;
    let _staying = mesh.callee("orders-2", "orders", "http", &other).await?;
    mesh.known(&caller, "orders", 2).await?;
    let process = leaving.process_mut().expect("it runs");
    process.signal(nix::sys::signal::Signal::SIGTERM);
    let asked = Instant::now();
    mesh.known(&caller, "orders", 1).await?;
    for _ in 0..20 {
        assert_eq!(caller::get(proxy, "orders", "/new").await?.text(), "staying");
    }
    let answer = slow.await??;
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "leaving"), "{answer:?}");
    let status = process.ended(DRAINED).await?;
    assert!(status.success(), "{status}: {}", process.log_tail());
    assert!(asked.elapsed() < DRAINED, "{:?}", asked.elapsed());
    Ok(())
}
