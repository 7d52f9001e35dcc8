//! Sends a request over a leased connection and says, when no answer came, how far it got.

use std::{error::Error, io};

use http::{Request, Response};
use hyper::{body::Incoming, client::conn::TrySendError};

use super::{Destination, Lease, pool::Sender};
use crate::{http::body::Body, reason::Reason};

/// Most bytes of an answer's head.
pub(super) const MAX_ANSWER_HEAD: usize = 64 * 1024;
/// Most fields of an answer's head.
pub(super) const MAX_ANSWER_FIELDS: usize = 128;

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
    /// The request, when nothing of it was sent.
    pub unsent: Option<Box<Request<Body>>>,
}

/// Sends and waits for the head of the answer.
/// # Errors
/// [`Missed`].
pub async fn send(
    lease: &mut Lease,
    to: &Destination,
    request: Request<Body>,
) -> Result<Response<Incoming>, Box<Missed>> {
    let sent = match &mut lease.sender {
        Sender::Http1(Some(sender)) => sender.try_send_request(request).await,
        Sender::Http2(stream) => {
            let mut sender = stream.sender();
            sender.try_send_request(request).await
        }
        Sender::Http1(None) => unreachable!("a lease is used once"),
    };
    sent.map_err(|error| missed(to, error))
}

fn missed(to: &Destination, mut failed: TrySendError<Request<Body>>) -> Box<Missed> {
    let unsent = failed.take_message().map(Box::new);
    let error = failed.error();
    let stage = match unsent {
        Some(_) => Stage::NotSent,
        None => stage(error),
    };
    let mut detail = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        detail.push_str(": ");
        detail.push_str(&cause.to_string());
        source = cause.source();
    }
    let reason = match (stage, to) {
        (Stage::CallerFailed, _) => Reason::ClientCancelled,
        (Stage::Refused | Stage::Goaway, Destination::Workload(..)) => Reason::UpstreamRefusedStream,
        (Stage::BadAnswer, Destination::App(_)) => Reason::AppProtocolError,
        (Stage::BadAnswer, Destination::Workload(..) | Destination::External(_)) => Reason::UpstreamProtocolError,
        (_, Destination::App(_)) => Reason::AppReset,
        (_, Destination::Workload(..) | Destination::External(_)) => Reason::UpstreamReset,
    };
    Box::new(Missed { stage, reason, detail: detail.into(), unsent })
}

fn stage(error: &hyper::Error) -> Stage {
    if error.is_parse() {
        return Stage::BadAnswer;
    }
    if error.is_user() || error.is_body_write_aborted() {
        return Stage::CallerFailed;
    }
    if let Some(error) = cause::<h2::Error>(error) {
        return match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) => Stage::Refused,
            _ if error.is_go_away() && error.is_remote() => Stage::Goaway,
            // The peer read our request as something else, or sent what is no HTTP/2.
            Some(h2::Reason::PROTOCOL_ERROR | h2::Reason::FRAME_SIZE_ERROR | h2::Reason::COMPRESSION_ERROR)
                if error.is_library() || error.is_go_away() =>
            {
                Stage::BadAnswer
            }
            _ => Stage::NoAnswer,
        };
    }
    if cause::<io::Error>(error).is_some_and(|error| error.kind() == io::ErrorKind::InvalidData) {
        return Stage::BadAnswer;
    }
    Stage::NoAnswer
}

fn cause<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
