//! What a sidecar's memory depends on: what it calls, not how large the mesh is.

use std::fmt::Write;

use anyhow::{Context, Result};
use http::StatusCode;
use weft_tests::{App, Mesh, caller};

/// Services in the large mesh.
const MANY: usize = 10_000;
/// Services that are called, in either.
const CALLED: usize = 5;

/// Services with an endpoint each at `address`, from one number to another.
fn services(from: usize, to: usize, port: u16) -> String {
    let mut yaml = String::new();
    for number in from..to {
        write!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: s{number} }}\nspec: {{ ports: [{{ port: 80, appProtocol: http }}] }}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{ name: s{number}, labels: {{ kubernetes.io/service-name: s{number} }} }}\n\
             addressType: IPv4\nendpoints: [{{ addresses: [127.0.0.1] }}]\nports: [{{ port: {port} }}]\n"
        )
        .expect("a String takes everything");
    }
    yaml
}

/// Memory of a sidecar that has called five of so many services, in kB: its own (which excludes pages of the program
/// that it shares with however many others run), and all that is resident.
async fn memory(count: usize) -> Result<(u64, u64)> {
    let mesh = Mesh::start().await?;
    let app = App::named("static").await?;
    for from in (0..count).step_by(2500) {
        mesh.control_plane.apply(&services(from, count.min(from + 2500), app.address.port()), "", 0).await?;
    }
    let caller = mesh.caller("client").await?;
    for number in 0..CALLED {
        mesh.known(&caller, &format!("s{number}"), 1).await?;
    }
    for _ in 0..20 {
        for number in 0..CALLED {
            let answer = caller::get(caller.ports()?.outbound, &format!("s{number}"), "/").await?;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        }
    }
    let file = format!("/proc/{}/smaps_rollup", caller.process().context("it runs")?.id());
    let text = std::fs::read_to_string(file)?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).context("the field is there")?;
        anyhow::Ok(line.split_whitespace().nth(1).context("it has a value")?.parse()?)
    };
    Ok((field("Pss_Anon:").or_else(|_| field("Pss:"))?, field("Rss:")?))
}

#[tokio::test]
async fn ten_thousand_services_cost_a_caller_of_five_at_most_one_megabyte() -> Result<()> {
    let small = memory(CALLED).await?;
    let large = memory(MANY).await?;
    let more = large.0.saturating_sub(small.0);
    assert!(more <= 1024, "{more} kB more than among five: {small:?} kB became {large:?} kB");
    Ok(())
}
