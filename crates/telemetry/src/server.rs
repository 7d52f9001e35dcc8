//! A small HTTP/1 server for admin and metrics ports: a table of routes, bounds and deadlines.
//!
//! It is not meant for traffic: few connections, small bodies, answers from memory.

use std::{collections::BTreeMap, fmt, future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// The most connections at one time; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 64;
/// The most bytes of a request's body.
const MAX_BODY: usize = 64 * 1024;
/// For the head of a request, from accept or from the last answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For the body of a request, and for the answer to be made.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// For one connection as a whole.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// Header that a changing call must carry when the port is guarded; a web page cannot send it unasked.
pub const ADMIN_HEADER: &str = "weft-admin";

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Anyone who reaches the port.
    Open,
    /// Programs on this machine: the Host must be a loopback name (against DNS rebinding), and calls that change
    /// something need the header [`ADMIN_HEADER`] (against forms of web pages).
    Loopback,
}

/// What a handler gets.
#[derive(Debug)]
pub struct Call {
    /// As sent, without the `?`; empty when there is none.
    pub query: String,
    /// As sent.
    pub headers: HeaderMap,
    /// At most 64 KiB.
    pub body: Bytes,
}

impl Call {
    /// The value of a query parameter, as sent (no percent-decoding).
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, v)| v)
    }
}

/// What a handler gives.
pub type Answer = Response<Full<Bytes>>;

type Handler = Arc<dyn Fn(Call) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// The routes of a port.
#[derive(Clone)]
pub struct Routes {
    guard: Guard,
    table: BTreeMap<&'static str, Vec<(Method, Handler)>>,
}

impl fmt::Debug for Routes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Routes").field("guard", &self.guard).field("paths", &self.table.keys()).finish()
    }
}

impl Routes {
    /// No routes yet.
    #[must_use]
    pub fn new(guard: Guard) -> Self {
        Self { guard, table: BTreeMap::new() }
    }

    /// Adds a GET (and HEAD) route.
    #[must_use]
    pub fn get<F, A>(self, path: &'static str, handler: F) -> Self
    where
        F: Fn(Call) -> A + Send + Sync + 'static,
        A: Future<Output = Answer> + Send + 'static,
    {
        self.route(Method::GET, path, handler)
    }

    /// Adds a POST route: a call that changes something.
    #[must_use]
    pub fn post<F, A>(self, path: &'static str, handler: F) -> Self
    where
        F: Fn(Call) -> A + Send + Sync + 'static,
        A: Future<Output = Answer> + Send + 'static,
    {
        self.route(Method::POST, path, handler)
    }

    fn route<F, A>(mut self, method: Method, path: &'static str, handler: F) -> Self
    where
        F: Fn(Call) -> A + Send + Sync + 'static,
        A: Future<Output = Answer> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |call| Box::pin(handler(call)));
        self.table.entry(path).or_default().push((method, handler));
        self
    }

    /// Answers one request.
    pub async fn answer<B>(&self, request: Request<B>) -> Answer
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let handler = match self.find(&head) {
            Ok(handler) => handler,
            Err(refused) => return *refused,
        };
        let whole = tokio::time::timeout(REQUEST_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
        let body = match whole {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return text(StatusCode::BAD_REQUEST, format!("the body could not be read: {error}\n")),
            Err(_late) => return text(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
        };
        let call = Call { query: head.uri.query().unwrap_or_default().to_owned(), headers: head.headers, body };
        match tokio::time::timeout(REQUEST_TIMEOUT, handler(call)).await {
            Ok(answer) => answer,
            Err(_late) => text(StatusCode::GATEWAY_TIMEOUT, "the answer took too long\n"),
        }
    }

    /// The handler for a request, or why there is none.
    fn find(&self, head: &http::request::Parts) -> Result<Handler, Box<Answer>> {
        if self.guard == Guard::Loopback {
            let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
            let host = host.or_else(|| head.uri.authority().map(http::uri::Authority::as_str));
            if !host.is_some_and(is_loopback) {
                let why = "this port answers only calls from this machine: the Host must be localhost or 127.0.0.1\n";
                return Err(Box::new(text(StatusCode::FORBIDDEN, why)));
            }
        }
        let Some(methods) = self.table.get(head.uri.path()) else {
            let known = self.table.keys().copied().collect::<Vec<_>>().join("\n");
            return Err(Box::new(text(StatusCode::NOT_FOUND, format!("no such page; there are:\n{known}\n"))));
        };
        let asked = if head.method == Method::HEAD { &Method::GET } else { &head.method };
        let Some((method, handler)) = methods.iter().find(|(method, _)| method == asked) else {
            let allowed = methods.iter().map(|(method, _)| method.as_str()).collect::<Vec<_>>().join(", ");
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("use {allowed}\n"));
            let allowed = HeaderValue::from_str(&allowed).expect("methods are header text");
            answer.headers_mut().insert(header::ALLOW, allowed);
            return Err(Box::new(answer));
        };
        if self.guard == Guard::Loopback && method != Method::GET && !head.headers.contains_key(ADMIN_HEADER) {
            let why = format!("a call that changes something needs the header `{ADMIN_HEADER}: 1`\n");
            return Err(Box::new(text(StatusCode::FORBIDDEN, why)));
        }
        Ok(handler.clone())
    }
}

/// A plain-text answer.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    typed(status, "text/plain; charset=utf-8", body)
}

/// A JSON answer.
pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    typed(status, "application/json", body)
}

/// An answer of a content type.
pub fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// Serves until `stop`; connections that are open then end with their current answer.
pub async fn serve(listener: TcpListener, routes: Routes, stop: CancellationToken) {
    let routes = Arc::new(routes);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            slot = slots.clone().acquire_owned() => slot.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, _peer): (_, SocketAddr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "admin connection not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (routes, stop) = (routes.clone(), stop.clone());
        connections.spawn(async move {
            let _slot = slot;
            let served = tokio::time::timeout(CONNECTION_TIMEOUT, connection(stream, routes, stop)).await;
            match served {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "admin connection ended"),
                Err(_late) => tracing::debug!("admin connection ended by its deadline"),
            }
        });
    }
    let ended =
        tokio::time::timeout(Duration::from_secs(1), async { while connections.join_next().await.is_some() {} });
    if ended.await.is_err() {
        connections.abort_all();
    }
}

async fn connection(
    stream: tokio::net::TcpStream,
    routes: Arc<Routes>,
    stop: CancellationToken,
) -> Result<(), hyper::Error> {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let routes = routes.clone();
        async move { Ok::<_, std::convert::Infallible>(routes.answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 * 1024)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        served = connection.as_mut() => return served,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Whether a Host names this machine: `localhost`, `127.0.0.0/8` or `[::1]`, with or without a port.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) if port.is_empty() || is_port(port) => name,
            _ => return false,
        },
        None => match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(guard: Guard) -> Routes {
        Routes::new(guard)
            .get("/ready", |_| async { text(StatusCode::OK, "ready\n") })
            .post("/quit", |call: Call| async move { text(StatusCode::OK, call.body) })
    }

    async fn ask(guard: Guard, method: &str, path: &str, headers: &[(&str, &str)]) -> StatusCode {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        routes(guard).answer(request.body(Full::new(Bytes::from_static(b"bye"))).unwrap()).await.status()
    }

    #[test]
    fn loopback_names() {
        for host in ["localhost", "LOCALHOST:15000", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:15000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "10.0.0.1",
            "[::2]",
            "[::1]x",
            "0.0.0.0",
            "localhost:x",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[tokio::test]
    async fn a_guarded_port_wants_host_and_header() {
        let guard = Guard::Loopback;
        type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], u16);
        let table: &[Row<'_>] = &[
            ("GET", "/ready", &[("host", "localhost:15000")], 200),
            ("HEAD", "/ready", &[("host", "localhost:15000")], 200),
            ("GET", "/ready", &[("host", "rebound.example")], 403),
            ("GET", "/ready", &[], 403),
            ("POST", "/quit", &[("host", "localhost")], 403),
            ("POST", "/quit", &[("host", "localhost"), ("weft-admin", "1")], 200),
            ("POST", "/quit", &[("host", "rebound.example"), ("weft-admin", "1")], 403),
            ("GET", "/quit", &[("host", "localhost"), ("weft-admin", "1")], 405),
            ("GET", "/nothing", &[("host", "localhost")], 404),
        ];
        for (method, path, headers, status) in table {
            assert_eq!(ask(guard, method, path, headers).await, *status, "{method} {path} {headers:?}");
        }
    }

    #[tokio::test]
    async fn an_open_port_does_not_care_for_the_host() {
        assert_eq!(ask(Guard::Open, "GET", "/ready", &[("host", "prometheus.example")]).await, 200);
    }

    #[tokio::test]
    async fn a_body_is_bounded() {
        let request = Request::post("/quit").body(Full::new(Bytes::from(vec![0; MAX_BODY + 1]))).unwrap();
        assert_eq!(routes(Guard::Open).answer(request).await.status(), StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn serves_and_stops() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, routes(Guard::Loopback), stop.clone()));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.ends_with("ready\n"), "{answer}");
        stop.cancel();
        server.await.unwrap();
    }
}
