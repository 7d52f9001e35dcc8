//! gRPC through two sidecars: all four kinds of call, trailers, error status, and failures of the mesh as status.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, Version, uri::PathAndQuery};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;
use weft::launch::wait_for;
use weft_tests::{App, Pair, app::Body, caller::PATIENCE, pair::requests};

/// A gRPC server by hand: messages go back as they come, and the path says how it ends.
async fn serve(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let (frames, stream) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut body = request.into_body();
        let mut received = BytesMut::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            if path == "/test.Echo/Collect" {
                received.put(data);
            } else if frames.send(Ok(Frame::data(data))).await.is_err() {
                return;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        match path.as_str() {
            "/test.Echo/Collect" => {
                // The last message, once all have come.
                let messages = split(&received);
                let last = messages.last().cloned().unwrap_or_default();
                let _ = frames.send(Ok(Frame::data(last))).await;
                trailers.insert("x-count", HeaderValue::from(messages.len()));
            }
            "/test.Echo/Fail" => {
                trailers.insert("grpc-status", HeaderValue::from_static("9"));
                trailers.insert("grpc-message", HeaderValue::from_static("out of paper"));
                trailers.insert("x-detail", HeaderValue::from_static("tray 2"));
            }
            _ => {}
        }
        // Fails when the caller has gone, which it then knows.
        let _ = frames.send(Ok(Frame::trailers(trailers))).await;
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(ReceiverStream::new(stream))));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// Length-prefixed messages, prefixes included.
fn split(mut bytes: &[u8]) -> Vec<Bytes> {
    let mut messages = Vec::new();
    while let Some(length) = bytes.get(1..5) {
        let length = 5 + u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
        messages.push(Bytes::copy_from_slice(&bytes[..length]));
        bytes = &bytes[length..];
    }
    messages
}

async fn client(pair: &Pair, service: &str) -> Result<Grpc<Channel>> {
    let endpoint = Channel::from_shared(format!("http://{}", pair.outbound()?))?
        .origin(format!("http://{service}").parse()?)
        .timeout(PATIENCE);
    let mut client = Grpc::new(endpoint.connect().await?);
    client.ready().await?;
    Ok(client)
}

fn codec() -> ProstCodec<String, String> {
    ProstCodec::default()
}

fn method(name: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(name)
}

#[tokio::test]
async fn all_four_kinds_of_calls() -> Result<()> {
    let pair = Pair::start("grpc", App::http(serve).await?).await?;
    let mut client = client(&pair, "echo").await?;

    let answer = client.unary(tonic::Request::new("one".to_owned()), method("/test.Echo/Say"), codec()).await?;
    assert_eq!(answer.into_inner(), "one");

    client.ready().await?;
    let messages = tokio_stream::iter(["a", "b", "c"].map(str::to_owned));
    let answer = client.client_streaming(tonic::Request::new(messages), method("/test.Echo/Collect"), codec()).await?;
    let count = answer.metadata().get("x-count").and_then(|count| count.to_str().ok()).map(str::to_owned);
    assert_eq!((answer.into_inner().as_str(), count.as_deref()), ("c", Some("3")));

    client.ready().await?;
    let (say, said) = mpsc::channel::<String>(1);
    let asked = tonic::Request::new(ReceiverStream::new(said));
    let mut answers = client.streaming(asked, method("/test.Echo/Talk"), codec()).await?.into_inner();
    for index in 0..20 {
        // Each is answered before the next is said: nothing waits for more.
        say.send(format!("message {index}")).await?;
        assert_eq!(answers.message().await?.context("an answer")?, format!("message {index}"));
    }
    drop(say);
    assert_eq!(answers.message().await?, None);
    assert!(answers.trailers().await?.is_some());

    client.ready().await?;
    let asked = tonic::Request::new("once".to_owned());
    let mut answers = client.server_streaming(asked, method("/test.Echo/Listen"), codec()).await?.into_inner();
    let answer: Option<String> = answers.message().await?;
    assert_eq!(answer.as_deref(), Some("once"));
    assert_eq!(answers.message().await?, None);

    ensure!(pair.app.seen.lock().iter().all(|seen| seen.version == Version::HTTP_2));
    let labels = [("destination", "default/echo"), ("protocol", "grpc"), ("code", "200"), ("grpc_status", "0")];
    for sidecar in [&pair.caller, &pair.callee] {
        wait_for("four calls in the metrics", Duration::from_secs(5), async || {
            (requests(sidecar, &labels).await.ok()? == 4.0).then_some(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_error_status_comes_with_its_trailers() -> Result<()> {
    let pair = Pair::start("grpc", App::http(serve).await?).await?;
    let mut client = client(&pair, "echo").await?;
    let call = client.unary(tonic::Request::new("one".to_owned()), method("/test.Echo/Fail"), codec()).await;
    let status = call.map(|answer: tonic::Response<String>| answer.into_inner()).expect_err("it fails");
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "out of paper"));
    assert_eq!(status.metadata().get("x-detail").map(|detail| detail.as_bytes()), Some(&b"tray 2"[..]));
    assert_eq!(told(&status), "", "the application's own failure has no reason of the mesh");
    assert_eq!(pair.app.count(), 1, "not retried");
    ensure!(requests(&pair.caller, &[("grpc_status", "9"), ("protocol", "grpc")]).await? == 1.0);
    Ok(())
}

#[tokio::test]
async fn failures_of_the_mesh_are_grpc_status_with_a_reason() -> Result<()> {
    let mut pair = Pair::start("grpc", App::http(serve).await?).await?;
    let mut nobody = client(&pair, "nobody").await?;
    let status = say(&mut nobody).await.expect_err("there is no such service");
    assert_eq!((status.code(), told(&status).as_str()), (Code::Unavailable, "service_unknown"), "{status:?}");
    ensure!(status.message().contains("nobody"), "{status:?}");

    let mut echo = client(&pair, "echo").await?;
    assert_eq!(say(&mut echo).await?, "one");
    let deny = r#"
apiVersion: weft.mesh/v1alpha1
kind: AccessPolicy
metadata: { name: closed }
spec:
  targetRefs: [{ kind: Service, name: echo }]
  action: DENY
  rules: [{ name: says, to: [{ paths: [/test.Echo/Say] }] }]
"#;
    pair.mesh.control_plane.apply(deny, "closed", 10).await?;
    let status = say(&mut echo).await.expect_err("it is refused");
    assert_eq!((status.code(), told(&status).as_str()), (Code::PermissionDenied, "access_denied"), "{status:?}");
    ensure!(status.message().contains("default/closed") && status.message().contains("says"), "{status:?}");
    ensure!(requests(&pair.caller, &[("grpc_status", "7"), ("reason", "access_denied")]).await? == 1.0);

    pair.callee.kill().await;
    let status = say(&mut echo).await.expect_err("nobody is there");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    ensure!(!told(&status).is_empty(), "{status:?}");
    Ok(())
}

async fn say(client: &mut Grpc<Channel>) -> Result<String, Status> {
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let said = client.unary(tonic::Request::new("one".to_owned()), method("/test.Echo/Say"), codec()).await;
    said.map(tonic::Response::into_inner)
}

/// The code in `weft-reason`.
fn told(status: &Status) -> String {
    let told = status.metadata().get("weft-reason").and_then(|told| told.to_str().ok()).unwrap_or_default();
    told.split(';').next().unwrap_or_default().to_owned()
}
