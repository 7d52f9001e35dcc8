//! Routes: filters that fit together, matches that can match.

use std::collections::HashSet;

use crate::{
    check::Report,
    kinds::{
        BackendRef, FilterAction, FilterType, GrpcRoute, HeaderMatch, HeaderModifier, HttpRoute, HttpRouteMatch,
        HttpRouteRule, MatchType, ParentRef, PathMatchType, PathModifier, PathModifierType, QueryParamMatch,
        RequestRedirect, RouteFilter,
    },
    not_yet, rules,
};

/// What is wrong with an HTTPRoute taken by itself.
pub(super) fn http(route: &HttpRoute, report: &mut Report<'_>) {
    let spec = &route.spec;
    parents(&spec.parent_refs, &route.metadata.namespace, report);
    super::unique_names(spec.rules.iter().map(|rule| rule.name.as_deref().unwrap_or("")), "spec.rules", report);
    for (index, rule) in spec.rules.iter().enumerate() {
        http_rule(rule, &format!("spec.rules[{index}]"), report);
    }
}

/// What is wrong with a GRPCRoute taken by itself.
pub(super) fn grpc(route: &GrpcRoute, report: &mut Report<'_>) {
    let spec = &route.spec;
    parents(&spec.parent_refs, &route.metadata.namespace, report);
    super::unique_names(spec.rules.iter().map(|rule| rule.name.as_deref().unwrap_or("")), "spec.rules", report);
    for (index, rule) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        for (place, test) in rule.matches.iter().enumerate() {
            headers(&test.headers, &format!("{at}.matches[{place}].headers"), report);
        }
        filters(&rule.filters, &format!("{at}.filters"), Allowed::Headers, report);
        backends(&rule.backend_refs, &format!("{at}.backendRefs"), report);
    }
}

fn parents(parents: &[ParentRef], namespace: &str, report: &mut Report<'_>) {
    let mut seen = HashSet::new();
    for (index, parent) in parents.iter().enumerate() {
        let at = format!("spec.parentRefs[{index}]");
        service_ref(parent.group.as_deref(), parent.kind.as_deref(), &at, report);
        if let Some(other) = parent.namespace.as_deref().filter(|other| *other != namespace)
            && let Some(instead) = not_yet::value("ParentRef", "namespace", not_yet::ANOTHER_NAMESPACE)
        {
            let message =
                format!("not supported yet: a route for a Service of another namespace, `{other}`; {instead}");
            report.error(&format!("{at}.namespace"), message, "");
        }
        if !seen.insert((&parent.namespace, &parent.name, parent.port, &parent.section_name)) {
            report.error(&at, format!("`{}` stands twice", parent.name), "");
        }
    }
}

/// A reference must be to a Service.
fn service_ref(group: Option<&str>, kind: Option<&str>, at: &str, report: &mut Report<'_>) {
    if let Some(group) = group.filter(|group| !matches!(*group, "" | "core")) {
        report.error(
            &format!("{at}.group"),
            format!("`{group}` has no Service"),
            "write `group: \"\"` or leave it out",
        );
    }
    if let Some(kind) = kind.filter(|kind| *kind != "Service") {
        let message = format!("`{kind}` is not allowed here");
        report.error(&format!("{at}.kind"), message, "routes of the mesh are for Services: `kind: Service`");
    }
}

fn http_rule(rule: &HttpRouteRule, at: &str, report: &mut Report<'_>) {
    for (place, test) in rule.matches.iter().enumerate() {
        http_match(test, &format!("{at}.matches[{place}]"), report);
    }
    filters(&rule.filters, &format!("{at}.filters"), Allowed::All, report);
    prefix_rewrites(rule, at, report);
    backends(&rule.backend_refs, &format!("{at}.backendRefs"), report);
    let redirect = rule.filters.iter().any(|filter| filter.kind == FilterType::RequestRedirect);
    if redirect && !rule.backend_refs.is_empty() {
        let message = "a rule that redirects sends nothing to a service";
        report.error(&format!("{at}.backendRefs"), message, "remove `backendRefs` or the RequestRedirect");
    }
    if !redirect && rule.backend_refs.is_empty() {
        report.error(at, "the rule sends requests nowhere", "add `backendRefs` or a RequestRedirect");
    }
    if let Some(timeouts) = &rule.timeouts
        && let (Some(request), Some(backend)) = (timeouts.request, timeouts.backend_request)
        && request.unless_zero().is_some()
        && (backend > request || backend.unless_zero().is_none())
    {
        let message = format!("{backend} for each try is longer than {request} for the whole request");
        report.error(&format!("{at}.timeouts.backendRequest"), message, "`0s` means no limit");
    }
}

fn http_match(test: &HttpRouteMatch, at: &str, report: &mut Report<'_>) {
    if let Some(path) = &test.path {
        let (kind, value) = path.test();
        let result = match kind {
            PathMatchType::Exact | PathMatchType::PathPrefix => rules::http_path(value),
            PathMatchType::RegularExpression => rules::regex(value).map(|_| ()),
        };
        if let Err(message) = result {
            let hint = if kind == PathMatchType::RegularExpression { "RE2 syntax" } else { "" };
            report.error(&format!("{at}.path.value"), message, hint);
        }
    }
    headers(&test.headers, &format!("{at}.headers"), report);
    let mut seen = HashSet::new();
    for (index, query) in test.query_params.iter().enumerate() {
        query_param(query, &format!("{at}.queryParams[{index}]"), report);
        if !seen.insert(&query.name) {
            let message = format!("`{}` is tested twice", query.name);
            report.error(&format!("{at}.queryParams[{index}].name"), message, "use one regular expression");
        }
    }
}

fn query_param(query: &QueryParamMatch, at: &str, report: &mut Report<'_>) {
    if query.name.is_empty() {
        report.error(&format!("{at}.name"), "must not be empty", "");
    }
    if query.match_type() == MatchType::RegularExpression
        && let Err(message) = rules::regex(&query.value)
    {
        report.error(&format!("{at}.value"), message, "RE2 syntax");
    }
}

fn headers(headers: &[HeaderMatch], at: &str, report: &mut Report<'_>) {
    let mut seen = HashSet::new();
    for (index, header) in headers.iter().enumerate() {
        let result = match header.match_type() {
            MatchType::Exact => rules::TextRule::HeaderValue.check(&header.value),
            MatchType::RegularExpression => rules::regex(&header.value).map(|_| ()),
        };
        if let Err(message) = result {
            report.error(&format!("{at}[{index}].value"), message, "");
        }
        if !seen.insert(header.name.to_ascii_lowercase()) {
            let message = format!("`{}` is tested twice", header.name);
            report.error(&format!("{at}[{index}].name"), message, "use one regular expression");
        }
    }
}

/// Which filters may stand in a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Allowed {
    All,
    Headers,
}

fn filters(filters: &[RouteFilter], at: &str, allowed: Allowed, report: &mut Report<'_>) {
    let mut seen = HashSet::new();
    for (index, filter) in filters.iter().enumerate() {
        let at = format!("{at}[{index}]");
        if !seen.insert(filter.kind) {
            report.error(&at, format!("a second {}", filter.kind), "write both in one filter");
        }
        let set = fields(filter);
        let own = own_field(filter.kind);
        for field in set.iter().filter(|field| **field != own) {
            let message = format!("`{field}` does not belong to `type: {}`", filter.kind);
            report.error(&format!("{at}.{field}"), message, format!("write it as `{own}`, or change `type`"));
        }
        if !set.contains(&own) {
            report.error(&at, format!("`type: {}` needs `{own}`", filter.kind), "");
        }
        let headers_only =
            matches!(filter.kind, FilterType::RequestHeaderModifier | FilterType::ResponseHeaderModifier);
        if allowed == Allowed::Headers && !headers_only {
            let hint = "RequestHeaderModifier and ResponseHeaderModifier are";
            report.error(&at, format!("a {} is not allowed here", filter.kind), hint);
        }
        match filter.action() {
            Some(FilterAction::RequestHeaders(edits)) => header_edits(edits, &format!("{at}.{own}"), report),
            Some(FilterAction::ResponseHeaders(edits)) => header_edits(edits, &format!("{at}.{own}"), report),
            Some(FilterAction::Redirect(redirect)) => self::redirect(redirect, &format!("{at}.{own}"), report),
            Some(FilterAction::Rewrite(rewrite)) => {
                if rewrite.hostname.is_none() && rewrite.path.is_none() {
                    report.error(&format!("{at}.{own}"), "it rewrites nothing", "add `hostname` or `path`");
                }
                path_modifier(rewrite.path.as_ref(), &format!("{at}.{own}.path"), report);
            }
            None => {}
        }
    }
    if seen.contains(&FilterType::RequestRedirect) && seen.contains(&FilterType::UrlRewrite) {
        report.error(
            at,
            "a redirect and a rewrite cannot stand in one rule",
            "the redirect can change the path itself",
        );
    }
}

fn own_field(kind: FilterType) -> &'static str {
    match kind {
        FilterType::RequestHeaderModifier => "requestHeaderModifier",
        FilterType::ResponseHeaderModifier => "responseHeaderModifier",
        FilterType::RequestRedirect => "requestRedirect",
        FilterType::UrlRewrite => "urlRewrite",
        FilterType::RequestMirror => "requestMirror",
        FilterType::Cors => "cors",
        FilterType::ExtensionRef => "extensionRef",
    }
}

fn fields(filter: &RouteFilter) -> Vec<&'static str> {
    [
        ("requestHeaderModifier", filter.request_header_modifier.is_some()),
        ("responseHeaderModifier", filter.response_header_modifier.is_some()),
        ("requestRedirect", filter.request_redirect.is_some()),
        ("urlRewrite", filter.url_rewrite.is_some()),
        ("requestMirror", filter.request_mirror.is_some()),
        ("cors", filter.cors.is_some()),
        ("extensionRef", filter.extension_ref.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, set)| set.then_some(name))
    .collect()
}

fn header_edits(edits: &HeaderModifier, at: &str, report: &mut Report<'_>) {
    let set = edits.set.iter().enumerate().map(|(index, header)| (format!("{at}.set[{index}].name"), &header.name));
    let add = edits.add.iter().enumerate().map(|(index, header)| (format!("{at}.add[{index}].name"), &header.name));
    let remove = edits.remove.iter().enumerate().map(|(index, name)| (format!("{at}.remove[{index}]"), name));
    let mut seen = HashSet::new();
    for (field, name) in set.chain(add).chain(remove) {
        if name.eq_ignore_ascii_case("host") {
            report.error(&field, "the host is not edited as a header", "use a URLRewrite with `hostname`");
        }
        if !seen.insert(name.to_ascii_lowercase()) {
            report.error(&field, format!("`{name}` is edited twice"), "");
        }
    }
    if seen.is_empty() {
        report.error(at, "it edits nothing", "add `set`, `add` or `remove`");
    }
}

fn redirect(redirect: &RequestRedirect, at: &str, report: &mut Report<'_>) {
    if let Some(status) = redirect.status_code
        && !matches!(status, 301 | 302 | 303 | 307 | 308)
    {
        report.error(&format!("{at}.statusCode"), format!("{status} is no redirect"), "one of 301, 302, 303, 307, 308");
    }
    let same = redirect.scheme.is_none() && redirect.hostname.is_none() && redirect.port.is_none();
    if same && redirect.path.is_none() {
        report.error(at, "it redirects to the same address", "add `scheme`, `hostname`, `port` or `path`");
    }
    path_modifier(redirect.path.as_ref(), &format!("{at}.path"), report);
}

fn path_modifier(path: Option<&PathModifier>, at: &str, report: &mut Report<'_>) {
    let Some(path) = path else { return };
    let (own, other, missing, extra) = match path.kind {
        PathModifierType::ReplaceFullPath => {
            let (missing, extra) = (path.replace_full_path.is_none(), path.replace_prefix_match.is_some());
            ("replaceFullPath", "replacePrefixMatch", missing, extra)
        }
        PathModifierType::ReplacePrefixMatch => {
            let (missing, extra) = (path.replace_prefix_match.is_none(), path.replace_full_path.is_some());
            ("replacePrefixMatch", "replaceFullPath", missing, extra)
        }
    };
    if missing {
        report.error(at, format!("`type: {}` needs `{own}`", path.kind), "");
    }
    if extra {
        report.error(&format!("{at}.{other}"), format!("`{other}` does not belong to `type: {}`", path.kind), "");
    }
}

/// What replaces a prefix needs a prefix in every match of the rule.
fn prefix_rewrites(rule: &HttpRouteRule, at: &str, report: &mut Report<'_>) {
    let prefix_only = rule
        .matches
        .iter()
        .all(|test| test.path.as_ref().is_none_or(|path| path.test().0 == PathMatchType::PathPrefix));
    for (index, filter) in rule.filters.iter().enumerate() {
        let path = match filter.action() {
            Some(FilterAction::Redirect(redirect)) => redirect.path.as_ref(),
            Some(FilterAction::Rewrite(rewrite)) => rewrite.path.as_ref(),
            Some(FilterAction::RequestHeaders(_) | FilterAction::ResponseHeaders(_)) | None => None,
        };
        let replaces_prefix = path.is_some_and(|path| path.kind == PathModifierType::ReplacePrefixMatch);
        if replaces_prefix && !prefix_only {
            let field = format!("{at}.filters[{index}].{}.path.type", own_field(filter.kind));
            report.error(&field, "ReplacePrefixMatch needs a PathPrefix in every match of the rule", "");
        }
    }
}

fn backends(backends: &[BackendRef], at: &str, report: &mut Report<'_>) {
    for (index, backend) in backends.iter().enumerate() {
        let at = format!("{at}[{index}]");
        service_ref(backend.group.as_deref(), backend.kind.as_deref(), &at, report);
        filters(&backend.filters, &format!("{at}.filters"), Allowed::Headers, report);
    }
    let sum: u64 = backends.iter().map(|backend| u64::from(backend.weight())).sum();
    if !backends.is_empty() && sum == 0 {
        report.error(at, "the weights sum to zero", "give at least one of them a weight");
    }
    let mut seen = HashSet::new();
    for (index, backend) in backends.iter().enumerate() {
        if !seen.insert((backend.namespace.as_deref(), &backend.name, backend.port, backend.filters.is_empty())) {
            let message = format!("`{}` port {} stands twice", backend.name, backend.port);
            report.error(&format!("{at}[{index}]"), message, "add the weights up");
        }
    }
}
