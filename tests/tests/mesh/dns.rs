//! Names of services, asked of a sidecar's DNS as an application's resolver asks.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::net::UdpSocket;
use weft::launch::{Workload, WorkloadSpec, metrics, wait_for};
use weft_tests::{App, Mesh};

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: orders, namespace: shop }
spec: { ports: [{ name: http, port: 8080 }, { name: tcp-admin, port: 9000 }] }
---
apiVersion: v1
kind: Service
metadata: { name: db, namespace: shop }
spec: { clusterIP: None, ports: [{ name: tcp-sql, port: 3306 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: db-1, namespace: shop, labels: { kubernetes.io/service-name: db } }
addressType: IPv4
ports: [{ name: tcp-sql, port: 3306 }]
endpoints:
- { addresses: [192.0.2.10], hostname: db-0 }
- { addresses: [192.0.2.11], hostname: db-1 }
- { addresses: [192.0.2.12], hostname: db-2, conditions: { ready: false } }
"#;

/// A resolver behind the sidecar: knows one name, and refuses to have heard of any other.
struct Outside {
    address: SocketAddr,
    asked: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

impl Outside {
    async fn start() -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        let address = socket.local_addr()?;
        let asked = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let heard = asked.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).expect("the sidecar asks in DNS");
                let name = query.queries[0].name.to_string().to_lowercase();
                let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
                answer.add_queries(query.queries.clone());
                match name.as_str() {
                    "www.example.com." => {
                        let data = RData::A(hickory_proto::rr::rdata::A([203, 0, 113, 5].into()));
                        answer.add_answer(hickory_proto::rr::Record::from_rdata(
                            query.queries[0].name.clone(),
                            60,
                            data,
                        ));
                    }
                    _ => answer.metadata.response_code = ResponseCode::NXDomain,
                }
                heard.lock().expect("no panic while held").push(name);
                let bytes = answer.to_vec().expect("an answer is written");
                socket.send_to(&bytes, peer).await.expect("loopback takes it");
            }
        });
        Ok(Self { address, asked })
    }

    fn asked(&self, name: &str) -> usize {
        self.asked.lock().expect("no panic while held").iter().filter(|asked| *asked == name).count()
    }
}

/// A caller of the namespace `shop` with DNS.
async fn caller(mesh: &Mesh, outside: &Outside) -> Result<Workload> {
    let spec = WorkloadSpec {
        name: "client".to_owned(),
        namespace: "shop".to_owned(),
        service: "client".to_owned(),
        env: vec![
            ("WEFT_DNS", "127.0.0.1:0".to_owned()),
            ("WEFT_DNS_SERVERS", outside.address.to_string()),
            ("WEFT_LOG", "info,weft_sidecar::dns=debug".to_owned()),
        ],
        ..WorkloadSpec::default()
    };
    let client = mesh.sidecar(spec).await?;
    wait_for("the namespaces", Duration::from_secs(10), async || {
        dump(&client).await.ok().filter(|dump| dump.contains("outbound/namespaces") || dump.contains("\"namespaces\""))
    })
    .await?;
    Ok(client)
}

async fn dump(sidecar: &Workload) -> Result<String> {
    weft::launch::call(sidecar.ports()?.admin, http::Method::GET, "/config_dump").await
}

async fn ask(sidecar: &Workload, name: &str, kind: RecordType) -> Result<Message> {
    let server = sidecar.ports()?.dns.context("the sidecar has DNS")?;
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(server).await?;
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name)?, kind));
    socket.send(&query.to_vec()?).await?;
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(Duration::from_secs(6), socket.recv(&mut buffer)).await??;
    let answer = Message::from_vec(&buffer[..length])?;
    ensure!(answer.metadata.id == query.metadata.id && answer.queries == query.queries, "{answer:?}");
    Ok(answer)
}

async fn addresses(sidecar: &Workload, name: &str) -> Result<Vec<IpAddr>> {
    let answer = ask(sidecar, name, RecordType::A).await?;
    let address = |data: &RData| if let RData::A(address) = data { Some(IpAddr::from(address.0)) } else { None };
    let mut all: Vec<IpAddr> = answer.answers.iter().filter_map(|record| address(&record.data)).collect();
    all.sort_unstable();
    Ok(all)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

fn is_virtual(addresses: &[IpAddr]) -> bool {
    matches!(addresses, [IpAddr::V4(one)] if one.octets()[0] >= 240)
}

#[tokio::test]
async fn names_of_the_mesh_and_of_the_outside() -> Result<()> {
    let (mesh, outside) = (Mesh::start().await?, Outside::start().await?);
    let client = caller(&mesh, &outside).await?;
    mesh.apply(SERVICES).await?;

    let orders = addresses(&client, "orders.").await?;
    ensure!(is_virtual(&orders), "{orders:?}");
    for name in ["Orders.shop.", "orders.shop.svc.", "orders.shop.svc.cluster.local.", "orders.shop.mesh."] {
        assert_eq!(addresses(&client, name).await?, orders, "{name}");
    }
    let text = ask(&client, "orders.shop.", RecordType::TXT).await?;
    ensure!(text.metadata.response_code == ResponseCode::NoError && text.answers.is_empty(), "{text:?}");
    ensure!(matches!(&text.authorities[..], [one] if one.record_type() == RecordType::SOA), "{text:?}");
    let IpAddr::V4(v4) = orders[0] else { unreachable!("an A record holds IPv4") };
    let [a, b, c, d] = v4.octets();
    let reverse = ask(&client, &format!("{d}.{c}.{b}.{a}.in-addr.arpa."), RecordType::PTR).await?;
    ensure!(format!("{:?}", reverse.answers).contains("orders"), "{reverse:?}");

    assert_eq!(addresses(&client, "www.example.com.").await?, ips(&["203.0.113.5"]));
    assert_eq!(addresses(&client, "WWW.example.com.").await?, ips(&["203.0.113.5"]));
    assert_eq!(outside.asked("www.example.com."), 1, "from memory");
    for name in ["nosuch.", "nosuch.shop.", "google.com."] {
        let answer = ask(&client, name, RecordType::A).await?;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}: the outside has the last word");
    }
    let known = metrics::scrape(client.ports()?.metrics).await?;
    assert_eq!(known.sum("weft_dns_virtual_addresses", &[]), 1.0);
    ensure!(known.sum("weft_dns_queries_total", &[("result", "mesh")]) >= 7.0);
    assert_eq!(known.sum("weft_dns_queries_total", &[("result", "cached")]), 1.0);
    // A name of the outside is never asked of the control plane: it has no namespace `com`.
    let dump = dump(&client).await?;
    ensure!(dump.contains("dns:orders.shop") && !dump.contains("google.com"), "{dump}");
    Ok(())
}

#[tokio::test]
async fn a_service_that_comes_into_being_is_found() -> Result<()> {
    let (mesh, outside) = (Mesh::start().await?, Outside::start().await?);
    let client = caller(&mesh, &outside).await?;
    mesh.apply(SERVICES).await?;
    ensure!(addresses(&client, "late.shop.").await?.is_empty());
    mesh.apply(&SERVICES.replace("name: orders", "name: late")).await?;
    wait_for("the new service", Duration::from_secs(10), async || {
        addresses(&client, "late.shop.").await.ok().filter(|found| is_virtual(found)).map(drop)
    })
    .await
}

#[tokio::test]
async fn headless_services_have_their_endpoints_addresses() -> Result<()> {
    let (mesh, outside) = (Mesh::start().await?, Outside::start().await?);
    let client = caller(&mesh, &outside).await?;
    mesh.apply(SERVICES).await?;
    assert_eq!(addresses(&client, "db.").await?, ips(&["192.0.2.10", "192.0.2.11"]), "those that are ready");
    for name in ["db-1.db.", "db-1.db.shop.", "db-1.db.shop.svc.cluster.local.", "DB-1.db.shop.mesh."] {
        assert_eq!(addresses(&client, name).await?, ips(&["192.0.2.11"]), "{name}");
    }
    ensure!(addresses(&client, "db-7.db.shop.svc.").await?.is_empty());

    // A workload that registers is called by the name that it gives itself.
    let app = App::named("db").await?;
    let db = WorkloadSpec {
        name: "db-3".to_owned(),
        namespace: "shop".to_owned(),
        service: "db".to_owned(),
        ports: format!("tcp-sql=3306:{}/tcp", app.address.port()),
        env: vec![("WEFT_LABELS", "weft.mesh/hostname=db-3".to_owned())],
        ..WorkloadSpec::default()
    };
    let _db = mesh.sidecar(db).await?;
    wait_for("the workload's own name", Duration::from_secs(10), async || {
        (addresses(&client, "db-3.db.").await.ok()? == ips(&["127.0.0.1"])).then_some(())
    })
    .await?;
    // Its sidecar looks at the application before it is ready.
    wait_for("the workload among those that are ready", Duration::from_secs(10), async || {
        (addresses(&client, "db.shop.").await.ok()? == ips(&["127.0.0.1", "192.0.2.10", "192.0.2.11"])).then_some(())
    })
    .await
}

#[tokio::test]
async fn without_the_control_plane_and_after_a_restart_names_stay() -> Result<()> {
    let (mut mesh, outside) = (Mesh::start().await?, Outside::start().await?);
    let mut client = caller(&mesh, &outside).await?;
    mesh.apply(SERVICES).await?;
    let orders = addresses(&client, "orders.shop.").await?;
    ensure!(is_virtual(&orders), "{orders:?}");
    mesh.control_plane.kill().await;
    wait_for("the loss of the control plane", Duration::from_secs(10), async || {
        let known = metrics::scrape(client.ports().ok()?.metrics).await.ok()?;
        (known.sum("weft_xds_connected", &[]) == 0.0).then_some(())
    })
    .await?;
    assert_eq!(addresses(&client, "orders.shop.").await?, orders);
    let began = Instant::now();
    assert_eq!(addresses(&client, "www.example.com.").await?, ips(&["203.0.113.5"]));
    ensure!(addresses(&client, "nosuch.shop.").await?.is_empty());
    ensure!(began.elapsed() < Duration::from_secs(1), "nobody waits for who is away: {:?}", began.elapsed());

    client.stop(Duration::from_secs(10)).await;
    client.restart(&mesh.control_plane, false).await?;
    client.ready().await?;
    assert_eq!(addresses(&client, "orders.shop.").await?, orders, "from disk");
    Ok(())
}
