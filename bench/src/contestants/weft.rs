//! Weft: a control plane and two sidecars, with an access policy of ten rules, breakers, retries and outlier detection.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use http::Method;
use weft::launch::{ControlPlane, Ground, Process, Workload, WorkloadSpec, call};

use super::{Pair, Running, Scene, Shape, endpoint, route};
use crate::{backend::Backend, load::http1::Target};

/// Starts the mesh.
///
/// # Errors
/// When it does not come up, or does not take its policies.
pub async fn start(scene: Scene, place: &Path, backend: &Backend) -> Result<Pair> {
    let program = std::env::current_exe()?.with_file_name("weft");
    ensure!(program.exists(), "{} is not there: run it by `cargo xtask bench`", program.display());
    let ground = Ground::new(program, place, None)?;
    let control_plane = ControlPlane::start(&ground, &[]).await?;
    let spec = |name: &str, ports: String, upstreams: &str| WorkloadSpec {
        name: name.to_owned(),
        service: name.to_owned(),
        ports,
        upstreams: upstreams.to_owned(),
        env: vec![("WEFT_WORKERS", scene.workers.to_string())],
        ..WorkloadSpec::default()
    };
    let alone = matches!(scene.shape, Shape::Endpoints(_));
    let mut workloads = Vec::new();
    let upstreams = if alone { "" } else { "127.0.0.1:0=echo:82" };
    let mut caller = Workload::start(&ground, &control_plane, spec("client", String::new(), upstreams)).await?;
    let ports = caller.ready().await?.clone();
    workloads.push(caller);
    if !alone {
        let [http1, http2, tcp] = [backend.http1.port(), backend.http2.port(), backend.tcp.port()];
        let echo = format!("http=80:{http1}/http,grpc=81:{http2}/grpc,raw=82:{tcp}/tcp");
        let mut callee = Workload::start(&ground, &control_plane, spec("echo", echo, "")).await?;
        callee.ready().await?;
        workloads.push(callee);
    }
    for (index, yaml) in resources(scene, backend.http1.port()).iter().enumerate() {
        let applied = control_plane.apply(yaml, "bench", 20).await.with_context(|| format!("resources {index}"))?;
        let rollout = applied.rollout.unwrap_or_default();
        ensure!(rollout.nacks.is_empty(), "a sidecar refused its configuration: {:?}", rollout.nacks);
    }
    let target =
        |authority: &str| Target { address: ports.outbound, authority: authority.to_owned(), path: scene.path() };
    Ok(Pair {
        http1: target(if alone { "many" } else { "echo" }),
        http2: (!alone).then(|| target("echo:81")),
        tcp: ports.upstreams.values().next().copied(),
        running: Running::Weft { control_plane: Box::new(control_plane), workloads, ground },
    })
}

/// What is applied, in parts that an Apply takes.
fn resources(scene: Scene, backend: u16) -> Vec<String> {
    match scene.shape {
        Shape::Pair => vec![access() + &traffic("echo")],
        Shape::Routes(count) => {
            let parts = (0..count).step_by(PART).map(|from| routes(from..count.min(from + PART as u32)));
            std::iter::once(access() + &traffic("echo")).chain(parts).collect()
        }
        Shape::Endpoints(count) => {
            let service = "apiVersion: v1\nkind: Service\nmetadata: { name: many }\n\
                           spec: { ports: [{ name: http, port: 80, appProtocol: http }] }\n---\n";
            let parts = (0..count).step_by(PART).map(|from| slice(from..count.min(from + PART as u32), backend));
            std::iter::once(service.to_owned() + &traffic("many")).chain(parts).collect()
        }
    }
}

/// Routes or endpoints of one Apply.
const PART: usize = 1000;

/// Ten rules, of which the last one matches.
fn access() -> String {
    let mut text = "apiVersion: weft.mesh/v1alpha1\nkind: AccessPolicy\nmetadata: { name: echo }\nspec:\n  \
                    targetRefs: [{ kind: Service, name: echo }]\n  action: ALLOW\n  rules:\n"
        .to_owned();
    for index in 1..10 {
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "    - {{ name: other-{index}, from: [{{ identities: [default/other-{index}] }}], \
             to: [{{ methods: [GET, POST], paths: [/api/{index}/*], ports: [80] }}] }}"
        );
    }
    text.push_str("    - { name: client, from: [{ identities: [default/client] }] }\n---\n");
    text
}

fn traffic(service: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {{ name: {service} }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: {service} }}]\n  \
         loadBalancer: {{ leastRequest: {{}} }}\n  \
         circuitBreaker: {{ consecutiveFailures: 5, recoveryTime: 30s, successesToClose: 3, maxRequests: 1024 }}\n  \
         outlierDetection: {{ consecutiveFailures: 5 }}\n  \
         retry: {{ attempts: 2, budget: {{ percent: 20, minPerSecond: 10 }} }}\n"
    )
}

/// An HTTPRoute holds 64 rules.
const RULES: usize = 64;

fn routes(range: std::ops::Range<u32>) -> String {
    let mut text = String::new();
    for from in range.clone().step_by(RULES) {
        let _ = write!(
            text,
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: route-{from} }}\nspec:\n  \
             parentRefs: [{{ kind: Service, name: echo, port: 80 }}]\n  rules:\n"
        );
        for index in from..range.end.min(from + RULES as u32) {
            let path = route(index);
            let _ = writeln!(
                text,
                "    - {{ matches: [{{ path: {{ type: PathPrefix, value: {path} }} }}], \
                 backendRefs: [{{ name: echo, port: 80 }}] }}"
            );
        }
        text.push_str("---\n");
    }
    text
}

fn slice(range: std::ops::Range<u32>, backend: u16) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: many-{}\n  \
         labels: {{ kubernetes.io/service-name: many }}\naddressType: IPv4\nports: [{{ name: http, port: {backend} }}]\nendpoints:\n",
        range.start
    );
    for index in range {
        let _ = writeln!(text, "  - addresses: [{}]", endpoint(index));
    }
    text
}

/// Sidecars started to be timed: cold, with a join token, and again from what the first start left on disk.
pub struct Cold<'a> {
    control_plane: &'a ControlPlane,
    ground: &'a Ground,
}

impl<'a> Cold<'a> {
    pub(super) fn new(control_plane: &'a ControlPlane, ground: &'a Ground) -> Self {
        Self { control_plane, ground }
    }

    /// From the start of the process until `/ready` says so: cold and warm.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(&self, name: &str) -> Result<[Duration; 2]> {
        let token = self.control_plane.token("default", name).await?;
        let data = self.ground.data.join(name);
        let mut times = [Duration::ZERO; 2];
        for (time, token) in times.iter_mut().zip([Some(token), None]) {
            let mut env = vec![
                ("WEFT_CONTROL_PLANE", self.control_plane.grpc().to_string()),
                ("WEFT_SERVICE", name.to_owned()),
                ("WEFT_DATA_DIR", data.display().to_string()),
                ("WEFT_ADDRESS", "127.0.0.1".to_owned()),
                ("WEFT_WORKERS", "1".to_owned()),
            ];
            let ports = ["WEFT_INBOUND", "WEFT_OUTBOUND", "WEFT_ADMIN", "WEFT_METRICS"];
            env.extend(ports.map(|port| (port, "127.0.0.1:0".to_owned())));
            env.extend(token.map(|token| ("WEFT_JOIN_TOKEN", token)));
            // The first start is the one that has none.
            let _ = std::fs::remove_file(data.join("addresses.json"));
            let began = Instant::now();
            let mut process = Process::start(name, &self.ground.program, &self.ground.logs, &["sidecar"], &env)?;
            ready(&data.join("addresses.json")).await.with_context(|| process.log_tail())?;
            *time = began.elapsed();
            // It leaves what it knows behind.
            process.stop(Duration::from_secs(5)).await;
        }
        Ok(times)
    }
}

/// Asks every millisecond, since that is what is measured.
async fn ready(addresses: &PathBuf) -> Result<()> {
    let ask = async {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        loop {
            tick.tick().await;
            let Ok(text) = std::fs::read(addresses) else { continue };
            let Ok(ports) = serde_json::from_slice::<weft::launch::SidecarPorts>(&text) else { continue };
            if call(ports.admin, Method::GET, "/ready").await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ask).await.context("not ready in 20 s")
}
