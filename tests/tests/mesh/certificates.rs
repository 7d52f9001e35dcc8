//! Certificates that are renewed while they are in use.

use std::time::Duration;

use anyhow::Result;
use weft_tests::{
    App, Load, Mesh,
    caller::Http1,
    witness::{metric, metric_reaches},
};

#[tokio::test]
async fn a_renewal_under_load_cuts_no_connection_and_loses_no_request() -> Result<()> {
    let mesh = Mesh::start_with(&["--certificate-ttl", "20s"]).await?;
    let app = App::named("one").await?;
    let callee = mesh.callee("orders-1", "orders", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", 1).await?;
    let mut lasting = Http1::connect(caller.ports()?.outbound).await?;
    lasting.get("orders", "/").await?;
    let load = Load::start(caller.ports()?.outbound, "orders", 4, Duration::from_millis(2));
    let expiry = ("weft_certificate_expiry_timestamp_seconds", [("kind", "leaf")]);
    let before = (metric(&caller, expiry.0, &expiry.1).await?, metric(&callee, expiry.0, &expiry.1).await?);
    weft::launch::wait_for("renewals of both sides", Duration::from_secs(30), async || {
        let now = (metric(&caller, expiry.0, &expiry.1).await.ok()?, metric(&callee, expiry.0, &expiry.1).await.ok()?);
        (now.0 > before.0 && now.1 > before.1).then_some(())
    })
    .await?;
    load.answer(200).await?;
    load.stop().await.assert_whole();
    lasting.get("orders", "/").await?;
    // Renewal by itself opened no more connections between the two than the load needed at first.
    let opened = metric(&caller, "weft_connections_opened_total", &[("peer", "upstream")]).await?;
    assert!(opened <= 8.0, "{opened} connections");
    metric_reaches(&caller, "weft_certificate_renewals_total", &[], 1.0).await
}
