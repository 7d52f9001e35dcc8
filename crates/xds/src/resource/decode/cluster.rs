//! Clusters.

use std::time::Duration;

use prost_types::Any;
use weft_proto::{
    envoy::{
        config::{
            cluster::v3::{
                self as proto, OutlierDetection,
                circuit_breakers::Thresholds,
                cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy, ring_hash_lb_config},
            },
            core::v3::{RoutingPriority, TransportSocket, transport_socket},
        },
        extensions::{
            load_balancing_policies::{
                least_request::v3::LeastRequest, ring_hash::v3 as ring, wrr_locality::v3::WrrLocality,
            },
            transport_sockets::tls::v3::{
                CertificateValidationContext, CommonTlsContext, SubjectAltNameMatcher, UpstreamTlsContext,
                certificate_validation_context::TrustChainVerification, common_tls_context::ValidationContextType,
                subject_alt_name_matcher::SanType, tls_parameters::TlsProtocol,
            },
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
            },
        },
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    weft::v1::{self as weft, ClusterExtension, balancer},
};

use super::{
    super::{Balancer, CircuitBreaker, Cluster, EndpointBreaker, Limits, Protocol, RetryBudget, UpstreamTls},
    DecodeError, unpack,
    value::{
        At, Result, err, extension, header_name, identity, message_name, name, over_ads, percent, port, positive,
        server_name, unsupported, whole_percent,
    },
};

/// Where no policy says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const POOL_IDLE: Duration = Duration::from_secs(60);
const PANIC_PERCENT: u8 = 50;
const VIRTUAL_NODES: u32 = 100;
/// More points for each unit of weight help no one.
const MOST_VIRTUAL_NODES: u32 = 65_536;

const HTTP_PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

pub(super) fn decode(proto: proto::Cluster) -> Result<Cluster> {
    let name = name(&proto.name, "name")?;
    refuse_unsupported(&proto)?;
    let endpoints = endpoints_name(&proto)?;
    let extension = extension::<ClusterExtension>(proto.metadata.as_ref())?;
    let http = http_options(&proto)?;
    let (service, port) = destination(&name, extension.as_ref())?;
    let timeout = proto.connect_timeout.as_ref().map(|it| positive(it, "connect_timeout")).transpose()?;
    let panic = proto.common_lb_config.as_ref().and_then(|it| it.healthy_panic_threshold.as_ref());
    let panic = panic.map(|it| percent(it, "common_lb_config.healthy_panic_threshold")).transpose()?;
    let thresholds = default_thresholds(&proto)?;
    let ext = extension.as_ref();
    Ok(Cluster {
        service,
        port,
        protocol: protocol(ext, http.as_ref())?,
        endpoints: endpoints.unwrap_or_else(|| name.clone()),
        balancer: balancer(&proto, ext)?,
        connect_timeout: timeout.unwrap_or(CONNECT_TIMEOUT),
        limits: limits(thresholds),
        circuit_breaker: ext.and_then(|it| it.circuit_breaker.as_ref()).map(circuit_breaker).transpose()?,
        endpoint_breaker: endpoint_breaker(&proto, ext)?,
        retry_budget: retry_budget(thresholds, ext)?,
        pool_idle: pool_idle(ext, http.as_ref())?,
        tls: proto.transport_socket.as_ref().map(upstream_tls).transpose().at("transport_socket")?.flatten(),
        policy: ext.map(|it| it.policy.as_str()).unwrap_or_default().into(),
        panic_percent: panic.unwrap_or(PANIC_PERCENT),
        name,
    })
}

fn refuse_unsupported(proto: &proto::Cluster) -> Result<()> {
    unsupported(!proto.transport_socket_matches.is_empty(), "transport_socket_matches")?;
    unsupported(proto.transport_socket_matcher.is_some(), "transport_socket_matcher")?;
    unsupported(proto.load_assignment.is_some(), "load_assignment")?;
    unsupported(!proto.health_checks.is_empty(), "health_checks")?;
    unsupported(proto.lb_subset_config.is_some(), "lb_subset_config")?;
    unsupported(proto.upstream_bind_config.is_some(), "upstream_bind_config")?;
    unsupported(!proto.filters.is_empty(), "filters")?;
    unsupported(proto.upstream_config.is_some(), "upstream_config")?;
    unsupported(proto.queuing_policies.is_some(), "queuing_policies")
}

/// The name of the endpoints, if it differs from the cluster's.
fn endpoints_name(proto: &proto::Cluster) -> Result<Option<Box<str>>> {
    match &proto.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(ty)) if *ty == DiscoveryType::Eds as i32 => {}
        Some(ClusterDiscoveryType::Type(ty)) => {
            let ty = DiscoveryType::try_from(*ty).map(|it| it.as_str_name()).unwrap_or("unknown");
            return err("type", format!("{ty} is not supported, only EDS"));
        }
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return err("cluster_type", format!("{:?} is not supported, only EDS", custom.name));
        }
        None => return err("type", "STATIC is not supported, only EDS"),
    }
    let Some(eds) = &proto.eds_cluster_config else { return err("eds_cluster_config", "is missing") };
    over_ads(eds.eds_config.as_ref()).at("eds_cluster_config.eds_config")?;
    match eds.service_name.as_str() {
        "" => Ok(None),
        service_name => name(service_name, "eds_cluster_config.service_name").map(Some),
    }
}

/// Service and port: from the extension, else from a name like `namespace/service:port`.
fn destination(cluster: &str, extension: Option<&ClusterExtension>) -> Result<(Box<str>, u16)> {
    match extension {
        Some(it) if !it.service.is_empty() => {
            Ok((name(&it.service, "metadata.service")?, port(it.port, "metadata.port")?))
        }
        Some(_) | None => Ok(match cluster.rsplit_once(':') {
            Some((service, port)) if !service.is_empty() => match port.parse() {
                Ok(port) => (service.into(), port),
                // Another control plane's name that merely has a colon.
                Err(_) => (cluster.into(), 0),
            },
            Some(_) | None => (cluster.into(), 0),
        }),
    }
}

fn http_options(proto: &proto::Cluster) -> Result<Option<HttpProtocolOptions>> {
    let mut found = None;
    for (key, any) in &proto.typed_extension_protocol_options {
        let field = format!("typed_extension_protocol_options[{key}]");
        if key != HTTP_PROTOCOL_OPTIONS {
            return err(field, "is not supported");
        }
        let options: HttpProtocolOptions = unpack(any).at(&field)?;
        unsupported(!options.http_filters.is_empty(), "http_filters").at(&field)?;
        unsupported(!options.request_mirror_policies.is_empty(), "request_mirror_policies").at(&field)?;
        unsupported(!options.hash_policy.is_empty(), "hash_policy").at(&field)?;
        unsupported(options.retry_policy.is_some(), "retry_policy").at(&field)?;
        unsupported(options.outlier_detection.is_some(), "outlier_detection").at(&field)?;
        found = Some(options);
    }
    Ok(found)
}

/// What flows, as an extension says.
pub(super) fn weft_protocol(value: i32) -> Result<Protocol> {
    Ok(match weft::Protocol::try_from(value) {
        Ok(weft::Protocol::Unspecified) => Protocol::Detect,
        Ok(weft::Protocol::Http) => Protocol::Http,
        Ok(weft::Protocol::Http2) => Protocol::Http2,
        Ok(weft::Protocol::Grpc) => Protocol::Grpc,
        Ok(weft::Protocol::Tcp) => Protocol::Tcp,
        Err(unknown) => return err("metadata.protocol", format!("{} is not known", unknown.0)),
    })
}

fn protocol(extension: Option<&ClusterExtension>, http: Option<&HttpProtocolOptions>) -> Result<Protocol> {
    if let Some(extension) = extension {
        return weft_protocol(extension.protocol);
    }
    let Some(options) = http.and_then(|it| it.upstream_protocol_options.as_ref()) else { return Ok(Protocol::Detect) };
    Ok(match options {
        UpstreamProtocolOptions::ExplicitHttpConfig(explicit) => match &explicit.protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(_)) => Protocol::Http2,
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => return err("http3_protocol_options", "is not supported"),
            Some(ProtocolConfig::HttpProtocolOptions(_)) | None => Protocol::Http,
        },
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(_) | UpstreamProtocolOptions::AutoConfig(_) => {
            Protocol::Http
        }
    })
}

fn balancer(proto: &proto::Cluster, extension: Option<&ClusterExtension>) -> Result<Balancer> {
    if let Some(balancer) = extension.and_then(|it| it.balancer.as_ref()) {
        return weft_balancer(balancer).at("metadata.balancer");
    }
    if let Some(list) = &proto.load_balancing_policy {
        return listed_balancer(list, extension.is_some()).at("load_balancing_policy");
    }
    let policy = match LbPolicy::try_from(proto.lb_policy) {
        Ok(policy) => policy,
        Err(unknown) => return err("lb_policy", format!("{} is not known", unknown.0)),
    };
    match policy {
        LbPolicy::RoundRobin => Ok(round_robin(extension.is_some())),
        LbPolicy::LeastRequest => Ok(Balancer::LeastRequest),
        LbPolicy::RingHash => {
            if let Some(LbConfig::RingHashLbConfig(ring)) = &proto.lb_config
                && ring.hash_function != ring_hash_lb_config::HashFunction::XxHash as i32
            {
                return err("ring_hash_lb_config.hash_function", "only XX_HASH is supported");
            }
            Ok(Balancer::ConsistentHash { header: None, virtual_nodes: VIRTUAL_NODES })
        }
        LbPolicy::Random | LbPolicy::Maglev | LbPolicy::ClusterProvided | LbPolicy::LoadBalancingPolicyConfig => {
            err("lb_policy", format!("{} is not supported", policy.as_str_name()))
        }
    }
}

/// Envoy's round robin heeds weights; ours says so by name.
fn round_robin(ours: bool) -> Balancer {
    if ours { Balancer::RoundRobin } else { Balancer::WeightedRoundRobin }
}

/// The first policy of the list that is known, as the list's rule is.
fn listed_balancer(list: &proto::LoadBalancingPolicy, ours: bool) -> Result<Balancer> {
    for (index, policy) in list.policies.iter().enumerate() {
        let any = policy.typed_extension_config.as_ref().and_then(|it| it.typed_config.as_ref());
        let Some(any) = any else { return err("", "has an entry without typed_config").at_index("policies", index) };
        if let Some(balancer) = known_balancer(any, ours).at_index("policies", index)? {
            return Ok(balancer);
        }
    }
    err("policies", "has none that is supported")
}

fn known_balancer(any: &Any, ours: bool) -> Result<Option<Balancer>> {
    Ok(match message_name(any) {
        "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => Some(round_robin(ours)),
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" => {
            let config: LeastRequest = unpack(any)?;
            #[expect(deprecated, reason = "other control planes still write it")]
            let full_scan = config.enable_full_scan == Some(true) || config.selection_method == 1;
            Some(if full_scan { Balancer::LeastConnections } else { Balancer::LeastRequest })
        }
        "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash" => {
            let config: ring::RingHash = unpack(any)?;
            if config.hash_function == ring::ring_hash::HashFunction::MurmurHash2 as i32 {
                return err("hash_function", "only XX_HASH is supported");
            }
            Some(Balancer::ConsistentHash { header: None, virtual_nodes: VIRTUAL_NODES })
        }
        "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality" => {
            let config: WrrLocality = unpack(any)?;
            let inner = config.endpoint_picking_policy.unwrap_or_default();
            // One level only: a locality policy inside a locality policy has no meaning.
            let first = inner.policies.first().and_then(|it| it.typed_extension_config.as_ref());
            match first.and_then(|it| it.typed_config.as_ref()) {
                Some(any) if !message_name(any).ends_with("WrrLocality") => known_balancer(any, ours)?,
                Some(_) | None => None,
            }
        }
        _ => None,
    })
}

fn weft_balancer(proto: &weft::Balancer) -> Result<Balancer> {
    Ok(match &proto.kind {
        Some(balancer::Kind::LeastConnections(_)) => Balancer::LeastConnections,
        Some(balancer::Kind::SourceIp(_)) => Balancer::SourceIp,
        Some(balancer::Kind::WeightedRoundRobin(_)) => Balancer::WeightedRoundRobin,
        Some(balancer::Kind::ConsistentHash(hash)) => {
            let header = match hash.header.as_str() {
                "" => None,
                name => Some(header_name(name, "consistent_hash.header")?),
            };
            let virtual_nodes = match hash.virtual_nodes {
                0 => VIRTUAL_NODES,
                nodes @ 1..=MOST_VIRTUAL_NODES => nodes,
                nodes => return err("consistent_hash.virtual_nodes", format!("{nodes} is above {MOST_VIRTUAL_NODES}")),
            };
            Balancer::ConsistentHash { header, virtual_nodes }
        }
        None => return err("kind", "is missing or not known"),
    })
}

/// The thresholds of ordinary traffic; those of high priority do not matter, as no route may have it.
fn default_thresholds(proto: &proto::Cluster) -> Result<Option<&Thresholds>> {
    let Some(breakers) = &proto.circuit_breakers else { return Ok(None) };
    unsupported(!breakers.per_host_thresholds.is_empty(), "circuit_breakers.per_host_thresholds")?;
    Ok(breakers.thresholds.iter().find(|it| it.priority == RoutingPriority::Default as i32))
}

fn limits(thresholds: Option<&Thresholds>) -> Limits {
    let default = Limits::default();
    let Some(it) = thresholds else { return default };
    Limits {
        connections: it.max_connections.unwrap_or(default.connections),
        pending: it.max_pending_requests.unwrap_or(default.pending),
        requests: it.max_requests.unwrap_or(default.requests),
    }
}

fn circuit_breaker(proto: &weft::CircuitBreaker) -> Result<CircuitBreaker> {
    let default = CircuitBreaker::default();
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let recovery = proto.recovery_time.as_ref().map(|it| positive(it, "metadata.circuit_breaker.recovery_time"));
    Ok(CircuitBreaker {
        consecutive_failures: or(proto.consecutive_failures, default.consecutive_failures),
        recovery_time: recovery.transpose()?.unwrap_or(default.recovery_time),
        successes_to_close: or(proto.successes_to_close, default.successes_to_close),
        half_open_requests: or(proto.half_open_requests, default.half_open_requests),
    })
}

fn endpoint_breaker(proto: &proto::Cluster, extension: Option<&ClusterExtension>) -> Result<Option<EndpointBreaker>> {
    match (extension.and_then(|it| it.endpoint_breaker.as_ref()), &proto.outlier_detection) {
        (Some(it), _) if it.disabled => Ok(None),
        (Some(it), _) => weft_endpoint_breaker(it).at("metadata.endpoint_breaker").map(Some),
        (None, Some(it)) if it.enforcing_consecutive_5xx == Some(0) => Ok(None),
        (None, Some(it)) => outlier_detection(it).at("outlier_detection").map(Some),
        // A mesh without one would send traffic to the dead: it is on unless switched off.
        (None, None) => Ok(Some(EndpointBreaker::default())),
    }
}

fn weft_endpoint_breaker(proto: &weft::EndpointBreaker) -> Result<EndpointBreaker> {
    let default = EndpointBreaker::default();
    let base = proto.base_open_time.as_ref().map(|it| positive(it, "base_open_time")).transpose()?;
    let base_open_time = base.unwrap_or(default.base_open_time);
    let max = proto.max_open_time.as_ref().map(|it| positive(it, "max_open_time")).transpose()?;
    Ok(EndpointBreaker {
        consecutive_failures: match proto.consecutive_failures {
            0 => default.consecutive_failures,
            failures => failures,
        },
        base_open_time,
        max_open_time: longest(base_open_time, max, default.max_open_time, "max_open_time")?,
        max_ejection_percent: whole_percent(proto.max_ejection_percent, "max_ejection_percent")?,
    })
}

/// Envoy's defaults where it names none.
fn outlier_detection(proto: &OutlierDetection) -> Result<EndpointBreaker> {
    let base = proto.base_ejection_time.as_ref().map(|it| positive(it, "base_ejection_time")).transpose()?;
    let base_open_time = base.unwrap_or(Duration::from_secs(30));
    let max = proto.max_ejection_time.as_ref().map(|it| positive(it, "max_ejection_time")).transpose()?;
    Ok(EndpointBreaker {
        consecutive_failures: match proto.consecutive_5xx {
            Some(0) => return err("consecutive_5xx", "is zero"),
            Some(failures) => failures,
            None => 5,
        },
        base_open_time,
        max_open_time: longest(base_open_time, max, Duration::from_secs(300), "max_ejection_time")?,
        max_ejection_percent: whole_percent(proto.max_ejection_percent.unwrap_or(10), "max_ejection_percent")?,
    })
}

fn longest(base: Duration, max: Option<Duration>, default: Duration, field: &str) -> Result<Duration> {
    match max {
        Some(max) if max < base => err(field, "is below the base time"),
        Some(max) => Ok(max),
        None => Ok(default.max(base)),
    }
}

fn retry_budget(thresholds: Option<&Thresholds>, extension: Option<&ClusterExtension>) -> Result<RetryBudget> {
    if let Some(it) = extension.and_then(|it| it.retry_budget.as_ref()) {
        let percent = whole_percent(it.percent, "metadata.retry_budget.percent")?;
        return Ok(RetryBudget { percent, min_per_second: it.min_per_second });
    }
    let default = RetryBudget::default();
    let Some(it) = thresholds.and_then(|it| it.retry_budget.as_ref()) else { return Ok(default) };
    let share = it.budget_percent.as_ref();
    let share = share.map(|it| percent(it, "circuit_breakers.thresholds.retry_budget.budget_percent")).transpose()?;
    Ok(RetryBudget {
        percent: share.unwrap_or(default.percent),
        min_per_second: it.min_retry_concurrency.unwrap_or(default.min_per_second),
    })
}

fn pool_idle(extension: Option<&ClusterExtension>, http: Option<&HttpProtocolOptions>) -> Result<Duration> {
    if let Some(it) = extension.and_then(|it| it.pool_idle.as_ref()) {
        return positive(it, "metadata.pool_idle");
    }
    let common = http.and_then(|it| it.common_http_protocol_options.as_ref());
    match common.and_then(|it| it.idle_timeout.as_ref()) {
        Some(it) => positive(it, "common_http_protocol_options.idle_timeout"),
        None => Ok(POOL_IDLE),
    }
}

fn upstream_tls(socket: &TransportSocket) -> Result<Option<UpstreamTls>> {
    let Some(transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return err("typed_config", "is missing");
    };
    match message_name(any) {
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Ok(None),
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
            let context: UpstreamTlsContext = unpack(any).at("typed_config")?;
            tls_context(&context).at("typed_config").map(Some)
        }
        other => err("typed_config", format!("{other} is not supported")),
    }
}

fn tls_context(context: &UpstreamTlsContext) -> Result<UpstreamTls> {
    unsupported(context.auto_host_sni, "auto_host_sni")?;
    unsupported(context.auto_sni_san_validation, "auto_sni_san_validation")?;
    let sni = server_name(&context.sni, "sni")?;
    let identities = match &context.common_tls_context {
        Some(common) => expected(common).at("common_tls_context")?,
        None => Vec::new(),
    };
    Ok(UpstreamTls { sni, identities })
}

/// The identities that a peer may have.
fn expected(common: &CommonTlsContext) -> Result<Vec<weft_identity::SpiffeId>> {
    check_common(common)?;
    let (field, context) = match &common.validation_context_type {
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            ("combined_validation_context.default_validation_context", combined.default_validation_context.as_ref())
        }
        Some(ValidationContextType::ValidationContext(context)) => ("validation_context", Some(context)),
        Some(_) | None => return Ok(Vec::new()),
    };
    let Some(context) = context else { return Ok(Vec::new()) };
    check_validation(context).at(field)?;
    unsupported(context.trusted_ca.is_some(), "trusted_ca").at(field)?;
    #[expect(deprecated, reason = "gRPC and older control planes write it")]
    let untyped = context.match_subject_alt_names.iter();
    let untyped = untyped.enumerate().map(|(index, it)| exact(it).at_index("match_subject_alt_names", index));
    let typed = context.match_typed_subject_alt_names.iter();
    let typed = typed.enumerate().map(|(index, it)| uri(it).at_index("match_typed_subject_alt_names", index));
    let mut identities = typed.chain(untyped).collect::<Result<Vec<_>>>().at(field)?;
    identities.sort();
    identities.dedup();
    Ok(identities)
}

/// What must hold of a TLS context on either side.
pub(super) fn check_common(common: &CommonTlsContext) -> Result<()> {
    unsupported(common.custom_handshaker.is_some(), "custom_handshaker")?;
    unsupported(common.custom_tls_certificate_selector.is_some(), "custom_tls_certificate_selector")?;
    let highest = common.tls_params.as_ref().map(|it| it.tls_maximum_protocol_version).unwrap_or_default();
    if highest != TlsProtocol::TlsAuto as i32 && highest < TlsProtocol::TlSv13 as i32 {
        return err("tls_params.tls_maximum_protocol_version", "is below TLS 1.3, and nothing lower is spoken");
    }
    Ok(())
}

/// Refuses what would loosen or tighten the check of a peer in a way that is not done here.
pub(super) fn check_validation(context: &CertificateValidationContext) -> Result<()> {
    unsupported(context.allow_expired_certificate, "allow_expired_certificate")?;
    let verification = context.trust_chain_verification;
    unsupported(verification != TrustChainVerification::VerifyTrustChain as i32, "trust_chain_verification")?;
    unsupported(!context.verify_certificate_spki.is_empty(), "verify_certificate_spki")?;
    unsupported(!context.verify_certificate_hash.is_empty(), "verify_certificate_hash")?;
    unsupported(context.require_signed_certificate_timestamp == Some(true), "require_signed_certificate_timestamp")?;
    unsupported(context.crl.is_some(), "crl")?;
    unsupported(context.custom_validator_config.is_some(), "custom_validator_config")?;
    unsupported(context.system_root_certs.is_some(), "system_root_certs")
}

fn uri(matcher: &SubjectAltNameMatcher) -> Result<weft_identity::SpiffeId> {
    if matcher.san_type != SanType::Uri as i32 {
        return err("san_type", "only URI is supported");
    }
    match &matcher.matcher {
        Some(matcher) => exact(matcher).at("matcher"),
        None => err("matcher", "is missing"),
    }
}

fn exact(matcher: &StringMatcher) -> Result<weft_identity::SpiffeId> {
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(id)) if !matcher.ignore_case => identity(id, "exact"),
        _ => Err(DecodeError::new("", "only an exact SPIFFE ID is supported")),
    }
}
