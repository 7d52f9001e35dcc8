//! One good resource of each type, and a table of what is refused, by the field that the error names.

use std::{collections::BTreeMap, time::Duration};

use prost::{Message, Name};
use prost_types::{Any, Duration as ProtoDuration};
use weft_proto::{
    envoy::{
        config::{
            cluster::v3::{self as cds, cluster as cds_cluster},
            core::v3::{self as core, address, config_source, data_source, socket_address, transport_socket},
            endpoint::v3::{self as eds, lb_endpoint},
            listener::v3::{self as lds, filter},
            rbac::v3::{self as rbac, permission, principal},
            route::v3::{self as rds, header_matcher, route, route_action, route_match},
        },
        extensions::{
            filters::{
                http::{rbac::v3 as http_rbac, router::v3::Router},
                network::{
                    http_connection_manager::v3::{self as hcm, http_connection_manager::RouteSpecifier, http_filter},
                    rbac::v3 as network_rbac,
                    tcp_proxy::v3::TcpProxy,
                },
            },
            transport_sockets::tls::v3 as tls,
            upstreams::http::v3 as upstream,
        },
        r#type::{
            matcher::v3::{self as matching, path_matcher, string_matcher::MatchPattern},
            v3::Percent,
        },
    },
    weft::v1 as weft,
};

use super::{super::*, *};

fn seconds(seconds: i64) -> Option<ProtoDuration> {
    Some(ProtoDuration { seconds, nanos: 0 })
}

fn ads() -> Option<core::ConfigSource> {
    Some(core::ConfigSource {
        resource_api_version: 2,
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
        ..Default::default()
    })
}

fn metadata<M: Name>(extension: &M) -> Option<core::Metadata> {
    let typed = BTreeMap::from([(METADATA_KEY.to_owned(), pack(extension))]);
    Some(core::Metadata { typed_filter_metadata: typed, ..Default::default() })
}

fn exact(text: &str) -> matching::StringMatcher {
    matching::StringMatcher { ignore_case: false, match_pattern: Some(MatchPattern::Exact(text.into())) }
}

fn regex(pattern: &str) -> matching::RegexMatcher {
    matching::RegexMatcher { regex: pattern.into(), engine_type: None }
}

/// Changes a good resource, and expects the error to begin with a field.
#[track_caller]
fn refused<M: Name + Default + Clone>(ty: ResourceType, good: &M, field: &str, change: impl FnOnce(&mut M)) {
    let mut changed = good.clone();
    change(&mut changed);
    match decode(ty, &pack(&changed)) {
        Err(error) => assert!(error.to_string().starts_with(field), "{error}, expected {field}"),
        Ok(decoded) => panic!("expected an error at {field}, got {decoded:#?}"),
    }
}

#[track_caller]
fn accepted<M: Name>(ty: ResourceType, message: &M) -> Decoded {
    decode(ty, &pack(message)).unwrap_or_else(|e| panic!("{e}"))
}

const CALLER: &str = "spiffe://weft.local/ns/default/sa/web";

fn upstream_tls() -> tls::UpstreamTlsContext {
    let san = tls::SubjectAltNameMatcher { san_type: 3, matcher: Some(exact(CALLER)), oid: String::new() };
    let context = tls::CertificateValidationContext { match_typed_subject_alt_names: vec![san], ..Default::default() };
    let combined = tls::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(context),
        validation_context_sds_secret_config: Some(tls::SdsSecretConfig { name: "ROOTCA".into(), sds_config: ads() }),
        ..Default::default()
    };
    let common = tls::CommonTlsContext {
        validation_context_type: Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(
            combined,
        )),
        ..Default::default()
    };
    tls::UpstreamTlsContext {
        sni: sni("default", "orders", 8080),
        common_tls_context: Some(common),
        ..Default::default()
    }
}

fn socket<M: Name>(context: &M) -> Option<core::TransportSocket> {
    let config_type = Some(transport_socket::ConfigType::TypedConfig(pack(context)));
    Some(core::TransportSocket { name: "tls".into(), config_type })
}

fn foreign_cluster() -> cds::Cluster {
    cds::Cluster {
        name: "default/orders:8080".into(),
        cluster_discovery_type: Some(cds_cluster::ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(cds_cluster::EdsClusterConfig { eds_config: ads(), service_name: String::new() }),
        ..Default::default()
    }
}

fn own_cluster() -> cds::Cluster {
    let threshold = cds::circuit_breakers::Thresholds {
        max_connections: Some(10),
        max_pending_requests: Some(20),
        max_requests: Some(30),
        ..Default::default()
    };
    cds::Cluster {
        connect_timeout: Some(ProtoDuration { seconds: 0, nanos: 500_000_000 }),
        lb_policy: cds_cluster::LbPolicy::LeastRequest as i32,
        circuit_breakers: Some(cds::CircuitBreakers { thresholds: vec![threshold], ..Default::default() }),
        transport_socket: socket(&upstream_tls()),
        metadata: metadata(&weft::ClusterExtension {
            service: "default/orders".into(),
            port: 8080,
            protocol: weft::Protocol::Grpc as i32,
            circuit_breaker: Some(weft::CircuitBreaker { consecutive_failures: 7, ..Default::default() }),
            endpoint_breaker: Some(weft::EndpointBreaker {
                consecutive_failures: 3,
                max_ejection_percent: 40,
                ..Default::default()
            }),
            retry_budget: Some(weft::RetryBudget { percent: 15, min_per_second: 4 }),
            balancer: None,
            pool_idle: seconds(9),
            policy: "default/orders@4".into(),
        }),
        ..foreign_cluster()
    }
}

fn cluster(proto: &cds::Cluster) -> std::sync::Arc<Cluster> {
    match accepted(ResourceType::Cluster, proto) {
        Decoded::Cluster(it) => it,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cluster_of_our_own_control_plane() {
    let it = cluster(&own_cluster());
    assert_eq!((&*it.service, it.port, it.protocol), ("default/orders", 8080, Protocol::Grpc));
    assert_eq!((&*it.endpoints, &it.balancer), ("default/orders:8080", &Balancer::LeastRequest));
    assert_eq!(it.connect_timeout, Duration::from_millis(500));
    assert_eq!(it.limits, Limits { connections: 10, pending: 20, requests: 30 });
    assert_eq!(it.circuit_breaker, Some(CircuitBreaker { consecutive_failures: 7, ..Default::default() }));
    let breaker = EndpointBreaker { consecutive_failures: 3, max_ejection_percent: 40, ..Default::default() };
    assert_eq!(it.endpoint_breaker, Some(breaker));
    assert_eq!(it.retry_budget, RetryBudget { percent: 15, min_per_second: 4 });
    assert_eq!((it.pool_idle, &*it.policy), (Duration::from_secs(9), "default/orders@4"));
    let tls = it.tls.as_ref().unwrap();
    assert_eq!((&*tls.sni, tls.identities[0].as_str()), ("p8080.orders.default.weft", CALLER));
}

#[test]
fn a_cluster_of_another_control_plane() {
    let http2 = upstream::http_protocol_options::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(
        core::Http2ProtocolOptions::default(),
    );
    let options = upstream::HttpProtocolOptions {
        upstream_protocol_options: Some(upstream::http_protocol_options::UpstreamProtocolOptions::ExplicitHttpConfig(
            upstream::http_protocol_options::ExplicitHttpConfig { protocol_config: Some(http2) },
        )),
        ..Default::default()
    };
    let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
    let it = cluster(&cds::Cluster {
        typed_extension_protocol_options: BTreeMap::from([(key, pack(&options))]),
        outlier_detection: Some(cds::OutlierDetection { consecutive_5xx: Some(9), ..Default::default() }),
        ..foreign_cluster()
    });
    assert_eq!((&*it.service, it.port, it.protocol), ("default/orders", 8080, Protocol::Http2));
    assert_eq!(it.balancer, Balancer::WeightedRoundRobin, "Envoy's round robin heeds weights");
    let breaker = it.endpoint_breaker.unwrap();
    assert_eq!((breaker.consecutive_failures, breaker.max_ejection_percent), (9, 10));
    assert_eq!((it.tls.as_ref(), it.limits, it.panic_percent), (None, Limits::default(), 50));
}

#[test]
fn clusters_that_are_refused() {
    let good = own_cluster();
    let refused =
        |field: &str, change: &dyn Fn(&mut cds::Cluster)| refused(ResourceType::Cluster, &good, field, change);
    refused("name", &|it| it.name.clear());
    refused("type", &|it| it.cluster_discovery_type = Some(cds_cluster::ClusterDiscoveryType::Type(2)));
    refused("type", &|it| it.cluster_discovery_type = None);
    refused("eds_cluster_config: is missing", &|it| it.eds_cluster_config = None);
    refused("eds_cluster_config.eds_config", &|it| it.eds_cluster_config = Some(Default::default()));
    refused("connect_timeout: is negative", &|it| it.connect_timeout = seconds(-1));
    refused("connect_timeout: is zero", &|it| it.connect_timeout = seconds(0));
    refused("connect_timeout: is longer", &|it| it.connect_timeout = seconds(i64::MAX));
    refused("connect_timeout", &|it| it.connect_timeout = Some(ProtoDuration { seconds: 1, nanos: 1_000_000_000 }));
    refused("lb_policy", &|it| it.lb_policy = cds_cluster::LbPolicy::Maglev as i32);
    refused("lb_policy", &|it| it.lb_policy = 99);
    refused("load_balancing_policy.policies", &|it| it.load_balancing_policy = Some(Default::default()));
    refused("health_checks", &|it| it.health_checks.push(Default::default()));
    refused("typed_extension_protocol_options[x]", &|it| {
        it.typed_extension_protocol_options.insert("x".into(), Any::default());
    });
    for value in [-1.0, 100.5, f64::NAN, f64::INFINITY] {
        refused("common_lb_config.healthy_panic_threshold", &|it| {
            let healthy_panic_threshold = Some(Percent { value });
            it.common_lb_config = Some(cds_cluster::CommonLbConfig { healthy_panic_threshold, ..Default::default() });
        });
    }
    refused("metadata.typed_filter_metadata[weft.mesh]", &|it| {
        it.metadata = metadata(&weft::RouteExtension::default())
    });
    let extension = |it: &mut cds::Cluster, change: &dyn Fn(&mut weft::ClusterExtension)| {
        let any = it.metadata.as_ref().unwrap().typed_filter_metadata[METADATA_KEY].clone();
        let mut decoded = weft::ClusterExtension::decode(any.value.as_slice()).unwrap();
        change(&mut decoded);
        it.metadata = metadata(&decoded);
    };
    refused("metadata.port", &|it| extension(it, &|it| it.port = 65_536));
    refused("metadata.protocol", &|it| extension(it, &|it| it.protocol = 77));
    refused("metadata.retry_budget.percent", &|it| {
        extension(it, &|it| it.retry_budget = Some(weft::RetryBudget { percent: 101, min_per_second: 0 }));
    });
    refused("metadata.balancer.kind", &|it| extension(it, &|it| it.balancer = Some(weft::Balancer { kind: None })));
    refused("metadata.endpoint_breaker.max_open_time", &|it| {
        extension(it, &|it| {
            it.endpoint_breaker = Some(weft::EndpointBreaker {
                base_open_time: seconds(5),
                max_open_time: seconds(1),
                ..Default::default()
            });
        });
    });
    let context = |it: &mut cds::Cluster, change: &dyn Fn(&mut tls::UpstreamTlsContext)| {
        let mut context = upstream_tls();
        change(&mut context);
        it.transport_socket = socket(&context);
    };
    refused("transport_socket.typed_config.sni", &|it| context(it, &|it| it.sni = "a b".into()));
    refused("transport_socket.typed_config: ", &|it| it.transport_socket = socket(&TcpProxy::default()));
    let validation = |it: &mut cds::Cluster, change: &dyn Fn(&mut tls::CertificateValidationContext)| {
        context(it, &|it| {
            let mut inner = tls::CertificateValidationContext::default();
            change(&mut inner);
            it.common_tls_context.as_mut().unwrap().validation_context_type =
                Some(tls::common_tls_context::ValidationContextType::ValidationContext(inner));
        });
    };
    let field = "transport_socket.typed_config.common_tls_context.validation_context";
    refused(field, &|it| validation(it, &|it| it.allow_expired_certificate = true));
    refused(field, &|it| validation(it, &|it| it.trust_chain_verification = 1));
    refused(field, &|it| validation(it, &|it| it.verify_certificate_hash.push("ab".into())));
    refused(field, &|it| {
        validation(it, &|it| {
            let san = tls::SubjectAltNameMatcher { san_type: 2, matcher: Some(exact("a.b")), oid: String::new() };
            it.match_typed_subject_alt_names.push(san);
        });
    });
    refused(field, &|it| {
        validation(it, &|it| {
            let prefix = MatchPattern::Prefix("spiffe://weft.local/".into());
            let matcher = matching::StringMatcher { ignore_case: false, match_pattern: Some(prefix) };
            let san = tls::SubjectAltNameMatcher { san_type: 3, matcher: Some(matcher), oid: String::new() };
            it.match_typed_subject_alt_names.push(san);
        });
    });
}

fn lb_endpoint(address: &str, port: u32) -> eds::LbEndpoint {
    let socket = core::SocketAddress {
        address: address.into(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    let host = eds::Endpoint {
        address: Some(core::Address { address: Some(address::Address::SocketAddress(socket)) }),
        ..Default::default()
    };
    eds::LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(host)),
        load_balancing_weight: Some(3),
        metadata: metadata(&weft::EndpointExtension { identity: CALLER.into(), workload: "default/web/1".into() }),
        ..Default::default()
    }
}

#[test]
fn endpoints() {
    let good = eds::ClusterLoadAssignment {
        cluster_name: "default/orders:8080".into(),
        endpoints: vec![eds::LocalityLbEndpoints {
            locality: Some(core::Locality { zone: "z1".into(), ..Default::default() }),
            priority: 1,
            lb_endpoints: vec![
                eds::LbEndpoint { health_status: 3, ..lb_endpoint("10.0.0.2", 15006) },
                lb_endpoint("10.0.0.1", 15006),
            ],
            ..Default::default()
        }],
        ..Default::default()
    };
    let Decoded::Endpoints(it) = accepted(ResourceType::Endpoints, &good) else { panic!("other type") };
    assert_eq!(it.endpoints[0].address, "10.0.0.1:15006".parse().unwrap(), "in order of address");
    assert_eq!((it.endpoints[0].weight, it.endpoints[0].priority, &*it.endpoints[0].zone), (3, 1, "z1"));
    assert_eq!(it.endpoints[0].identity.as_ref().unwrap().as_str(), CALLER);
    assert_eq!((it.endpoints[0].health, it.endpoints[1].health), (Health::Healthy, Health::Draining));

    let refused = |field: &str, change: &dyn Fn(&mut eds::ClusterLoadAssignment)| {
        refused(ResourceType::Endpoints, &good, field, change);
    };
    let first = "endpoints[0].lb_endpoints[0]";
    refused("cluster_name", &|it| it.cluster_name.clear());
    refused("endpoints[0].priority", &|it| it.endpoints[0].priority = 128);
    refused("endpoints[0].load_balancing_weight", &|it| it.endpoints[0].load_balancing_weight = Some(0));
    refused(&format!("{first}.load_balancing_weight"), &|it| {
        it.endpoints[0].lb_endpoints[0].load_balancing_weight = Some(0);
    });
    refused(&format!("{first}.endpoint.address.address"), &|it| {
        it.endpoints[0].lb_endpoints[0] = lb_endpoint("orders.default", 80);
    });
    refused(&format!("{first}.endpoint.address.port_value"), &|it| {
        it.endpoints[0].lb_endpoints[0] = lb_endpoint("10.0.0.9", 0);
    });
    refused("endpoints[0].lb_endpoints[1].endpoint.address: 10.0.0.2:15006 occurs twice", &|it| {
        it.endpoints[0].lb_endpoints[1] = lb_endpoint("10.0.0.2", 15006);
    });
    refused(&format!("{first}.health_status"), &|it| it.endpoints[0].lb_endpoints[0].health_status = 42);
    refused(&format!("{first}.metadata.identity"), &|it| {
        let extension = weft::EndpointExtension { identity: "https://x".into(), ..Default::default() };
        it.endpoints[0].lb_endpoints[0].metadata = metadata(&extension);
    });
}

fn forward(clusters: &[(&str, u32)]) -> rds::RouteAction {
    let clusters = clusters.iter().map(|(name, weight)| rds::weighted_cluster::ClusterWeight {
        name: (*name).into(),
        weight: Some(*weight),
        ..Default::default()
    });
    rds::RouteAction {
        timeout: seconds(15),
        cluster_specifier: Some(route_action::ClusterSpecifier::WeightedClusters(rds::WeightedCluster {
            clusters: clusters.collect(),
            ..Default::default()
        })),
        retry_policy: Some(rds::RetryPolicy {
            retry_on: "connect-failure,retriable-status-codes, unavailable".into(),
            num_retries: Some(3),
            retriable_status_codes: vec![503, 429],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn add_header(key: &str, value: &str, action: i32) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue { key: key.into(), value: value.into(), raw_value: Vec::new() }),
        append_action: action,
        ..Default::default()
    }
}

fn virtual_host() -> rds::VirtualHost {
    rds::VirtualHost {
        name: "outbound/orders.default:80".into(),
        domains: vec!["Orders.default".into(), "*".into()],
        request_headers_to_add: vec![add_header("x-host", "1", 0)],
        routes: vec![rds::Route {
            name: "default/orders/0".into(),
            r#match: Some(rds::RouteMatch {
                path_specifier: Some(route_match::PathSpecifier::PathSeparatedPrefix("/v1".into())),
                headers: vec![rds::HeaderMatcher {
                    name: ":Method".into(),
                    header_match_specifier: Some(header_matcher::HeaderMatchSpecifier::StringMatch(exact("GET"))),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            action: Some(route::Action::Route(forward(&[("a", 9), ("b", 0), ("c", 1)]))),
            request_headers_to_add: vec![add_header("X-Share", "50%%", 2)],
            metadata: metadata(&weft::RouteExtension {
                source: "HTTPRoute default/orders rule 0".into(),
                revision: 12,
                idempotent: true,
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[test]
fn a_virtual_host() {
    let Decoded::VirtualHost(it) = accepted(ResourceType::VirtualHost, &virtual_host()) else { panic!("other type") };
    assert_eq!(&*it.domains[0], "orders.default");
    let route = &it.routes[0];
    assert_eq!(
        (&*route.name, &*route.source, route.revision),
        ("default/orders/0", "HTTPRoute default/orders rule 0", 12)
    );
    assert!(matches!(&route.matches.path, PathMatch::SeparatedPrefix(it) if &**it == "/v1"));
    assert_eq!(route.matches.headers[0].name, HeaderKey::Method);
    assert_eq!(route.request_headers.set[0].1, "50%");
    assert_eq!(route.request_headers.add[0].0, "x-host", "the virtual host's edits come with each route");
    let RouteAction::Forward(forward) = &route.action else { panic!("no forward") };
    assert_eq!(forward.clusters.iter().map(|it| it.weight).collect::<Vec<_>>(), [9, 0, 1]);
    assert_eq!(forward.timeout, Some(Duration::from_secs(15)));
    let retry = forward.retry.as_ref().unwrap();
    assert!(retry.on.connect_failure && !retry.on.reset && retry.idempotent);
    assert_eq!((retry.on.statuses.len(), retry.on.grpc.as_slice(), retry.retries), (2, &[14u8][..], 3));
}

#[test]
fn a_virtual_host_may_name_the_endpoint_that_is_meant() {
    for (text, address) in
        [("", None), ("10.0.0.5:15006", Some("10.0.0.5:15006")), ("[fd00::5]:1", Some("[fd00::5]:1"))]
    {
        let metadata = metadata(&weft::VirtualHostExtension { endpoint: text.into() });
        let proto = rds::VirtualHost { metadata, ..virtual_host() };
        let Decoded::VirtualHost(it) = accepted(ResourceType::VirtualHost, &proto) else { panic!("other type") };
        assert_eq!(it.endpoint, address.map(|address| address.parse().unwrap()));
    }
}

#[test]
fn timeouts_of_zero_are_off() {
    let mut proto = virtual_host();
    let mut action = forward(&[("a", 1)]);
    action.timeout = seconds(0);
    action.retry_policy = None;
    proto.routes[0].action = Some(route::Action::Route(action));
    proto.routes[0].metadata = None;
    let Decoded::VirtualHost(it) = accepted(ResourceType::VirtualHost, &proto) else { panic!("other type") };
    let RouteAction::Forward(forward) = &it.routes[0].action else { panic!("no forward") };
    assert!(forward.timeout.is_none() && forward.retry.is_none());
}

#[test]
fn virtual_hosts_that_are_refused() {
    let good = virtual_host();
    let host = |field: &str, change: &dyn Fn(&mut rds::VirtualHost)| {
        refused(ResourceType::VirtualHost, &good, field, change);
    };
    host("domains: is empty", &|it| it.domains.clear());
    host("domains[1]: ", &|it| it.domains[1] = "orders.DEFAULT".into());
    host("domains[1]: ", &|it| it.domains[1] = "or*rs".into());
    host("metadata.endpoint", &|it| {
        it.metadata = metadata(&weft::VirtualHostExtension { endpoint: "orders:80".into() });
    });
    host("require_tls", &|it| it.require_tls = 2);
    host("rate_limits", &|it| it.rate_limits.push(Default::default()));
    let route = |field: &str, change: &dyn Fn(&mut rds::Route)| {
        host(&format!("routes[0].{field}"), &|it| change(&mut it.routes[0]));
    };
    route("match: is missing", &|it| it.r#match = None);
    route("action", &|it| it.action = None);
    route("typed_per_filter_config", &|it| {
        it.typed_per_filter_config.insert("x".into(), Any::default());
    });
    for (key, value) in [("host", "x"), (":path", "/"), ("content-length", "1"), ("x", "%REQ(a)%"), ("x", "a\nb")] {
        route("request_headers_to_add[0].header", &|it| it.request_headers_to_add[0] = add_header(key, value, 0));
    }
    route("request_headers_to_add[0].append_action", &|it| it.request_headers_to_add[0].append_action = 1);
    let matched = |field: &str, change: &dyn Fn(&mut rds::RouteMatch)| {
        route(&format!("match.{field}"), &|it| change(it.r#match.as_mut().unwrap()));
    };
    use route_match::PathSpecifier::{Path, PathSeparatedPrefix, SafeRegex};
    matched("path_specifier", &|it| it.path_specifier = None);
    matched("path: ", &|it| it.path_specifier = Some(Path("x".into())));
    matched("path: ", &|it| it.path_specifier = Some(Path("/x?y".into())));
    matched("path_separated_prefix", &|it| it.path_specifier = Some(PathSeparatedPrefix("/x/".into())));
    for pattern in ["", "(", "a)|(b", r"(\w{1000}){1000}", &"a".repeat(5000)] {
        matched("safe_regex.regex", &|it| it.path_specifier = Some(SafeRegex(regex(pattern))));
    }
    matched("case_sensitive", &|it| it.case_sensitive = Some(false));
    matched("cookies", &|it| it.cookies.push(Default::default()));
    matched("headers[0].name", &|it| it.headers[0].name = ":status".into());
    matched("headers[0].treat_missing", &|it| it.headers[0].treat_missing_header_as_empty = true);
    matched("headers[0].string_match.match_pattern", &|it| {
        it.headers[0].header_match_specifier =
            Some(header_matcher::HeaderMatchSpecifier::StringMatch(Default::default()));
    });
    matched("query_parameters[0].name", &|it| it.query_parameters.push(Default::default()));
    let action = |field: &str, change: &dyn Fn(&mut rds::RouteAction)| {
        let mut changed = forward(&[("a", 1)]);
        change(&mut changed);
        route(&format!("route.{field}"), &|it| it.action = Some(route::Action::Route(changed.clone())));
    };
    action("cluster_specifier", &|it| it.cluster_specifier = None);
    action("weighted_clusters.clusters: weights sum to zero", &|it| {
        it.cluster_specifier = forward(&[("a", 0), ("b", 0)]).cluster_specifier;
    });
    action("weighted_clusters.clusters: weights sum to more", &|it| {
        it.cluster_specifier = forward(&[("a", u32::MAX), ("b", 1)]).cluster_specifier;
    });
    action("timeout", &|it| it.timeout = seconds(-1));
    action("request_mirror_policies", &|it| it.request_mirror_policies.push(Default::default()));
    action("hash_policy[0]", &|it| it.hash_policy.push(Default::default()));
    action("prefix_rewrite", &|it| it.prefix_rewrite = "x".into());
    action("regex_rewrite.pattern", &|it| it.regex_rewrite = Some(Default::default()));
    action("host_rewrite_literal", &|it| {
        it.host_rewrite_specifier = Some(route_action::HostRewriteSpecifier::HostRewriteLiteral("a b".into()));
    });
    let retry = |field: &str, change: &dyn Fn(&mut rds::RetryPolicy)| {
        action(&format!("retry_policy.{field}"), &|it| change(it.retry_policy.as_mut().unwrap()));
    };
    retry("retry_on", &|it| it.retry_on = "reset,sunspots".into());
    retry("num_retries", &|it| it.num_retries = Some(101));
    retry("retriable_status_codes[1]", &|it| it.retriable_status_codes = vec![503, 999]);
    retry("per_try_timeout", &|it| it.per_try_timeout = seconds(-3));
    retry("retry_back_off.max_interval", &|it| {
        let (base_interval, max_interval) = (seconds(2), seconds(1));
        it.retry_back_off = Some(rds::retry_policy::RetryBackOff { base_interval, max_interval });
    });
}

#[test]
fn a_route_configuration_that_is_filled_on_demand() {
    let good = rds::RouteConfiguration {
        name: "outbound".into(),
        vhds: Some(rds::Vhds { config_source: ads() }),
        ..Default::default()
    };
    let Decoded::Route(it) = accepted(ResourceType::Route, &good) else { panic!("other type") };
    assert!(it.on_demand && it.virtual_hosts.is_empty());
    refused(ResourceType::Route, &good, "virtual_hosts[1].name", |it| {
        it.virtual_hosts = vec![virtual_host(), virtual_host()];
    });
    refused(ResourceType::Route, &good, "virtual_hosts[1].domains", |it| {
        it.virtual_hosts = vec![virtual_host(), rds::VirtualHost { name: "other".into(), ..virtual_host() }];
    });
    refused(ResourceType::Route, &good, "vhds.config_source", |it| it.vhds = Some(Default::default()));
}

fn rules(action: i32) -> rbac::Rbac {
    let policy = rbac::Policy {
        principals: vec![rbac::Principal {
            identifier: Some(principal::Identifier::Authenticated(principal::Authenticated {
                principal_name: Some(exact(CALLER)),
            })),
        }],
        permissions: vec![rbac::Permission { rule: Some(permission::Rule::DestinationPort(8080)) }],
        ..Default::default()
    };
    rbac::Rbac { action, policies: BTreeMap::from([("default/only-web/0".to_owned(), policy)]), ..Default::default() }
}

fn manager(rbac: Option<http_rbac::Rbac>, route: Option<RouteSpecifier>) -> hcm::HttpConnectionManager {
    let filter = |any| hcm::HttpFilter {
        name: "f".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any)),
        ..Default::default()
    };
    let rbac = rbac.map(|it| filter(pack(&it)));
    hcm::HttpConnectionManager {
        stat_prefix: "in".into(),
        http_filters: rbac.into_iter().chain([filter(pack(&Router::default()))]).collect(),
        route_specifier: route,
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            max_stream_duration: seconds(7),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn network_filter<M: Name>(message: &M) -> lds::Filter {
    lds::Filter { name: "f".into(), config_type: Some(filter::ConfigType::TypedConfig(pack(message))) }
}

fn chain(port: u32, protocol: weft::Protocol, filters: Vec<lds::Filter>) -> lds::FilterChain {
    lds::FilterChain {
        filter_chain_match: Some(lds::FilterChainMatch {
            server_names: vec![sni("default", "orders", port as u16)],
            ..Default::default()
        }),
        filters,
        metadata: metadata(&weft::InboundExtension {
            port,
            service: "default/orders".into(),
            protocol: protocol as i32,
        }),
        transport_socket: socket(&tls::DownstreamTlsContext {
            require_client_certificate: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn inbound() -> lds::Listener {
    let http = http_rbac::Rbac { rules: Some(rules(0)), shadow_rules: Some(rules(1)), ..Default::default() };
    let network = network_rbac::Rbac { rules: Some(rules(0)), stat_prefix: "in".into(), ..Default::default() };
    lds::Listener {
        name: "inbound".into(),
        traffic_direction: core::TrafficDirection::Inbound as i32,
        filter_chains: vec![
            chain(80, weft::Protocol::Http, vec![network_filter(&manager(Some(http), None))]),
            chain(9000, weft::Protocol::Tcp, vec![network_filter(&network), network_filter(&TcpProxy::default())]),
        ],
        ..Default::default()
    }
}

#[test]
fn the_inbound_listener() {
    let decoded = |proto: &lds::Listener| match accepted(ResourceType::Listener, proto) {
        Decoded::Listener(it) => match &it.kind {
            ListenerKind::Inbound(it) => it.clone(),
            ListenerKind::Outbound(_) => panic!("outbound"),
        },
        other => panic!("{other:?}"),
    };
    let it = decoded(&inbound());
    assert!(!it.permissive);
    assert_eq!(
        it.ports.iter().map(|it| (&*it.sni, it.port, it.protocol)).collect::<Vec<_>>(),
        [("p80.orders.default.weft", 80, Protocol::Http), ("p9000.orders.default.weft", 9000, Protocol::Tcp),]
    );
    assert_eq!(it.ports[0].request_timeout, Some(Duration::from_secs(7)));
    let access = &it.ports[0].access;
    assert_eq!(
        access.iter().map(|it| (it.action, it.shadow)).collect::<Vec<_>>(),
        [(RbacAction::Allow, false), (RbacAction::Deny, true),]
    );
    assert_eq!((&*access[0].policies[0].policy, &*access[0].policies[0].rule), ("default/only-web", "0"));
    assert_eq!(it.ports[1].access.len(), 1);

    let mut permissive = inbound();
    for chain in &mut permissive.filter_chains {
        chain.transport_socket = socket(&tls::DownstreamTlsContext::default());
    }
    assert!(decoded(&permissive).permissive);
}

#[test]
fn inbound_listeners_that_are_refused() {
    let good = inbound();
    let refused =
        |field: &str, change: &dyn Fn(&mut lds::Listener)| refused(ResourceType::Listener, &good, field, change);
    refused("traffic_direction", &|it| it.traffic_direction = 0);
    refused("filter_chains: is empty", &|it| it.filter_chains.clear());
    refused("filter_chains[1].filter_chain_match.server_names", &|it| {
        it.filter_chains[1].filter_chain_match = it.filter_chains[0].filter_chain_match.clone();
    });
    refused("filter_chains[1].transport_socket", &|it| it.filter_chains[1].transport_socket = None);
    refused("filter_chains[0].metadata", &|it| it.filter_chains[0].metadata = None);
    refused("filter_chains[0].filter_chain_match.source_ports", &|it| {
        it.filter_chains[0].filter_chain_match.as_mut().unwrap().source_ports.push(1);
    });
    refused("filter_chains[0].filters", &|it| it.filter_chains[0].filters.clear());
    refused("filter_chains[0].filters[0]", &|it| {
        it.filter_chains[0].filters.insert(0, network_filter(&Router::default()));
    });
    refused("filter_chains[0].metadata.protocol", &|it| {
        it.filter_chains[0].filters = vec![network_filter(&TcpProxy::default())];
    });
    refused("filter_chains[0].transport_socket.typed_config.common_tls_context.validation_context", &|it| {
        let names = vec![tls::SubjectAltNameMatcher { san_type: 3, matcher: Some(exact(CALLER)), oid: String::new() }];
        let context = tls::CertificateValidationContext { match_typed_subject_alt_names: names, ..Default::default() };
        let common = tls::CommonTlsContext {
            validation_context_type: Some(tls::common_tls_context::ValidationContextType::ValidationContext(context)),
            ..Default::default()
        };
        let context = tls::DownstreamTlsContext {
            common_tls_context: Some(common),
            require_client_certificate: Some(true),
            ..Default::default()
        };
        it.filter_chains[0].transport_socket = socket(&context);
    });
    let http = |field: &str, change: &dyn Fn(&mut hcm::HttpConnectionManager)| {
        let mut changed = manager(None, None);
        change(&mut changed);
        refused(&format!("filter_chains[0].filters[0].{field}"), &|it| {
            it.filter_chains[0].filters = vec![network_filter(&changed)];
        });
    };
    http("http_filters: has no router", &|it| it.http_filters.clear());
    http("http_filters[0]: envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", &|it| {
        let any = pack(&TcpProxy::default());
        it.http_filters[0].config_type = Some(http_filter::ConfigType::TypedConfig(any));
    });
    http("http_filters[1]: follows the router", &|it| it.http_filters.push(it.http_filters[0].clone()));
}

#[test]
fn a_filter_that_is_not_known_may_be_optional() {
    let mut proto = inbound();
    let mut manager = manager(None, None);
    let any = Any { type_url: "type.googleapis.com/some.Filter".into(), value: Vec::new() };
    let filter = hcm::HttpFilter {
        is_optional: true,
        config_type: Some(http_filter::ConfigType::TypedConfig(any)),
        ..Default::default()
    };
    manager.http_filters.insert(0, filter);
    proto.filter_chains[0].filters = vec![network_filter(&manager)];
    accepted(ResourceType::Listener, &proto);
}

/// Access rules: what is not known is never taken for "all".
#[test]
fn rules_that_are_refused() {
    let http = |field: &str, change: &dyn Fn(&mut rbac::Rbac)| {
        let mut changed = rules(0);
        change(&mut changed);
        let filter = http_rbac::Rbac { rules: Some(changed), ..Default::default() };
        let field = format!("filter_chains[0].filters[0].http_filters[0].typed_config.rules.{field}");
        refused(ResourceType::Listener, &inbound(), &field, |it| {
            it.filter_chains[0].filters = vec![network_filter(&manager(Some(filter), None))];
        });
    };
    http("action: LOG", &|it| it.action = 2);
    http("action: 9", &|it| it.action = 9);
    let policy = |field: &str, change: &dyn Fn(&mut rbac::Policy)| {
        let field = format!("policies[\"default/only-web/0\"].{field}");
        http(&field, &|it| change(it.policies.values_mut().next().unwrap()));
    };
    policy("principals: is empty", &|it| it.principals.clear());
    policy("permissions: is empty", &|it| it.permissions.clear());
    policy("condition", &|it| it.condition = Some(Default::default()));
    policy("principals[0]: is a kind", &|it| it.principals[0].identifier = None);
    policy("permissions[0]: is a kind", &|it| it.permissions[0].rule = None);
    policy("principals[0].any", &|it| it.principals[0].identifier = Some(principal::Identifier::Any(false)));
    policy("principals[0].remote_ip", &|it| {
        it.principals[0].identifier = Some(principal::Identifier::RemoteIp(Default::default()));
    });
    policy("principals[0].and_ids: is empty", &|it| {
        it.principals[0].identifier = Some(principal::Identifier::AndIds(Default::default()));
    });
    policy("principals[0].not_id: is a kind", &|it| {
        it.principals[0].identifier = Some(principal::Identifier::NotId(Box::default()));
    });
    policy("principals[0].authenticated.principal_name.match_pattern", &|it| {
        let principal_name = Some(Default::default());
        it.principals[0].identifier =
            Some(principal::Identifier::Authenticated(principal::Authenticated { principal_name }));
    });
    policy("permissions[0].destination_port: ", &|it| {
        it.permissions[0].rule = Some(permission::Rule::DestinationPort(70_000));
    });
    policy("permissions[0].requested_server_name", &|it| {
        it.permissions[0].rule = Some(permission::Rule::RequestedServerName(exact("x")));
    });
    policy("permissions[0].url_path.path", &|it| {
        it.permissions[0].rule = Some(permission::Rule::UrlPath(matching::PathMatcher { rule: None }));
    });
}

#[test]
fn a_network_filter_cannot_look_at_requests() {
    let mut rules = rules(1);
    let path = matching::PathMatcher { rule: Some(path_matcher::Rule::Path(exact("/admin"))) };
    rules.policies.values_mut().next().unwrap().permissions[0].rule = Some(permission::Rule::UrlPath(path));
    let filter = network_rbac::Rbac { rules: Some(rules), ..Default::default() };
    refused(ResourceType::Listener, &inbound(), "filter_chains[1].filters[0].rules.policies", |it| {
        it.filter_chains[1].filters[0] = network_filter(&filter);
    });
}

#[test]
fn a_field_from_the_future_in_a_rule_is_refused() {
    let filter = http_rbac::Rbac { rules: Some(rules(0)), ..Default::default() };
    let mut any = pack(&filter);
    any.value.extend([0xba, 0x3e, 0x01, 0x00]); // field 999, one byte
    assert!(unpack::<http_rbac::Rbac>(&any).is_ok());
    let error = unpack_known::<http_rbac::Rbac>(&any).unwrap_err();
    assert!(error.message.contains("does not know"), "{error}");
}

#[test]
fn the_outbound_listener() {
    let rds = |source| RouteSpecifier::Rds(hcm::Rds { config_source: source, route_config_name: "outbound".into() });
    let listener = |manager: &hcm::HttpConnectionManager| lds::Listener {
        name: "outbound".into(),
        traffic_direction: core::TrafficDirection::Outbound as i32,
        filter_chains: vec![lds::FilterChain { filters: vec![network_filter(manager)], ..Default::default() }],
        ..Default::default()
    };
    let good = listener(&manager(None, Some(rds(ads()))));
    let Decoded::Listener(it) = accepted(ResourceType::Listener, &good) else { panic!("other type") };
    assert!(matches!(&it.kind, ListenerKind::Outbound(it) if &*it.route_config == "outbound"));
    let ty = ResourceType::Listener;
    refused(ty, &good, "filter_chains[0].filters[0].route_specifier", |it| *it = listener(&manager(None, None)));
    refused(ty, &good, "filter_chains[0].filters[0].rds.config_source", |it| {
        *it = listener(&manager(None, Some(rds(None))));
    });
    let listener_of = |egress| {
        let metadata = metadata(&weft::OutboundExtension { egress });
        lds::Listener { metadata, ..good.clone() }
    };
    for (wire, egress) in [(0, Egress::Any), (1, Egress::Any), (2, Egress::Registered)] {
        let Decoded::Listener(it) = accepted(ty, &listener_of(wire)) else { panic!("other type") };
        assert!(matches!(&it.kind, ListenerKind::Outbound(it) if it.egress == egress), "{wire}");
    }
    refused(ty, &good, "metadata.egress", |it| *it = listener_of(3));
    let filter = http_rbac::Rbac { rules: Some(rules(0)), ..Default::default() };
    refused(ty, &good, "filter_chains[0].filters[0].http_filters[0]", |it| {
        *it = listener(&manager(Some(filter), Some(rds(ads()))));
    });
}

#[test]
fn secrets() {
    let domain = weft_identity::TrustDomain::parse("weft.local").unwrap();
    let authority = weft_identity::ca::Authority::create(domain, std::time::SystemTime::now()).unwrap();
    let pem = authority.bundle().to_pem();
    let secret = |text: &str| tls::Secret {
        name: "ROOTCA".into(),
        r#type: Some(tls::secret::Type::ValidationContext(tls::CertificateValidationContext {
            trusted_ca: Some(core::DataSource {
                specifier: Some(data_source::Specifier::InlineString(text.into())),
                ..Default::default()
            }),
            ..Default::default()
        })),
    };
    let Decoded::Secret(it) = accepted(ResourceType::Secret, &secret(&pem)) else { panic!("other type") };
    assert_eq!(it.roots.len(), 1);
    let ty = ResourceType::Secret;
    refused(ty, &secret(&pem), "validation_context.trusted_ca", |it| *it = secret(""));
    refused(ty, &secret(&pem), "validation_context.trusted_ca", |it| {
        *it = secret("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    });
    refused(ty, &secret(&pem), "tls_certificate", |it| {
        it.r#type = Some(tls::secret::Type::TlsCertificate(Default::default()));
    });
}

#[test]
fn bytes_that_are_no_resource() {
    let url = ResourceType::Cluster.url().to_owned();
    let error = decode(ResourceType::Cluster, &Any { type_url: url, value: vec![0xff; 9] }).unwrap_err();
    assert!(error.message.contains("malformed"), "{error}");
    let error = decode(ResourceType::Listener, &pack(&own_cluster())).unwrap_err();
    assert!(error.message.contains("expected"), "{error}");
}

proptest::proptest! {
    /// Whatever the bytes are, the decoder answers; and changing one byte of a good resource never makes it panic.
    #[test]
    fn any_bytes_have_an_answer(ty in 0usize..ResourceType::COUNT, bytes: Vec<u8>, at: usize, value: u8) {
        let ty = ResourceType::ALL[ty];
        let random = Any { type_url: ty.url().to_owned(), value: bytes };
        drop(decode(ty, &random));
        for (ty, mut any) in [(ResourceType::Cluster, pack(&own_cluster())), (ResourceType::Listener, pack(&inbound())),
            (ResourceType::VirtualHost, pack(&virtual_host()))] {
            let length = any.value.len();
            any.value[at % length] = value;
            drop(decode(ty, &any));
        }
    }
}
