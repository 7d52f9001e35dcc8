//! Sends a request over a leased connection and says, when no answer came, how far it got.

use std::io;

use http::{HeaderMap, Response, request::Parts};

use super::{Destination, Lease, pool::Sender};
use crate::{
    http::{
        body::Body,
        incoming::Incoming,
        plan::{self, Plan},
    },
    http1::client::{Outgoing, Unanswered},
    http2,
    reason::Reason,
};

/// How far a request got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Not one byte was sent.
    NotSent,
    /// The peer said that it did not process it: REFUSED_STREAM.
    Refused,
    /// The peer said that it did not process it: GOAWAY.
    Goaway,
    /// It was sent, at least in part, and no byte of an answer came.
    NoAnswer,
    /// What came was no valid answer.
    BadAnswer,
    /// The caller's body broke off.
    CallerFailed,
}

/// A request without an answer.
#[derive(Debug)]
pub struct Missed {
    /// How far it got.
    pub stage: Stage,
    /// The reason to answer.
    pub reason: Reason,
    /// For the log.
    pub detail: Box<str>,
}

/// A request as it is to be sent.
#[derive(Clone, Copy)]
pub struct Sending<'s> {
    pub(crate) plan: &'s Plan<'s>,
    /// Method and fields.
    pub(crate) parts: &'s Parts,
    /// Fields of this try alone.
    pub(crate) own: &'s HeaderMap,
}

/// Sends and waits for the head of the answer.
/// # Errors
/// [`Missed`].
pub async fn send(
    lease: &mut Lease,
    to: &Destination,
    sending: Sending<'_>,
    body: Body,
) -> Result<Response<Incoming>, Box<Missed>> {
    let Sending { plan, parts, own } = sending;
    match &mut lease.sender {
        Sender::Http1(link) => {
            let request = Outgoing { method: &parts.method, path: &plan.path, fields: &parts.headers, own };
            link.client.exchange(request, body).await.map_err(|error| unanswered(to, error))
        }
        Sender::Http2(stream) => {
            let request = plan::http2(plan, parts, own);
            stream.stream.exchange(request, body).await.map_err(|error| missed(to, error))
        }
    }
}

fn unanswered(to: &Destination, error: Unanswered) -> Box<Missed> {
    let (stage, detail) = match error {
        Unanswered::Caller => (Stage::CallerFailed, "the caller's body broke off".into()),
        Unanswered::Bad(rule) => (Stage::BadAnswer, rule.into()),
        Unanswered::Broke { sent, error } => {
            let detail = error.map_or("the connection was closed before an answer".into(), |error| error.to_string());
            (if sent { Stage::NoAnswer } else { Stage::NotSent }, detail)
        }
    };
    Box::new(Missed { stage, reason: reason(stage, to), detail: detail.into() })
}

fn missed(to: &Destination, error: http2::client::Unanswered) -> Box<Missed> {
    let (stage, detail) = match error {
        http2::client::Unanswered::Caller => (Stage::CallerFailed, "the caller's body broke off".into()),
        http2::client::Unanswered::Ended { sent, error } => (stage(&error, sent), error.to_string().into()),
    };
    Box::new(Missed { stage, reason: reason(stage, to), detail })
}

fn reason(stage: Stage, to: &Destination) -> Reason {
    match (stage, to) {
        (Stage::CallerFailed, _) => Reason::ClientCancelled,
        (Stage::Refused | Stage::Goaway, Destination::Workload(..)) => Reason::UpstreamRefusedStream,
        (Stage::BadAnswer, Destination::App(_)) => Reason::AppProtocolError,
        (Stage::BadAnswer, Destination::Workload(..) | Destination::External(_)) => Reason::UpstreamProtocolError,
        (_, Destination::App(_)) => Reason::AppReset,
        (_, Destination::Workload(..) | Destination::External(_)) => Reason::UpstreamReset,
    }
}

fn stage(error: &h2::Error, sent: bool) -> Stage {
    let odd = error.get_io().is_some_and(|error| error.kind() == io::ErrorKind::InvalidData);
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => Stage::Refused,
        // The peer read our request as something else, or sent what is no HTTP/2.
        Some(h2::Reason::PROTOCOL_ERROR | h2::Reason::FRAME_SIZE_ERROR | h2::Reason::COMPRESSION_ERROR)
            if error.is_library() =>
        {
            Stage::BadAnswer
        }
        _ if odd => Stage::BadAnswer,
        _ if !sent => Stage::NotSent,
        _ if error.is_go_away() && error.is_remote() => Stage::Goaway,
        _ => Stage::NoAnswer,
    }
}
