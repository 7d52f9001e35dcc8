//! The demo's applications: what a team would write, knowing nothing of a mesh.
//!
//! `frontend` calls `orders` over HTTP and `inventory` over plain TCP; `orders` calls `inventory` over gRPC. They call by
//! name, as any program does, where they are told the names; else by `HTTP_PROXY` and a local port of the sidecar.

use std::{
    convert::Infallible,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// Which application, and where it listens.
#[derive(Args, Clone, Debug)]
pub struct AppOptions {
    /// Which one.
    #[arg(value_enum)]
    app: App,
    /// Where it listens for HTTP (of inventory: for gRPC).
    #[arg(long)]
    listen: SocketAddr,
    /// inventory: where it listens for its line protocol.
    #[arg(long)]
    listen_tcp: Option<SocketAddr>,
    /// frontend: where orders is, HOST:PORT [default: what HTTP_PROXY leads to].
    #[arg(long)]
    orders: Option<String>,
    /// orders: where inventory's gRPC is, HOST:PORT [default: what HTTP_PROXY leads to].
    #[arg(long)]
    inventory: Option<String>,
    /// frontend: where inventory's line protocol is, HOST:PORT [default: the sidecar's local port for it].
    #[arg(long)]
    stock: Option<String>,
    /// What it calls itself in answers.
    #[arg(long, default_value = "v1")]
    version: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum App {
    Frontend,
    Orders,
    Inventory,
}

/// Runs the application until it is told to stop, or whoever started it is gone (end of standard input).
pub fn app(options: AppOptions) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("demo-app: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        tokio::select! {
            result = serve(options) => result,
            () = told_to_stop() => Ok(()),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo-app: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn told_to_stop() {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .expect("the runtime has its signal driver");
    let (gone, mut parent_gone) = tokio::sync::mpsc::channel::<()>(1);
    // Reading standard input blocks, so it has a thread of its own; the process does not wait for it.
    std::thread::spawn(move || {
        let _held = gone;
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = parent_gone.recv() => {}
    }
}

async fn serve(options: AppOptions) -> Result<()> {
    match options.app {
        App::Frontend => {
            let orders = match options.orders {
                Some(orders) => Orders::Direct(orders),
                None => Orders::Proxy(proxy()?),
            };
            let stock = options.stock.map_or_else(inventory, Ok)?;
            let state = Arc::new(Frontend { orders, stock, pool: Pool::default() });
            http(options.listen, move |request| frontend(state.clone(), request)).await
        }
        App::Orders => {
            let (dialled, named) = match options.inventory {
                Some(inventory) => (inventory.clone(), inventory),
                None => (proxy()?, "inventory:9000".to_owned()),
            };
            let channel = tonic::transport::Endpoint::from_shared(format!("http://{dialled}"))?
                .origin(format!("http://{named}").parse()?)
                .timeout(Duration::from_secs(5))
                .connect_lazy();
            let state = Arc::new(OrdersApp {
                version: options.version,
                inventory: HealthClient::new(channel),
                failing: AtomicBool::new(false),
                served: AtomicU64::new(0),
            });
            http(options.listen, move |request| orders(state.clone(), request)).await
        }
        App::Inventory => {
            let lines = options.listen_tcp.context("inventory needs --listen-tcp")?;
            let (reporter, health) = tonic_health::server::health_reporter();
            reporter.set_service_status("widgets", tonic_health::ServingStatus::Serving).await;
            let incoming = TcpListenerStream::new(bind(options.listen)?);
            let grpc = tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming);
            tokio::select! {
                result = grpc => result.map_err(Into::into),
                result = line_protocol(lines) => result,
            }
        }
    }
}

/// The sidecar, as every HTTP client finds its proxy.
fn proxy() -> Result<String> {
    let value =
        std::env::var("http_proxy").or_else(|_| std::env::var("HTTP_PROXY")).context("HTTP_PROXY is not set")?;
    Ok(value.trim_start_matches("http://").trim_end_matches('/').to_owned())
}

/// The local port that leads to inventory's line protocol, as the sidecar tells whom it wraps.
fn inventory() -> Result<String> {
    const VARIABLE: &str = "WEFT_UPSTREAM_INVENTORY_DEFAULT_9100";
    std::env::var(VARIABLE).with_context(|| format!("{VARIABLE} is not set"))
}

fn bind(listen: SocketAddr) -> Result<TcpListener> {
    let bound = crate::launch::listen(listen).with_context(|| listen.to_string())?;
    Ok(TcpListener::from_std(bound)?)
}

async fn http<F, R>(listen: SocketAddr, handler: F) -> Result<()>
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = bind(listen)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let handler = handler.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            // An ended connection is the sidecar's to report.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

struct Frontend {
    orders: Orders,
    /// `HOST:PORT`.
    stock: String,
    pool: Pool,
}

/// `HOST:PORT` by which orders is called.
enum Orders {
    Direct(String),
    Proxy(String),
}

impl Orders {
    /// What is dialled, and the Host that is named.
    fn way(&self) -> (&str, &str) {
        match self {
            Self::Direct(orders) => (orders, orders),
            Self::Proxy(proxy) => (proxy, "orders"),
        }
    }
}

/// `GET /`: an order over HTTP, and the stock over TCP.
async fn frontend(state: Arc<Frontend>, _request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (dialled, host) = state.orders.way();
    let (order, stock) = tokio::join!(state.pool.get(dialled, host, "/order"), stock(&state.stock));
    match (order, stock) {
        (Ok((StatusCode::OK, order)), Ok(stock)) => text(StatusCode::OK, format!("{order} stock={stock}")),
        (Ok((StatusCode::OK, _)), Err(error)) => text(StatusCode::BAD_GATEWAY, format!("inventory: {error:#}")),
        (Ok((status, body)), _) => text(status, format!("orders: {body}")),
        (Err(error), _) => text(StatusCode::BAD_GATEWAY, format!("orders: {error:#}")),
    }
}

async fn stock(inventory: &str) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(inventory).await?;
        stream.write_all(b"STOCK widgets\n").await?;
        let mut answer = String::new();
        BufReader::new(&mut stream).take(64).read_line(&mut answer).await?;
        if answer.is_empty() {
            bail!("the connection ended without an answer");
        }
        Ok(answer.trim().to_owned())
    };
    tokio::time::timeout(Duration::from_secs(5), exchange).await.context("no answer in 5 s")?
}

struct OrdersApp {
    version: String,
    inventory: HealthClient<tonic::transport::Channel>,
    failing: AtomicBool,
    served: AtomicU64,
}

/// `GET /order`: asks inventory over gRPC. `POST /fail` and `/heal` are the demo's levers.
async fn orders(state: Arc<OrdersApp>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/fail" => {
            state.failing.store(true, Ordering::Relaxed);
            text(StatusCode::OK, "failing from now on".to_owned())
        }
        "/heal" => {
            state.failing.store(false, Ordering::Relaxed);
            text(StatusCode::OK, "healed".to_owned())
        }
        _ if state.failing.load(Ordering::Relaxed) => {
            text(StatusCode::SERVICE_UNAVAILABLE, "orders is out of order".to_owned())
        }
        _ => {
            let number = state.served.fetch_add(1, Ordering::Relaxed);
            let ask = HealthCheckRequest { service: "widgets".to_owned() };
            match state.inventory.clone().check(ask).await {
                Ok(_) => text(StatusCode::OK, format!("order={number} version={}", state.version)),
                Err(status) => text(StatusCode::BAD_GATEWAY, format!("inventory: {}", status.message())),
            }
        }
    }
}

async fn line_protocol(listen: SocketAddr) -> Result<()> {
    let listener = bind(listen)?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (read, mut write) = stream.split();
            let mut lines = BufReader::new(read.take(1 << 20)).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let answer = if line.starts_with("STOCK ") { "42\n" } else { "?\n" };
                if write.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Keep-alive connections to the proxy, or to orders.
#[derive(Default)]
struct Pool {
    idle: parking_lot::Mutex<Vec<hyper::client::conn::http1::SendRequest<Full<Bytes>>>>,
}

impl Pool {
    async fn get(&self, address: &str, host: &str, path: &str) -> Result<(StatusCode, String)> {
        tokio::time::timeout(Duration::from_secs(5), self.exchange(address, host, path))
            .await
            .context("no answer in 5 s")?
    }

    async fn exchange(&self, address: &str, host: &str, path: &str) -> Result<(StatusCode, String)> {
        let mut sender = self.connection(address).await?;
        let request = Request::get(path).header(header::HOST, host).body(Full::default())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        self.idle.lock().push(sender);
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    async fn connection(&self, address: &str) -> Result<hyper::client::conn::http1::SendRequest<Full<Bytes>>> {
        loop {
            let idle = self.idle.lock().pop();
            let Some(mut sender) = idle else { break };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
