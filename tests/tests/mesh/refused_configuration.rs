//! Bad configuration: refused with a reason, alone, while the last good one goes on serving.
//!
//! Our control plane does not send any, so one stands between it and the sidecar that spoils what it passes on.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use prost::Message;
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use weft::launch::{WorkloadSpec, wait_for};
use weft_identity::{SpiffeId, Svid, TrustBundle, ca::Authority, tls};
use weft_proto::envoy::{
    config::cluster::v3::{Cluster, cluster::LbPolicy},
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
};
use weft_tests::{App, Mesh, caller};

const SOON: Duration = Duration::from_secs(20);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Passes the discovery stream on; spoils clusters while told to.
struct Spoiler {
    upstream: AggregatedDiscoveryServiceClient<tonic::transport::Channel>,
    spoil: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Spoiler {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("sidecars speak delta"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let requests = request.into_inner().map_while(Result::ok);
        let answers = self.upstream.clone().delta_aggregated_resources(requests).await?.into_inner();
        let spoil = self.spoil.clone();
        Ok(Response::new(Box::pin(answers.map(move |answer| {
            let mut answer = answer?;
            if spoil.load(Ordering::SeqCst) && answer.type_url.ends_with("Cluster") {
                answer.resources.iter_mut().for_each(spoiled);
            }
            Ok(answer)
        }))))
    }
}

/// The same cluster with a balancer that no sidecar has.
fn spoiled(resource: &mut weft_proto::envoy::service::discovery::v3::Resource) {
    let Some(any) = &mut resource.resource else { return };
    let mut cluster = Cluster::decode(any.value.as_slice()).expect("the control plane sends clusters");
    cluster.set_lb_policy(LbPolicy::ClusterProvided);
    cluster.metadata = None;
    any.value = cluster.encode_to_vec();
    resource.version = "spoiled".to_owned();
}

/// Starts the spoiler in front of the control plane; where sidecars reach it.
async fn spoiler(mesh: &Mesh, sidecar_data: &std::path::Path, spoil: Arc<AtomicBool>) -> Result<SocketAddr> {
    let domain: weft_identity::TrustDomain = "weft.local".parse()?;
    let now = SystemTime::now();
    let authority = Authority::load(domain.clone(), &mesh.control_plane.data().join("ca"), now)?.context("a CA")?;
    let bundle = TrustBundle::load(domain.clone(), &sidecar_data.join("bundle.pem"))?;
    let as_sidecar = tls::client_config_expecting(
        Some(&Svid::load(sidecar_data)?),
        &bundle,
        SpiffeId::control_plane(&domain),
        &[b"h2"],
    )?;
    let channel = weft_proto::connect::channel(&mesh.control_plane.grpc().to_string(), as_sidecar)?;
    let service = Spoiler { upstream: AggregatedDiscoveryServiceClient::new(channel), spoil };

    let plain = TcpListener::bind("127.0.0.1:0").await?;
    let inside = plain.local_addr()?;
    let server = tonic::transport::Server::builder().add_service(AggregatedDiscoveryServiceServer::new(service));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(plain)));

    let own = authority.control_plane_svid(&["weft-control-plane"], Duration::from_secs(3600), now)?;
    let config = tls::server_config(&own, &bundle, tls::ClientAuth::Optional, &[b"h2"])?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut outside = acceptor.accept(stream).await?;
                let mut inside = tokio::net::TcpStream::connect(inside).await?;
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await
            });
        }
    });
    Ok(address)
}

fn policy(connect: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {{ name: echo }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: echo }}]\n  timeouts: {{ connect: {connect} }}\n"
    )
}

#[tokio::test]
async fn a_bad_cluster_is_refused_alone_and_harms_nothing() -> Result<()> {
    let mesh = Mesh::start().await?;
    let app = App::named("hello").await?;
    let _callee = mesh.callee("echo-1", "echo", "http", &app).await?;
    let mut client = mesh.caller("client").await?;
    mesh.registered("echo", 1).await?;

    let spoil = Arc::new(AtomicBool::new(false));
    let address = spoiler(&mesh, &client.data(), spoil.clone()).await?;
    client.stop(SOON).await;
    let env = vec![("WEFT_CONTROL_PLANE", address.to_string())];
    client.spec = WorkloadSpec { env, ..client.spec.clone() };
    client.restart(&mesh.control_plane, false).await?;
    let outbound = client.ready().await?.outbound;
    let works = async || {
        let answer = caller::get(outbound, "echo", "/").await?;
        ensure!(answer.status == 200, "{answer:?}");
        anyhow::Ok(())
    };
    works().await?;

    spoil.store(true, Ordering::SeqCst);
    mesh.control_plane.apply(&policy("900ms"), "spoiled on its way", 0).await?;
    let nack = wait_for("the refusal in the status", SOON, async || {
        let status = mesh.control_plane.status().await.ok()?;
        let sidecar = status.sidecars.into_iter().find(|sidecar| sidecar.id.starts_with("default/client/"))?;
        sidecar.nacks.into_iter().next()
    })
    .await?;
    ensure!(nack.resources.iter().any(|name| name == "default/echo:80"), "{nack:?}");
    ensure!(nack.message.contains("lb_policy"), "the refusal names the field: {nack:?}");
    works().await?;

    // The next good version is taken.
    spoil.store(false, Ordering::SeqCst);
    let applied = mesh.control_plane.apply(&policy("800ms"), "good again", 20).await?;
    let rollout = applied.rollout.context("it was waited for")?;
    ensure!(rollout.nacks.is_empty() && rollout.pending.is_empty(), "{rollout:?}");
    works().await
}
