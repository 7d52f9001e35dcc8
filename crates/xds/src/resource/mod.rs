//! xDS resources as validated types, and the only decoder of them.
//!
//! # Shapes on the wire
//!
//! What a control plane has to write so that [`decode`] reads it as meant. Envoy's own fields come first; Weft's
//! extensions stand in `metadata.typed_filter_metadata["weft.mesh"]` ([`METADATA_KEY`]) and add or override. Every `Any`
//! is made with [`pack`] (type URL `type.googleapis.com/…`). What cannot be honoured is refused, never ignored.
//!
//! - **Listener `inbound`**: `traffic_direction` INBOUND; one filter chain for each port of the service, the first is the
//!   default. `filter_chain_match.server_names` = one name made by [`sni()`]; `metadata` = `InboundExtension`;
//!   `transport_socket` = `DownstreamTlsContext`, `require_client_certificate` true = strict, false = permissive, equal
//!   in all chains. Filters: `[network rbac…, TcpProxy]` for TCP, `[network rbac…, HttpConnectionManager]` for everything
//!   else, whose `http_filters` are `[rbac…, router]`. Access rules of a port = network rbac + http rbac, in that order;
//!   a port of protocol *detect* has its rules in http rbac. Whole-request timeout at the callee:
//!   `common_http_protocol_options.max_stream_duration` (absent or 0: off). Routes inside are not read.
//! - **Listener `outbound`**: `traffic_direction` OUTBOUND; one filter chain with one HttpConnectionManager: `rds`
//!   (`ads`), `http_filters` `[router]`; listener `metadata` = `OutboundExtension` (absent: calls to hosts outside the
//!   mesh go there).
//! - **RBAC filter** (http and network): `rules` is obeyed, `shadow_rules` is only counted (AUDIT); a filter may have
//!   both, and there may be several filters. Action ALLOW or DENY. Policy name = `namespace/policy/rule`
//!   (`rule`: name or index). Principals: `any`, `and_ids`, `or_ids`, `not_id`, `authenticated{principal_name}`
//!   (absent: any proven identity; identity exact; a namespace as prefix `spiffe://td/ns/NS/`), `header`. Permissions:
//!   `any`, `and_rules`, `or_rules`, `not_rule`, `header` (`:method` exact…), `url_path`, `destination_port` (the
//!   *service's* port). Network RBAC knows no `header` and no `url_path`. Anything else is refused, an unknown field too.
//! - **RouteConfiguration `outbound`**: empty, with `vhds` set. **VirtualHost**: resource name `outbound/HOST:PORT`,
//!   `domains`, routes in order. `outbound/IP:PORT` (IPv6 in brackets) is what an application means that connects to that
//!   address; where it is an endpoint's, `metadata` = `VirtualHostExtension` names the endpoint that all calls go to.
//! - **Route**: `name` as in metrics; `metadata` = `RouteExtension`. Match: `prefix`, `path`, `path_separated_prefix`,
//!   `safe_regex`; `headers`, `query_parameters`, `grpc`. `RouteAction.timeout`: absent or 0 = off (write it always: for
//!   Envoy absent is 15 s). `retry_policy` absent = the sidecar's default policy; *no retries* = `num_retries: 0`.
//!   `retry_on` tokens: `connect-failure`, `refused-stream`, `reset`, `gateway-error`, `5xx`, `retriable-4xx`,
//!   `retriable-status-codes` (with the field of that name) and gRPC's `cancelled`, `deadline-exceeded`, `internal`,
//!   `resource-exhausted`, `unavailable`; with `num_retries`, `per_try_timeout`, `retry_back_off`, and
//!   `retry_host_predicate` previous_hosts. Prefix rewrite: `prefix_rewrite`; full rewrite: `regex_rewrite` with pattern
//!   `^/.*$` (as [`FULL_PATH`]) and the new path as substitution. Host: `host_rewrite_literal`. Hash: `hash_policy` by
//!   `header` or `connection_properties.source_ip`. Header edits: `append_action` APPEND_IF_EXISTS_OR_ADD = add,
//!   OVERWRITE_IF_EXISTS_OR_ADD = set; a literal `%` is written `%%`. Also `redirect` and `direct_response`.
//! - **Cluster**: `type: EDS` with `eds_config` ads; `connect_timeout`; `lb_policy` ROUND_ROBIN, LEAST_REQUEST or
//!   RING_HASH (others by `ClusterExtension.balancer`); `circuit_breakers.thresholds[DEFAULT]`: `max_connections`,
//!   `max_pending_requests`, `max_requests`, `retry_budget`; `outlier_detection` (for others; ours is
//!   `endpoint_breaker`); `common_lb_config.healthy_panic_threshold`; `transport_socket` = `UpstreamTlsContext` with
//!   `sni` and `combined_validation_context.default_validation_context.match_typed_subject_alt_names` (URI, exact); none
//!   = the endpoint's own identity counts; protocol options: explicit `http2_protocol_options` = HTTP/2 when there is no
//!   extension; `metadata` = `ClusterExtension`.
//! - **ClusterLoadAssignment**: endpoint `address` (IP and `port_value`), `health_status`, `load_balancing_weight` ≥ 1,
//!   group `priority` and `locality.zone`; endpoint `metadata` = `EndpointExtension`.
//! - **Secret `ROOTCA`**: `validation_context.trusted_ca` as inline PEM.
//!
//! A resource that does not exist is answered with `removed_resources`, for all types alike.

mod access;
mod cluster;
mod decode;
mod endpoint;
mod kind;
mod listener;
mod matcher;
mod route;

pub use self::{
    access::*,
    cluster::*,
    decode::{Bundle, DecodeError, Decoded, decode},
    endpoint::*,
    kind::{Encoded, FULL_PATH, METADATA_KEY, ResourceType, pack, type_url, version_hash},
    listener::*,
    matcher::*,
    route::*,
};
