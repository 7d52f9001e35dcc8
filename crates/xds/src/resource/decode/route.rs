//! Route configurations, virtual hosts and routes.

use std::{collections::HashSet, sync::Arc};

use http::{HeaderValue, StatusCode};
use weft_proto::{
    envoy::{
        config::route::v3::{
            self as proto, DirectResponseAction, RedirectAction,
            redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
            route::Action,
            route_action::{ClusterSpecifier, HashPolicy, HostRewriteSpecifier, hash_policy::PolicySpecifier},
            route_match::PathSpecifier,
        },
        r#type::{matcher::v3::RegexMatchAndSubstitute, v3::fractional_percent::DenominatorType},
    },
    weft::v1::{RouteExtension, VirtualHostExtension},
};

use super::{
    super::{
        FULL_PATH, Forward, HashOn, HeaderEdits, PathMatch, PathRewrite, Redirect, RetryPolicy, Route, RouteAction,
        RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster,
    },
    matcher, retry,
    value::{
        At, LONGEST, Result, err, extension, header_edits, header_name, inline, name, over_ads, port, timeout,
        unsupported,
    },
};

/// Largest body of a direct response, in bytes.
const LARGEST_BODY: usize = 64 << 10;

pub(super) fn decode_configuration(proto: proto::RouteConfiguration) -> Result<RouteConfiguration> {
    let name = name(&proto.name, "name")?;
    unsupported(!proto.request_headers_to_add.is_empty(), "request_headers_to_add")?;
    unsupported(!proto.request_headers_to_remove.is_empty(), "request_headers_to_remove")?;
    unsupported(!proto.response_headers_to_add.is_empty(), "response_headers_to_add")?;
    unsupported(!proto.response_headers_to_remove.is_empty(), "response_headers_to_remove")?;
    unsupported(!proto.request_mirror_policies.is_empty(), "request_mirror_policies")?;
    unsupported(!proto.cluster_specifier_plugins.is_empty(), "cluster_specifier_plugins")?;
    unsupported(!proto.vhost_header.is_empty(), "vhost_header")?;
    unsupported(proto.ignore_path_parameters_in_path_matching, "ignore_path_parameters_in_path_matching")?;
    unsupported(!proto.typed_per_filter_config.is_empty(), "typed_per_filter_config")?;
    unsupported(!proto.route_specifiers.is_empty(), "route_specifiers")?;
    if let Some(vhds) = &proto.vhds {
        over_ads(vhds.config_source.as_ref()).at("vhds.config_source")?;
    }
    let mut names = HashSet::new();
    let mut domains = HashSet::new();
    let mut virtual_hosts = Vec::with_capacity(proto.virtual_hosts.len());
    for (index, it) in proto.virtual_hosts.iter().enumerate() {
        let host = virtual_host(it).at_index("virtual_hosts", index)?;
        if !names.insert(host.name.clone()) {
            return err("name", format!("{:?} occurs twice", host.name)).at_index("virtual_hosts", index);
        }
        for domain in &host.domains {
            if !domains.insert(domain.clone()) {
                return err("domains", format!("{domain:?} is taken by another")).at_index("virtual_hosts", index);
            }
        }
        virtual_hosts.push(Arc::new(host));
    }
    Ok(RouteConfiguration { name, virtual_hosts, on_demand: proto.vhds.is_some() })
}

pub(super) fn decode_virtual_host(proto: proto::VirtualHost) -> Result<VirtualHost> {
    virtual_host(&proto)
}

fn virtual_host(proto: &proto::VirtualHost) -> Result<VirtualHost> {
    let name = name(&proto.name, "name")?;
    #[expect(deprecated, reason = "refused, not read")]
    unsupported(proto.cors.is_some(), "cors")?;
    unsupported(proto.matcher.is_some(), "matcher")?;
    unsupported(proto.require_tls != 0, "require_tls")?;
    unsupported(!proto.rate_limits.is_empty(), "rate_limits")?;
    unsupported(!proto.typed_per_filter_config.is_empty(), "typed_per_filter_config")?;
    unsupported(proto.retry_policy_typed_config.is_some(), "retry_policy_typed_config")?;
    unsupported(proto.hedge_policy.is_some(), "hedge_policy")?;
    unsupported(!proto.request_mirror_policies.is_empty(), "request_mirror_policies")?;
    unsupported(!proto.route_specifiers.is_empty(), "route_specifiers")?;
    let host = Host {
        request: header_edits(&proto.request_headers_to_add, &proto.request_headers_to_remove, "request")?,
        response: header_edits(&proto.response_headers_to_add, &proto.response_headers_to_remove, "response")?,
        retry: proto.retry_policy.as_ref().map(|it| retry::decode(it).at("retry_policy")).transpose()?,
    };
    if proto.domains.is_empty() {
        return err("domains", "is empty");
    }
    let mut domains: Vec<Box<str>> = Vec::with_capacity(proto.domains.len());
    for (index, it) in proto.domains.iter().enumerate() {
        let it = domain(it).at_index("domains", index)?;
        if domains.contains(&it) {
            return err("", format!("{it:?} occurs twice")).at_index("domains", index);
        }
        domains.push(it);
    }
    let routes = proto.routes.iter().enumerate();
    let routes = routes.map(|(index, it)| route(it, &host).map(Arc::new).at_index("routes", index));
    let extension = extension::<VirtualHostExtension>(proto.metadata.as_ref())?.unwrap_or_default();
    let endpoint = match extension.endpoint.as_str() {
        "" => None,
        text => match text.parse() {
            Ok(address) => Some(address),
            Err(_) => return err("metadata.endpoint", format!("{text:?} is not IP:PORT")),
        },
    };
    Ok(VirtualHost { name, domains, routes: routes.collect::<Result<_>>()?, endpoint })
}

/// What a virtual host adds to each of its routes.
struct Host {
    request: HeaderEdits,
    response: HeaderEdits,
    retry: Option<RetryPolicy>,
}

fn domain(value: &str) -> Result<Box<str>> {
    let rest = value.strip_prefix("*.").unwrap_or(if value == "*" { "any" } else { value });
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    if rest.is_empty() || rest.len() > 259 || !rest.bytes().all(good) {
        return err("", format!("{value:?} is not an authority, *.SUFFIX or *"));
    }
    Ok(value.to_ascii_lowercase().into())
}

fn route(proto: &proto::Route, host: &Host) -> Result<Route> {
    unsupported(!proto.typed_per_filter_config.is_empty(), "typed_per_filter_config")?;
    unsupported(!proto.route_specifiers.is_empty(), "route_specifiers")?;
    let extension = extension::<RouteExtension>(proto.metadata.as_ref())?.unwrap_or_default();
    let mut request_headers = header_edits(&proto.request_headers_to_add, &proto.request_headers_to_remove, "request")?;
    let mut response_headers =
        header_edits(&proto.response_headers_to_add, &proto.response_headers_to_remove, "response")?;
    merge(&mut request_headers, &host.request);
    merge(&mut response_headers, &host.response);
    let Some(matches) = &proto.r#match else { return err("match", "is missing") };
    let action = match &proto.action {
        Some(Action::Route(action)) => {
            let mut forward = forward(action).at("route")?;
            if forward.retry.is_none() {
                forward.retry = host.retry.clone();
            }
            retry::extend(&mut forward.retry, proto, &extension)?;
            RouteAction::Forward(Box::new(forward))
        }
        Some(Action::Redirect(action)) => RouteAction::Redirect(Box::new(redirect(action).at("redirect")?)),
        Some(Action::DirectResponse(action)) => direct_response(action).at("direct_response")?,
        Some(Action::FilterAction(_)) => return err("filter_action", "is not supported"),
        Some(Action::NonForwardingAction(_)) => return err("non_forwarding_action", "is not supported"),
        None => return err("action", "is missing or not known"),
    };
    Ok(Route {
        name: if proto.name.is_empty() { "default".into() } else { name(&proto.name, "name")? },
        matches: route_match(matches).at("match")?,
        action,
        request_headers,
        response_headers,
        source: extension.source.into(),
        revision: extension.revision,
    })
}

/// Envoy applies a route's edits first, then its virtual host's.
fn merge(edits: &mut HeaderEdits, host: &HeaderEdits) {
    edits.remove.extend(host.remove.iter().cloned());
    edits.set.extend(host.set.iter().cloned());
    edits.add.extend(host.add.iter().cloned());
}

fn route_match(proto: &proto::RouteMatch) -> Result<RouteMatch> {
    unsupported(proto.case_sensitive == Some(false), "case_sensitive")?;
    unsupported(!proto.cookies.is_empty(), "cookies")?;
    unsupported(proto.tls_context.is_some(), "tls_context")?;
    unsupported(!proto.dynamic_metadata.is_empty(), "dynamic_metadata")?;
    unsupported(!proto.filter_state.is_empty(), "filter_state")?;
    if let Some(fraction) = &proto.runtime_fraction {
        let all = fraction.default_value.as_ref().is_some_and(|it| {
            let of = match DenominatorType::try_from(it.denominator) {
                Ok(DenominatorType::Hundred) => 100,
                Ok(DenominatorType::TenThousand) => 10_000,
                Ok(DenominatorType::Million) => 1_000_000,
                Err(_) => u32::MAX, // an unknown denominator is never "all"
            };
            it.numerator >= of
        });
        unsupported(!all, "runtime_fraction")?;
    }
    let headers = proto.headers.iter().enumerate();
    let headers = headers.map(|(index, it)| matcher::header(it).at_index("headers", index));
    let query = proto.query_parameters.iter().enumerate();
    let query = query.map(|(index, it)| matcher::query(it).at_index("query_parameters", index));
    Ok(RouteMatch {
        path: path(proto.path_specifier.as_ref())?,
        headers: headers.collect::<Result<_>>()?,
        query: query.collect::<Result<_>>()?,
        grpc: proto.grpc.is_some(),
    })
}

fn path(proto: Option<&PathSpecifier>) -> Result<PathMatch> {
    let absolute = |value: &str, field: &str| -> Result<Box<str>> {
        if !value.starts_with('/') {
            return err(field, format!("{value:?} does not begin with a slash"));
        }
        if value.contains(['?', '#']) {
            return err(field, format!("{value:?} has a query or fragment"));
        }
        Ok(value.into())
    };
    Ok(match proto {
        // gRPC's spelling of "all".
        Some(PathSpecifier::Prefix(value)) if value.is_empty() => PathMatch::Prefix("/".into()),
        Some(PathSpecifier::Prefix(value)) => PathMatch::Prefix(absolute(value, "prefix")?),
        Some(PathSpecifier::Path(value)) => PathMatch::Exact(absolute(value, "path")?),
        Some(PathSpecifier::PathSeparatedPrefix(value)) => {
            let value = absolute(value, "path_separated_prefix")?;
            if value.ends_with('/') {
                return err("path_separated_prefix", "ends with a slash");
            }
            PathMatch::SeparatedPrefix(value)
        }
        Some(PathSpecifier::SafeRegex(value)) => PathMatch::Regex(matcher::regex(value).at("safe_regex")?),
        Some(PathSpecifier::ConnectMatcher(_)) => return err("connect_matcher", "is not supported"),
        Some(PathSpecifier::PathMatchPolicy(_)) => return err("path_match_policy", "is not supported"),
        None => return err("path_specifier", "is missing or not known"),
    })
}

fn forward(proto: &proto::RouteAction) -> Result<Forward> {
    refuse_unsupported(proto)?;
    let clusters = match &proto.cluster_specifier {
        Some(ClusterSpecifier::Cluster(value)) => vec![WeightedCluster {
            name: name(value, "cluster")?,
            weight: 1,
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
        }],
        Some(ClusterSpecifier::WeightedClusters(value)) => weighted(value).at("weighted_clusters")?,
        Some(ClusterSpecifier::ClusterHeader(_)) => return err("cluster_header", "is not supported"),
        Some(ClusterSpecifier::ClusterSpecifierPlugin(_) | ClusterSpecifier::InlineClusterSpecifierPlugin(_)) => {
            return err("cluster_specifier_plugin", "is not supported");
        }
        None => return err("cluster_specifier", "is missing or not known"),
    };
    let host_rewrite = match &proto.host_rewrite_specifier {
        Some(HostRewriteSpecifier::HostRewriteLiteral(value) | HostRewriteSpecifier::HostRewrite(value)) => {
            Some(authority(value).at("host_rewrite_literal")?)
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(false)) | None => None,
        Some(_) => return err("host_rewrite_specifier", "is not supported, only host_rewrite_literal"),
    };
    let hash = proto.hash_policy.iter().enumerate();
    let hash = hash.map(|(index, it)| hash_on(it).at_index("hash_policy", index));
    Ok(Forward {
        clusters,
        timeout: timeout(proto.timeout.as_ref(), "timeout")?,
        idle_timeout: match &proto.idle_timeout {
            // Zero switches off, where `None` would be the default.
            Some(it) => Some(timeout(Some(it), "idle_timeout")?.unwrap_or(LONGEST)),
            None => None,
        },
        retry: proto.retry_policy.as_ref().map(|it| retry::decode(it).at("retry_policy")).transpose()?,
        rewrite: rewrite(proto)?,
        host_rewrite,
        hash: hash.collect::<Result<_>>()?,
    })
}

fn refuse_unsupported(proto: &proto::RouteAction) -> Result<()> {
    unsupported(proto.metadata_match.is_some(), "metadata_match")?;
    unsupported(proto.path_rewrite_policy.is_some(), "path_rewrite_policy")?;
    unsupported(proto.retry_policy_typed_config.is_some(), "retry_policy_typed_config")?;
    unsupported(!proto.request_mirror_policies.is_empty(), "request_mirror_policies")?;
    unsupported(proto.priority != 0, "priority")?;
    unsupported(!proto.rate_limits.is_empty(), "rate_limits")?;
    unsupported(proto.internal_redirect_policy.is_some(), "internal_redirect_policy")?;
    unsupported(proto.hedge_policy.is_some(), "hedge_policy")?;
    unsupported(proto.max_stream_duration.is_some(), "max_stream_duration")?;
    unsupported(proto.append_x_forwarded_host, "append_x_forwarded_host")?;
    #[expect(deprecated, reason = "refused, not read")]
    unsupported(proto.cors.is_some(), "cors")?;
    for (index, it) in proto.upgrade_configs.iter().enumerate() {
        let usual = it.upgrade_type.eq_ignore_ascii_case("websocket") && it.enabled != Some(false);
        unsupported(!usual, "").at_index("upgrade_configs", index)?;
    }
    Ok(())
}

fn weighted(proto: &proto::WeightedCluster) -> Result<Vec<WeightedCluster>> {
    unsupported(proto.random_value_specifier.is_some(), "random_value_specifier")?;
    let mut sum = 0u64;
    let mut clusters = Vec::with_capacity(proto.clusters.len());
    for (index, it) in proto.clusters.iter().enumerate() {
        let cluster = weighted_cluster(it).at_index("clusters", index)?;
        sum += u64::from(cluster.weight);
        clusters.push(cluster);
    }
    match sum {
        0 => err("clusters", "weights sum to zero"),
        1..=0xffff_ffff => Ok(clusters),
        _ => err("clusters", "weights sum to more than 4294967295"),
    }
}

fn weighted_cluster(proto: &proto::weighted_cluster::ClusterWeight) -> Result<WeightedCluster> {
    unsupported(!proto.cluster_header.is_empty(), "cluster_header")?;
    unsupported(proto.metadata_match.is_some(), "metadata_match")?;
    unsupported(!proto.typed_per_filter_config.is_empty(), "typed_per_filter_config")?;
    unsupported(proto.host_rewrite_specifier.is_some(), "host_rewrite_literal")?;
    let Some(weight) = proto.weight else { return err("weight", "is missing") };
    Ok(WeightedCluster {
        name: name(&proto.name, "name")?,
        weight,
        request_headers: header_edits(&proto.request_headers_to_add, &proto.request_headers_to_remove, "request")?,
        response_headers: header_edits(&proto.response_headers_to_add, &proto.response_headers_to_remove, "response")?,
    })
}

fn rewrite(proto: &proto::RouteAction) -> Result<Option<PathRewrite>> {
    let set = [!proto.prefix_rewrite.is_empty(), proto.regex_rewrite.is_some(), !proto.path_rewrite.is_empty()];
    if set.iter().filter(|it| **it).count() > 1 {
        return err("prefix_rewrite", "excludes regex_rewrite and path_rewrite");
    }
    if !proto.prefix_rewrite.is_empty() {
        return new_path(&proto.prefix_rewrite, "prefix_rewrite").map(|it| Some(PathRewrite::Prefix(it)));
    }
    if !proto.path_rewrite.is_empty() {
        unsupported(proto.path_rewrite.contains('%'), "path_rewrite")?;
        return new_path(&proto.path_rewrite, "path_rewrite").map(|it| Some(PathRewrite::Full(it)));
    }
    proto.regex_rewrite.as_ref().map(|it| full_rewrite(it).at("regex_rewrite")).transpose()
}

/// A pattern that takes the whole path; others are not supported.
fn full_rewrite(proto: &RegexMatchAndSubstitute) -> Result<PathRewrite> {
    let pattern = proto.pattern.as_ref().map(|it| it.regex.as_str()).unwrap_or_default();
    if ![FULL_PATH, "^.*$", "^/.*", "^.*"].contains(&pattern) {
        return err("pattern", format!("{pattern:?} is not supported, only {FULL_PATH:?}"));
    }
    unsupported(proto.substitution.contains('\\'), "substitution")?;
    new_path(&proto.substitution, "substitution").map(PathRewrite::Full)
}

fn new_path(value: &str, field: &str) -> Result<Box<str>> {
    if !value.starts_with('/') || value.contains(['?', '#']) || value.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return err(field, format!("{value:?} is not a path"));
    }
    Ok(value.into())
}

fn authority(value: &str) -> Result<HeaderValue> {
    match value.parse::<http::uri::Authority>() {
        Ok(authority) if !authority.as_str().contains('@') => {
            HeaderValue::try_from(value).or_else(|_| err("", format!("{value:?} is not a header value")))
        }
        Ok(_) | Err(_) => err("", format!("{value:?} is not an authority")),
    }
}

fn hash_on(proto: &HashPolicy) -> Result<HashOn> {
    match &proto.policy_specifier {
        Some(PolicySpecifier::Header(header)) => {
            unsupported(header.regex_rewrite.is_some(), "header.regex_rewrite")?;
            header_name(&header.header_name, "header.header_name").map(HashOn::Header)
        }
        Some(PolicySpecifier::ConnectionProperties(it)) if it.source_ip => Ok(HashOn::SourceIp),
        Some(PolicySpecifier::ConnectionProperties(_)) => err("connection_properties.source_ip", "must be true"),
        Some(_) => err("", "only header and connection_properties are supported"),
        None => err("policy_specifier", "is missing or not known"),
    }
}

fn redirect(proto: &RedirectAction) -> Result<Redirect> {
    unsupported(proto.strip_query, "strip_query")?;
    let scheme = match &proto.scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(value)) => match value.to_ascii_lowercase().as_str() {
            scheme @ ("http" | "https") => Some(scheme.into()),
            _ => return err("scheme_redirect", format!("{value:?} is neither http nor https")),
        },
        Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
    };
    let host = match proto.host_redirect.as_str() {
        "" => None,
        host => {
            authority(host).at("host_redirect")?;
            Some(host.into())
        }
    };
    let path = match &proto.path_rewrite_specifier {
        Some(PathRewriteSpecifier::PathRedirect(value)) => Some(PathRewrite::Full(new_path(value, "path_redirect")?)),
        Some(PathRewriteSpecifier::PrefixRewrite(value)) => {
            Some(PathRewrite::Prefix(new_path(value, "prefix_rewrite")?))
        }
        Some(PathRewriteSpecifier::RegexRewrite(_)) => return err("regex_rewrite", "is not supported"),
        Some(PathRewriteSpecifier::PathRewrite(_)) => return err("path_rewrite", "is not supported"),
        None => None,
    };
    let status = match RedirectResponseCode::try_from(proto.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
        Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
        Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
        Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
        Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        Err(unknown) => return err("response_code", format!("{} is not known", unknown.0)),
    };
    let port = match proto.port_redirect {
        0 => None,
        value => Some(port(value, "port_redirect")?),
    };
    Ok(Redirect { scheme, host, port, path, status })
}

fn direct_response(proto: &DirectResponseAction) -> Result<RouteAction> {
    unsupported(proto.body_format.is_some(), "body_format")?;
    let body = match &proto.body {
        Some(source) => inline(source.specifier.as_ref()).at("body")?,
        None => b"",
    };
    if body.len() > LARGEST_BODY {
        return err("body", format!("is longer than {LARGEST_BODY} bytes"));
    }
    let Ok(body) = std::str::from_utf8(body) else { return err("body", "is not UTF-8") };
    Ok(RouteAction::Respond { status: retry::status(proto.status).at("status")?, body: body.into() })
}
