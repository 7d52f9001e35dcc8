//! Shares of endpoints, through real sidecars.

use std::collections::BTreeMap;

use anyhow::Result;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft::launch::{Workload, WorkloadSpec};
use weft_tests::{App, Mesh, caller, caller::Http1};

fn policy(protocol: &str, balancer: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{ name: orders }}
spec: {{ ports: [{{ name: main, port: 80, appProtocol: {protocol} }}] }}
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {{ name: orders }}
spec:
  targetRefs: [{{ kind: Service, name: orders }}]
  loadBalancer: {{ {balancer} }}
"
    )
}

/// Workloads of `orders` with these names and weights, and their caller.
async fn staged(balancer: &str, members: &[(&'static str, u32)]) -> Result<(Mesh, Vec<(App, Workload)>, Workload)> {
    let mesh = Mesh::start().await?;
    mesh.apply(&policy("http", balancer)).await?;
    let mut workloads = Vec::new();
    for (name, weight) in members {
        let app = App::named(name).await?;
        let spec = WorkloadSpec {
            name: (*name).to_owned(),
            service: "orders".to_owned(),
            ports: format!("main=80:{}/http", app.address.port()),
            env: vec![("WEFT_WEIGHT", weight.to_string())],
            ..WorkloadSpec::default()
        };
        workloads.push((app, mesh.sidecar(spec).await?));
    }
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "orders", members.len()).await?;
    Ok((mesh, workloads, caller))
}

/// Who answered so many requests.
async fn answers(caller: &Workload, count: usize) -> Result<BTreeMap<String, usize>> {
    let mut connection = Http1::connect(caller.ports()?.outbound).await?;
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        *answers.entry(connection.get("orders", "/").await?.text()).or_default() += 1;
    }
    Ok(answers)
}

fn shares(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[tokio::test]
async fn weights_of_five_three_and_two_give_so_many_in_every_ten() -> Result<()> {
    let (_mesh, _workloads, caller) =
        staged("weightedRoundRobin: {}", &[("five", 5), ("three", 3), ("two", 2)]).await?;
    for _ in 0..10 {
        assert_eq!(answers(&caller, 10).await?, shares(&[("five", 5), ("three", 3), ("two", 2)]));
    }
    Ok(())
}

#[tokio::test]
async fn round_robin_is_even() -> Result<()> {
    let (_mesh, _workloads, caller) = staged("roundRobin: {}", &[("a", 1), ("b", 1), ("c", 1)]).await?;
    for _ in 0..10 {
        assert_eq!(answers(&caller, 3).await?, shares(&[("a", 1), ("b", 1), ("c", 1)]));
    }
    Ok(())
}

#[tokio::test]
async fn a_header_sticks_to_its_endpoint_and_moves_only_when_that_goes() -> Result<()> {
    let members = [("a", 1), ("b", 1), ("c", 1), ("d", 1)];
    let (mesh, mut workloads, caller) = staged("consistentHash: { header: x-user }", &members).await?;
    let proxy = caller.ports()?.outbound;
    let owners = async || {
        let mut connection = Http1::connect(proxy).await?;
        let mut owners = Vec::new();
        for user in 0..200 {
            let request = Request::get("/").header(header::HOST, "orders").header("x-user", format!("user-{user}"));
            owners.push(connection.send(request.body(Full::<Bytes>::default())?).await?.text());
        }
        anyhow::Ok(owners)
    };
    let before = owners().await?;
    assert_eq!(owners().await?, before, "the same users go to the same endpoints");
    let of_d = before.iter().filter(|owner| *owner == "d").count();
    assert!((20..=90).contains(&of_d), "{of_d} of 200 users were d's");
    workloads[3].1.stop(caller::PATIENCE).await;
    mesh.known(&caller, "orders", 3).await?;
    let after = owners().await?;
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert_eq!(moved, of_d, "only those of the endpoint that went have moved");
    Ok(())
}

#[tokio::test]
async fn a_route_splits_by_weight() -> Result<()> {
    let mesh = Mesh::start().await?;
    let mut workloads = Vec::new();
    for service in ["stable", "canary"] {
        let app = App::named(service).await?;
        workloads.push((mesh.callee(service, service, "http", &app).await?, app));
    }
    let split = |stable: u32, canary: u32| {
        let service = |name: &str| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\nspec: {{ ports: [{{ name: main, port: 80, appProtocol: http }}] }}\n"
            )
        };
        format!(
            "{}{}{}---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: orders }}
spec:
  parentRefs: [{{ kind: Service, name: orders }}]
  rules:
    - backendRefs:
        - {{ name: stable, port: 80, weight: {stable} }}
        - {{ name: canary, port: 80, weight: {canary} }}
",
            service("orders"),
            service("stable"),
            service("canary"),
        )
    };
    let caller = mesh.caller("client").await?;
    mesh.known(&caller, "stable", 1).await?;
    mesh.known(&caller, "canary", 1).await?;
    // Six standard deviations wide.
    for (stable, canary, bounds) in [(90, 10, 25..=155), (50, 50, 290..=510), (0, 1, 800..=800)] {
        mesh.apply(&split(stable, canary)).await?;
        let answers = answers(&caller, 800).await?;
        let got = answers.get("canary").copied().unwrap_or_default();
        assert!(bounds.contains(&got), "{stable}/{canary}: {answers:?}");
    }
    Ok(())
}

#[tokio::test]
async fn connections_of_raw_tcp_go_round() -> Result<()> {
    let mesh = Mesh::start().await?;
    mesh.apply(&policy("tcp", "roundRobin: {}")).await?;
    let mut workloads = Vec::new();
    for (name, word) in [("orders-1", b'a'), ("orders-2", b'b'), ("orders-3", b'c')] {
        // The server speaks first.
        let app = App::raw(move |mut stream| async move {
            if stream.write_all(&[word]).await.is_ok() {
                // Until the client goes.
                let _ = stream.read(&mut [0]).await;
            }
        })
        .await?;
        workloads.push((mesh.callee(name, "orders", "tcp", &app).await?, app));
    }
    let caller = mesh
        .sidecar(WorkloadSpec {
            name: "client".to_owned(),
            service: "client".to_owned(),
            upstreams: "127.0.0.1:0=orders:80".to_owned(),
            ..WorkloadSpec::default()
        })
        .await?;
    mesh.known(&caller, "orders", 3).await?;
    let local = *caller.ports()?.upstreams.values().next().expect("one upstream is set");
    for _ in 0..5 {
        let mut words = Vec::new();
        for _ in 0..3 {
            let mut stream = TcpStream::connect(local).await?;
            words.push(tokio::time::timeout(caller::PATIENCE, stream.read_u8()).await??);
        }
        words.sort_unstable();
        assert_eq!(words, b"abc");
    }
    Ok(())
}
