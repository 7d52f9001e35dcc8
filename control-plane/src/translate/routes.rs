//! Virtual hosts: the routes of one port of a service, from the HTTPRoutes and GRPCRoutes attached to it.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use http::{HeaderName, HeaderValue, StatusCode};
use weft_model::{
    BackendRef, CallRoute, EffectiveTraffic, FilterAction, GrpcCandidate, GrpcMethodMatch, HeaderModifier,
    HttpCandidate, HttpRouteMatch, MatchType, PathMatchType, PathReplacement, RequestRedirect, RouteFilter, Scheme,
    ServicePort, TargetKind,
};
use weft_xds::resource::{
    Balancer, Forward, HashOn, HeaderEdits, HeaderKey, HeaderMatch, HeaderTest, PathMatch, PathRewrite, QueryMatch,
    Redirect, RetryOn, RetryPolicy, Route, RouteAction, RouteMatch, StringMatch, VirtualHost, WeightedCluster,
};

use super::{
    access::{header_match, pattern, text_match},
    cluster, names,
};
use crate::index::{Map, ObjectKey, ServiceKey, World};

/// The port that a host means; `None`: there is no such service or port.
pub fn resolve(world: &World, host: &names::Host) -> Option<u16> {
    let ports = cluster::ports(world, &host.service);
    match host.port {
        Some(port) => ports.contains(&port).then_some(port),
        None => names::default_port(&ports),
    }
}

/// The authorities of a service, with a port or without. `from`: namespace in which the short form is meant as well.
pub fn domains(service: &ServiceKey, port: Option<u16>, from: Option<&str>) -> Vec<Box<str>> {
    let hosts = names::hosts(service, from).into_iter();
    hosts.map(|host| port.map_or_else(|| host.clone(), |port| format!("{host}:{port}")).into()).collect()
}

/// The virtual host of a port. Routes stand in the Gateway API's order of precedence, so that the first match is the
/// right one; a port without routes has one that leads to the service itself.
pub fn virtual_host(
    world: &World,
    service: &ServiceKey,
    port: u16,
    name: &str,
    domains: Vec<Box<str>>,
) -> Option<VirtualHost> {
    let port = world.services.get(service)?.service.port(port)?;
    let target = Target { world, service, port };
    let grpc = of_namespace(&world.grpc_routes, service)
        .filter(|route| route.resource.attached(service, port.port, &port.name));
    let http = of_namespace(&world.http_routes, service)
        .filter(|route| route.resource.attached(service, port.port, &port.name));
    // A GRPCRoute takes gRPC calls only, so it goes first.
    let grpc = weft_model::grpc_precedence(grpc.map(|route| &*route.resource)).into_iter().map(|it| target.grpc(&it));
    let http = weft_model::http_precedence(http.map(|route| &*route.resource)).into_iter().map(|it| target.http(&it));
    let mut routes: Vec<Arc<Route>> = grpc.chain(http).map(Arc::new).collect();
    if routes.is_empty() {
        routes.push(Arc::new(target.own()));
    }
    Some(VirtualHost { name: name.into(), domains, routes, endpoint: None })
}

/// The virtual host of an address: of a service's own address, that service's; of an endpoint's, one whose calls all go
/// to that endpoint, by the service's cluster. Routes do not concern whoever has chosen the endpoint himself.
pub fn at(world: &World, address: SocketAddr, name: &str) -> Option<VirtualHost> {
    let place = world.at(address)?;
    let domains = vec![address.to_string().into()];
    if place.endpoint.is_none() {
        return virtual_host(world, &place.service, place.port, name, domains);
    }
    let port = world.services.get(&place.service)?.service.port(place.port)?;
    let own = Target { world, service: &place.service, port }.own();
    Some(VirtualHost { name: name.into(), domains, routes: vec![Arc::new(own)], endpoint: place.endpoint })
}

/// Services whose routes lead to `backend`.
pub fn leading_to(world: &World, backend: &ServiceKey) -> BTreeSet<ServiceKey> {
    let mut parents = BTreeSet::new();
    for (key, route) in &world.http_routes {
        let backends = route.resource.spec.rules.iter().flat_map(|rule| &rule.backend_refs);
        if backends.into_iter().any(|reference| reference.service(&key.namespace) == *backend) {
            parents.extend(route.resource.spec.parent_refs.iter().map(|parent| parent.service(&key.namespace)));
        }
    }
    for (key, route) in &world.grpc_routes {
        let backends = route.resource.spec.rules.iter().flat_map(|rule| &rule.backend_refs);
        if backends.into_iter().any(|reference| reference.service(&key.namespace) == *backend) {
            parents.extend(route.resource.spec.parent_refs.iter().map(|parent| parent.service(&key.namespace)));
        }
    }
    parents
}

/// Backends of the routes of a port.
pub fn backends(world: &World, service: &ServiceKey, port: u16) -> BTreeSet<(ServiceKey, u16)> {
    let host = virtual_host(world, service, port, "", Vec::new());
    let routes = host.iter().flat_map(|host| &host.routes);
    let clusters = routes.filter_map(|route| match &route.action {
        RouteAction::Forward(forward) => Some(&forward.clusters),
        RouteAction::Redirect(_) | RouteAction::Respond { .. } => None,
    });
    clusters.flatten().filter_map(|cluster| names::of_cluster(&cluster.name)).collect()
}

fn of_namespace<'a, T>(routes: &'a Map<ObjectKey, T>, service: &'a ServiceKey) -> impl Iterator<Item = &'a T> {
    let first = ObjectKey::new(service.namespace.clone(), String::new());
    let all = routes.range(first..).take_while(|(key, _)| key.namespace == service.namespace);
    all.map(|(_, route)| route)
}

/// The port whose routes are built.
struct Target<'a> {
    world: &'a World,
    service: &'a ServiceKey,
    port: &'a ServicePort,
}

impl Target<'_> {
    /// A port that no route is attached to: everything goes to the service itself.
    fn own(&self) -> Route {
        let traffic = cluster::traffic(self.world, self.service, self.port, None);
        let own = WeightedCluster {
            name: (&*names::cluster(self.service, self.port.port)).into(),
            weight: 1,
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
        };
        Route {
            name: "default".into(),
            matches: RouteMatch::any(),
            action: RouteAction::Forward(Box::new(self.forward(vec![own], &traffic))),
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
            source: format!("Service {}", self.service).into(),
            revision: self.world.services.get(self.service).map_or(0, |entry| entry.revision),
        }
    }

    fn http(&self, candidate: &HttpCandidate<'_>) -> Route {
        let (route, index) = (candidate.route, candidate.rule);
        let rule = &route.spec.rules[index];
        let key = ObjectKey::new(route.metadata.namespace.clone(), route.metadata.name.clone());
        let call = call_route(TargetKind::HttpRoute, &key, rule.name.as_deref());
        let traffic = cluster::traffic(self.world, self.service, self.port, Some(call));
        let revision = self.world.http_routes.get(&key).map_or(0, |route| route.revision);
        let traffic = traffic.with_rule(rule, &format!("HTTPRoute {key}@{revision}"));
        let every = HttpRouteMatch::default();
        self.rule(Rule {
            kind: "HTTPRoute",
            key: &key,
            label: &rule.label(index),
            revision,
            matches: http_match(candidate.test.unwrap_or(&every)),
            filters: &rule.filters,
            backends: &rule.backend_refs,
            traffic: &traffic,
        })
    }

    fn grpc(&self, candidate: &GrpcCandidate<'_>) -> Route {
        let (route, index) = (candidate.route, candidate.rule);
        let rule = &route.spec.rules[index];
        let key = ObjectKey::new(route.metadata.namespace.clone(), route.metadata.name.clone());
        let call = call_route(TargetKind::GrpcRoute, &key, rule.name.as_deref());
        let traffic = cluster::traffic(self.world, self.service, self.port, Some(call));
        let headers = candidate.test.map_or(&[][..], |test| &test.headers[..]).iter();
        self.rule(Rule {
            kind: "GRPCRoute",
            key: &key,
            label: &rule.label(index),
            revision: self.world.grpc_routes.get(&key).map_or(0, |route| route.revision),
            matches: RouteMatch {
                path: grpc_path(candidate.test.and_then(|test| test.method.as_ref())),
                headers: headers.map(|test| header_match(&test.name, test.match_type(), &test.value)).collect(),
                query: Vec::new(),
                grpc: true,
            },
            filters: &rule.filters,
            backends: &rule.backend_refs,
            traffic: &traffic,
        })
    }

    fn rule(&self, rule: Rule<'_>) -> Route {
        let (mut request_headers, mut response_headers) = (HeaderEdits::default(), HeaderEdits::default());
        let (mut rewrite, mut host_rewrite, mut redirect) = (None, None, None);
        for action in rule.filters.iter().filter_map(RouteFilter::action) {
            match action {
                FilterAction::RequestHeaders(modifier) => edit(&mut request_headers, modifier),
                FilterAction::ResponseHeaders(modifier) => edit(&mut response_headers, modifier),
                FilterAction::Redirect(to) => redirect = Some(redirect_to(to)),
                FilterAction::Rewrite(to) => {
                    rewrite = to.path.as_ref().and_then(|path| path.replacement()).map(path_rewrite);
                    host_rewrite = to.hostname.as_deref().and_then(|host| HeaderValue::from_str(host).ok());
                }
            }
        }
        let source = format!("{} {} rule {}", rule.kind, rule.key, rule.label);
        let clusters: Vec<WeightedCluster> =
            rule.backends.iter().filter_map(|backend| self.backend(backend, &rule.key.namespace)).collect();
        let action = match redirect {
            Some(redirect) => RouteAction::Redirect(Box::new(redirect)),
            None if clusters.is_empty() => RouteAction::Respond {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                body: format!("{source}: no backend with a weight exists\n").into(),
            },
            None => RouteAction::Forward(Box::new(Forward {
                rewrite,
                host_rewrite,
                ..self.forward(clusters, rule.traffic)
            })),
        };
        Route {
            name: format!("{}/{}", rule.key, rule.label).into(),
            matches: rule.matches,
            action,
            request_headers,
            response_headers,
            source: source.into(),
            revision: rule.revision,
        }
    }

    /// `None`: it gets nothing, or does not exist; the others share what it would have had.
    fn backend(&self, backend: &BackendRef, namespace: &str) -> Option<WeightedCluster> {
        let service = backend.service(namespace);
        self.world.services.get(&service)?.service.port(backend.port)?;
        let (mut request_headers, mut response_headers) = (HeaderEdits::default(), HeaderEdits::default());
        for action in backend.filters.iter().filter_map(RouteFilter::action) {
            match action {
                FilterAction::RequestHeaders(modifier) => edit(&mut request_headers, modifier),
                FilterAction::ResponseHeaders(modifier) => edit(&mut response_headers, modifier),
                // Refused at apply: only header modifiers may stand here.
                FilterAction::Redirect(_) | FilterAction::Rewrite(_) => {}
            }
        }
        (backend.weight() > 0).then(|| WeightedCluster {
            name: (&*names::cluster(&service, backend.port)).into(),
            weight: backend.weight(),
            request_headers,
            response_headers,
        })
    }

    fn forward(&self, clusters: Vec<WeightedCluster>, traffic: &EffectiveTraffic) -> Forward {
        let hash = self.hash(&clusters);
        Forward {
            clusters,
            timeout: *traffic.timeouts.request,
            idle_timeout: *traffic.timeouts.idle,
            retry: retry(traffic),
            rewrite: None,
            host_rewrite: None,
            hash,
        }
    }

    /// What the balancers of these clusters hash.
    fn hash(&self, clusters: &[WeightedCluster]) -> Vec<HashOn> {
        let mut out = Vec::new();
        for (service, port) in clusters.iter().filter_map(|cluster| names::of_cluster(&cluster.name)) {
            let entry = self.world.services.get(&service);
            let Some(port) = entry.and_then(|entry| entry.service.port(port)) else { continue };
            let on = match cluster::balancer(&cluster::traffic(self.world, &service, port, None)) {
                Balancer::SourceIp | Balancer::ConsistentHash { header: None, .. } => HashOn::SourceIp,
                Balancer::ConsistentHash { header: Some(header), .. } => HashOn::Header(header),
                _ => continue,
            };
            if !out.contains(&on) {
                out.push(on);
            }
        }
        out
    }
}

/// What a rule of either kind of route says.
struct Rule<'a> {
    kind: &'static str,
    key: &'a ObjectKey,
    label: &'a str,
    revision: u64,
    matches: RouteMatch,
    filters: &'a [RouteFilter],
    backends: &'a [BackendRef],
    traffic: &'a EffectiveTraffic,
}

fn call_route<'a>(kind: TargetKind, key: &'a ObjectKey, rule: Option<&'a str>) -> CallRoute<'a> {
    CallRoute { kind, namespace: &key.namespace, name: &key.name, rule }
}

/// `None` when every value is a default: the sidecar's own default policy is the same.
fn retry(traffic: &EffectiveTraffic) -> Option<RetryPolicy> {
    let (retry, per_try) = (&traffic.retry, &traffic.timeouts.per_try);
    let decided = traffic.leaves().iter().any(|leaf| {
        leaf.by.is_some()
            && (leaf.field == "timeouts.perTry"
                || leaf.field.starts_with("retry.") && !leaf.field.starts_with("retry.budget."))
    });
    decided.then(|| RetryPolicy {
        retries: *retry.attempts,
        on: retry_on(traffic),
        per_try_timeout: **per_try,
        backoff_base: *retry.backoff_base,
        backoff_max: *retry.backoff_max,
        idempotent: *retry.idempotent,
        body_bytes: retry.body_bytes.value as usize,
    })
}

fn retry_on(traffic: &EffectiveTraffic) -> RetryOn {
    use weft_model::RetryOn as Named;
    let named = |on: Named| traffic.retry.on.contains(&on);
    RetryOn {
        connect_failure: named(Named::ConnectFailure),
        refused_stream: named(Named::RefusedStream),
        reset: named(Named::Reset),
        gateway_error: named(Named::GatewayError),
        server_error: named(Named::ServerError),
        statuses: traffic.retry.status_codes.iter().filter_map(|code| StatusCode::from_u16(*code).ok()).collect(),
        grpc: traffic.retry.grpc_codes.iter().map(|code| code.number()).collect(),
    }
}

fn http_match(test: &HttpRouteMatch) -> RouteMatch {
    let mut headers: Vec<HeaderMatch> =
        test.headers.iter().map(|header| header_match(&header.name, header.match_type(), &header.value)).collect();
    if let Some(method) = &test.method {
        let value = StringMatch::Exact { value: method.as_str().into(), ignore_case: false };
        headers.insert(0, HeaderMatch { name: HeaderKey::Method, test: HeaderTest::Value(value), invert: false });
    }
    RouteMatch {
        path: test.path.as_ref().map_or_else(|| PathMatch::Prefix("/".into()), |path| path_match(path.test())),
        headers,
        query: test
            .query_params
            .iter()
            .map(|test| QueryMatch {
                name: test.name.as_str().into(),
                value: Some(text_match(test.match_type(), &test.value)),
            })
            .collect(),
        grpc: false,
    }
}

/// A prefix ends at a `/`, and its own last `/` does not matter: `/a/` takes `/a` as well.
fn path_match((kind, value): (PathMatchType, &str)) -> PathMatch {
    match kind {
        PathMatchType::Exact => PathMatch::Exact(value.into()),
        PathMatchType::RegularExpression => PathMatch::Regex(pattern(value)),
        PathMatchType::PathPrefix => match value.trim_end_matches('/') {
            "" => PathMatch::Prefix("/".into()),
            prefix => PathMatch::SeparatedPrefix(prefix.into()),
        },
    }
}

fn grpc_path(method: Option<&GrpcMethodMatch>) -> PathMatch {
    let Some(test) = method else { return PathMatch::Prefix("/".into()) };
    let (service, method) = (test.service.as_deref(), test.method.as_deref());
    match (test.kind.unwrap_or_default(), service, method) {
        (MatchType::Exact, Some(service), Some(method)) => PathMatch::Exact(format!("/{service}/{method}").into()),
        (MatchType::Exact, Some(service), None) => PathMatch::SeparatedPrefix(format!("/{service}").into()),
        (MatchType::Exact, None, Some(method)) => {
            PathMatch::Regex(pattern(&format!("/[^/]+/{}", regex::escape(method))))
        }
        (_, None, None) => PathMatch::Prefix("/".into()),
        (MatchType::RegularExpression, service, method) => {
            let (service, method) = (service.unwrap_or("[^/]+"), method.unwrap_or("[^/]+"));
            PathMatch::Regex(pattern(&format!("/(?:{service})/(?:{method})")))
        }
    }
}

fn edit(edits: &mut HeaderEdits, modifier: &HeaderModifier) {
    let header = |header: &weft_model::Header| {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_str(&header.value).ok()?))
    };
    edits.remove.extend(modifier.remove.iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()));
    edits.set.extend(modifier.set.iter().filter_map(header));
    edits.add.extend(modifier.add.iter().filter_map(header));
}

fn redirect_to(to: &RequestRedirect) -> Redirect {
    Redirect {
        scheme: to.scheme.map(|scheme| match scheme {
            Scheme::Http => "http".into(),
            Scheme::Https => "https".into(),
        }),
        host: to.hostname.as_deref().map(Into::into),
        port: to.port,
        path: to.path.as_ref().and_then(|path| path.replacement()).map(path_rewrite),
        status: to.status_code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::FOUND),
    }
}

fn path_rewrite(replacement: PathReplacement<'_>) -> PathRewrite {
    match replacement {
        PathReplacement::Full(path) => PathRewrite::Full(path.into()),
        PathReplacement::Prefix("") => PathRewrite::Prefix("/".into()),
        PathReplacement::Prefix(prefix) => PathRewrite::Prefix(prefix.into()),
    }
}
