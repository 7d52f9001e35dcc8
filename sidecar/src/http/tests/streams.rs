//! Streams of HTTP/2 that end early, come slowly, or are not what they say: through two sidecars.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, client::SendRequest, server::SendResponse};
use http::{Request, Response, StatusCode};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::mpsc};
use weft_xds::resource::Protocol;

use super::mesh::{Mesh, Setup, app, stage};
use crate::worker::Bounds;

/// More than all buffers on the way hold together.
const LONG: usize = 24 << 20;
const PIECE: usize = 16 << 10;

/// An HTTP/2 application that has `answer` answer each request.
async fn application<F: Future<Output = ()> + 'static>(
    answer: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + 'static,
) -> SocketAddr {
    let answer = Rc::new(answer);
    app(move |stream, _| {
        let answer = Rc::clone(&answer);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::task::spawn_local(answer(request, respond));
            }
        }
    })
    .await
}

/// One that answers nothing; it tells `None` of each request, and then how its stream was reset.
async fn silent_application() -> (SocketAddr, mpsc::Receiver<Option<Reason>>) {
    let (told, reset) = mpsc::channel(8);
    let app = application(move |request, mut respond| {
        let told = told.clone();
        async move {
            drop(request);
            told.send(None).await.unwrap();
            let reason = poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
            told.send(Some(reason)).await.unwrap();
        }
    });
    (app.await, reset)
}

fn over_http2() -> Setup {
    Setup { protocol: Protocol::Http2, ..Setup::default() }
}

/// A caller's connection.
async fn caller(mesh: &Mesh) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(mesh.outbound).await.unwrap();
    // One stream that is not read must leave room for others.
    let mut builder = h2::client::Builder::new();
    let (client, connection) = builder.initial_connection_window_size(1 << 20).handshake(stream).await.unwrap();
    tokio::task::spawn_local(async move { drop(connection.await) });
    client
}

fn post() -> Request<()> {
    Request::post("http://orders/").body(()).unwrap()
}

/// What a caller says first: the preface, and SETTINGS that set nothing.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// HEADERS of a whole request.
fn request(stream: u32) -> Vec<u8> {
    // `:method: GET`, `:scheme: http`, `:path: /` of the static table, `:authority: orders` in letters.
    let head = [&[0x82, 0x86, 0x84, 0x01, 6][..], b"orders"].concat();
    let mut frame = vec![0, 0, u8::try_from(head.len()).unwrap(), 1, 5];
    frame.extend(stream.to_be_bytes());
    frame.extend(head);
    frame
}

/// Takes all of a body.
async fn read(body: &mut RecvStream) -> Result<usize, h2::Error> {
    let mut read = 0;
    while let Some(piece) = body.data().await {
        let len = piece?.len();
        body.flow_control().release_capacity(len).unwrap();
        read += len;
    }
    Ok(read)
}

/// Sends a long body, as fast as the peer takes it; counts what was sent.
async fn write(body: &mut h2::SendStream<Bytes>, sent: &Cell<usize>) -> Result<(), h2::Error> {
    while sent.get() < LONG {
        body.reserve_capacity(PIECE);
        while body.capacity() == 0 {
            poll_fn(|cx| body.poll_capacity(cx)).await.unwrap_or(Err(Reason::CANCEL.into()))?;
        }
        let len = body.capacity().min(PIECE).min(LONG - sent.get());
        sent.set(sent.get() + len);
        body.send_data(Bytes::from(vec![b'x'; len]), sent.get() == LONG)?;
    }
    Ok(())
}

/// Waits until a figure stands still.
async fn settled(figure: &Cell<usize>) -> usize {
    loop {
        let before = figure.get();
        tokio::time::sleep(Duration::from_millis(50)).await;
        if before == figure.get() && before > 0 {
            return before;
        }
    }
}

async fn counted(mesh: &Mesh, reason: &str) {
    loop {
        let told = |metrics: &String| {
            metrics.lines().any(|line| line.starts_with("weft_requests_total") && line.contains(reason))
        };
        if mesh.metrics().iter().all(told) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_slow_reader_holds_the_sender_back() {
    stage(async {
        let sent = Rc::new(Cell::new(0));
        let counting = Rc::clone(&sent);
        let app = application(move |request, mut respond| {
            let sent = Rc::clone(&counting);
            async move {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                if request.uri().path() == "/long" {
                    write(&mut body, &sent).await.unwrap();
                } else {
                    body.send_data(Bytes::from_static(b"short"), true).unwrap();
                }
            }
        })
        .await;
        let mesh = Mesh::start(app, &over_http2());
        let mut client = caller(&mesh).await;
        let long = Request::get("http://orders/long").body(()).unwrap();
        let (answer, _) = client.send_request(long, true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        let held = settled(&sent).await;
        assert!(held < LONG / 8, "{held} bytes were taken ahead");
        // Another stream of the same connections is not held up by it.
        let (answer, _) = client.send_request(post(), true).unwrap();
        assert_eq!(read(&mut answer.await.unwrap().into_body()).await.unwrap(), 5);
        assert_eq!(read(&mut body).await.unwrap(), LONG);
    });
}

#[test]
fn a_reader_that_takes_nothing_for_too_long_gets_no_more() {
    stage(async {
        let (told, mut ended) = mpsc::channel(1);
        let app = application(move |request, mut respond| {
            let told = told.clone();
            async move {
                drop(request);
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                told.send(write(&mut body, &Cell::new(0)).await.is_err()).await.unwrap();
            }
        })
        .await;
        let bounds = Bounds { stream_idle: Duration::from_millis(300), ..Bounds::default() };
        let mesh = Mesh::start(app, &Setup { bounds, ..over_http2() });
        let mut client = caller(&mesh).await;
        let (answer, _) = client.send_request(post(), true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(ended.recv().await, Some(true));
        assert!(read(&mut body).await.is_err());
    });
}

#[test]
fn a_caller_that_does_not_answer_ping_is_given_up() {
    stage(async {
        let (app, mut reset) = silent_application().await;
        let mesh = Mesh::start(app, &over_http2());
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        stream.write_all(&[OPENING, &request(1)].concat()).await.unwrap();
        assert_eq!(reset.recv().await, Some(None));
        // The caller has said all that it will; time may fly.
        tokio::time::pause();
        let began = tokio::time::Instant::now();
        let given_up = tokio::time::timeout(Duration::from_secs(55), reset.recv()).await;
        let took = began.elapsed();
        tokio::time::resume();
        assert_eq!(given_up.unwrap(), Some(Some(Reason::CANCEL)));
        assert!(took > Duration::from_secs(35), "{took:?}");
    });
}

#[test]
fn what_answers_head_has_no_body() {
    stage(async {
        // The end may come behind the head.
        let app = application(async |request, mut respond| {
            let answer = Response::builder().header("content-length", "7").body(()).unwrap();
            let late = request.uri().path() == "/late";
            if let Ok(mut body) = respond.send_response(answer, !late)
                && late
            {
                drop(body.send_data(Bytes::new(), true));
            }
        })
        .await;
        let mesh = Mesh::start(app, &over_http2());
        let mut client = caller(&mesh).await;
        for (uri, length) in [("http://orders/", "7"), ("http://orders/late", "7"), ("http://nobody/", "")] {
            let (answer, _) = client.send_request(Request::head(uri).body(()).unwrap(), true).unwrap();
            let answer = answer.await.unwrap();
            let said = answer.headers().get("content-length").map_or("", |length| length.to_str().unwrap());
            assert!(said == length || length.is_empty(), "{said}");
            assert!(answer.headers().contains_key("date"));
            assert_eq!(read(&mut answer.into_body()).await.unwrap(), 0);
        }
        assert!(mesh.metrics().iter().all(|metrics| !metrics.contains("client_cancelled")));
    });
}

#[test]
fn both_directions_run_at_once() {
    stage(async {
        let app = application(async |request, mut respond| {
            let mut from = request.into_body();
            let mut to = respond.send_response(Response::new(()), false).unwrap();
            while let Some(piece) = from.data().await {
                let piece = piece.unwrap();
                from.flow_control().release_capacity(piece.len()).unwrap();
                to.reserve_capacity(piece.len());
                while to.capacity() < piece.len() {
                    poll_fn(|cx| to.poll_capacity(cx)).await.unwrap().unwrap();
                }
                to.send_data(piece, false).unwrap();
            }
            to.send_data(Bytes::new(), true).unwrap();
        })
        .await;
        let mesh = Mesh::start(app, &over_http2());
        let mut client = caller(&mesh).await;
        let (answer, mut upload) = client.send_request(post(), false).unwrap();
        let sending = tokio::task::spawn_local(async move { write(&mut upload, &Cell::new(0)).await });
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(read(&mut body).await.unwrap(), LONG);
        sending.await.unwrap().unwrap();
    });
}

#[test]
fn a_caller_that_gives_up_is_noticed() {
    stage(async {
        let (told, mut reset) = mpsc::channel(1);
        let app = application(move |request, mut respond| {
            let told = told.clone();
            async move {
                let reason = poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
                drop(request);
                told.send(reason).await.unwrap();
            }
        })
        .await;
        let mesh = Mesh::start(app, &over_http2());
        let mut client = caller(&mesh).await;
        let (answer, upload) = client.send_request(post(), false).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), answer).await.is_err());
        drop(upload);
        assert_eq!(reset.recv().await, Some(Reason::CANCEL));
        counted(&mesh, "client_cancelled").await;
        // The same when its whole connection goes.
        let mut client = caller(&mesh).await;
        let (answer, _upload) = client.send_request(post(), true).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), answer).await.is_err());
    });
}

#[test]
fn requests_of_a_connection_that_ends_are_given_up() {
    stage(async {
        let (app, mut reset) = silent_application().await;
        let mesh = Mesh::start(app, &over_http2());
        let stream = TcpStream::connect(mesh.outbound).await.unwrap();
        let (mut client, connection) = h2::client::handshake::<_>(stream).await.unwrap();
        let driving = tokio::task::spawn_local(async move { drop(connection.await) });
        let answers: Vec<_> = (0..3).map(|_| client.send_request(post(), true).unwrap()).collect();
        for _ in 0..3 {
            assert_eq!(reset.recv().await, Some(None));
        }
        driving.abort();
        for _ in 0..3 {
            assert_eq!(reset.recv().await, Some(Some(Reason::CANCEL)));
        }
        drop(answers);
        counted(&mesh, "client_cancelled").await;
    });
}

#[test]
fn a_body_that_breaks_off_breaks_off_for_the_application() {
    stage(async {
        let (told, mut ended) = mpsc::channel(1);
        let app = application(move |request, respond| {
            let told = told.clone();
            async move {
                let _answering = respond;
                let ended = read(&mut request.into_body()).await;
                told.send(ended.unwrap_err().reason()).await.unwrap();
            }
        })
        .await;
        let mesh = Mesh::start(app, &over_http2());
        let mut client = caller(&mesh).await;
        let (answer, mut upload) = client.send_request(post(), false).unwrap();
        upload.send_data(Bytes::from_static(b"half"), false).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), answer).await.is_err());
        upload.send_reset(Reason::CANCEL);
        assert_eq!(ended.recv().await, Some(Some(Reason::CANCEL)));
    });
}

#[test]
fn a_length_that_is_not_true_is_refused() {
    stage(async {
        let app = application(async |request, mut respond| {
            drop(read(&mut request.into_body()).await);
            drop(respond.send_response(Response::new(()), true));
        })
        .await;
        let mesh = Mesh::start(app, &over_http2());
        let mut client = caller(&mesh).await;
        for text in [&b"short"[..], b"much too long"] {
            let request = Request::post("http://orders/").header("content-length", "10").body(()).unwrap();
            let (answer, mut upload) = client.send_request(request, false).unwrap();
            upload.send_data(Bytes::copy_from_slice(text), true).unwrap();
            assert_eq!(answer.await.unwrap_err().reason(), Some(Reason::PROTOCOL_ERROR));
        }
        // The connection serves on.
        let (answer, _) = client.send_request(post(), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
    });
}

#[test]
fn an_early_answer_is_passed_on_while_the_body_comes() {
    stage(async {
        let app = application(async |request, mut respond| {
            let answer = Response::builder().status(StatusCode::PAYLOAD_TOO_LARGE).body(()).unwrap();
            respond.send_response(answer, false).unwrap().send_data(Bytes::from_static(b"big"), true).unwrap();
            drop(request);
        })
        .await;
        let mesh = Mesh::start(app, &over_http2());
        let mut client = caller(&mesh).await;
        let (answer, mut upload) = client.send_request(post(), false).unwrap();
        let sending = tokio::task::spawn_local(async move { write(&mut upload, &Cell::new(0)).await });
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(read(&mut answer.into_body()).await.unwrap(), 3);
        // And then the caller is told that nobody wants the rest.
        let ended = sending.await.unwrap().unwrap_err();
        assert!(matches!(ended.reason(), None | Some(Reason::NO_ERROR | Reason::CANCEL)), "{ended:?}");
    });
}

#[test]
fn heads_that_are_too_large_are_refused() {
    stage(async {
        let app = application(async |_request, mut respond| {
            let long = Response::builder().header("x-long", "y".repeat(100 << 10)).body(()).unwrap();
            drop(respond.send_response(long, true));
        })
        .await;
        let mesh = Mesh::start(app, &over_http2());
        let mut client = caller(&mesh).await;
        let long = Request::get("http://orders/").header("x-long", "y".repeat(100 << 10)).body(()).unwrap();
        let (answer, _) = client.send_request(long, true).unwrap();
        assert_eq!(answer.await.unwrap().status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        // The application's is no better.
        let (answer, _) = client.send_request(post(), true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
        assert!(answer.headers()["weft-reason"].to_str().unwrap().starts_with("app_protocol_error"));
    });
}

#[test]
fn a_refused_request_is_sent_once_more() {
    stage(async {
        let seen = Rc::new(RefCell::new(0));
        let counting = Rc::clone(&seen);
        let app = application(move |request, mut respond| {
            *counting.borrow_mut() += 1;
            let first = *counting.borrow() == 1;
            async move {
                drop(request);
                if first {
                    respond.send_reset(Reason::REFUSED_STREAM);
                } else {
                    drop(respond.send_response(Response::new(()), true));
                }
            }
        })
        .await;
        let setup = Setup { cluster: |cluster| cluster.tls = None, endpoints: Some(vec![app]), ..over_http2() };
        let mesh = Mesh::start(app, &setup);
        let mut client = caller(&mesh).await;
        let (answer, _) = client.send_request(post(), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
        assert_eq!(*seen.borrow(), 2);
    });
}

#[test]
fn a_flood_of_resets_ends_the_connection() {
    stage(async {
        let app = application(async |_request, mut respond| {
            drop(respond.send_response(Response::new(()), true));
        })
        .await;
        let mesh = Mesh::start(app, &over_http2());
        let mut stream = TcpStream::connect(mesh.outbound).await.unwrap();
        let mut flood = OPENING.to_vec();
        for stream in (1..2000_u32).step_by(2) {
            flood.extend(request(stream));
            flood.extend([0, 0, 4, 3, 0]);
            flood.extend(stream.to_be_bytes());
            flood.extend([0, 0, 0, 8]);
        }
        let sent = stream.write_all(&flood).await;
        let mut told = Vec::new();
        // What is not read any more may cost the farewell.
        drop(tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut told).await);
        let farewell = told.windows(b"too_many_resets".len()).any(|said| said == b"too_many_resets");
        assert!(farewell || sent.is_err() || told.len() < 1000, "the connection serves on");
    });
}
