//! Services are fetched at their first call, and what sidecars write into the headers of those calls.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use serde_json::Value;
use weft::launch::{Workload, call, wait_for};
use weft_tests::{App, Pair, caller};

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: used }
spec: { ports: [{ port: 80, appProtocol: http }] }
---
apiVersion: v1
kind: Service
metadata: { name: unused }
spec: { ports: [{ port: 80, appProtocol: http }] }
"#;

async fn dump(sidecar: &Workload) -> Result<Value> {
    Ok(serde_json::from_str(&call(sidecar.ports()?.admin, Method::GET, "/config_dump").await?)?)
}

/// Names of the resources that a sidecar holds and of the hosts that it knows.
fn names(dump: &Value) -> Vec<String> {
    let of = |list: &Value, key: &str| -> Vec<String> {
        let list = list.as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|one| one[key].as_str().map(str::to_owned)).collect()
    };
    [of(&dump["xds"]["resources"], "name"), of(&dump["virtualHosts"], "authority")].concat()
}

#[tokio::test]
async fn only_what_is_called_is_fetched() -> Result<()> {
    let pair = Pair::start("http", App::named("hello").await?).await?;
    pair.mesh.control_plane.apply(SERVICES, "services", 10).await?;
    let fetched = |names: &[String], service: &str| names.iter().any(|name| name.contains(service));
    let before = names(&dump(&pair.caller).await?);
    ensure!(!fetched(&before, "echo") && !fetched(&before, "used"), "{before:?}");
    let answer = caller::get(pair.outbound()?, "echo", "/").await?;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    // A service without workloads is one that exists.
    let answer = caller::get(pair.outbound()?, "used", "/").await?;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "no_endpoints"),
        "{answer:?}"
    );
    let after = names(&dump(&pair.caller).await?);
    ensure!(fetched(&after, "echo") && fetched(&after, "used") && !fetched(&after, "unused"), "{after:?}");
    Ok(())
}

#[tokio::test]
async fn the_first_call_waits_no_longer_than_it_may() -> Result<()> {
    let mut pair = Pair::start_with("http", App::named("hello").await?, &[("WEFT_ON_DEMAND_WAIT", "1s")]).await?;
    let outbound = pair.outbound()?;
    let began = Instant::now();
    let answer = caller::get(outbound, "nobody", "/").await?;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "service_unknown"),
        "{answer:?}"
    );
    ensure!(answer.text().contains("nobody.default"), "{}", answer.text());
    ensure!(began.elapsed() < Duration::from_secs(1), "the control plane said no; there was nothing to wait for");

    assert_eq!(caller::get(outbound, "echo", "/").await?.status, StatusCode::OK);
    pair.mesh.control_plane.kill().await;
    let began = Instant::now();
    let answer = caller::get(outbound, "another", "/").await?;
    let took = began.elapsed();
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "control_plane_unreachable"),
        "{answer:?}"
    );
    ensure!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(caller::get(outbound, "echo", "/").await?.status, StatusCode::OK, "what is known goes on");
    Ok(())
}

#[tokio::test]
async fn what_is_not_called_any_more_is_dropped() -> Result<()> {
    let pair = Pair::start_with("http", App::named("hello").await?, &[("WEFT_ON_DEMAND_IDLE", "1s")]).await?;
    // The local port holds its service; the others come by name.
    pair.mesh.control_plane.apply(SERVICES, "services", 10).await?;
    for _ in 0..2 {
        let answer = caller::get(pair.outbound()?, "used", "/").await?;
        assert_eq!(answer.reason(), "no_endpoints", "{answer:?}");
        wait_for("the service to be dropped", Duration::from_secs(15), async || {
            let names = names(&dump(&pair.caller).await.ok()?);
            (!names.iter().any(|name| name.contains("used"))).then_some(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_sidecars_write_into_headers() -> Result<()> {
    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let pair = Pair::start("http", App::named("hello").await?).await?;
    let ask = |trace: Option<&str>| -> Result<_> {
        let mut request = Request::get("/").header(header::HOST, "echo");
        for (name, value) in [
            ("x-forwarded-client-cert", "URI=spiffe://weft.local/ns/default/sa/admin"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "gopher"),
            ("x-weft-forged", "1"),
            ("weft-reason", "forged"),
            ("connection", "x-forwarded-client-cert, x-secret"),
            ("x-secret", "1"),
            ("x-own", "kept"),
        ] {
            request = request.header(name, value);
        }
        if let Some(trace) = trace {
            request = request.header("traceparent", trace);
        }
        Ok(request.body(Full::default())?)
    };
    caller::send(pair.outbound()?, ask(Some(GIVEN))?).await?;
    caller::send(pair.outbound()?, ask(None)?).await?;
    let seen = pair.app.seen.lock().clone();
    for seen in &seen {
        let one = |name: &str| {
            let values: Vec<_> = seen.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
            values.join(" and ")
        };
        assert_eq!(
            one("x-forwarded-client-cert"),
            "By=spiffe://weft.local/ns/default/sa/echo;URI=spiffe://weft.local/ns/default/sa/client"
        );
        assert_eq!((one("x-forwarded-for").as_str(), one("x-forwarded-proto").as_str()), ("127.0.0.1", "https"));
        assert_eq!((one("x-weft-forged") + &one("weft-reason") + &one("x-secret")).as_str(), "");
        assert_eq!((one("x-own").as_str(), one("host").as_str()), ("kept", "echo"));
    }
    assert_eq!(seen[0].headers["traceparent"], GIVEN);
    let made = seen[1].headers["traceparent"].to_str()?.to_owned();
    let lengths: Vec<usize> = made.split('-').map(str::len).collect();
    ensure!(lengths == [2, 32, 16, 2] && made.starts_with("00-"), "{made}");
    let trace = made.split('-').nth(1).unwrap_or_default();
    for sidecar in [&pair.caller, &pair.callee] {
        wait_for("the trace in both logs", Duration::from_secs(5), async || {
            (weft_tests::pair::logged(sidecar, &[trace]) == 1).then_some(())
        })
        .await?;
    }

    let answer = caller::get(pair.outbound()?, "nobody", "/").await?;
    let told = answer.headers["weft-reason"].to_str()?;
    let parts: Vec<&str> = told.split("; ").collect();
    ensure!(parts.len() == 3 && parts[..2] == ["service_unknown", "side=control-plane"], "{told}");
    let after = parts[2].strip_prefix("after=").and_then(|after| after.strip_suffix("ms"));
    ensure!(after.is_some_and(|after| after.parse::<u64>().is_ok()), "{told}");
    Ok(())
}
