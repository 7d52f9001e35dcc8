//! The configuration API as HTTP+JSON. The paths stand beside the methods in `config.proto`.

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Extension, Path, Query, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::StreamExt;
use prost::{Message, Name};
use serde::Deserialize;
use serde_json::json;
use tonic::Code;
use weft_proto::weft::v1;

use super::{Author, Configuration, error::ApiError, json};

/// The routes. Every request carries an [`Author`]: who checks credentials puts it there.
pub fn router(api: Configuration) -> Router {
    Router::new()
        .route("/api/v1/apply", post(apply))
        .route("/api/v1/delete", post(delete))
        .route("/api/v1/resources", get(list))
        .route("/api/v1/resources/{kind}/{namespace}/{name}", get(one))
        .route("/api/v1/watch", get(watch))
        .route("/api/v1/diff", post(diff))
        .route("/api/v1/history", get(history))
        .route("/api/v1/rollback", post(rollback))
        .route("/api/v1/export", get(export))
        .route("/api/v1/status", get(status))
        .route("/api/v1/tokens", post(create_token))
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
}

type Answer = Result<Response, ApiError>;
type Received = Result<Bytes, BytesRejection>;

/// What a request with raw YAML says in its query.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Raw {
    file: String,
    namespace: String,
    dry_run: bool,
    message: String,
    expected_revision: u64,
    wait_seconds: u32,
}

async fn apply(
    State(api): State<Configuration>,
    Extension(author): Extension<Author>,
    raw: Parameters<Raw>,
    headers: HeaderMap,
    body: Received,
) -> Answer {
    let body = received(body)?;
    let request = if is_json(&headers) {
        json::decode(&body)?
    } else {
        let Raw { file, namespace, dry_run, message, expected_revision, wait_seconds } = raw.0?.0;
        let sources = vec![source(file, body)];
        v1::ApplyRequest { sources, expected_revision, dry_run, message, namespace, wait_seconds }
    };
    answer(&api.apply(request, author).await?)
}

async fn diff(State(api): State<Configuration>, raw: Parameters<Raw>, headers: HeaderMap, body: Received) -> Answer {
    let body = received(body)?;
    let request = if is_json(&headers) {
        json::decode(&body)?
    } else {
        let Raw { file, namespace, .. } = raw.0?.0;
        v1::DiffRequest { sources: vec![source(file, body)], namespace, ..v1::DiffRequest::default() }
    };
    answer(&api.diff(request).await?)
}

async fn delete(State(api): State<Configuration>, Extension(author): Extension<Author>, body: Received) -> Answer {
    answer(&api.delete(json::decode(&received(body)?)?, author).await?)
}

async fn rollback(State(api): State<Configuration>, Extension(author): Extension<Author>, body: Received) -> Answer {
    answer(&api.rollback(json::decode(&received(body)?)?, author).await?)
}

async fn create_token(
    State(api): State<Configuration>,
    Extension(author): Extension<Author>,
    body: Received,
) -> Answer {
    answer(&api.create_token(json::decode(&received(body)?)?, author).await?)
}

async fn status(State(api): State<Configuration>) -> Answer {
    answer(&api.status())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Selection {
    kind: String,
    namespace: String,
    revision: u64,
    from_revision: u64,
}

async fn list(State(api): State<Configuration>, query: Parameters<Selection>) -> Answer {
    let Selection { kind, namespace, revision, .. } = query.0?.0;
    answer(&api.list(v1::ListRequest { kind, namespace, revision })?)
}

async fn one(
    State(api): State<Configuration>,
    Path((kind, namespace, name)): Path<(String, String, String)>,
    query: Parameters<Selection>,
) -> Answer {
    let key = Some(v1::ResourceKey { kind, namespace, name });
    answer(&api.get(v1::GetRequest { key, revision: query.0?.0.revision })?)
}

async fn export(State(api): State<Configuration>, query: Parameters<Selection>) -> Answer {
    answer(&api.export(v1::ExportRequest { revision: query.0?.0.revision })?)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Past {
    limit: u32,
    before_revision: u64,
    kind: String,
    namespace: String,
    name: String,
}

async fn history(State(api): State<Configuration>, query: Parameters<Past>) -> Answer {
    let Past { limit, before_revision, kind, namespace, name } = query.0?.0;
    let key = (!kind.is_empty()).then_some(v1::ResourceKey { kind, namespace, name });
    answer(&api.history(v1::HistoryRequest { limit, before_revision, key })?)
}

/// One JSON object a line, as long as the client listens.
async fn watch(State(api): State<Configuration>, query: Parameters<Selection>) -> Answer {
    let Selection { kind, namespace, from_revision, .. } = query.0?.0;
    let events = api.watch(v1::WatchRequest { kind, namespace, from_revision })?;
    let lines = events.map(|event| {
        let mut line = match event.and_then(|event| json::encode(&event)) {
            Ok(line) => line,
            Err(error) => body_of(&error).to_string().into_bytes(),
        };
        line.push(b'\n');
        Ok::<_, std::convert::Infallible>(Bytes::from(line))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

async fn unknown() -> ApiError {
    ApiError::not_found(
        "no such path; the API is below /api/v1: apply, delete, resources, watch, diff, history, \
                         rollback, export, status, tokens",
    )
}

/// A query that is refused in the API's own form.
struct Parameters<T>(Result<Query<T>, ApiError>);

impl<T, S> axum::extract::FromRequestParts<S> for Parameters<T>
where
    T: serde::de::DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, _state: &S) -> Result<Self, Self::Rejection> {
        let query = Query::try_from_uri(&parts.uri);
        Ok(Self(query.map_err(|error| ApiError::new(Code::InvalidArgument, error.body_text()))))
    }
}

fn received(body: Received) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| {
        let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Code::ResourceExhausted
        } else {
            Code::InvalidArgument
        };
        ApiError::new(code, format!("the body could not be read: {}", rejection.body_text()))
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
}

fn source(file: String, body: Bytes) -> v1::Source {
    let file = if file.is_empty() { "-".to_owned() } else { file };
    v1::Source { file, content: body.into() }
}

fn answer<M: Message + Name>(message: &M) -> Answer {
    Ok(([(header::CONTENT_TYPE, "application/json")], json::encode(message)?).into_response())
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.code {
            Code::Ok => StatusCode::OK,
            Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => StatusCode::BAD_REQUEST,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Aborted | Code::AlreadyExists => StatusCode::CONFLICT,
            Code::ResourceExhausted => StatusCode::PAYLOAD_TOO_LARGE,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, axum::Json(body_of(&self))).into_response()
    }
}

fn body_of(error: &ApiError) -> serde_json::Value {
    let errors: Vec<_> = error
        .errors
        .iter()
        .filter_map(|finding| json::encode(finding).ok())
        .filter_map(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
        .collect();
    json!({ "code": code_name(error.code), "message": error.message, "errors": errors })
}

/// The code's name, as gRPC writes it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Largest body: YAML of a large mesh.
const MAX_BODY: usize = 32 << 20;
