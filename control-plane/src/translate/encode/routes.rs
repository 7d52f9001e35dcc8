//! Virtual hosts and routes.

use prost_types::Any;
use weft_proto::{
    envoy::{
        config::{
            core::v3::{HeaderValue as WireHeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
            route::v3::{
                self as wire, DirectResponseAction, RedirectAction, RouteAction as WireRouteAction, WeightedCluster,
                redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
                retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate},
                route::Action,
                route_action::{
                    ClusterSpecifier, HashPolicy, HostRewriteSpecifier, MaxStreamDuration, UpgradeConfig,
                    hash_policy::{ConnectionProperties, Header, PolicySpecifier},
                },
                route_match::{GrpcRouteMatchOptions, PathSpecifier},
                weighted_cluster::ClusterWeight,
            },
        },
        extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
        r#type::matcher::v3::RegexMatchAndSubstitute,
    },
    weft::v1::{RouteExtension, VirtualHostExtension},
};
use weft_xds::resource::{
    FULL_PATH, Forward, HashOn, HeaderEdits, HeaderKey, HeaderMatch, HeaderTest, PathMatch, PathRewrite, Redirect,
    RetryOn, RetryPolicy, Route, RouteAction, RouteMatch, StringMatch, VirtualHost, pack,
};

use super::matcher;
use crate::translate::{
    Flavour,
    wire::{duration, extension, inline},
};

/// A virtual host for one kind of client.
pub fn encode(host: &VirtualHost, flavour: Flavour) -> wire::VirtualHost {
    wire::VirtualHost {
        name: host.name.to_string(),
        domains: host.domains.iter().map(ToString::to_string).collect(),
        routes: host.routes.iter().flat_map(|route| routes(route, flavour)).collect(),
        metadata: host.endpoint.map(|endpoint| extension(&VirtualHostExtension { endpoint: endpoint.to_string() })),
        ..wire::VirtualHost::default()
    }
}

/// One route; for an Envoy two when its retries depend on the method, which a retry policy of Envoy cannot say.
fn routes(route: &Route, flavour: Flavour) -> Vec<wire::Route> {
    let unsafe_retry = |retry: &RetryPolicy| !retry.idempotent && retry.retries > 0 && has_unsafe(&retry.on);
    let RouteAction::Forward(forward) = &route.action else { return vec![encode_route(route, None, flavour)] };
    if flavour != Flavour::Envoy {
        return vec![encode_route(route, forward.retry.as_ref(), flavour)];
    }
    let retry = forward.retry.clone().unwrap_or_default();
    if !unsafe_retry(&retry) {
        return vec![encode_route(route, Some(&retry), flavour)];
    }
    let mut idempotent = route.clone();
    idempotent.matches.headers.push(idempotent_methods());
    let safe = RetryPolicy { on: only_safe(&retry.on), ..retry.clone() };
    vec![encode_route(&idempotent, Some(&retry), flavour), encode_route(route, Some(&safe), flavour)]
}

/// Conditions under which a request may have been executed.
fn has_unsafe(on: &RetryOn) -> bool {
    on.reset || on.gateway_error || on.server_error || !on.statuses.is_empty()
}

fn only_safe(on: &RetryOn) -> RetryOn {
    RetryOn {
        connect_failure: on.connect_failure,
        refused_stream: on.refused_stream,
        grpc: on.grpc.clone(),
        ..RetryOn::default()
    }
}

fn idempotent_methods() -> HeaderMatch {
    let methods = regex::Regex::new("GET|HEAD|OPTIONS|TRACE|PUT|DELETE").expect("a constant pattern");
    HeaderMatch { name: HeaderKey::Method, test: HeaderTest::Value(StringMatch::Regex(methods)), invert: false }
}

fn encode_route(route: &Route, retry: Option<&RetryPolicy>, flavour: Flavour) -> wire::Route {
    let (request_headers_to_add, request_headers_to_remove) = edits(&route.request_headers);
    let (response_headers_to_add, response_headers_to_remove) = edits(&route.response_headers);
    let action = match &route.action {
        RouteAction::Forward(forward) => Action::Route(forward_action(forward, &route.matches, retry, flavour)),
        RouteAction::Redirect(redirect) => Action::Redirect(redirect_action(redirect)),
        RouteAction::Respond { status, body } => Action::DirectResponse(DirectResponseAction {
            status: status.as_u16().into(),
            body: (!body.is_empty()).then(|| inline(body.as_bytes().to_vec())),
            body_format: None,
        }),
    };
    let body_limit = retry.and_then(|retry| u32::try_from(retry.body_bytes).ok());
    wire::Route {
        name: route.name.to_string(),
        r#match: Some(route_match(&route.matches, flavour)),
        action: Some(action),
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        metadata: Some(extension(&route_extension(route, retry))),
        request_body_buffer_limit: body_limit.filter(|_| flavour == Flavour::Envoy).map(u64::from),
        ..wire::Route::default()
    }
}

fn route_extension(route: &Route, retry: Option<&RetryPolicy>) -> RouteExtension {
    RouteExtension {
        source: route.source.to_string(),
        revision: route.revision,
        idempotent: retry.is_some_and(|retry| retry.idempotent),
        retry_body_bytes: retry.and_then(|retry| u32::try_from(retry.body_bytes).ok()).unwrap_or_default(),
        explicit_retry: retry.is_some(),
    }
}

fn route_match(matches: &RouteMatch, flavour: Flavour) -> wire::RouteMatch {
    let path = match &matches.path {
        PathMatch::Prefix(prefix) => PathSpecifier::Prefix(prefix.to_string()),
        // gRPC knows no other prefix, and a method's path always goes on.
        PathMatch::SeparatedPrefix(prefix) if flavour == Flavour::Grpc => PathSpecifier::Prefix(format!("{prefix}/")),
        PathMatch::SeparatedPrefix(prefix) => PathSpecifier::PathSeparatedPrefix(prefix.to_string()),
        PathMatch::Exact(path) => PathSpecifier::Path(path.to_string()),
        PathMatch::Regex(pattern) => PathSpecifier::SafeRegex(matcher::regex(pattern.as_str())),
    };
    wire::RouteMatch {
        path_specifier: Some(path),
        headers: matches.headers.iter().map(matcher::header).collect(),
        query_parameters: matches.query.iter().map(matcher::query).collect(),
        grpc: (matches.grpc && flavour != Flavour::Grpc).then(GrpcRouteMatchOptions::default),
        ..wire::RouteMatch::default()
    }
}

fn forward_action(
    forward: &Forward,
    matches: &RouteMatch,
    retry: Option<&RetryPolicy>,
    flavour: Flavour,
) -> WireRouteAction {
    let mut action = WireRouteAction {
        cluster_specifier: Some(clusters(forward)),
        // Absent means 15 s to Envoy; zero means off.
        timeout: Some(duration(forward.timeout.unwrap_or_default())),
        idle_timeout: forward.idle_timeout.map(duration),
        retry_policy: retry.map(|retry| retry_policy(retry, flavour)),
        host_rewrite_specifier: forward.host_rewrite.as_ref().map(|host| {
            HostRewriteSpecifier::HostRewriteLiteral(String::from_utf8_lossy(host.as_bytes()).into_owned())
        }),
        hash_policy: forward.hash.iter().map(hash_policy).collect(),
        ..WireRouteAction::default()
    };
    if flavour == Flavour::Envoy {
        action.upgrade_configs =
            vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..UpgradeConfig::default() }];
    }
    if flavour == Flavour::Grpc {
        // The one timeout that gRPC reads.
        action.max_stream_duration = forward.timeout.map(|timeout| MaxStreamDuration {
            max_stream_duration: Some(duration(timeout)),
            ..MaxStreamDuration::default()
        });
    }
    match &forward.rewrite {
        Some(PathRewrite::Prefix(prefix)) => rewrite_prefix(&mut action, prefix, &matches.path, flavour),
        Some(PathRewrite::Full(path)) => action.regex_rewrite = Some(rewrite(FULL_PATH, path)),
        None => {}
    }
    action
}

/// `/shop` replaced by `/` turns `/shop/a` into `/a`. Envoy's own prefix rewrite would make `//a` of it.
fn rewrite_prefix(action: &mut WireRouteAction, prefix: &str, path: &PathMatch, flavour: Flavour) {
    match path {
        PathMatch::SeparatedPrefix(matched) if flavour == Flavour::Envoy && prefix == "/" => {
            action.regex_rewrite = Some(rewrite(&format!("^{}/*", regex::escape(matched)), prefix));
        }
        _ => action.prefix_rewrite = prefix.to_owned(),
    }
}

fn rewrite(pattern: &str, substitution: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute { pattern: Some(matcher::regex(pattern)), substitution: substitution.replace('\\', "\\\\") }
}

fn clusters(forward: &Forward) -> ClusterSpecifier {
    if let [only] = forward.clusters.as_slice()
        && is_empty(&only.request_headers)
        && is_empty(&only.response_headers)
    {
        return ClusterSpecifier::Cluster(only.name.to_string());
    }
    let clusters = forward.clusters.iter().map(|cluster| {
        let (request_headers_to_add, request_headers_to_remove) = edits(&cluster.request_headers);
        let (response_headers_to_add, response_headers_to_remove) = edits(&cluster.response_headers);
        ClusterWeight {
            name: cluster.name.to_string(),
            weight: Some(cluster.weight),
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            ..ClusterWeight::default()
        }
    });
    ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.collect(), ..WeightedCluster::default() })
}

fn is_empty(edits: &HeaderEdits) -> bool {
    edits.remove.is_empty() && edits.set.is_empty() && edits.add.is_empty()
}

fn edits(edits: &HeaderEdits) -> (Vec<HeaderValueOption>, Vec<String>) {
    let set = edits.set.iter().map(|edit| (edit, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = edits.add.iter().map(|edit| (edit, HeaderAppendAction::AppendIfExistsOrAdd));
    let options = set.chain(add).map(|((name, value), action)| HeaderValueOption {
        header: Some(WireHeaderValue {
            key: name.to_string(),
            // `%` begins a command of Envoy's formatter.
            value: String::from_utf8_lossy(value.as_bytes()).replace('%', "%%"),
            raw_value: Vec::new(),
        }),
        append_action: action as i32,
        ..HeaderValueOption::default()
    });
    (options.collect(), edits.remove.iter().map(ToString::to_string).collect())
}

fn hash_policy(on: &HashOn) -> HashPolicy {
    let specifier = match on {
        HashOn::Header(name) => PolicySpecifier::Header(Header { header_name: name.to_string(), regex_rewrite: None }),
        HashOn::SourceIp => PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }),
    };
    // The first that yields a value wins.
    HashPolicy { terminal: true, policy_specifier: Some(specifier) }
}

fn retry_policy(retry: &RetryPolicy, flavour: Flavour) -> wire::RetryPolicy {
    let predicates = (flavour == Flavour::Envoy).then(|| RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(previous_hosts())),
    });
    wire::RetryPolicy {
        retry_on: retry_on(&retry.on, flavour),
        num_retries: Some(retry.retries),
        per_try_timeout: retry.per_try_timeout.map(duration),
        retriable_status_codes: retry.on.statuses.iter().map(|status| status.as_u16().into()).collect(),
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(duration(retry.backoff_base)),
            max_interval: Some(duration(retry.backoff_max)),
        }),
        host_selection_retry_max_attempts: if flavour == Flavour::Envoy { 3 } else { 0 },
        retry_host_predicate: predicates.into_iter().collect(),
        ..wire::RetryPolicy::default()
    }
}

fn previous_hosts() -> Any {
    pack(&PreviousHostsPredicate::default())
}

fn retry_on(on: &RetryOn, flavour: Flavour) -> String {
    let http = [
        (on.connect_failure, "connect-failure"),
        (on.refused_stream, "refused-stream"),
        (on.reset, "reset"),
        (on.gateway_error, "gateway-error"),
        (on.server_error, "5xx"),
        (!on.statuses.is_empty(), "retriable-status-codes"),
    ];
    let own = OWN_GRPC_CONDITIONS.iter().filter(|_| flavour == Flavour::Sidecar);
    let grpc = GRPC_CONDITIONS.iter().chain(own).map(|(code, name)| (on.grpc.contains(code), *name));
    let named = http.into_iter().filter(|_| flavour != Flavour::Grpc).chain(grpc);
    named.filter(|(named, _)| *named).map(|(_, name)| name).collect::<Vec<_>>().join(",")
}

fn redirect_action(redirect: &Redirect) -> RedirectAction {
    let code = match redirect.status.as_u16() {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    RedirectAction {
        host_redirect: redirect.host.as_deref().unwrap_or_default().to_owned(),
        port_redirect: redirect.port.unwrap_or_default().into(),
        response_code: code as i32,
        strip_query: false,
        scheme_rewrite_specifier: redirect
            .scheme
            .as_deref()
            .map(|scheme| SchemeRewriteSpecifier::SchemeRedirect(scheme.to_owned())),
        path_rewrite_specifier: redirect.path.as_ref().map(|path| match path {
            PathRewrite::Prefix(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix.to_string()),
            PathRewrite::Full(path) => PathRewriteSpecifier::PathRedirect(path.to_string()),
        }),
    }
}

/// gRPC codes that a retry policy can name.
const GRPC_CONDITIONS: [(u8, &str); 5] =
    [(1, "cancelled"), (4, "deadline-exceeded"), (8, "resource-exhausted"), (13, "internal"), (14, "unavailable")];
/// gRPC codes that only our own sidecar takes as conditions; Envoy and gRPC have no word for them.
const OWN_GRPC_CONDITIONS: [(u8, &str); 3] = [(2, "unknown"), (10, "aborted"), (15, "data-loss")];
