//! What clients refuse goes back to the API server as well: condition `Programmed`.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use weft::launch::{Workload, wait_for};
use weft_identity::{SpiffeId, Svid, TrustBundle, TrustDomain, tls};
use weft_proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::rpc,
};
use weft_tests::{ApiServer, caller::PATIENCE};

use super::{InCluster, POLICIES, ROUTES};

const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
const HOST: &str = "outbound/orders.shop:80";

/// A sidecar of another version: it refuses a virtual host until it is told to take it.
struct Refuser {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    words: Arc<Mutex<Option<String>>>,
    answered: watch::Receiver<usize>,
    _stream: JoinSet<()>,
}

impl Refuser {
    /// Opens a stream as a second sidecar of a pod's service, and refuses with these words.
    async fn open(cluster: &InCluster, pod: &Workload, words: &str) -> Result<Self> {
        let domain = TrustDomain::parse("weft.local")?;
        let bundle = TrustBundle::load(domain.clone(), &pod.data().join("bundle.pem"))?;
        let svid = Svid::load(&pod.data())?;
        let config = tls::client_config_expecting(Some(&svid), &bundle, SpiffeId::control_plane(&domain), &[b"h2"])?;
        let channel = weft_proto::connect::channel(&cluster.mesh.control_plane.grpc().to_string(), config)?;
        let (requests, stream) = mpsc::channel(16);
        let node =
            Node { id: "shop/web/other".to_owned(), user_agent_name: "weft-sidecar".to_owned(), ..Node::default() };
        requests.send(DeltaDiscoveryRequest { node: Some(node), ..subscription() }).await?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let mut responses = client.delta_aggregated_resources(ReceiverStream::new(stream)).await?.into_inner();
        let words = Arc::new(Mutex::new(Some(words.to_owned())));
        let (count, answered) = watch::channel(0);
        let (answers, refuses) = (requests.clone(), words.clone());
        let mut stream = JoinSet::new();
        stream.spawn(async move {
            while let Ok(Some(response)) = responses.message().await {
                let words = refuses.lock().clone();
                let error = words.map(|words| rpc::Status { code: 3, message: words, ..rpc::Status::default() });
                let answer = DeltaDiscoveryRequest {
                    type_url: response.type_url,
                    response_nonce: response.nonce,
                    error_detail: error,
                    ..DeltaDiscoveryRequest::default()
                };
                if answers.send(answer).await.is_err() {
                    return;
                }
                count.send_modify(|count| *count += 1);
            }
        });
        let mut refuser = Self { requests, words, answered, _stream: stream };
        refuser.answered(1).await?;
        Ok(refuser)
    }

    async fn answered(&mut self, times: usize) -> Result<()> {
        tokio::time::timeout(PATIENCE, self.answered.wait_for(|count| *count >= times)).await??;
        Ok(())
    }

    /// Asks again, and takes what it is sent.
    async fn take(&mut self) -> Result<()> {
        self.words.lock().take();
        self.requests.send(subscription()).await?;
        self.answered(2).await
    }
}

fn subscription() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: VIRTUAL_HOST.to_owned(),
        resource_names_subscribe: vec![HOST.to_owned()],
        ..DeltaDiscoveryRequest::default()
    }
}

/// Longer than a status goes on saying that something is refused.
const HELD: Duration = Duration::from_secs(60);

impl InCluster {
    async fn programmed(&self, path: &str, status: &str, reason: &str) -> Result<String> {
        let condition = wait_for(&format!("{path}: Programmed {status}"), HELD, async || {
            self.condition(path, "Programmed").filter(|it| it["status"] == status && it["reason"] == reason)
        })
        .await?;
        Ok(condition["message"].as_str().context("a message")?.to_owned())
    }
}

#[tokio::test]
async fn what_a_client_refuses_is_told_in_the_status_and_so_is_its_end() -> Result<()> {
    let api = ApiServer::start("shop.json", &[("LEGACY_PORT", "1".to_owned())]).await?;
    let cluster = InCluster::over(api).await?;
    let web = cluster.pod("web", "web", "web", "127.0.0.14", None).await?;
    for path in [ROUTES, POLICIES] {
        cluster.programmed(path, "True", "Programmed").await?;
    }
    let written = || {
        let written = |end: &str| cluster.api.told(end).len();
        (written("/trafficpolicies/orders/status"), written("/httproutes/orders/status"))
    };
    let before = written();

    // What only the route can be to blame for is told of the route.
    let path = format!("{HOST}: routes[0].match.path: is of a kind that this version does not know");
    let mut refuser = Refuser::open(&cluster, &web, &path).await?;
    let message = cluster.programmed(ROUTES, "False", "Refused").await?;
    let expected = format!("shop/web/other refuses the virtual host {HOST}: routes[0].match");
    assert!(message.starts_with(&expected), "{message}");
    for (path, kind) in [(ROUTES, "Accepted"), (ROUTES, "ResolvedRefs"), (POLICIES, "Programmed")] {
        let condition = cluster.condition(path, kind).context("the condition")?;
        assert_eq!(condition["status"], "True", "{path} {condition}");
    }

    // One that comes and goes costs nothing, and at its end it is said that it is over.
    for _ in 0..20 {
        drop(refuser);
        refuser = Refuser::open(&cluster, &web, &path).await?;
    }
    refuser.take().await?;
    cluster.programmed(ROUTES, "True", "Programmed").await?;
    assert_eq!(written(), (before.0, before.1 + 2), "one for the refusal, one for its end");

    // What may be either's is told of both, with the name of the other, until the client is gone.
    drop(refuser);
    let refuser = Refuser::open(&cluster, &web, &format!("{HOST}: routes[0].route.timeout: is too long")).await?;
    for (path, other) in [(ROUTES, "TrafficPolicy shop/orders"), (POLICIES, "HTTPRoute shop/orders")] {
        let message = cluster.programmed(path, "False", "Refused").await?;
        assert!(message.contains(&format!("(made of this and of {other}): routes[0].route.timeout")), "{message}");
    }
    drop(refuser);
    for path in [ROUTES, POLICIES] {
        cluster.programmed(path, "True", "Programmed").await?;
    }
    assert_eq!(written(), (before.0 + 2, before.1 + 4));
    let route = cluster.api.object(ROUTES, "shop/orders").context("the route")?;
    assert_eq!(route["status"]["parents"][0]["controllerName"], json!("example.com/edge"), "others' words stay");
    Ok(())
}
