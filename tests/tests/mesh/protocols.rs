//! Every protocol, through two sidecars.

mod grpc;
mod http1;
mod http2;
mod names;
mod tcp;
mod upgrade;

use anyhow::Result;
use http::StatusCode;
use weft_tests::{App, Mesh, caller};

#[tokio::test]
async fn an_http_request_goes_through_two_sidecars() -> Result<()> {
    let mesh = Mesh::start().await?;
    let app = App::named("hello").await?;
    let _callee = mesh.callee("echo-1", "echo", "http", &app).await?;
    let caller = mesh.caller("client").await?;
    mesh.registered("echo", 1).await?;
    let answer = caller::get(caller.ports()?.outbound, "echo", "/").await?;
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "hello"), "{answer:?}");
    Ok(())
}
