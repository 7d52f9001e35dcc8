//! Rules that are not there, or get lost: what the sidecar says of it, and whom it touches.

use std::net::Ipv4Addr;

use super::*;

/// Where a sidecar looks for its rules.
const PROBE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 86, 69, 70)), 1);
const METRIC: &str = "weft_redirect_rules_present";

impl Node {
    /// What `/ready` says, whatever its status.
    async fn said(&self) -> String {
        let said = self.within(async || call(local(15020), Method::GET, "/ready").await).await;
        said.unwrap_or_else(|error| error.to_string())
    }

    /// What the metric says of a family. `None`: nothing.
    async fn present(&self, family: &'static str) -> Result<Option<f64>> {
        let seen = self.metrics().await?;
        Ok(seen.find(METRIC, &[("family", family)]).next().map(|sample| sample.value))
    }

    /// Waits until the metric says so of both families.
    async fn captured(&self, v4: f64, v6: Option<f64>) -> Result<()> {
        let is = async || {
            let found = (self.present("ipv4").await.ok()?, self.present("ipv6").await.ok()?);
            (found == (Some(v4), v6)).then_some(())
        };
        let waited = wait_for(&format!("{v4} {v6:?}"), SOON, is).await;
        waited.with_context(|| format!("{:?} {}", self.host.exec(&["nft", "list", "ruleset"]), self.sidecar.log_tail()))
    }

    /// How often the log says that a family is not captured.
    fn complaints(&self, family: &str) -> usize {
        let log = self.sidecar.log();
        log.lines().filter(|line| line.contains("not captured: no rules") && line.contains(family)).count()
    }

    /// Connections of the application's that were counted.
    async fn counted(&self) -> Result<f64> {
        let labels = [("direction", "outbound"), ("peer", "downstream")];
        Ok(self.metrics().await?.sum("weft_connections_opened_total", &labels))
    }
}

/// Sends a word and gets it back.
async fn echo(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(SECRET.as_bytes()).await?;
    let mut read = vec![0; SECRET.len()];
    tokio::time::timeout(SOON, stream.read_exact(&mut read)).await??;
    ensure!(read == SECRET.as_bytes());
    Ok(())
}

/// `lose`: how somebody else removes the outbound rules of both families. The inbound ones stay: without any the kernel ceases
/// to translate, and redirected connections break. `last`: how rules are removed in the end.
async fn rules_come_and_go(backend: &str, lose: &[&[&str]], last: &[&str]) -> Result<()> {
    let Some(stage) = Stage::start("rules that are missing").await? else { return Ok(()) };
    let (web, orders, outside) = (stage.net.host("web")?, stage.net.host("orders")?, stage.net.host("outside")?);
    let _web_app = telling(&web, 8080).await?;
    let _orders_app = greeting(&orders, 9000).await?;
    let _outside_app = telling(&outside, 8080).await?;
    let orders = stage.sidecar(orders, "orders", &["--port", "9000/tcp"]).await?;
    stage.registered(1).await?;

    // Without rules it is out of the mesh, whoever listens where it looks for them.
    let taken = web.within(async || Ok(TcpListener::bind(PROBE).await?.into_std()?)).await?;
    let stranger = App::raw_on(TcpListener::from_std(taken)?, |_stream| async {})?;
    let web = stage.start_sidecar(web, "web", &["--transparent", "--port", "80:8080/http"])?;
    let reason = async || Some(web.said().await).filter(|said| said.contains("503") && said.contains("not captured"));
    let said = wait_for("the reason", SOON, reason).await.with_context(|| web.sidecar.log_tail())?;
    ensure!(said.contains("weft-sidecar init"), "{said}");
    web.captured(0.0, None).await?;
    wait_for("an error in the log", SOON, async || (web.complaints("ipv4") > 0).then_some(())).await?;
    ensure!(web.complaints("ipv4") == 1 && web.sidecar.log().contains("--redirect"), "{}", web.sidecar.log());
    ensure!(!web.sidecar.log().contains("captured: rules lead"), "{}", web.sidecar.log());
    wait_for("an unhealthy workload", SOON, async || {
        stage.weft(&["status"]).ok().filter(|text| text.contains("UNHEALTHY"))
    })
    .await?;
    drop(stranger);

    stage.redirect(&web.host, &["--backend", backend])?;
    ensure!(web.ready().await? == "ready\n");
    web.captured(1.0, Some(1.0)).await?;
    stage.registered(2).await?;
    let before = web.counted().await?;
    ensure!(before == 0.0, "probes are nobody's traffic: {before}");

    // Whoever connects there gets nothing and costs nothing.
    for _ in 0..100 {
        let read = web.within(async || match TcpStream::connect(PROBE).await {
            Ok(mut tcp) => Ok(tcp.read(&mut [0]).await.unwrap_or(0)),
            // It was over before we looked.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(0),
            Err(error) => Err(error.into()),
        });
        ensure!(read.await? == 0);
    }
    ensure!(web.counted().await? == before, "not of an application's either");

    // Lost under traffic.
    let (at, to_web) = (SocketAddr::new(orders.host.v4.into(), 9000), SocketAddr::new(web.host.v4.into(), 8080));
    let held = web.within(async move || Ok(TcpStream::connect(at).await?.into_std()?)).await?;
    let mut held = TcpStream::from_std(held)?;
    held.read_exact(&mut [0; GREETING.len()]).await?;
    echo(&mut held).await?;
    let complaints = (web.complaints("ipv4"), web.complaints("ipv6"));
    for words in lose {
        web.host.exec(words)?;
    }
    web.captured(0.0, Some(0.0)).await?;
    ensure!(web.said().await.starts_with("ready, but not captured"), "{}", web.said().await);
    echo(&mut held).await.context("a connection that is open goes on")?;
    let answer = orders.get(to_web, "web", "/others").await?;
    ensure!(answer.status == StatusCode::OK && answer.text().contains("sa/orders"), "others do not notice: {answer:?}");
    let answer = web.get((outside.v4, 8080).into(), "outside", "/past").await?;
    ensure!(answer.text().contains("cert=-"), "the application is not held up: {answer:?}");
    ensure!(web.counted().await? == before + 1.0, "past the sidecar, which is what it complains of");
    ensure!(orders.present("ipv4").await? == Some(1.0), "each sidecar has rules of its own");

    stage.redirect(&web.host, &["--backend", backend])?;
    web.captured(1.0, Some(1.0)).await?;
    ensure!(web.ready().await? == "ready\n");
    web.host.exec(last)?;
    if backend == "iptables" {
        // One family alone.
        web.captured(1.0, Some(0.0)).await?;
        ensure!(web.said().await.contains("IPv6"), "{}", web.said().await);
        ensure!(web.complaints("ipv4") == complaints.0 + 1 && web.complaints("ipv6") == complaints.1 + 2);
        echo(&mut held).await
    } else {
        web.captured(0.0, Some(0.0)).await?;
        ensure!(web.complaints("ipv4") == complaints.0 + 2 && web.complaints("ipv6") == complaints.1 + 2);
        Ok(())
    }
}

#[tokio::test]
async fn missing_rules_of_nft_are_noticed() -> Result<()> {
    let lose: &[&str] = &["nft", "flush", "chain", "inet", "weft", "output"];
    rules_come_and_go("nft", &[lose], &["nft", "flush", "ruleset"]).await
}

#[tokio::test]
async fn missing_rules_of_iptables_are_noticed() -> Result<()> {
    let lose = |program| [program, "-t", "nat", "-F", "OUTPUT"];
    rules_come_and_go("iptables", &[&lose("iptables"), &lose("ip6tables")], &lose("ip6tables")).await
}

#[tokio::test]
async fn explicit_mode_looks_for_no_rules() -> Result<()> {
    let Some(stage) = Stage::start("explicit mode without probes").await? else { return Ok(()) };
    let web = stage.net.host("web")?;
    let asked = web.within(async || Ok(TcpListener::bind(PROBE).await?.into_std()?)).await?;
    let web = stage.start_sidecar(web, "web", &["--port", "80:8080/http"])?;
    ensure!(web.ready().await? == "ready\n");
    let refused = asked.accept().err().map(|error| error.kind());
    ensure!(refused == Some(std::io::ErrorKind::WouldBlock), "nobody connects: {refused:?}");
    ensure!(web.metrics().await?.find(METRIC, &[]).next().is_none());
    ensure!(!web.sidecar.log().contains("captured"), "{}", web.sidecar.log());
    Ok(())
}

#[tokio::test]
async fn a_host_without_ipv6_misses_nothing() -> Result<()> {
    let Some(stage) = Stage::start("rules where there is no IPv6").await? else { return Ok(()) };
    let web = stage.net.host("web")?;
    web.exec(&["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6"])?;
    let web = stage.sidecar(web, "web", &["--port", "80:8080/http"]).await?;
    web.captured(1.0, None).await?;
    ensure!(web.said().await == "ready\n", "{}", web.said().await);
    ensure!(web.complaints("") == 0, "the rules are there before it looks for them: {}", web.sidecar.log());
    Ok(())
}
