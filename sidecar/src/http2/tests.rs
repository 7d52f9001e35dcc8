//! The client side against servers that misbehave, and one that does not.

use std::{future::Future, rc::Rc, time::Duration};

use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{
    client::{Client, Stream, Unanswered, handshake},
    strip_connection,
};
use crate::http::{body::Body, tests::mesh::stage};

/// A connection to a server that does what `serve` says.
async fn connected<F: Future<Output = ()> + 'static>(serve: impl FnOnce(TcpStream) -> F + 'static) -> Rc<Client> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    tokio::task::spawn_local(serve(accepted));
    let (client, running) = handshake(stream.into()).await.unwrap();
    tokio::task::spawn_local(running);
    Rc::new(client)
}

/// A server that has `answer` answer each request.
async fn server<F: Future<Output = ()> + 'static>(
    answer: impl Fn(Request<h2::RecvStream>, SendResponse<Bytes>) -> F + 'static,
) -> Rc<Client> {
    connected(async move |stream| {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::task::spawn_local(answer(request, respond));
        }
    })
    .await
}

fn post() -> Request<()> {
    Request::post("http://orders/").body(()).unwrap()
}

fn full(text: &'static str) -> Body {
    Body::Full(Bytes::from_static(text.as_bytes()))
}

async fn fails(client: &Rc<Client>) -> (bool, h2::Error) {
    match Stream::new(client).exchange(post(), full("x")).await {
        Err(Unanswered::Ended { sent, error }) => (sent, error),
        other => panic!("{other:?}"),
    }
}

/// A frame as it is on the wire.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Reads until a frame of this kind has come, or the end.
async fn until(stream: &mut TcpStream, kind: u8) -> Option<Vec<u8>> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.ok()?;
        if head[3] == kind {
            return Some(payload);
        }
    }
}

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

async fn preface(stream: &mut TcpStream) {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
}

#[test]
fn an_answer_comes_with_its_trailers() {
    stage(async {
        let client = server(async |request, mut respond| {
            let asked = request.headers()["content-length"].clone();
            let body = request.into_body();
            let mut sent = respond.send_response(Response::builder().header("x-asked", asked).body(()).unwrap(), false);
            drop(body);
            let sent = sent.as_mut().unwrap();
            sent.send_data(Bytes::from_static(b"done"), false).unwrap();
            sent.send_trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from(0))])).unwrap();
        })
        .await;
        let stream = Stream::new(&client);
        let answer = stream.exchange(post(), full("abc")).await.unwrap();
        assert_eq!(answer.headers()["x-asked"], "3");
        assert_eq!(client.streams(), 1);
        let body = answer.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), "done");
        drop(stream);
        assert!(client.streams() == 0 && !client.is_closed());
    });
}

#[test]
fn a_request_that_is_given_up_is_reset() {
    stage(async {
        let (told, mut reset) = tokio::sync::mpsc::channel(1);
        let client = server(move |request, mut respond| {
            let told = told.clone();
            async move {
                let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
                drop(request);
                told.send(reason).await.unwrap();
            }
        })
        .await;
        let stream = Stream::new(&client);
        let waiting = stream.exchange(post(), full("x"));
        assert!(tokio::time::timeout(Duration::from_millis(20), waiting).await.is_err());
        assert_eq!(reset.recv().await, Some(Reason::CANCEL));
    });
}

#[test]
fn a_refused_stream_is_told_from_others() {
    stage(async {
        let client = server(async |_request, mut respond| respond.send_reset(Reason::REFUSED_STREAM)).await;
        let (sent, error) = fails(&client).await;
        assert!(sent && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM), "{error:?}");
        assert!(!client.is_closed());
    });
}

#[test]
fn goaway_tells_what_was_not_looked_at() {
    stage(async {
        let client = connected(async |mut stream| {
            preface(&mut stream).await;
            until(&mut stream, HEADERS).await.unwrap();
            // The last stream that was looked at is none.
            stream.write_all(&frame(GOAWAY, 0, 0, &[0; 8])).await.unwrap();
            until(&mut stream, u8::MAX).await;
        })
        .await;
        let (sent, error) = fails(&client).await;
        assert!(sent && error.is_go_away() && error.is_remote(), "{error:?}");
        assert!(client.is_closed());
    });
}

#[test]
fn nothing_is_sent_over_a_connection_that_has_ended() {
    stage(async {
        let client = connected(async |mut stream| {
            preface(&mut stream).await;
            // Its acknowledgement.
            until(&mut stream, SETTINGS).await.unwrap();
            until(&mut stream, SETTINGS).await.unwrap();
        })
        .await;
        while !client.is_closed() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (sent, _) = fails(&client).await;
        assert!(!sent);
    });
}

#[test]
fn a_server_that_speaks_something_else_is_a_bad_one() {
    stage(async {
        let client = connected(async |mut stream| {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            until(&mut stream, u8::MAX).await;
        })
        .await;
        let (_, error) = fails(&client).await;
        assert!(error.is_library() && error.reason() == Some(Reason::FRAME_SIZE_ERROR), "{error:?}");
    });
}

#[test]
fn an_early_answer_ends_the_upload() {
    stage(async {
        let client = server(async |request, mut respond| {
            // Nothing of the body is read: the stream is reset with NO_ERROR behind the answer.
            let answer = Response::builder().status(StatusCode::PAYLOAD_TOO_LARGE).body(()).unwrap();
            respond.send_response(answer, false).unwrap().send_data(Bytes::from_static(b"big"), true).unwrap();
            drop(request);
        })
        .await;
        let stream = Stream::new(&client);
        let answer = stream.exchange(post(), Body::Full(Bytes::from(vec![b'x'; 1 << 20]))).await.unwrap();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "big");
    });
}

/// A peer that reads nothing any more, and one that answers.
#[test]
fn a_peer_that_does_not_answer_ping_is_given_up() {
    for answers in [false, true] {
        stage(async {
            let client = connected(async move |mut stream| {
                preface(&mut stream).await;
                while let Some(ping) = until(&mut stream, PING).await {
                    if answers {
                        stream.write_all(&frame(PING, 1, 0, &ping)).await.unwrap();
                    }
                }
            })
            .await;
            let stream = Stream::new(&client);
            let waiting = stream.exchange(post(), full("x"));
            tokio::pin!(waiting);
            // All has been said by then; time may fly.
            assert!(tokio::time::timeout(Duration::from_millis(50), waiting.as_mut()).await.is_err());
            tokio::time::pause();
            let began = tokio::time::Instant::now();
            let ended = tokio::time::timeout(Duration::from_secs(55), waiting).await;
            let took = began.elapsed();
            tokio::time::resume();
            match ended {
                Err(_still_waits) => assert!(answers),
                Ok(Err(Unanswered::Ended { sent: true, .. })) => {
                    assert!(!answers && took > Duration::from_secs(35), "{took:?}");
                    assert!(client.is_closed());
                }
                Ok(other) => panic!("{other:?}"),
            }
        });
    }
}

#[test]
fn what_belongs_to_a_connection_is_not_said_in_http2() {
    let fields = |list: &[(&'static str, &'static str)]| -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    };
    let odd = [("connection", "close, x-hop"), ("x-hop", "1"), ("upgrade", "h2c"), ("keep-alive", "1"), ("a", "b")];
    let mut request = fields(&odd);
    request.insert("te", HeaderValue::from_static("trailers"));
    let mut answer = request.clone();
    strip_connection(&mut request, true);
    assert_eq!(request, fields(&[("te", "trailers"), ("a", "b")]));
    strip_connection(&mut answer, false);
    assert_eq!(answer, fields(&[("a", "b")]));
    let mut other = fields(&[("te", "gzip"), ("proxy-connection", "x"), ("transfer-encoding", "chunked")]);
    strip_connection(&mut other, true);
    assert!(other.is_empty());
}
