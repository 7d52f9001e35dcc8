//! HTTP/2 on the wire, both ends, on the `h2` crate: connections, streams, bodies. What a request means and where it goes is
//! [`crate::http`]'s.
//!
//! One task drives a connection. A request lives in the task of its caller's connection: it queues its frames and takes
//! those that have come by itself, and nothing is spawned for it nor handed from task to task.

mod bell;
pub mod client;
pub mod incoming;
mod keepalive;
mod outflow;
pub mod server;
mod watched;

#[cfg(test)]
mod tests;

use http::{HeaderMap, HeaderValue, header};

/// Windows towards either side.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of a stream that wait to be written.
const SEND_BUFFER: usize = 64 * 1024;

/// Makes fields ready to be said in HTTP/2. `te`: of a request, where `te: trailers` may stay.
fn prepare(fields: &mut HeaderMap, te: bool) {
    let mut odd = false;
    for (name, value) in fields.iter_mut() {
        match name.as_str() {
            "te" => odd |= !te || value != "trailers",
            // With an edit of a route, or an answer of ours.
            "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" => odd = true,
            // Each message says something else. Kept in the table of what was said before, these would drive out what
            // is said again, and each of them is compared with all that came before.
            "traceparent" | "tracestate" | "x-request-id" | "grpc-timeout" | "date" => value.set_sensitive(true),
            _ => {}
        }
    }
    if odd {
        strip_connection(fields, te);
    }
}

/// Takes out what HTTP/2 has no place for.
fn strip_connection(fields: &mut HeaderMap, te: bool) {
    for value in fields.get_all(header::CONNECTION).iter().cloned().collect::<Vec<_>>() {
        for name in value.to_str().unwrap_or_default().split(',') {
            fields.remove(name.trim());
        }
    }
    for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        fields.remove(name);
    }
    if fields.get(header::TE).is_some_and(|coding| !te || coding != "trailers") {
        fields.remove(header::TE);
    }
}

/// Says the length of a body that is known, where nothing else was said.
fn put_length(fields: &mut HeaderMap, length: Option<u64>) {
    if let Some(length) = length
        && !fields.contains_key(header::CONTENT_LENGTH)
    {
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}
