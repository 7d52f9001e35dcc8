//! Who may call what, decided at the callee.

use std::time::Duration;

use anyhow::{Result, ensure};
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use weft::launch::{WorkloadSpec, metrics, wait_for};
use weft_tests::{
    App, Pair, Raw, caller,
    pair::{logged, requests},
};

const POLICIES: &str = r#"
apiVersion: weft.mesh/v1alpha1
kind: AccessPolicy
metadata: { name: guests }
spec:
  targetRefs: [{ kind: Service, name: echo }]
  action: ALLOW
  rules:
    - name: readers
      from: [{ identities: [default/client] }]
      to: [{ methods: [GET], paths: [/public, /public/*] }]
    - name: neighbours
      from: [{ namespaces: [other] }]
      to: [{ paths: [/shared/*] }]
---
apiVersion: weft.mesh/v1alpha1
kind: AccessPolicy
metadata: { name: secrets }
spec:
  targetRefs: [{ kind: Service, name: echo }]
  action: DENY
  rules:
    - name: hidden
      to: [{ paths: [/public/secret, /public/secret/*] }]
"#;

#[tokio::test]
async fn identity_namespace_method_and_path_decide() -> Result<()> {
    let pair = Pair::start("http", App::named("hello").await?).await?;
    let neighbour = WorkloadSpec {
        name: "neighbour".to_owned(),
        namespace: "other".to_owned(),
        service: "client".to_owned(),
        ..WorkloadSpec::default()
    };
    let neighbour = pair.mesh.sidecar(neighbour).await?;
    pair.mesh.control_plane.apply(POLICIES, "policies", 10).await?;
    let (client, other) = (pair.outbound()?, neighbour.ports()?.outbound);
    // Who, method, path; the policy and rule that refuse, if they do.
    let table = [
        (client, Method::GET, "/public", None),
        (client, Method::GET, "/public/a?b=/public/secret", None),
        (client, Method::POST, "/public/a", Some(("default/guests", "none"))),
        (client, Method::GET, "/private", Some(("default/guests", "none"))),
        (client, Method::GET, "/shared/a", Some(("default/guests", "none"))),
        (other, Method::DELETE, "/shared/a", None),
        (other, Method::GET, "/public", Some(("default/guests", "none"))),
        (client, Method::GET, "/public/secret", Some(("default/secrets", "hidden"))),
        (client, Method::GET, "/public/secret/a", Some(("default/secrets", "hidden"))),
        // The same path, spelled otherwise.
        (client, Method::GET, "/public//secret", Some(("default/secrets", "hidden"))),
        (client, Method::GET, "//public/secret", Some(("default/secrets", "hidden"))),
        (client, Method::GET, "/public/./secret", Some(("default/secrets", "hidden"))),
        (client, Method::GET, "/public/a/../secret", Some(("default/secrets", "hidden"))),
        (client, Method::GET, "/public/%73ecret", Some(("default/secrets", "hidden"))),
        (client, Method::GET, "/public/%2e/secret", Some(("default/secrets", "hidden"))),
        (client, Method::GET, "/public/a/%2e%2E/secret", Some(("default/secrets", "hidden"))),
        (client, Method::GET, "/public/secret?x", Some(("default/secrets", "hidden"))),
        (client, Method::GET, "/public/secret/", Some(("default/secrets", "hidden"))),
        (client, Method::GET, "/private/../public", None),
        (client, Method::GET, "/public/../private", Some(("default/guests", "none"))),
    ];
    let mut allowed = 0;
    for (from, method, path, refused) in table {
        let request = Request::builder().method(&method).uri(path).header(header::HOST, "echo.default");
        let answer = caller::send(from, request.body(Full::default())?).await?;
        let Some((policy, rule)) = refused else {
            ensure!(answer.status == StatusCode::OK, "{method} {path}: {answer:?}");
            allowed += 1;
            continue;
        };
        ensure!(
            (answer.status, answer.reason().as_str()) == (StatusCode::FORBIDDEN, "access_denied"),
            "{method} {path}: {answer:?}"
        );
        ensure!(
            answer.text().contains(&format!("policy={policy} rule={rule} caller=spiffe://weft.local/ns/")),
            "{method} {path}: {}",
            answer.text()
        );
    }
    assert_eq!(pair.app.count(), allowed, "only what was allowed arrived");

    let refused = table_counts(&pair).await?;
    assert_eq!(refused, (5.0, 11.0), "refused by default/guests and default/secrets");
    for sidecar in [&pair.caller, &pair.callee] {
        let labels = [
            ("source", "default/client"),
            ("destination", "default/echo"),
            ("reason", "access_denied"),
            ("code", "403"),
        ];
        ensure!(requests(sidecar, &labels).await? == 15.0, "{}", sidecar.spec.name);
    }
    wait_for("lines that name policy and rule", Duration::from_secs(5), async || {
        let parts = ["\"reason\":\"access_denied\"", "policy=default/secrets rule=hidden", "sa/client"];
        (logged(&pair.callee, &parts) == 11).then_some(())
    })
    .await
}

/// Refusals by policy that the callee has counted.
async fn table_counts(pair: &Pair) -> Result<(f64, f64)> {
    let scrape = metrics::scrape(pair.callee.ports()?.metrics).await?;
    let count = |policy, rule| {
        scrape.sum("weft_access_decisions_total", &[("decision", "deny"), ("policy", policy), ("rule", rule)])
    };
    Ok((count("default/guests", "none"), count("default/secrets", "hidden")))
}

#[tokio::test]
async fn a_raw_connection_is_refused_before_the_application_sees_it() -> Result<()> {
    let app = App::raw(|mut stream| async move {
        // Whoever is let through hears of it.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"hello").await;
    })
    .await?;
    // The application is checked by connecting, so connections alone prove nothing.
    let pair = Pair::start("tcp", app).await?;
    assert_eq!(Raw::connect(pair.upstream()?).await?.rest().await?, "hello");
    let deny = r#"
apiVersion: weft.mesh/v1alpha1
kind: AccessPolicy
metadata: { name: closed }
spec:
  targetRefs: [{ kind: Service, name: echo }]
  action: DENY
  rules: [{ name: clients, from: [{ identities: [default/client] }] }]
"#;
    pair.mesh.control_plane.apply(deny, "closed", 10).await?;
    assert_eq!(Raw::connect(pair.upstream()?).await?.rest().await?, "");
    wait_for("the refusal in metric and log", Duration::from_secs(5), async || {
        let labels = [("source", "default/client"), ("protocol", "tcp"), ("reason", "access_denied")];
        let counted = requests(&pair.callee, &labels).await.ok()?;
        let lines = logged(&pair.callee, &["\"reason\":\"access_denied\"", "policy=default/closed rule=clients"]);
        (counted == 1.0 && lines == 1).then_some(())
    })
    .await
}
