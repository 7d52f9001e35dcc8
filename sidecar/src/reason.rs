//! The closed list of reasons why a request or connection failed.
//!
//! Answer header, access log, metric and `docs/reasons.md` all take their words from here. This module never does I/O.

use http::StatusCode;

/// Where a failure arose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The application that was called, or the client that called.
    App,
    /// The sidecar beside the caller.
    CallerSidecar,
    /// The sidecar beside the callee.
    CalleeSidecar,
    /// Between the two.
    Network,
    /// The control plane.
    ControlPlane,
}

impl Side {
    /// As in header, log and docs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::CallerSidecar => "caller-sidecar",
            Self::CalleeSidecar => "callee-sidecar",
            Self::Network => "network",
            Self::ControlPlane => "control-plane",
        }
    }
}

/// May a request that failed so have reached the application?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executed {
    /// Certainly not: it may be repeated whatever its method.
    No,
    /// It may have.
    Maybe,
}

macro_rules! reasons {
    ($($name:ident $code:literal $side:ident $flag:literal $status:literal $grpc:literal $executed:ident
        $what:literal => $next:literal;)*) => {
        /// Why a request or connection failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $what] $name,)*
        }

        impl Reason {
            /// Every reason, in the order of the docs page.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The code, snake_case.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// Where such a failure arises.
            pub const fn side(self) -> Side {
                match self { $(Self::$name => Side::$side,)* }
            }

            /// Envoy's response flag that comes closest.
            pub const fn flag(self) -> &'static str {
                match self { $(Self::$name => $flag,)* }
            }

            /// Status of the answer.
            pub fn status(self) -> StatusCode {
                let code = match self { $(Self::$name => $status,)* };
                StatusCode::from_u16(code).expect("the table holds valid statuses")
            }

            /// gRPC status code of the answer.
            pub const fn grpc_status(self) -> u8 {
                match self { $(Self::$name => $grpc,)* }
            }

            /// Whether the application may have seen the request.
            pub const fn executed(self) -> Executed {
                match self { $(Self::$name => Executed::$executed,)* }
            }

            /// What happened, one sentence.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$name => $what,)* }
            }

            /// What to do about it.
            pub const fn next_step(self) -> &'static str {
                match self { $(Self::$name => $next,)* }
            }
        }
    };
}

// name, code, side, Envoy flag, HTTP status, gRPC status, may it have been executed, what happened => next step
reasons! {
    NoRoute "no_route" CallerSidecar "NR" 404 12 No
        "No route of the service matches the request." => "Compare method, path and headers with the routes: `weft get httproute`.";
    ServiceUnknown "service_unknown" ControlPlane "NC" 503 14 No
        "The mesh has no service of this name." => "Check the name and port against `weft get service`; names are SERVICE or SERVICE.NAMESPACE.";
    ConfigTimeout "config_timeout" ControlPlane "NC" 503 14 No
        "The control plane did not deliver the service in time." => "Look at the control plane's load and at `weft status`; the next call asks again.";
    ControlPlaneUnreachable "control_plane_unreachable" ControlPlane "NC" 503 14 No
        "The service is not known here yet and the control plane cannot be reached." => "Check the control plane and the network to it; services called before go on working.";
    NoEndpoints "no_endpoints" ControlPlane "UH" 503 14 No
        "The service has no workload." => "Start a workload of the service, or look at `weft status` for the missing one.";
    NoReadyEndpoint "no_ready_endpoint" CallerSidecar "UH" 503 14 No
        "The service has workloads, but none that may be used now." => "Look at their health and breakers: `/clusters` of the caller's sidecar.";
    UpstreamConnectRefused "upstream_connect_refused" Network "UF" 503 14 No
        "The connection to the workload's sidecar was refused." => "Check that the sidecar runs at the address of the log line.";
    UpstreamConnectTimeout "upstream_connect_timeout" Network "UF" 503 14 No
        "The connection to the workload did not come about in time." => "Check network policy and the workload's load.";
    UpstreamConnectFailed "upstream_connect_failed" Network "UF" 503 14 No
        "The connection to the workload failed." => "See the log line for the operating system's error.";
    UpstreamTlsFailed "upstream_tls_failed" Network "UF" 503 14 No
        "The TLS handshake with the workload failed." => "Compare trust bundles and certificate expiry on both sides: `weft status`.";
    UpstreamIdentityMismatch "upstream_identity_mismatch" CallerSidecar "UF" 503 14 No
        "The workload proved another identity than its service's." => "Something else listens at the address, or the registration is stale; the log line names both identities.";
    UpstreamReset "upstream_reset" Network "UC" 503 14 Maybe
        "The connection ended before the whole answer had come." => "See whether the workload was stopped or crashed at that time.";
    UpstreamRefusedStream "upstream_refused_stream" CalleeSidecar "UR" 503 14 No
        "The peer refused the stream without processing it." => "The peer is draining or at its stream limit; look at its log.";
    UpstreamProtocolError "upstream_protocol_error" App "UPE" 502 14 Maybe
        "The answer was not valid HTTP." => "Check the port's protocol in the Service and what the application speaks.";
    RequestTimeout "request_timeout" CallerSidecar "UT" 504 4 Maybe
        "The whole request took longer than its timeout." => "Find the slow part in the log line, or raise the route's `timeouts.request`.";
    TryTimeout "try_timeout" CallerSidecar "UT" 504 4 Maybe
        "The last try took longer than its timeout." => "Raise `timeouts.backendRequest`, or find why the workload is slow.";
    IdleTimeout "idle_timeout" CallerSidecar "SI" 504 4 Maybe
        "No byte moved either way for the idle timeout." => "Raise the route's idle timeout, or let the application send keep-alives.";
    BreakerOpen "breaker_open" CallerSidecar "UO" 503 14 No
        "The service's circuit breaker is open." => "The service fails; it is tried again after the recovery time. See `weft_breaker_transitions_total`.";
    OverflowConnections "overflow_connections" CallerSidecar "UO" 503 14 No
        "The limit on connections to the service is reached." => "Raise `connectionPool.maxConnections` or find why connections are held.";
    OverflowPending "overflow_pending" CallerSidecar "UO" 503 14 No
        "Too many requests wait for a connection, or this one waited too long." => "Raise `connectionPool.maxPending` or the connection limit.";
    OverflowRequests "overflow_requests" CallerSidecar "UO" 503 14 No
        "The limit on concurrent requests to the service is reached." => "Raise `connectionPool.maxRequests` or find why the service is slow.";
    AccessDenied "access_denied" CalleeSidecar "UAEX" 403 7 No
        "An access policy refuses the request." => "The answer names policy and rule; see `weft get accesspolicy`.";
    PlaintextRefused "plaintext_refused" CalleeSidecar "DC" 403 16 No
        "The caller speaks plain text where mutual TLS is required." => "Call through a sidecar, or set the mesh's mTLS mode to permissive while moving in.";
    PeerCertificateMissing "peer_certificate_missing" CalleeSidecar "UAEX" 403 16 No
        "The caller presented no certificate." => "Call through a sidecar.";
    PeerCertificateExpired "peer_certificate_expired" CalleeSidecar "UAEX" 403 16 No
        "The peer's certificate is expired or not yet valid." => "Check the clock and the renewal of the peer's sidecar: `weft status`.";
    PeerCertificateInvalid "peer_certificate_invalid" CalleeSidecar "UAEX" 403 16 No
        "The peer's certificate is not a valid SPIFFE certificate." => "It must carry exactly one URI name, a SPIFFE ID; issue it by the mesh.";
    PeerCertificateUnknownAuthority "peer_certificate_unknown_authority" CalleeSidecar "UAEX" 403 16 No
        "The peer's certificate was issued by an authority this mesh does not trust." => "Compare the root certificates on both sides.";
    PeerCertificateWrongTrustDomain "peer_certificate_wrong_trust_domain" CalleeSidecar "UAEX" 403 16 No
        "The peer's certificate is of another trust domain." => "Both sidecars must belong to one mesh.";
    TlsHandshakeFailed "tls_handshake_failed" Network "DC" 503 14 No
        "The peer did not complete a TLS 1.3 handshake." => "Check that the peer is a sidecar of this mesh and not cut off by the network.";
    AppConnectRefused "app_connect_refused" App "UF" 503 14 No
        "The application does not listen on its port." => "Start the application, or correct the sidecar's `--port`.";
    AppConnectTimeout "app_connect_timeout" App "UF" 503 14 No
        "The application did not accept the connection in time." => "Its accept queue is full: look at the application's load.";
    AppReset "app_reset" App "UC" 503 14 Maybe
        "The application ended the connection before the whole answer had come." => "Look at the application's log for a crash or restart.";
    AppProtocolError "app_protocol_error" App "UPE" 502 13 Maybe
        "The application's answer was not valid HTTP." => "Check the protocol of the sidecar's `--port`.";
    ClientCancelled "client_cancelled" App "DC" 499 1 Maybe
        "The caller went away before the answer was complete." => "See the caller's timeout.";
    ClientProtocolError "client_protocol_error" App "DPE" 400 13 No
        "The request was not valid HTTP." => "Correct the client.";
    AmbiguousFraming "ambiguous_framing" App "DPE" 400 13 No
        "The request's length can be read in two ways." => "Correct the client: one Content-Length, or Transfer-Encoding: chunked, never both.";
    HeadersTooLarge "headers_too_large" App "DPE" 431 8 No
        "The request has more than 100 header fields or more than 64 KiB of them." => "Send fewer or smaller headers; look for growing cookies.";
    BadPath "bad_path" App "DPE" 400 3 No
        "The path cannot be normalised safely." => "Do not send encoded slashes, backslashes, NUL or invalid escapes in a path.";
    BadHost "bad_host" App "DPE" 400 3 No
        "The host is missing, repeated, malformed or differs from the authority." => "Send one Host that equals the authority.";
    HeaderTimeout "header_timeout" App "DPE" 408 4 No
        "The request's head did not come in time." => "Look for a stuck or hostile client.";
    BodyTimeout "body_timeout" App "DPE" 408 4 Maybe
        "The request's body stopped coming." => "Look for a stuck client or network.";
    Draining "draining" CalleeSidecar "DC" 503 14 No
        "The workload is shutting down." => "Nothing: callers move on to other workloads.";
    Overloaded "overloaded" CallerSidecar "OM" 503 14 No
        "The sidecar has reached its own bound on connections." => "Raise the file-descriptor limit, or add workloads.";
    LoopDetected "loop_detected" CallerSidecar "NR" 508 13 No
        "The request has passed through too many sidecars, or the sidecar's own connection was redirected to itself." => "Look for an application or route that sends a service's requests back to itself; or let the rules pass the sidecar's mark or user.";
    ExternalRefused "external_refused" CallerSidecar "NR" 403 7 No
        "The destination is not in the mesh, which lets nothing else out; or it is loopback or the sidecar itself." => "Register it: a Service with an EndpointSlice lets one host out; or set `egress.mode: any` in the Mesh. Call local programs directly.";
    ExternalConnectFailed "external_connect_failed" Network "UF" 502 14 No
        "The destination outside the mesh cannot be reached." => "Check the name and the network; the log line has the error.";
    InternalError "internal_error" CallerSidecar "-" 500 13 Maybe
        "The sidecar met a state it does not know." => "Report it with the log line.";
}

impl Reason {
    /// The reason with this code.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.code() == code)
    }

    /// The reason named by the `weft-reason` header of an answer: its code is what stands before the first `;`.
    pub fn from_header(value: &http::HeaderValue) -> Option<Self> {
        let text = value.to_str().ok()?;
        Self::from_code(text.split(';').next().unwrap_or(text).trim())
    }

    /// Small number, for tables indexed by reason.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// `docs/reasons.md`, whole.
pub fn docs_page() -> String {
    let mut page = String::from(
        "# Reasons\n\n\
         Every failure that a sidecar answers, logs or counts has one of these reasons: in the header `weft-reason`\n\
         (`CODE; side=SIDE; after=TIME`), in the access log's field `reason`, and in the label `reason` of\n\
         `weft_requests_total`. gRPC callers get the gRPC status and the same header.\n\n\
         This page is generated from `sidecar/src/reason.rs`; a test compares the two.\n\n\
         | reason | side | status | gRPC | Envoy flag | what happened | next step |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for reason in Reason::ALL {
        page.push_str(&format!(
            "| `{}` | {} | {} | {} | {} | {} | {} |\n",
            reason.code(),
            reason.side().as_str(),
            reason.status().as_u16(),
            reason.grpc_status(),
            reason.flag(),
            reason.what(),
            reason.next_step(),
        ));
    }
    page.push_str(
        "\n`client_cancelled` is never answered, since nobody is left to read it; 499 is what log and metric show.\n",
    );
    page
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_found_again() {
        let mut seen = HashSet::new();
        for reason in Reason::ALL {
            assert!(seen.insert(reason.code()), "{} stands twice", reason.code());
            assert_eq!(Reason::from_code(reason.code()), Some(*reason));
            assert_eq!(Reason::ALL[reason.index()], *reason);
            assert!(reason.code().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            assert!(reason.status().as_u16() >= 400 && reason.grpc_status() <= 16);
        }
        assert_eq!(Reason::from_code("nothing"), None);
    }

    #[test]
    fn the_header_names_its_reason() {
        let value = http::HeaderValue::from_static("app_reset; side=app; after=3ms");
        assert_eq!(Reason::from_header(&value), Some(Reason::AppReset));
    }

    /// `WEFT_BLESS=1 cargo test -p weft-sidecar` writes the page.
    #[test]
    fn the_docs_page_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reasons.md");
        if std::env::var_os("WEFT_BLESS").is_some() {
            std::fs::write(path, docs_page()).expect("docs/ is writable");
        }
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(page, docs_page(), "run the tests once with WEFT_BLESS=1");
    }
}
