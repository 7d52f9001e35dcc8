//! Why a call of the configuration API failed: one error for gRPC and HTTP alike.

use prost::Message;
use tonic::{Code, Status};
use weft_proto::{google::rpc, weft::v1};

use crate::store::StoreError;

/// A failed call.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// What kind of failure.
    pub code: Code,
    /// For people: what is wrong and what to do.
    pub message: String,
    /// What is wrong with the input, one by one.
    pub errors: Vec<v1::Finding>,
}

impl ApiError {
    /// A failure without findings.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), errors: Vec::new() }
    }

    /// The input is refused.
    pub fn refused(errors: Vec<v1::Finding>) -> Self {
        let message = match errors.as_slice() {
            [one] => one.message.clone(),
            [first, rest @ ..] => format!("{}; and {} more", first.message, rest.len()),
            [] => "the input is refused".to_owned(),
        };
        Self { code: Code::InvalidArgument, message, errors }
    }

    /// Something that was asked for is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Conflict { .. } => Code::Aborted,
            StoreError::Compacted { .. } | StoreError::NotYet { .. } => Code::OutOfRange,
            StoreError::Stopped | StoreError::Aborted | StoreError::Io { .. } | StoreError::Storage(_) => {
                Code::Unavailable
            }
            StoreError::Schema { .. } | StoreError::Locked { .. } | StoreError::Gap { .. } | StoreError::Row { .. } => {
                Code::DataLoss
            }
        };
        Self::new(code, error.to_string())
    }
}

/// A task that was computing the answer panicked or was stopped.
impl From<tokio::task::JoinError> for ApiError {
    fn from(error: tokio::task::JoinError) -> Self {
        tracing::error!(%error, "a call of the configuration API broke off");
        Self::new(Code::Internal, "the call broke off; the log of the control plane says why")
    }
}

/// The findings travel in the status' details, as `weft.v1.Errors`.
impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        if error.errors.is_empty() {
            return Status::new(error.code, error.message);
        }
        // Metadata has a limit at the other end: as many findings as fit, the first ones.
        let mut room = MAX_DETAILS;
        let fit = error.errors.into_iter().take_while(|finding| {
            let size = finding.encoded_len() + 8;
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        });
        let errors = v1::Errors { errors: fit.collect() };
        let detail = prost_types::Any {
            type_url: "type.googleapis.com/weft.v1.Errors".to_owned(),
            value: errors.encode_to_vec(),
        };
        let status = rpc::Status { code: error.code as i32, message: error.message.clone(), details: vec![detail] };
        let details = status.encode_to_vec();
        Status::with_details(error.code, error.message, details.into())
    }
}

/// Bytes of the findings in a status: with base64 and all it stays below the 16 KiB of header list that HTTP/2 clients take.
const MAX_DETAILS: usize = 8 * 1024;
