//! Transparent mode between hosts: real sidecars in network namespaces, rules that redirect, and a look at the wire.

mod captured;
mod names;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use nix::{
    sys::signal::Signal,
    unistd::{Gid, Uid},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use weft::launch::{
    Process, call,
    metrics::{Scrape, scrape},
    wait_for,
};
use weft_tests::{
    App,
    app::text,
    caller::{self, Answer, Http2},
    mesh::program,
    netns::{Host, Net},
};

/// The user by which rules tell a sidecar's own traffic.
const USER: u32 = 15001;
/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(20);
/// Nobody must read this on the wire.
const SECRET: &str = "not-for-the-wire";
/// What a database says before it is asked anything.
const GREETING: &[u8] = b"\x4a\x00\x00\x00\x0a8.0.36\x00";

/// A resolver that does not exist: questions to it reach the sidecar.
const RESOLVER: &str = "10.77.0.200";

/// A network with a control plane.
struct Stage {
    net: Net,
    control: Host,
    control_plane: Option<Process>,
    folder: tempfile::TempDir,
    program: PathBuf,
}

/// A host with an application and a sidecar.
struct Node {
    host: Host,
    sidecar: Process,
}

impl Stage {
    async fn start(what: &str) -> Result<Option<Self>> {
        let Some(net) = Net::new(what)? else { return Ok(None) };
        let control = net.host("control")?;
        let folder = tempfile::Builder::new().prefix("weft-test-").tempdir()?;
        // Sidecars are of another user.
        std::os::unix::fs::chown(folder.path(), Some(USER), Some(USER))?;
        let mut stage = Self { net, control, control_plane: None, folder, program: program()? };
        let (data, address) = (stage.folder("control-plane")?, stage.control.v4.to_string());
        let (grpc, http) = (format!("{address}:15010"), format!("{address}:15080"));
        let data = data.display().to_string();
        let args = ["control-plane", "--data-dir", &data, "--grpc", &grpc, "--http", &http, "--advertise", &address];
        let process = stage.control.start("control-plane", &stage.program, stage.folder.path(), &args, &[])?;
        stage.control_plane = Some(process);
        wait_for("the control plane", SOON, async || stage.weft(&["status"]).ok()).await?;
        Ok(Some(stage))
    }

    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Runs the operator's command.
    fn weft(&self, args: &[&str]) -> Result<String> {
        let credential = self.folder.path().join("control-plane/operator.json");
        let output = self.control.command(&self.program).args(args).env("WEFT_CREDENTIAL", credential).output()?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    fn apply(&self, yaml: &str) -> Result<()> {
        let file = self.folder.path().join("applied.yaml");
        std::fs::write(&file, yaml)?;
        self.weft(&["apply", "--wait", "-f", &file.display().to_string()]).map(drop)
    }

    /// Sets the rules of a host, starts its sidecar and waits until that is ready.
    async fn sidecar(&self, host: Host, service: &str, flags: &[&str]) -> Result<Node> {
        self.redirect(&host, &[])?;
        let node = self.start_sidecar(host, service, &[&["--transparent"], flags].concat())?;
        node.ready().await?;
        Ok(node)
    }

    /// Sets the rules of a host.
    fn redirect(&self, host: &Host, flags: &[&str]) -> Result<()> {
        host.resolv_conf(&format!("nameserver {RESOLVER}\nsearch default.svc.cluster.local\n"))?;
        let program = self.program.display().to_string();
        host.exec(&[&[&*program, "sidecar", "init"], flags].concat()).map(drop)
    }

    /// Starts a sidecar on a host, without rules.
    fn start_sidecar(&self, host: Host, service: &str, flags: &[&str]) -> Result<Node> {
        let data = self.folder(&format!("{service}-{}", host.v4))?;
        nix::unistd::chown(&data, Some(Uid::from_raw(USER)), Some(Gid::from_raw(USER)))?;
        let user = USER.to_string();
        let (control_plane, data) = (format!("{}:15010", self.control.v4), data.display().to_string());
        let program = self.program.display().to_string();
        let mut words = vec!["--reuid", &user, "--regid", &user, "--clear-groups", &program, "sidecar"];
        words.extend(["--service", service, "--control-plane", &control_plane]);
        words.extend(["--data-dir", &data, "--access-log", "all"]);
        words.extend(flags);
        let token = self.weft(&["token", "create", "--service", service])?;
        let env = [("WEFT_JOIN_TOKEN", token.trim().to_owned())];
        let sidecar =
            host.start(&format!("{service}-{}", host.v4), Path::new("setpriv"), self.folder.path(), &words, &env)?;
        Ok(Node { host, sidecar })
    }

    /// Waits until so many workloads are ready.
    async fn registered(&self, count: usize) -> Result<()> {
        let ready = async || self.weft(&["status"]).ok().filter(|text| text.matches("READY").count() == count);
        wait_for("workloads", SOON, ready).await.map(drop)
    }
}

impl Node {
    async fn within<T: Send + 'static>(&self, work: impl AsyncFnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        self.host.within(work).await
    }

    /// Waits until it is ready: what it then says.
    async fn ready(&self) -> Result<String> {
        let ready = async || self.within(async || call(local(15020), Method::GET, "/ready").await).await.ok();
        wait_for("a sidecar to be ready", SOON, ready).await.with_context(|| self.sidecar.log_tail())
    }

    async fn metrics(&self) -> Result<Scrape> {
        self.within(async || scrape(local(15020)).await).await
    }

    /// What this host's applications find under a name, of one family: `ahostsv4`, `ahostsv6`.
    async fn resolve(&self, name: &str, family: &'static str) -> Result<IpAddr> {
        let mut command = tokio::process::Command::from(self.host.command("getent"));
        let output = command.args([family, name]).output().await?;
        let said = String::from_utf8_lossy(&output.stdout);
        let first = said.split_whitespace().next().with_context(|| format!("{family} {name}: {output:?}"))?;
        Ok(first.parse()?)
    }

    /// A request of this host's application, by address.
    async fn get(&self, to: SocketAddr, host: &str, path: &str) -> Result<Answer> {
        get(&self.host, to, host, path).await
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn get(from: &Host, to: SocketAddr, host: &str, path: &str) -> Result<Answer> {
    let (host, path) = (host.to_owned(), path.to_owned());
    from.within(async move || caller::get(to, &host, &path).await).await
}

/// A socket of a host for both families.
async fn listen(host: &Host, port: u16) -> Result<TcpListener> {
    let bound = host.within(async move || Ok(TcpListener::bind(("::", port)).await?.into_std()?)).await?;
    Ok(TcpListener::from_std(bound)?)
}

/// An application that tells who called it.
async fn telling(host: &Host, port: u16) -> Result<App> {
    App::http_on(listen(host, port).await?, |request| async move {
        let of =
            |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
        let host = request.uri().host().map_or_else(|| of("host"), str::to_owned);
        let text_of = format!("{} {SECRET} host={host} cert={}", request.uri().path(), of("x-forwarded-client-cert"));
        text(StatusCode::OK, text_of)
    })
}

/// A server that speaks first, and then sends back what it gets.
async fn greeting(host: &Host, port: u16) -> Result<App> {
    saying(host, port, GREETING).await
}

async fn saying(host: &Host, port: u16, first: &'static [u8]) -> Result<App> {
    App::raw_on(listen(host, port).await?, move |mut stream| async move {
        let mut buffer = [0; 64];
        let Ok(()) = stream.write_all(first).await else { return };
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            let Ok(()) = stream.write_all(&buffer[..read]).await else { return };
        }
    })
}

/// Connects, waits for the greeting, sends a word and gets it back; how long the greeting took.
async fn greeted(from: &Host, to: SocketAddr) -> Result<Duration> {
    from.within(async move || {
        let began = Instant::now();
        let mut stream = TcpStream::connect(to).await?;
        let mut read = vec![0; GREETING.len()];
        stream.read_exact(&mut read).await.context("the greeting")?;
        let took = began.elapsed();
        ensure!(read == GREETING);
        stream.write_all(SECRET.as_bytes()).await?;
        let mut echo = vec![0; SECRET.len()];
        stream.read_exact(&mut echo).await.context("the echo")?;
        ensure!(echo == SECRET.as_bytes());
        Ok(took)
    })
    .await
}

/// Everything that passes a host's network card, until it is read.
struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    async fn start(stage: &Stage, host: &Host) -> Result<Self> {
        let file = stage.folder.path().join(format!("{}.pcap", host.v4));
        let path = file.display().to_string();
        let words = ["-i", "eth0", "-Z", "root", "--immediate-mode", "-U", "-s0", "-w", &path, "tcp"];
        let name = format!("capture-{}", host.v4);
        let process = host.start(&name, Path::new("tcpdump"), stage.folder.path(), &words, &[])?;
        wait_for("tcpdump", SOON, async || process.log().contains("listening on").then_some(())).await?;
        Ok(Self { process, file })
    }

    /// Reads it up to a connection to the outside that is made now: what is plain text would be seen.
    async fn read(self, from: &Host, to: &Host) -> Result<Vec<u8>> {
        const LAST: &str = "the-last-of-it";
        let _app = App::http_on(listen(to, 7000).await?, |_| async { text(StatusCode::OK, "seen") })?;
        get(from, (to.v4, 7000).into(), LAST, "/").await?;
        let seen = async || std::fs::read(&self.file).ok().filter(|bytes| contains(bytes, LAST));
        wait_for("the capture", SOON, seen).await.with_context(|| self.process.log_tail())
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Requests that a sidecar counted, by mutual TLS.
fn mutual(scrape: &Scrape, direction: &str, destination: &str) -> f64 {
    let labels = [("direction", direction), ("destination", destination), ("tls", "mutual")];
    scrape.sum("weft_requests_total", &labels)
}

#[tokio::test]
async fn calls_by_address_are_mutual_tls() -> Result<()> {
    let Some(stage) = Stage::start("transparent mode between hosts").await? else { return Ok(()) };
    let (web, orders, stock) = (stage.net.host("web")?, stage.net.host("orders")?, stage.net.host("stock")?);
    let _web_app = telling(&web, 8080).await?;
    let _orders_app = telling(&orders, 8080).await?;
    let _stock_app = greeting(&stock, 9000).await?;
    // One of them is known by its IPv6 address.
    let stock_v6 = stock.v6.to_string();
    let web = stage.sidecar(web, "web", &["--port", "80:8080/http"]).await?;
    let orders = stage.sidecar(orders, "orders", &["--port", "80:8080/http"]).await?;
    let stock = stage.sidecar(stock, "stock", &["--port", "9000", "--address", &stock_v6]).await?;
    stage.registered(3).await?;
    let capture = Capture::start(&stage, &web.host).await?;

    // HTTP, as the application says it: its Host reaches the other application.
    let at = SocketAddr::new(orders.host.v4.into(), 8080);
    let answer = web.get(at, "anything.example", "/v4").await?;
    ensure!(answer.status == StatusCode::OK, "{answer:?} {}", web.sidecar.log_tail());
    let said = answer.text();
    ensure!(
        said.contains("host=anything.example") && said.contains("URI=spiffe://weft.local/ns/default/sa/web"),
        "{said}"
    );
    // HTTP/2 with prior knowledge, as gRPC does.
    let answer = web
        .within(async move || {
            let request = Request::post("http://orders/h2").header(header::CONTENT_TYPE, "application/grpc");
            Http2::connect(at).await?.send(request.body(Full::new(Bytes::from_static(SECRET.as_bytes())))?).await
        })
        .await?;
    ensure!(answer.status == StatusCode::OK && answer.text().contains("sa/web"), "{answer:?}");

    // A server that speaks first, over IPv6: what nobody declared costs the wait for the caller's first bytes at most.
    let at = SocketAddr::new(stock.host.v6.into(), 9000);
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        quickest = quickest.min(greeted(&web.host, at).await.with_context(|| web.sidecar.log_tail())?);
    }
    // 100 ms in each sidecar, and some for a busy machine.
    ensure!(quickest < Duration::from_millis(600), "{quickest:?}");

    // Itself, by its own address.
    let own = SocketAddr::new(web.host.v4.into(), 8080);
    let answer = web.get(own, "web", "/self").await?;
    ensure!(answer.text().contains("sa/web"), "{answer:?}");

    let seen = web.metrics().await?;
    ensure!(
        mutual(&seen, "outbound", "default/orders") == 2.0,
        "{:?}",
        seen.find("weft_requests_total", &[]).collect::<Vec<_>>()
    );
    ensure!(mutual(&seen, "outbound", "default/stock") == 5.0 && mutual(&seen, "outbound", "default/web") == 1.0);
    ensure!(mutual(&orders.metrics().await?, "inbound", "default/orders") == 2.0);
    ensure!(mutual(&stock.metrics().await?, "inbound", "default/stock") == 5.0);
    let wire = capture.read(&web.host, &stage.control).await?;
    ensure!(wire.len() > 10_000, "the capture has {} bytes", wire.len());
    ensure!(!contains(&wire, SECRET) && !contains(&wire, "anything.example"), "plain text on the wire");
    Ok(())
}

/// What a server says first at an address.
async fn said(from: &Host, to: SocketAddr) -> Result<String> {
    from.within(async move || {
        let mut stream = TcpStream::connect(to).await?;
        let mut read = [0; 64];
        let length = tokio::time::timeout(SOON, stream.read(&mut read)).await??;
        Ok(String::from_utf8_lossy(&read[..length]).into_owned())
    })
    .await
}

#[tokio::test]
async fn names_lead_to_services_that_share_a_port() -> Result<()> {
    let Some(stage) = Stage::start("mesh names in transparent mode").await? else { return Ok(()) };
    let (web, one, two) = (stage.net.host("web")?, stage.net.host("one")?, stage.net.host("two")?);
    let _one_app = saying(&one, 3306, b"this is one").await?;
    let _two_app = saying(&two, 3306, b"this is two").await?;
    let _web_app = telling(&web, 8080).await?;
    let web = stage.sidecar(web, "web", &["--port", "80:8080/http"]).await?;
    let one = stage.sidecar(one, "one", &["--port", "3306/tcp"]).await?;
    let two = stage.sidecar(two, "two", &["--port", "3306/tcp"]).await?;
    stage.registered(3).await?;
    let capture = Capture::start(&stage, &web.host).await?;

    for family in ["ahostsv4", "ahostsv6"] {
        let (first, second) = (web.resolve("one", family).await?, web.resolve("two.default.svc", family).await?);
        ensure!(first != second, "{first}");
        for (ip, name, says) in
            [(first, "one", "this is one"), (second, "two", "this is two"), (first, "one", "this is one")]
        {
            let found = said(&web.host, (ip, 3306).into()).await?;
            ensure!(found == says, "{name} at {ip}: {found:?} {}", web.sidecar.log_tail());
        }
        // Itself, by its own name; and a port that it does not have.
        let own = web.resolve("web", family).await?;
        let answer = web.get((own, 80).into(), "web", "/self").await?;
        ensure!(answer.text().contains("host=web") && answer.text().contains("sa/web"), "{answer:?}");
        let answer = web.get((own, 81).into(), "web", "/").await?;
        ensure!((answer.status.as_u16(), &*answer.reason()) == (503, "service_unknown"), "{answer:?}");
    }
    ensure!(mutual(&web.metrics().await?, "outbound", "default/one") == 4.0);
    ensure!(mutual(&one.metrics().await?, "inbound", "default/one") == 4.0);
    ensure!(mutual(&two.metrics().await?, "inbound", "default/two") == 2.0);
    let wire = capture.read(&web.host, &stage.control).await?;
    ensure!(wire.len() > 10_000 && !contains(&wire, "this is") && !contains(&wire, SECRET), "plain text on the wire");
    Ok(())
}

#[tokio::test]
async fn what_is_not_in_the_mesh_goes_on_unless_the_mesh_is_closed() -> Result<()> {
    let Some(stage) = Stage::start("egress of transparent mode").await? else { return Ok(()) };
    let (web, orders, outside) = (stage.net.host("web")?, stage.net.host("orders")?, stage.net.host("outside")?);
    let _outside_app = telling(&outside, 8080).await?;
    let _database = greeting(&outside, 3306).await?;
    let _orders_app = telling(&orders, 8080).await?;
    let web = stage.sidecar(web, "web", &[]).await?;
    let orders = stage.sidecar(orders, "orders", &["--port", "80:8080/http"]).await?;
    stage.registered(1).await?;

    for ip in outside.addresses() {
        // Where it goes decides, not what it calls itself.
        let answer = web.get((ip, 8080).into(), "orders", "/out").await?;
        ensure!(answer.status == StatusCode::OK && answer.text().contains("cert=-"), "{answer:?}");
        let took = greeted(&web.host, (ip, 3306).into()).await?;
        ensure!(took < Duration::from_millis(600), "not one byte is waited for: {took:?}");
    }
    let external = |scrape: &Scrape| scrape.sum("weft_requests_total", &[("destination", "external")]);
    wait_for("external connections to be counted", SOON, async || {
        (external(&web.metrics().await.ok()?) == 4.0).then_some(())
    })
    .await?;
    // Nobody there: as without a sidecar, the connection is of no use.
    let nobody = SocketAddr::new(outside.v4.into(), 9);
    ensure!(web.get(nobody, "nobody", "/").await.is_err());

    stage.apply("{ apiVersion: weft.mesh/v1alpha1, kind: Mesh, metadata: { name: default }, spec: { egress: { mode: registered } } }")?;
    let at = SocketAddr::new(outside.v4.into(), 8080);
    let answer = web.get(at, "outside", "/closed").await?;
    ensure!((answer.status, &*answer.reason()) == (StatusCode::FORBIDDEN, "external_refused"), "{answer:?}");
    ensure!(greeted(&web.host, (outside.v4, 3306).into()).await.is_err());
    let still = web.get((orders.host.v4, 8080).into(), "orders", "/in").await?;
    ensure!(still.text().contains("sa/web"), "{still:?}");
    // One host is let out by name and address.
    stage.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: database }}\nspec: {{ ports: [{{ name: tcp, port: 3306 }}] }}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{ name: database, labels: {{ \
         kubernetes.io/service-name: database }} }}\naddressType: IPv4\nports: [{{ name: tcp, port: 3306 }}]\n\
         endpoints: [{{ addresses: [{}] }}]\n",
        outside.v4
    ))?;
    let database = SocketAddr::new(outside.v4.into(), 3306);
    wait_for("the database to be let out", SOON, async || greeted(&web.host, database).await.ok()).await?;
    Ok(())
}

#[tokio::test]
async fn plain_text_from_outside_needs_permission_or_is_a_probe() -> Result<()> {
    let Some(stage) = Stage::start("plain text in transparent mode").await? else { return Ok(()) };
    let (orders, outside) = (stage.net.host("orders")?, stage.net.host("outside")?);
    let app = telling(&orders, 8080).await?;
    let _admin = greeting(&orders, 9090).await?;
    let probes = ["--port", "80:8080/http", "--probes", "/healthz@8080,tcp@9090"];
    let orders = stage.sidecar(orders, "orders", &probes).await?;
    stage.registered(1).await?;
    let at = |port: u16, ip: IpAddr| SocketAddr::new(ip, port);

    for ip in orders.host.addresses() {
        let answer = get(&outside, at(8080, ip), "orders", "/").await?;
        ensure!((answer.status, &*answer.reason()) == (StatusCode::FORBIDDEN, "plaintext_refused"), "{answer:?}");
        let answer = get(&outside, at(8080, ip), "orders", "/healthz").await?;
        ensure!(answer.status == StatusCode::OK && answer.text().starts_with("/healthz"), "{answer:?}");
        let answer = get(&outside, at(8080, ip), "orders", "/healthz?more").await?;
        ensure!(answer.status == StatusCode::FORBIDDEN, "exactly what is declared: {answer:?}");
        ensure!(greeted(&outside, at(9090, ip)).await.is_err(), "a probe by connection carries nothing");
    }
    ensure!(app.seen.lock().iter().all(|seen| seen.uri == "/healthz"));

    stage.apply("{ apiVersion: weft.mesh/v1alpha1, kind: Mesh, metadata: { name: default }, spec: { mtls: { mode: permissive } } }")?;
    for ip in orders.host.addresses() {
        let answer = get(&outside, at(8080, ip), "orders", "/plain").await?;
        ensure!(answer.status == StatusCode::OK && answer.text().contains("cert=-"), "{answer:?}");
        // A port that is none of the service's.
        greeted(&outside, at(9090, ip)).await?;
    }

    // A probe tells how the application is, not how the sidecar is.
    stage.apply("{ apiVersion: weft.mesh/v1alpha1, kind: Mesh, metadata: { name: default }, spec: {} }")?;
    drop(app);
    let answer = get(&outside, at(8080, orders.host.v4.into()), "orders", "/healthz").await?;
    ensure!((answer.status.as_u16(), &*answer.reason()) == (503, "app_connect_refused"), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn without_control_plane_and_until_the_application_has_left() -> Result<()> {
    let Some(mut stage) = Stage::start("transparent mode when others fail").await? else { return Ok(()) };
    let (web, orders, outside) = (stage.net.host("web")?, stage.net.host("orders")?, stage.net.host("outside")?);
    let _orders_app = greeting(&orders, 9000).await?;
    let _outside_app = greeting(&outside, 9000).await?;
    let mut web = stage.sidecar(web, "web", &["--drain", "30s"]).await?;
    let orders = stage.sidecar(orders, "orders", &["--port", "9000/tcp"]).await?;
    stage.registered(1).await?;
    let (at, out) = (SocketAddr::new(orders.host.v4.into(), 9000), SocketAddr::new(outside.v4.into(), 9000));
    greeted(&web.host, at).await?;

    stage.control_plane.take().context("it runs")?.kill().await;
    wait_for("the sidecar to notice", SOON, async || {
        (web.metrics().await.ok()?.sum("weft_xds_connected", &[]) == 0.0).then_some(())
    })
    .await?;
    greeted(&web.host, at).await?;
    let took = greeted(&web.host, out).await?;
    ensure!(took < Duration::from_secs(1), "nobody is waited for who cannot answer: {took:?}");

    // The sidecar is asked to end while its application still works.
    let held = web.within(async move || Ok(TcpStream::connect(at).await?.into_std()?)).await?;
    web.sidecar.signal(Signal::SIGTERM);
    wait_for("draining", SOON, async || web.sidecar.log().contains("draining").then_some(())).await?;
    wait_for("new connections while it drains", SOON, async || greeted(&web.host, at).await.ok()).await?;
    greeted(&web.host, out).await?;
    let began = Instant::now();
    drop(held);
    ensure!(web.sidecar.ended(SOON).await?.success(), "{}", web.sidecar.log_tail());
    ensure!(began.elapsed() < Duration::from_secs(10), "it waits for the application and no longer");
    Ok(())
}
