//! The control plane in a cluster: what an API server says becomes the mesh, and what is wrong goes back to it. The API
//! server repeats a recorded conversation; see `weft_tests::api_server`.

mod refused;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use http::StatusCode;
use serde_json::{Value, json};
use time::OffsetDateTime;
use weft::launch::{Workload, WorkloadSpec, metrics, wait_for};
use weft_proto::weft::v1;
use weft_tests::{ApiServer, App, Load, Mesh, caller, caller::PATIENCE};

const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/httproutes";
const POLICIES: &str = "/apis/weft.mesh/v1alpha1/trafficpolicies";
const ACCESS: &str = "/apis/weft.mesh/v1alpha1/accesspolicies";
const SERVICES: &str = "/api/v1/services";

/// A cluster, its control plane, and a folder for what the kubelet would mount.
struct InCluster {
    mesh: Mesh,
    api: ApiServer,
    mounts: tempfile::TempDir,
}

impl InCluster {
    async fn start(legacy: u16) -> Result<Self> {
        let api = ApiServer::start("shop.json", &[("LEGACY_PORT", legacy.to_string())]).await?;
        Self::over(api).await
    }

    async fn over(api: ApiServer) -> Result<Self> {
        Self::with(api, &[]).await
    }

    async fn with(api: ApiServer, further: &[&str]) -> Result<Self> {
        let mounts = tempfile::tempdir()?;
        let kubeconfig = api.kubeconfig(mounts.path())?;
        let flags = ["--kubernetes", "--kubeconfig", kubeconfig.to_str().context("a path of UTF-8")?];
        let mesh = Mesh::start_with(&[&flags, further].concat()).await?;
        Ok(Self { mesh, api, mounts })
    }

    /// What the kubelet mounts as the ConfigMap `weft-root` of the namespace.
    async fn root(&self) -> Result<String> {
        let map = "/api/v1/namespaces/shop/configmaps/weft-root";
        wait_for("the ConfigMap with the root", PATIENCE, async || self.api.told(map).pop()).await.and_then(|told| {
            assert!(told.query.contains("fieldManager=weft-control-plane"), "{told:?}");
            Ok(told.body["data"]["ca.pem"].as_str().context("ca.pem")?.to_owned())
        })
    }

    /// A token as the kubelet projects it, known to the API server as that of an account.
    fn token(&self, account: &str) -> String {
        let token = jwt(account, "weft", 3600);
        self.api.token(&token, accepted(&format!("system:serviceaccount:shop:{account}")));
        token
    }

    fn write(&self, name: &str, content: &str) -> Result<String> {
        let path = self.mounts.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path.display().to_string())
    }

    /// A pod's sidecar, with the token of its account.
    async fn pod(&self, name: &str, service: &str, account: &str, ip: &str, app: Option<&App>) -> Result<Workload> {
        let mut workload = Workload::start(
            &self.mesh.ground,
            &self.mesh.control_plane,
            WorkloadSpec {
                name: name.to_owned(),
                namespace: "shop".to_owned(),
                service: service.to_owned(),
                ports: app.map(|app| format!("http=80:{}/http", app.address.port())).unwrap_or_default(),
                env: vec![
                    ("WEFT_JOIN_TOKEN", String::new()),
                    ("WEFT_JOIN_TOKEN_FILE", self.write(&format!("{name}.token"), &self.token(account))?),
                    ("WEFT_CA_FILE", self.write("ca.pem", &self.root().await?)?),
                    ("WEFT_ADDRESS", ip.to_owned()),
                    ("WEFT_INBOUND", format!("{ip}:0")),
                ],
                ..WorkloadSpec::default()
            },
        )
        .await?;
        workload.ready().await?;
        Ok(workload)
    }

    /// The status of a condition of a TrafficPolicy or (of its Service parent) an HTTPRoute, as the API server has it.
    fn condition(&self, path: &str, kind: &str) -> Option<Value> {
        let object = self.api.object(path, "shop/orders")?;
        let status = &object["status"];
        let ours = |parent: &&Value| parent["controllerName"] == "weft.mesh/control-plane";
        let conditions = match status["parents"].as_array() {
            Some(parents) => parents.iter().find(ours)?["conditions"].clone(),
            None => status["conditions"].clone(),
        };
        conditions.as_array()?.iter().find(|condition| condition["type"] == kind).cloned()
    }

    async fn wait_for_condition(&self, path: &str, kind: &str, generation: i64) -> Result<Value> {
        wait_for(&format!("{kind} of generation {generation}"), PATIENCE, async || {
            self.condition(path, kind).filter(|condition| condition["observedGeneration"] == generation)
        })
        .await
    }

    async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(metrics::parse(&self.page("/metrics").await?.1).sum(name, labels))
    }

    /// A page of the control plane's HTTP port.
    async fn page(&self, path: &str) -> Result<(StatusCode, String)> {
        use http_body_util::BodyExt;
        use weft_identity::{SpiffeId, TrustBundle, TrustDomain, tls};
        let credential: Value = serde_json::from_slice(&std::fs::read(self.mesh.control_plane.credential())?)?;
        let domain = TrustDomain::parse("weft.local")?;
        let roots = TrustBundle::from_pem(domain.clone(), credential["ca"].as_str().context("ca")?)?;
        let config = tls::client_config_expecting(None, &roots, SpiffeId::control_plane(&domain), &[b"http/1.1"])?;
        let stream = tokio::net::TcpStream::connect(self.mesh.control_plane.http()).await?;
        let name = rustls_pki_types::ServerName::try_from("weft-control-plane")?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = http::Request::get(path).header("host", "weft-control-plane");
        let answer = sender.send_request(request.body(http_body_util::Empty::<bytes::Bytes>::new())?).await?;
        let status = answer.status();
        Ok((status, String::from_utf8_lossy(&answer.into_body().collect().await?.to_bytes()).into_owned()))
    }

    /// A resource as the control plane's log holds it.
    async fn stored(&self, kind: &str, name: &str) -> Result<String> {
        let key = v1::ResourceKey { kind: kind.to_owned(), namespace: "shop".to_owned(), name: name.to_owned() };
        let request = v1::GetRequest { key: Some(key), revision: 0 };
        Ok(self.mesh.control_plane.client()?.get(request).await?.into_inner().yaml)
    }
}

/// Looks like a token of a service account; its signature is nobody's.
fn jwt(account: &str, audience: &str, seconds: i64) -> String {
    let expires = OffsetDateTime::now_utc().unix_timestamp() + seconds;
    let claims = json!({ "aud": [audience], "exp": expires, "sub": format!("system:serviceaccount:shop:{account}") });
    let part = |value: &Value| base64(value.to_string().as_bytes());
    format!("{}.{}.c2lnbmF0dXJl", part(&json!({ "alg": "RS256", "typ": "JWT" })), part(&claims))
}

/// base64url without padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number = chunk.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(char::from(LETTERS[(number >> (18 - 6 * place) & 63) as usize]));
        }
    }
    text
}

fn accepted(user: &str) -> Value {
    json!({ "authenticated": true, "user": { "username": user, "uid": "u" }, "audiences": ["weft"] })
}

/// Waits until a call is answered by that application.
async fn answered_by(caller: &Workload, host: &str, name: &str) -> Result<()> {
    let proxy = caller.ports()?.outbound;
    wait_for(&format!("an answer of {name}"), PATIENCE, async || {
        let answer = caller::get(proxy, host, "/").await.ok()?;
        (answer.status == StatusCode::OK && answer.text() == name).then_some(())
    })
    .await
}

#[tokio::test]
async fn what_the_api_server_says_is_the_mesh_and_what_is_wrong_goes_back() -> Result<()> {
    let (one, two, plain) = (App::named("one").await?, App::named("two").await?, App::named("plain").await?);
    let cluster = InCluster::start(plain.address.port()).await?;
    let _one = cluster.pod("orders-1", "orders", "default", "127.0.0.11", Some(&one)).await?;
    let _two = cluster.pod("orders-2", "orders", "batch", "127.0.0.12", Some(&two)).await?;
    let web = cluster.pod("web", "web", "web", "127.0.0.14", None).await?;

    // The identity is the account that the API server names, and the route decides.
    answered_by(&web, "orders", "one").await?;
    let status = cluster.mesh.control_plane.status().await?;
    let identities: Vec<_> = status.sidecars.iter().map(|sidecar| sidecar.identity.as_str()).collect();
    for account in ["default", "batch", "web"] {
        assert!(identities.contains(&&*format!("spiffe://weft.local/ns/shop/sa/{account}")), "{identities:?}");
    }
    // A pod without a sidecar is reached, in plain text.
    answered_by(&web, "legacy", "plain").await?;

    // Weights that change are obeyed.
    cluster.api.play("all to the second");
    answered_by(&web, "orders", "two").await?;
    for _ in 0..10 {
        assert_eq!(caller::get(web.ports()?.outbound, "orders", "/").await?.text(), "two");
    }
    let accepted = cluster.wait_for_condition(ROUTES, "Accepted", 2).await?;
    assert_eq!(accepted["status"], "True", "{accepted}");
    assert_eq!(cluster.wait_for_condition(ROUTES, "ResolvedRefs", 2).await?["status"], "True");
    let route = cluster.api.object(ROUTES, "shop/orders").context("the route")?;
    let others = route["status"]["parents"].as_array().context("parents")?;
    assert_eq!((others.len(), &others[0]["controllerName"]), (2, &json!("example.com/edge")), "{others:?}");

    // An access policy comes and goes.
    cluster.api.play("nobody may call");
    wait_for("the refusal", PATIENCE, async || {
        let answer = caller::get(web.ports().ok()?.outbound, "orders", "/").await.ok()?;
        (answer.status == StatusCode::FORBIDDEN).then_some(())
    })
    .await?;
    cluster.api.play("everybody may call");
    answered_by(&web, "orders", "two").await?;

    // A broken policy: its condition says what is wrong, the good one stays.
    assert_eq!(cluster.wait_for_condition(POLICIES, "Accepted", 1).await?["status"], "True");
    cluster.api.play("a broken policy");
    let accepted = cluster.wait_for_condition(POLICIES, "Accepted", 2).await?;
    assert_eq!((&accepted["status"], &accepted["reason"]), (&json!("False"), &json!("Invalid")), "{accepted}");
    let message = accepted["message"].as_str().context("a message")?;
    assert!(message.starts_with("spec.timeouts.request: "), "{message}");
    let programmed = cluster.wait_for_condition(POLICIES, "Programmed", 2).await?;
    assert_eq!(programmed["message"], "an earlier version of it stays in force");
    let stored = cluster.stored("TrafficPolicy", "orders").await?;
    assert!(stored.contains("request: 5s"), "{stored}");
    assert!(
        cluster.metric("weft_cp_kubernetes_objects", &[("kind", "TrafficPolicy"), ("state", "invalid")]).await? > 0.0
    );
    cluster.api.play("the policy mended");
    assert_eq!(cluster.wait_for_condition(POLICIES, "Accepted", 3).await?["status"], "True");

    // Every status was written for a change, and none because of its own writing.
    let written = |end: &str| cluster.api.told(end).len();
    let patches = (written("/trafficpolicies/orders/status"), written("/httproutes/orders/status"));
    assert!(patches.0 <= 5 && patches.1 <= 4, "{patches:?}");

    // What belongs to the cluster is changed there.
    let refused = cluster.mesh.control_plane.apply(
        "apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: { name: default }\n",
        "",
        0,
    );
    let error = format!("{:#}", refused.await.expect_err("kubectl's business"));
    assert!(error.contains("kubectl apply"), "{error}");
    Ok(())
}

#[tokio::test]
async fn the_api_server_goes_away_and_comes_back_and_no_request_fails() -> Result<()> {
    let (one, two, plain) = (App::named("one").await?, App::named("two").await?, App::named("plain").await?);
    let mut cluster = InCluster::start(plain.address.port()).await?;
    let _one = cluster.pod("orders-1", "orders", "default", "127.0.0.11", Some(&one)).await?;
    let _two = cluster.pod("orders-2", "orders", "batch", "127.0.0.12", Some(&two)).await?;
    let web = cluster.pod("web", "web", "web", "127.0.0.14", None).await?;
    answered_by(&web, "orders", "one").await?;
    answered_by(&web, "legacy", "plain").await?;
    let proxy = web.ports()?.outbound;
    let meshed = Load::start(proxy, "orders", 2, Duration::from_millis(3));
    let unmeshed = Load::start(proxy, "legacy", 1, Duration::from_millis(3));

    // Cut, and told what was missed.
    let listed = cluster.api.lists(ROUTES);
    cluster.api.cut();
    cluster.api.play("all to the second");
    answered_by(&web, "orders", "two").await?;
    assert_eq!(cluster.api.lists(ROUTES), listed, "it went on where it was");

    // 410 Gone in mid-stream: listed anew, and nobody was gone meanwhile.
    cluster.api.forget();
    wait_for("new lists", PATIENCE, async || (cluster.api.lists(ROUTES) > listed).then_some(())).await?;
    cluster.api.play("all to the first");
    answered_by(&web, "orders", "one").await?;

    // Away: what is known stays in force, even over a restart of the control plane.
    cluster.api.go_away().await;
    wait_for("the loss to be seen", PATIENCE, async || {
        let up = cluster.metric("weft_cp_kubernetes_watch_up", &[("kind", "Service")]).await.ok()?;
        let status = cluster.mesh.control_plane.status().await.ok()?;
        let failing = status.watches.iter().any(|watch| watch.state == "FAILING" && !watch.message.is_empty());
        (up == 0.0 && failing).then_some(())
    })
    .await?;
    meshed.answer(200).await?;
    cluster.mesh.control_plane.kill().await;
    cluster.mesh.control_plane.restart().await?;
    wait_for("the sidecars' return", Duration::from_secs(40), async || {
        (cluster.mesh.control_plane.status().await.ok()?.sidecars.len() == 3).then_some(())
    })
    .await?;
    meshed.answer(200).await?;
    unmeshed.answer(50).await?;

    // Back, and another one: what went meanwhile is let go.
    cluster.api.come_back().await?;
    cluster.api.forget();
    wait_for("the watches", Duration::from_secs(60), async || (cluster.api.watches() >= 7).then_some(())).await?;
    meshed.answer(200).await?;
    unmeshed.stop().await.assert_whole();
    cluster.api.play("the legacy service goes");
    wait_for("its end", PATIENCE, async || {
        let answer = caller::get(proxy, "legacy", "/").await.ok()?;
        (answer.status != StatusCode::OK).then_some(())
    })
    .await?;
    meshed.stop().await.assert_whole();
    Ok(())
}

#[tokio::test]
async fn kinds_that_are_missing_or_forbidden_are_told_and_looked_for_again() -> Result<()> {
    let api = ApiServer::start("shop.json", &[("LEGACY_PORT", "1".to_owned())]).await?;
    api.forbid(ACCESS, true);
    let cluster = InCluster::over(api).await?;
    let state = async |kind: &str| {
        let status = cluster.mesh.control_plane.status().await.ok()?;
        status.watches.into_iter().find(|watch| watch.kind == kind)
    };
    let forbidden = wait_for("the refusal", PATIENCE, async || {
        state("AccessPolicy").await.filter(|watch| watch.state == "FAILING")
    })
    .await?;
    assert!(forbidden.message.contains("403"), "{forbidden:?}");
    wait_for("the missing kind", PATIENCE, async || {
        state("GRPCRoute").await.filter(|watch| watch.state == "NOT_INSTALLED")
    })
    .await?;
    let shown = std::process::Command::new(weft_tests::mesh::program()?)
        .args(["status", "--credential"])
        .arg(cluster.mesh.control_plane.credential())
        .output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("NOT_INSTALLED") && shown.contains("AccessPolicy: is forbidden"), "{shown}");
    // Without the access policies there is no mesh: it must not begin open.
    let status = cluster.mesh.control_plane.status().await?;
    assert_eq!(status.revision, 0, "{status:?}");
    assert!(cluster.stored("Service", "orders").await.is_err());
    assert_eq!(cluster.page("/readyz").await?.0, StatusCode::SERVICE_UNAVAILABLE);
    cluster.api.forbid(ACCESS, false);
    cluster.api.play("gRPC routes are installed");
    wait_for("the mesh", Duration::from_secs(60), async || cluster.stored("Service", "orders").await.ok()).await?;
    wait_for("the route", Duration::from_secs(60), async || cluster.stored("GRPCRoute", "ledger").await.ok()).await?;
    assert_eq!(cluster.page("/readyz").await?.0, StatusCode::OK);
    assert_eq!(cluster.api.lists(SERVICES), 1, "one list is enough");
    Ok(())
}

#[tokio::test]
async fn only_the_namespaces_that_are_named_are_looked_at() -> Result<()> {
    let api = ApiServer::start("shop.json", &[("LEGACY_PORT", "1".to_owned())]).await?;
    let cluster = InCluster::with(api, &["--kubernetes-namespaces", "bar,baz"]).await?;
    wait_for("the lists", PATIENCE, async || (cluster.page("/readyz").await.ok()?.0 == StatusCode::OK).then_some(()))
        .await?;
    assert!(cluster.stored("Service", "orders").await.is_err());
    let status = cluster.mesh.control_plane.status().await?;
    let services: Vec<_> = status.watches.iter().filter(|watch| watch.kind == "Service").collect();
    assert_eq!(services.iter().map(|watch| &*watch.namespace).collect::<Vec<_>>(), ["bar", "baz"]);
    assert!(services.iter().all(|watch| watch.objects == 0), "{services:?}");
    // Nor may its accounts join.
    let map = "/api/v1/namespaces/weft-system/configmaps/weft-root";
    let told = wait_for("its own ConfigMap", PATIENCE, async || cluster.api.told(map).pop()).await?;
    let root = told.body["data"]["ca.pem"].as_str().context("ca.pem")?;
    let error = issue(&cluster.mesh, cluster.mounts.path(), root, &cluster.token("orders")).await;
    let error = format!("{:#}", error.expect_err("of another namespace"));
    assert!(error.contains("namespace shop is not one of --kubernetes-namespaces"), "{error}");
    assert_eq!(cluster.api.told("/namespaces/shop/configmaps/weft-root").len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_service_account_token_is_as_good_as_the_api_server_says() -> Result<()> {
    let cluster = InCluster::start(1).await?;
    let root = cluster.root().await?;
    let issue = async |token: &str| issue(&cluster.mesh, Path::new(cluster.mounts.path()), &root, token).await;
    let good = cluster.token("orders");
    assert_eq!(issue(&good).await?, "spiffe://weft.local/ns/shop/sa/orders");
    assert_eq!(issue(&good).await?, "spiffe://weft.local/ns/shop/sa/orders", "an answer that was lost");
    let reviews = || cluster.api.told("/tokenreviews");
    assert_eq!(reviews().len(), 1, "the second time it is known");
    assert_eq!(reviews()[0].body["spec"]["audiences"], json!(["weft"]));

    // What cannot pass is not asked about.
    for (token, why) in [
        (jwt("orders", "https://kubernetes.default.svc", 3600), "audience"),
        (jwt("orders", "weft", -1), "expired"),
        ("eyJ.e30.x".to_owned(), "audience"),
    ] {
        let error = format!("{:#}", issue(&token).await.expect_err(why));
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(reviews().len(), 1);

    // What the API server does not vouch for.
    let (unknown, other, node) = (jwt("a", "weft", 60), jwt("b", "weft", 60), jwt("c", "weft", 60));
    cluster.api.token(&other, json!({ "authenticated": true, "user": { "username": "system:serviceaccount:shop:b" } }));
    cluster.api.token(&node, accepted("system:node:node-1"));
    for (token, why) in [(unknown, "token lookup failed"), (other, "audience"), (node, "not a service account")] {
        let error = format!("{:#}", issue(&token).await.expect_err(why));
        assert!(error.contains(why), "{error}");
    }
    assert!(cluster.metric("weft_cp_kubernetes_token_reviews_total", &[("result", "refused")]).await? >= 6.0);
    Ok(())
}

/// A certificate for a token, as a sidecar asks for it; the identity in it.
async fn issue(mesh: &Mesh, folder: &Path, root: &str, token: &str) -> Result<String> {
    use weft_identity::{PrivateKey, SpiffeId, TrustBundle, TrustDomain, tls};
    use weft_proto::weft::v1::{IssueRequest, certificate_service_client::CertificateServiceClient};
    let domain = TrustDomain::parse("weft.local")?;
    let file = folder.join("root.pem");
    std::fs::write(&file, root)?;
    let bundle = TrustBundle::load(domain.clone(), &file)?;
    let config = tls::client_config_expecting(None, &bundle, SpiffeId::control_plane(&domain), &[b"h2"])?;
    let channel = weft_proto::connect::channel(&mesh.control_plane.grpc().to_string(), config)?;
    let request = IssueRequest { csr: PrivateKey::generate()?.csr()?, join_token: token.to_owned() };
    Ok(CertificateServiceClient::new(channel).issue(request).await?.into_inner().identity)
}
