//! Who may speak: what proves no identity of this mesh is refused, with its reason, and the application never hears of it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, rustls::ClientConfig};
use weft::launch::{Workload, call, metrics, wait_for};
use weft_identity::{PrivateKey, SpiffeId, Svid, TrustBundle, TrustDomain, ca::Authority, tls};
use weft_tests::{App, Mesh, caller};

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(20);

fn trust_domain(name: &str) -> TrustDomain {
    name.parse().expect("a valid trust domain")
}

/// The authority of the mesh, as whoever steals its files would have it.
fn authority(mesh: &Mesh) -> Result<Authority> {
    let loaded = Authority::load(trust_domain("weft.local"), &mesh.control_plane.data().join("ca"), SystemTime::now())?;
    loaded.context("the control plane has made its CA")
}

fn svid(authority: &Authority, domain: &str, now: SystemTime) -> Result<Svid> {
    let key = PrivateKey::generate()?;
    let id = SpiffeId::new(&trust_domain(domain), "default", "client")?;
    let chain = authority.sign(&key.csr()?, &id, &[], HOUR, now)?;
    Ok(Svid::new(chain, key)?)
}

fn client(svid: Option<&Svid>, bundle: &TrustBundle) -> Result<Arc<ClientConfig>> {
    Ok(tls::client_config(svid, bundle, &[b"http/1.1"])?)
}

/// What a caller with this configuration gets from the inbound port; empty when it is cut off.
async fn ask(callee: &Workload, config: Arc<ClientConfig>) -> Result<String> {
    let exchange = async {
        let stream = TcpStream::connect(callee.ports()?.inbound).await?;
        let name = ServerName::try_from("p80.echo.default.weft")?;
        let mut stream = TlsConnector::from(config).connect(name, stream).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    // In TLS 1.3 the callee's refusal comes after the caller's own handshake has ended: as an alert when it reads.
    match tokio::time::timeout(SOON, exchange).await.context("neither answer nor end")? {
        Ok(answer) => Ok(answer),
        Err(error) if error.downcast_ref::<std::io::Error>().is_some() => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// How often the callee has refused a handshake for `reason`.
async fn refusals(callee: &Workload, reason: &str) -> Result<f64> {
    let scrape = metrics::scrape(callee.ports()?.metrics).await?;
    Ok(scrape.sum("weft_tls_handshakes_total", &[("direction", "inbound"), ("reason", reason)]))
}

#[tokio::test]
async fn what_proves_no_identity_of_the_mesh_is_refused() -> Result<()> {
    let mesh = Mesh::start().await?;
    let app = App::named("hello").await?;
    let callee = mesh.callee("echo-1", "echo", "http", &app).await?;
    let (ours, now) = (authority(&mesh)?, SystemTime::now());
    let bundle = ours.bundle();

    // The control: a certificate that is good in every way gets through, so that the refusals mean something.
    let good = svid(&ours, "weft.local", now)?;
    let answer = ask(&callee, client(Some(&good), &bundle)?).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    ensure!(app.count() == 1);

    let stranger = Authority::create(trust_domain("weft.local"), now)?;
    let elsewhere = Authority::create(trust_domain("other.example"), now)?;
    let cases = [
        (None, "peer_certificate_missing"),
        (Some(svid(&ours, "weft.local", now - 3 * HOUR)?), "peer_certificate_expired"),
        (Some(svid(&ours, "weft.local", now + 3 * HOUR)?), "peer_certificate_expired"),
        (Some(svid(&stranger, "weft.local", now)?), "peer_certificate_unknown_authority"),
        (Some(svid(&elsewhere, "other.example", now)?), "peer_certificate_wrong_trust_domain"),
    ];
    for (certificate, reason) in cases {
        let before = refusals(&callee, reason).await?;
        let answer = ask(&callee, client(certificate.as_ref(), &bundle)?).await?;
        ensure!(answer.is_empty(), "{reason}: {answer}");
        ensure!(refusals(&callee, reason).await? > before, "{reason} is not counted");
        let process = callee.process().context("it runs")?;
        wait_for(&format!("{reason} in the log"), SOON, async || process.log().contains(reason).then_some(())).await?;
    }
    ensure!(app.count() == 1, "a refused caller reached the application");

    // Plain text is not an identity either.
    let answer =
        caller::raw(callee.ports()?.inbound, b"GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n").await?;
    ensure!(answer.starts_with("HTTP/1.1 403") && answer.contains("plaintext_refused"), "{answer}");
    ensure!(app.count() == 1);
    Ok(())
}

#[tokio::test]
async fn a_certificate_of_a_retired_root_is_refused_and_no_request_is_lost_on_the_way() -> Result<()> {
    let mut mesh = Mesh::start().await?;
    let app = App::named("hello").await?;
    let callee = mesh.callee("echo-1", "echo", "http", &app).await?;
    let client_sidecar = mesh.caller("client").await?;
    mesh.registered("echo", 1).await?;
    let outbound = client_sidecar.ports()?.outbound;
    let works = async || {
        let answer = caller::get(outbound, "echo", "/").await?;
        ensure!(answer.status == 200, "{answer:?}");
        anyhow::Ok(())
    };
    works().await?;
    let old = authority(&mesh)?;
    let stolen = svid(&old, "weft.local", SystemTime::now())?;
    let roots = mesh.control_plane.data().join("ca/root.pem");

    // Step one: the new root is trusted beside the old one.
    let new = Authority::create(trust_domain("weft.local"), SystemTime::now())?;
    let folder = mesh.ground.data.join("new-ca");
    new.save(&folder)?;
    let new_root = std::fs::read_to_string(folder.join("root.pem"))?;
    let both = [std::fs::read_to_string(&roots)?, new_root.clone()].concat();
    restart_with(&mut mesh, &roots, &both, &[]).await?;
    for sidecar in [&callee, &client_sidecar] {
        trusts(sidecar, 2).await?;
    }
    works().await?;

    // Step two: the new one signs; every sidecar renews.
    let chain = [std::fs::read_to_string(folder.join("issuer.pem"))?, new_root.clone()].concat();
    let import = folder.join("chain.pem");
    std::fs::write(&import, chain)?;
    let flags =
        ["--ca-cert", &import.display().to_string(), "--ca-key", &folder.join("issuer.key").display().to_string()];
    restart_with(&mut mesh, &roots, &both, &flags).await?;
    for sidecar in [&callee, &client_sidecar] {
        renewed(sidecar).await?;
    }
    works().await?;

    // Step three: the old root is retired.
    restart_with(&mut mesh, &roots, &new_root, &flags).await?;
    for sidecar in [&callee, &client_sidecar] {
        trusts(sidecar, 1).await?;
    }
    works().await?;
    let answer = ask(&callee, client(Some(&stolen), &new.bundle())?).await?;
    ensure!(answer.is_empty(), "a certificate of the retired root got through: {answer}");
    ensure!(refusals(&callee, "peer_certificate_unknown_authority").await? > 0.0);
    Ok(())
}

/// Stops the control plane, writes its roots, and starts it with these flags.
async fn restart_with(mesh: &mut Mesh, roots: &std::path::Path, pem: &str, flags: &[&str]) -> Result<()> {
    mesh.control_plane.stop(SOON).await;
    std::fs::write(roots, pem)?;
    mesh.control_plane.restart_with(flags).await
}

/// Waits until a sidecar trusts so many roots.
async fn trusts(sidecar: &Workload, count: usize) -> Result<()> {
    let file = sidecar.data().join("bundle.pem");
    wait_for(&format!("{} to trust {count} roots", sidecar.spec.name), SOON, async || {
        let text = std::fs::read_to_string(&file).ok()?;
        (text.matches("BEGIN CERTIFICATE").count() == count).then_some(())
    })
    .await
}

/// Has a sidecar renew its certificate, and waits until it has.
async fn renewed(sidecar: &Workload) -> Result<()> {
    let file = sidecar.data().join("svid.pem");
    let before = std::fs::read_to_string(&file)?;
    wait_for(&format!("{} to renew", sidecar.spec.name), SOON, async || {
        // Asked again until it has: the control plane may still be starting.
        call(sidecar.ports().ok()?.admin, http::Method::POST, "/certs").await.ok()?;
        (std::fs::read_to_string(&file).ok()? != before).then_some(())
    })
    .await
}
