//! Names, as the C library of an application resolves them, and what a connection to the answer reaches.

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, rdata::A},
};
use tokio::net::UdpSocket;

use super::*;

const HEADLESS: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: db }
spec: { clusterIP: None, ports: [{ name: tcp-main, port: 9000 }] }
"#;

/// A resolver on a host: knows `www.example.com`, which is the host itself.
async fn resolver(host: &Host) -> Result<()> {
    let (at, own) = (host.v4, host.v4);
    let bound = host.within(async move || Ok(UdpSocket::bind((at, 53)).await?.into_std()?)).await?;
    let socket = UdpSocket::from_std(bound)?;
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..length]).expect("the sidecar asks in DNS");
            let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
            answer.add_queries(query.queries.clone());
            let name = query.queries[0].name.clone();
            let known = name.to_string().eq_ignore_ascii_case("www.example.com.");
            match query.queries[0].query_type {
                hickory_proto::rr::RecordType::A if known => {
                    answer.add_answer(Record::from_rdata(name, 60, RData::A(A(own))));
                }
                _ if known => {}
                _ => answer.metadata.response_code = ResponseCode::NXDomain,
            }
            let bytes = answer.to_vec().expect("an answer is written");
            socket.send_to(&bytes, peer).await.expect("the bridge takes it");
        }
    });
    Ok(())
}

/// A server that says its name first.
async fn naming(host: &Host, name: &'static str) -> Result<App> {
    App::raw_on(listen(host, 9000).await?, move |mut stream| async move {
        // A caller that is gone wants no name.
        drop(stream.write_all(name.as_bytes()).await);
    })
}

/// Addresses of a name for an application on a host. `database`: `ahostsv4` or `ahostsv6`.
fn resolve(host: &Host, database: &str, name: &str) -> Result<IpAddr> {
    let said = host.exec(&["getent", database, name])?;
    Ok(said.split_whitespace().next().context("an address")?.parse()?)
}

async fn named(from: &Host, at: IpAddr) -> Result<String> {
    from.within(async move || {
        let mut text = String::new();
        TcpStream::connect((at, 9000)).await?.read_to_string(&mut text).await?;
        Ok(text)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn names_lead_to_the_service_that_they_mean() -> Result<()> {
    let Some(stage) = Stage::start("names of services in transparent mode").await? else { return Ok(()) };
    let (web, outside) = (stage.net.host("web")?, stage.net.host("outside")?);
    resolver(&outside).await?;
    stage.apply(HEADLESS)?;
    let (mut apps, mut nodes) = (Vec::new(), Vec::new());
    for (service, labels) in [("red", "a=b"), ("blue", "a=b"), ("db", "weft.mesh/hostname=db-0")] {
        let host = stage.net.host(service)?;
        apps.push(naming(&host, service).await?);
        nodes.push(stage.sidecar(host, service, &["--port", "tcp-main=9000/tcp", "--labels", labels]).await?);
    }
    stage.registered(3).await?;
    let search = "search default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
    let resolv_conf = format!("nameserver {}\n{search}", outside.v4);
    let web = stage.sidecar(web, "web", &["--log", "info,weft_sidecar::dns=debug"]).await?;
    // The sidecar sees the change; rules name the resolvers, so they are set anew.
    web.host.resolv_conf(&resolv_conf)?;
    web.host.exec(&[&stage.program.display().to_string(), "sidecar", "init"])?;
    wait_for("the resolver", SOON, async || resolve(&web.host, "ahostsv4", "www.example.com").ok()).await?;

    // Two services on one port stay apart, by both families and all forms.
    for service in ["red", "blue"] {
        for database in ["ahostsv4", "ahostsv6"] {
            let address = resolve(&web.host, database, service).with_context(|| web.sidecar.log())?;
            for form in ["default", "default.svc", "default.svc.cluster.local", "default.mesh"] {
                assert_eq!(resolve(&web.host, database, &format!("{service}.{form}"))?, address, "{form}");
            }
            let said = named(&web.host, address).await.with_context(|| web.sidecar.log_tail())?;
            assert_eq!(said, service, "{address}");
        }
    }
    // A headless service and its endpoint by its own name.
    for name in ["db", "db-0.db", "db-0.db.default.svc.cluster.local"] {
        let address = resolve(&web.host, "ahostsv4", name)?;
        assert_eq!(address, IpAddr::from(nodes[2].host.v4), "{name}");
        assert_eq!(named(&web.host, address).await?, "db");
    }
    let seen = web.metrics().await?;
    for (destination, calls) in [("default/red", 2.0), ("default/blue", 2.0), ("default/db", 3.0)] {
        assert_eq!(mutual(&seen, "outbound", destination), calls, "{destination}");
    }
    // The outside, whatever the search domains; and by TCP.
    let found = resolve(&web.host, "ahostsv4", "www.example.com").with_context(|| web.sidecar.log())?;
    assert_eq!(found, IpAddr::from(outside.v4));
    ensure!(resolve(&web.host, "ahostsv4", "nosuch.example.com").is_err());
    let red = resolve(&web.host, "ahostsv4", "red")?;
    web.host.resolv_conf(&format!("{resolv_conf}options use-vc\n"))?;
    let by_tcp = resolve(&web.host, "ahostsv4", "red").with_context(|| {
        format!("{}\n{}", web.sidecar.log_tail(), web.host.exec(&["nft", "list", "ruleset"]).unwrap_or_default())
    })?;
    assert_eq!(by_tcp, red);
    Ok(())
}
