//! Headers that proxies must drop, write or never believe. Pure.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::marks::Marks;

/// Who called, in Envoy's form: `By=...;URI=...`.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The peer's address.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `https` when the hop before was mutual TLS.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Sidecars passed through.
pub const HOPS: HeaderName = HeaderName::from_static("weft-hops");
/// Why an answer failed.
pub const REASON: HeaderName = HeaderName::from_static("weft-reason");
/// Number of the try, from the second on.
pub const ATTEMPT: HeaderName = HeaderName::from_static("x-weft-attempt");
/// W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Time that a gRPC caller gives.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// gRPC status.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// gRPC message.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// More sidecars than this in a row is a loop.
pub const MAX_HOPS: u32 = 16;

/// Takes out what belongs to one hop, and what the sender nominated in `Connection`; framing, Host and what sidecars
/// write cannot be nominated away. `TE: trailers` stays.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, has: Marks) {
    // Every gRPC call has a `te` that stays.
    let te = has.has(Marks::TE) && headers.get_all(header::TE).iter().any(|te| te != "trailers");
    if !te && !has.has(Marks::HOP_BY_HOP) {
        return;
    }
    if has.has(Marks::CONNECTION) {
        for name in nominated(headers) {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    if te
        && let Some(te) = headers.remove(header::TE)
        && te.to_str().is_ok_and(|te| te.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers")))
    {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HTTP2_SETTINGS,
        header::PROXY_AUTHORIZATION,
        header::PROXY_AUTHENTICATE,
    ] {
        headers.remove(name);
    }
}

fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| !protected(name))
        .collect()
}

/// Fields that a `Connection` header cannot remove.
fn protected(name: &HeaderName) -> bool {
    *name == header::HOST
        || *name == header::CONTENT_LENGTH
        || *name == header::TE
        || *name == FORWARDED_FOR
        || *name == FORWARDED_PROTO
        || *name == CLIENT_CERT
        || *name == HOPS
        || *name == TRACEPARENT
        || *name == header::AUTHORIZATION
        || *name == header::COOKIE
        || name.as_str().starts_with("x-weft-")
}

/// Takes out what only sidecars may say.
pub fn strip_ours(headers: &mut HeaderMap, has: Marks) {
    if !has.has(Marks::OURS) {
        return;
    }
    headers.remove(&REASON);
    headers.remove(&CLIENT_CERT);
    let ours: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with("x-weft-")).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// Takes out of trailers what would change framing, routing or identity.
pub fn strip_trailers(trailers: &mut HeaderMap) {
    const NAMES: [&str; 18] = [
        "content-length",
        "transfer-encoding",
        "host",
        "connection",
        "te",
        "trailer",
        "upgrade",
        "authorization",
        "cookie",
        "set-cookie",
        "content-type",
        "content-encoding",
        "content-range",
        "expect",
        "keep-alive",
        "proxy-connection",
        "x-forwarded-for",
        "x-forwarded-proto",
    ];
    // There are few trailers, and these are hardly ever among them.
    if trailers.keys().any(|name| NAMES.contains(&name.as_str())) {
        for name in NAMES {
            trailers.remove(name);
        }
    }
    strip_ours(trailers, Marks::of(trailers));
}

/// Sidecars that the request has passed through so far.
pub fn hops(headers: &HeaderMap) -> u32 {
    let value = headers.get(&HOPS).and_then(|value| value.to_str().ok());
    value.map_or(0, |value| value.parse().unwrap_or(MAX_HOPS))
}

/// The count after this sidecar.
pub fn next_hops(hops: u32) -> HeaderValue {
    const WRITTEN: [&str; 4] = ["1", "2", "3", "4"];
    match WRITTEN.get(hops as usize) {
        Some(written) => HeaderValue::from_static(written),
        None => HeaderValue::from(hops.saturating_add(1)),
    }
}

/// Whether `Connection` names `token`.
pub fn connection_names(fields: &HeaderMap, token: &str) -> bool {
    fields
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|named| named.trim().eq_ignore_ascii_case(token))
}

/// Whether `connection: upgrade` and `upgrade` ask for another protocol (h2c is not one that is offered).
pub fn asks_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let to = names_upgrade(headers)?;
    connection_names(headers, "upgrade").then(|| to.clone())
}

/// The `upgrade` header, unless it is h2c: after such a head the framing of the connection is no longer followed, and it
/// ends unless it is switched.
pub fn names_upgrade(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(header::UPGRADE).filter(|to| !to.as_bytes().eq_ignore_ascii_case(b"h2c"))
}

/// Whether the request is gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes();
        kind.starts_with(b"application/grpc") && !kind.starts_with(b"application/grpc-web")
    })
}

/// The gRPC status in headers or trailers.
pub fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// Passes a valid `traceparent` on, or begins a trace.
pub fn ensure_trace(headers: &mut HeaderMap, has: Marks) -> HeaderValue {
    if has.has(Marks::TRACE)
        && let Some(given) = headers.get(&TRACEPARENT)
        && valid_trace(given.as_bytes())
    {
        return given.clone();
    }
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
    for (place, number) in [(3, fastrand::u64(1..)), (19, fastrand::u64(..)), (36, fastrand::u64(1..))] {
        text[place..place + 16]
            .as_chunks_mut()
            .0
            .copy_from_slice(&number.to_be_bytes().map(|byte| HEX[usize::from(byte)]));
    }
    // Owned in one piece, so that the record's copy is no second allocation.
    let value =
        HeaderValue::from_maybe_shared(Bytes::from_owner(text)).expect("hexadecimal digits and dashes are valid");
    headers.insert(TRACEPARENT, value.clone());
    value
}

fn valid_trace(value: &[u8]) -> bool {
    // Every byte of it is looked at a few times: without a branch for each, that is cheap.
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(true, |all, byte| all & (byte.wrapping_sub(b'0') < 10 || byte.wrapping_sub(b'a') < 6))
    };
    let zero = |bytes: &[u8]| bytes.iter().fold(0, |seen, byte| seen | (byte ^ b'0')) == 0;
    value.len() >= 55
        && (value.len() == 55 && value.starts_with(b"00-") || value.get(55) == Some(&b'-') && !value.starts_with(b"00"))
        && !value.starts_with(b"ff")
        && hex(&value[0..2])
        && value[2] == b'-'
        && hex(&value[3..35])
        && value[35] == b'-'
        && hex(&value[36..52])
        && value[52] == b'-'
        && hex(&value[53..55])
        && !zero(&value[3..35])
        && !zero(&value[36..52])
}

/// The two digits of each byte.
static HEX: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut table = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn hop_by_hop_fields_go_and_framing_stays() {
        let mut headers = map(&[
            ("connection", "close, x-secret, content-length, host, x-forwarded-for"),
            ("x-secret", "1"),
            ("content-length", "3"),
            ("host", "a"),
            ("x-forwarded-for", "1.2.3.4"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("accept", "*/*"),
        ]);
        let marks = Marks::of(&headers);
        strip_hop_by_hop(&mut headers, marks);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length", "host", "te", "x-forwarded-for"]);
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn nobody_else_speaks_for_us() {
        let mut headers = map(&[
            ("weft-reason", "a"),
            ("x-weft-attempt", "9"),
            ("x-weft-anything", "9"),
            ("x-forwarded-client-cert", "URI=spiffe://x"),
            ("x-other", "1"),
        ]);
        let marks = Marks::of(&headers);
        strip_ours(&mut headers, marks);
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn traces_are_passed_on_or_begun() {
        const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut headers = map(&[("traceparent", GIVEN)]);
        let has = Marks::of(&headers);
        assert_eq!(ensure_trace(&mut headers, has), GIVEN);
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            let mut headers = map(&[("traceparent", bad)]);
            let has = Marks::of(&headers);
            let made = ensure_trace(&mut headers, has);
            assert_ne!(made, bad);
            assert!(valid_trace(made.as_bytes()));
            assert_eq!(headers.get_all("traceparent").iter().count(), 1);
        }
    }

    #[test]
    fn upgrades_need_both_headers() {
        assert!(asks_upgrade(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])).is_some());
        assert!(asks_upgrade(&map(&[("upgrade", "websocket")])).is_none());
        assert!(asks_upgrade(&map(&[("connection", "upgrade"), ("upgrade", "h2c")])).is_none());
    }

    #[test]
    fn hops_that_cannot_be_read_count_as_too_many() {
        assert_eq!(hops(&map(&[])), 0);
        assert_eq!(hops(&map(&[("weft-hops", "3")])), 3);
        assert_eq!(hops(&map(&[("weft-hops", "x")])), MAX_HOPS);
    }
}
