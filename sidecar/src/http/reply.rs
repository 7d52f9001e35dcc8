//! What goes back to the caller, from what the steps decided.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, Version, header};
use weft_xds::resource::{HeaderEdits, Route};

use super::{
    answer::{Answer, Failed, Served, configured, local},
    body::Body,
    headers,
    incoming::Incoming,
    marks::Marks,
    tries::Sent,
    upgrade::Tunnel,
};
use crate::{
    balance::{Failure, Outcome},
    reason::Reason,
    record::Record,
    route::headers::edit,
    upstream::Lease,
    worker::Conn,
};

/// What goes back to the caller.
pub(super) enum Reply {
    Upstream {
        sent: Box<Sent>,
        /// The caller asked for another protocol.
        upgrade: bool,
        edits: Option<(Arc<Route>, HeaderEdits)>,
        idle: Duration,
        until: Option<Instant>,
    },
    Configured(StatusCode, Box<str>, Arc<Route>),
    Redirect(StatusCode, HeaderValue, Arc<Route>),
    /// CONNECT was taken: what flows next is in the connection's tunnel.
    Connected(Tunnel),
}

impl Reply {
    pub(super) fn answer(self, conn: &Conn, record: Record) -> Response<Body> {
        match self {
            Self::Configured(status, body, route) => {
                let mut answer = configured(status, &body, record);
                edit(&route.response_headers, answer.headers_mut());
                answer
            }
            Self::Redirect(status, location, route) => {
                let mut answer = configured(status, "", record);
                answer.headers_mut().insert(header::LOCATION, location);
                edit(&route.response_headers, answer.headers_mut());
                answer
            }
            Self::Connected(tunnel) => {
                let established = local(Response::new(Bytes::new()), record);
                *conn.tunnel.borrow_mut() = Some(tunnel);
                established.map(|_done| Body::Empty)
            }
            Self::Upstream { sent, upgrade, edits, idle, until } => {
                let told = sent.told();
                let Sent { mut response, served, has } = *sent;
                if let Some(told) = told {
                    record.fail(told, Some("reported by the callee's sidecar"));
                }
                if response.status().is_informational() {
                    return switched(conn, response, has, served, upgrade, record);
                }
                let fields = response.headers_mut();
                let reason = told.and_then(|_told| fields.get(headers::REASON).cloned());
                headers::strip_hop_by_hop(fields, has);
                headers::strip_ours(fields, has);
                if let Some(reason) = reason {
                    fields.insert(headers::REASON, reason);
                }
                if let Some((route, share)) = &edits {
                    edit(&route.response_headers, fields);
                    edit(share, fields);
                }
                record.answered(&response);
                let (mut head, incoming) = response.into_parts();
                head.version = Version::HTTP_11;
                head.extensions.clear();
                let answer = Answer::new(incoming, record, served, idle, until);
                Response::from_parts(head, Body::Answer(Box::new(answer)))
            }
        }
    }
}

/// 101: from now on bytes flow. Anything else informational as a final answer is no HTTP.
fn switched(
    conn: &Conn,
    mut response: Response<Incoming>,
    has: Marks,
    mut served: Served,
    upgrade: bool,
    record: Record,
) -> Response<Body> {
    let asked = upgrade && response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let upstream = served.lease.take().filter(|_| asked).and_then(Lease::into_io);
    let Some(upstream) = upstream else {
        served.finish(Outcome::Failed(Failure::Status), Instant::now());
        return Failed::with(Reason::UpstreamProtocolError, "101 without having been asked for").answer(record);
    };
    let protocol = response.headers().get(header::UPGRADE).cloned();
    headers::strip_hop_by_hop(response.headers_mut(), has);
    headers::strip_ours(response.headers_mut(), has);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::UPGRADE, protocol);
    }
    record.answered(&response);
    *conn.tunnel.borrow_mut() = Some(Tunnel::Switched { upstream: Box::new(upstream), record, served });
    let (head, _empty) = response.into_parts();
    Response::from_parts(head, Body::Empty)
}
