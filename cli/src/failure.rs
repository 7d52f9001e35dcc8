//! How a command fails: what is printed, and the exit code.

use std::process::ExitCode;

use prost::Message;
use weft_proto::{google::rpc, weft::v1};

use crate::output;

/// Why a command failed. Each kind has its own exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Anything else. Exit code 1.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
    /// The input was refused; every finding has been printed. Exit code 3.
    #[error("{0}")]
    Refused(String),
    /// The control plane could not be reached. Exit code 4.
    #[error("{0}")]
    Unreachable(String),
    /// The log does not stand at the revision that was expected. Exit code 5.
    #[error("{0}")]
    Conflict(String),
    /// Applied, but some sidecar refused it or did not answer in time. Exit code 6.
    #[error("{0}")]
    NotAcknowledged(String),
    /// Differences were found and `--exit-code` was given. Exit code 1, nothing printed.
    #[error("")]
    Differences,
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Other(_) | Self::Differences => 1,
            Self::Refused(_) => 3,
            Self::Unreachable(_) => 4,
            Self::Conflict(_) => 5,
            Self::NotAcknowledged(_) => 6,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.into())
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        match status.code() {
            tonic::Code::InvalidArgument => {
                let findings = findings(&status);
                output::print_findings("error", &findings);
                match findings.len() {
                    0 => Self::Refused(status.message().to_owned()),
                    1 => Self::Refused("refused: 1 error; nothing was changed".to_owned()),
                    count => Self::Refused(format!("refused: {count} errors; nothing was changed")),
                }
            }
            tonic::Code::Unavailable => Self::Unreachable(format!(
                "the control plane cannot be reached: {}\nIs it running, and is the address in the credential right?",
                innermost(&status)
            )),
            tonic::Code::Aborted => Self::Conflict(status.message().to_owned()),
            tonic::Code::Unauthenticated => Self::Other(anyhow::anyhow!(
                "the control plane does not accept this credential: {}\nUse the operator.json of its present data directory.",
                status.message()
            )),
            _ => Self::Other(anyhow::anyhow!("{}", status.message())),
        }
    }
}

/// The findings in a status' details.
fn findings(status: &tonic::Status) -> Vec<v1::Finding> {
    let Ok(details) = rpc::Status::decode(status.details()) else {
        return Vec::new();
    };
    details
        .details
        .iter()
        .filter(|any| any.type_url.ends_with("weft.v1.Errors"))
        .filter_map(|any| v1::Errors::decode(any.value.as_slice()).ok())
        .flat_map(|errors| errors.errors)
        .collect()
}

/// tonic wraps the interesting error in several that say only "transport error".
fn innermost(status: &tonic::Status) -> String {
    let mut source: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    let mut text = status.message().to_owned();
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}

/// Prints the failure, if any, and turns it into an exit code.
pub fn exit(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                eprintln!("weft: {text}");
            }
            ExitCode::from(failure.code())
        }
    }
}
