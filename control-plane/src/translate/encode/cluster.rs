//! Clusters.

use std::collections::BTreeMap;

use prost::Name;
use weft_proto::{
    envoy::{
        config::{
            cluster::v3::{
                self as wire, CircuitBreakers, LoadBalancingPolicy, OutlierDetection,
                circuit_breakers::{Thresholds, thresholds},
                cluster::{
                    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy,
                    LeastRequestLbConfig, RingHashLbConfig, ring_hash_lb_config,
                },
                load_balancing_policy,
            },
            core::v3::{
                Http1ProtocolOptions, Http2ProtocolOptions, TransportSocket, TypedExtensionConfig, transport_socket,
            },
        },
        extensions::{
            load_balancing_policies::{
                least_request::v3::{LeastRequest, least_request::SelectionMethod},
                ring_hash::v3::{RingHash, ring_hash},
                round_robin::v3::RoundRobin,
                wrr_locality::v3::WrrLocality,
            },
            transport_sockets::tls::v3::{
                self as tls, CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext,
                SdsSecretConfig, SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
                common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
                subject_alt_name_matcher::SanType,
                tls_parameters::TlsProtocol,
            },
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
                    explicit_http_config::ProtocolConfig,
                },
            },
        },
        r#type::v3::Percent,
    },
    weft::v1 as weft,
};
use weft_xds::resource::{Balancer, Cluster, EndpointBreaker, Limits, Protocol, RetryBudget, UpstreamTls, pack};

use super::matcher;
use crate::translate::{
    Flavour, names,
    wire::{ads, duration, extension, inline, pem, protocol},
};

/// A cluster for one kind of client.
pub fn encode(cluster: &Cluster, flavour: Flavour) -> wire::Cluster {
    let (policy, config) = lb_policy(&cluster.balancer, flavour);
    wire::Cluster {
        name: cluster.name.to_string(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: if cluster.endpoints == cluster.name { String::new() } else { cluster.endpoints.to_string() },
        }),
        connect_timeout: Some(duration(cluster.connect_timeout)),
        lb_policy: policy as i32,
        lb_config: config,
        load_balancing_policy: lb_policies(&cluster.balancer, flavour),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: cluster.panic_percent.into() }),
            ..CommonLbConfig::default()
        }),
        circuit_breakers: Some(limits(&cluster.limits, cluster.retry_budget)),
        outlier_detection: cluster.endpoint_breaker.as_ref().map(outlier_detection),
        transport_socket: cluster.tls.as_ref().map(|tls| transport_socket(tls, cluster.protocol, flavour)),
        typed_extension_protocol_options: http_options(cluster.protocol, flavour),
        metadata: Some(extension(&weft_extension(cluster))),
        ..wire::Cluster::default()
    }
}

fn weft_extension(cluster: &Cluster) -> weft::ClusterExtension {
    let endpoint_breaker = match cluster.endpoint_breaker {
        Some(breaker) => weft::EndpointBreaker {
            consecutive_failures: breaker.consecutive_failures,
            base_open_time: Some(duration(breaker.base_open_time)),
            max_open_time: Some(duration(breaker.max_open_time)),
            max_ejection_percent: breaker.max_ejection_percent.into(),
            disabled: false,
        },
        None => weft::EndpointBreaker { disabled: true, ..weft::EndpointBreaker::default() },
    };
    weft::ClusterExtension {
        service: cluster.service.to_string(),
        port: cluster.port.into(),
        protocol: protocol(cluster.protocol),
        circuit_breaker: cluster.circuit_breaker.map(|breaker| weft::CircuitBreaker {
            consecutive_failures: breaker.consecutive_failures,
            recovery_time: Some(duration(breaker.recovery_time)),
            successes_to_close: breaker.successes_to_close,
            half_open_requests: breaker.half_open_requests,
        }),
        endpoint_breaker: Some(endpoint_breaker),
        retry_budget: Some(weft::RetryBudget {
            percent: cluster.retry_budget.percent.into(),
            min_per_second: cluster.retry_budget.min_per_second,
        }),
        balancer: weft_balancer(&cluster.balancer),
        pool_idle: Some(duration(cluster.pool_idle)),
        policy: cluster.policy.to_string(),
    }
}

/// The balancers that xDS cannot name.
fn weft_balancer(balancer: &Balancer) -> Option<weft::Balancer> {
    use weft::balancer::{ConsistentHash, Kind, LeastConnections, SourceIp, WeightedRoundRobin};
    let kind = match balancer {
        Balancer::RoundRobin | Balancer::LeastRequest => return None,
        Balancer::WeightedRoundRobin => Kind::WeightedRoundRobin(WeightedRoundRobin {}),
        Balancer::LeastConnections => Kind::LeastConnections(LeastConnections {}),
        Balancer::SourceIp => Kind::SourceIp(SourceIp {}),
        Balancer::ConsistentHash { header, virtual_nodes } => Kind::ConsistentHash(ConsistentHash {
            header: header.as_ref().map(ToString::to_string).unwrap_or_default(),
            virtual_nodes: *virtual_nodes,
        }),
    };
    Some(weft::Balancer { kind: Some(kind) })
}

/// The nearest that Envoy's own field can say.
fn lb_policy(balancer: &Balancer, flavour: Flavour) -> (LbPolicy, Option<LbConfig>) {
    match balancer {
        // Envoy's round robin respects weights.
        Balancer::RoundRobin | Balancer::WeightedRoundRobin => (LbPolicy::RoundRobin, None),
        // gRPC refuses the enum; it reads the list.
        Balancer::LeastRequest | Balancer::LeastConnections if flavour == Flavour::Grpc => (LbPolicy::RoundRobin, None),
        Balancer::LeastRequest | Balancer::LeastConnections => {
            let config = LeastRequestLbConfig { choice_count: Some(2), ..LeastRequestLbConfig::default() };
            (LbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config)))
        }
        Balancer::SourceIp | Balancer::ConsistentHash { .. } => {
            let config = RingHashLbConfig {
                minimum_ring_size: Some(MINIMUM_RING_SIZE),
                hash_function: ring_hash_lb_config::HashFunction::XxHash as i32,
                maximum_ring_size: None,
            };
            (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config)))
        }
    }
}

/// The list from which a client takes the first entry that it knows. gRPC refuses the enum LEAST_REQUEST but skips what
/// it does not know in the list; Envoy says "exact" only here. `None`: the enum says it all.
fn lb_policies(balancer: &Balancer, flavour: Flavour) -> Option<LoadBalancingPolicy> {
    let policies = match (flavour, balancer) {
        (Flavour::Envoy, Balancer::LeastConnections) => {
            vec![policy("envoy.load_balancing_policies.least_request", &least_request(SelectionMethod::FullScan))]
        }
        (Flavour::Grpc, Balancer::LeastRequest | Balancer::LeastConnections) => vec![
            policy("envoy.load_balancing_policies.least_request", &least_request(SelectionMethod::NChoices)),
            policy(
                "envoy.load_balancing_policies.wrr_locality",
                &WrrLocality {
                    endpoint_picking_policy: Some(LoadBalancingPolicy {
                        policies: vec![policy("envoy.load_balancing_policies.round_robin", &RoundRobin::default())],
                    }),
                },
            ),
        ],
        (Flavour::Grpc, Balancer::SourceIp | Balancer::ConsistentHash { .. }) => {
            vec![policy(
                "envoy.load_balancing_policies.ring_hash",
                &RingHash {
                    hash_function: ring_hash::HashFunction::XxHash as i32,
                    minimum_ring_size: Some(MINIMUM_RING_SIZE),
                    ..RingHash::default()
                },
            )]
        }
        _ => return None,
    };
    Some(LoadBalancingPolicy { policies })
}

fn least_request(method: SelectionMethod) -> LeastRequest {
    LeastRequest { choice_count: Some(2), selection_method: method as i32, ..LeastRequest::default() }
}

fn policy<M: Name>(name: &str, config: &M) -> load_balancing_policy::Policy {
    load_balancing_policy::Policy {
        typed_extension_config: Some(TypedExtensionConfig { name: name.to_owned(), typed_config: Some(pack(config)) }),
    }
}

fn limits(limits: &Limits, budget: RetryBudget) -> CircuitBreakers {
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: Some(limits.connections),
            max_pending_requests: Some(limits.pending),
            max_requests: Some(limits.requests),
            // A rate is what we obey; Envoy counts retries in flight.
            retry_budget: Some(thresholds::RetryBudget {
                budget_percent: Some(Percent { value: budget.percent.into() }),
                min_retry_concurrency: Some(ENVOY_MIN_RETRY_CONCURRENCY),
                ..thresholds::RetryBudget::default()
            }),
            ..Thresholds::default()
        }],
        per_host_thresholds: Vec::new(),
    }
}

fn outlier_detection(breaker: &EndpointBreaker) -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(breaker.consecutive_failures),
        enforcing_consecutive_5xx: Some(100),
        consecutive_gateway_failure: Some(breaker.consecutive_failures),
        enforcing_consecutive_gateway_failure: Some(100),
        base_ejection_time: Some(duration(breaker.base_open_time)),
        max_ejection_time: Some(duration(breaker.max_open_time)),
        max_ejection_percent: Some(breaker.max_ejection_percent.into()),
        enforcing_success_rate: Some(0),
        ..OutlierDetection::default()
    }
}

fn http_options(protocol: Protocol, flavour: Flavour) -> BTreeMap<String, prost_types::Any> {
    let options = match protocol {
        _ if flavour == Flavour::Grpc => return BTreeMap::new(),
        Protocol::Tcp => return BTreeMap::new(),
        Protocol::Http2 | Protocol::Grpc => UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default())),
        }),
        Protocol::Http | Protocol::Detect => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(Http1ProtocolOptions::default()),
                http2_protocol_options: Some(Http2ProtocolOptions::default()),
                ..UseDownstreamHttpConfig::default()
            })
        }
    };
    let options = HttpProtocolOptions { upstream_protocol_options: Some(options), ..HttpProtocolOptions::default() };
    BTreeMap::from([(HttpProtocolOptions::full_name(), pack(&options))])
}

fn transport_socket(upstream: &UpstreamTls, protocol: Protocol, flavour: Flavour) -> TransportSocket {
    let sans = upstream.identities.iter().map(|id| matcher::exact(id.as_str()));
    let common = if flavour == Flavour::Grpc {
        let validation = CertificateValidationContext {
            ca_certificate_provider_instance: Some(provider_instance()),
            #[expect(deprecated, reason = "the only field that gRPC reads")]
            match_subject_alt_names: sans.collect(),
            ..CertificateValidationContext::default()
        };
        CommonTlsContext {
            tls_certificate_provider_instance: Some(provider_instance()),
            validation_context_type: Some(combined(validation, None)),
            ..CommonTlsContext::default()
        }
    } else {
        let validation = CertificateValidationContext {
            match_typed_subject_alt_names: sans.map(uri_san).collect(),
            ..CertificateValidationContext::default()
        };
        CommonTlsContext {
            alpn_protocols: alpn(protocol),
            validation_context_type: Some(combined(validation, Some(root_secret()))),
            ..common_tls()
        }
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: upstream.sni.to_string(),
        ..UpstreamTlsContext::default()
    };
    TransportSocket {
        name: TLS_SOCKET.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack(&context))),
    }
}

/// What both directions share: TLS 1.3, the post-quantum group first, the client's own certificate.
pub(super) fn common_tls() -> CommonTlsContext {
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13 as i32,
            // An Envoy's upstream context stops at 1.2 unless told otherwise.
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            ecdh_curves: ["X25519MLKEM768", "X25519", "P-256"].map(str::to_owned).into(),
            ..TlsParameters::default()
        }),
        // By name alone: a secret of the bootstrap. The key never leaves the client.
        tls_certificate_sds_secret_configs: vec![SdsSecretConfig {
            name: OWN_CERTIFICATE.to_owned(),
            sds_config: None,
        }],
        ..CommonTlsContext::default()
    }
}

/// The trust bundle, by SDS.
pub(super) fn root_secret() -> SdsSecretConfig {
    SdsSecretConfig { name: names::ROOTCA.to_owned(), sds_config: Some(ads()) }
}

fn combined(validation: CertificateValidationContext, secret: Option<SdsSecretConfig>) -> ValidationContextType {
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(validation),
        validation_context_sds_secret_config: secret,
        ..CombinedCertificateValidationContext::default()
    })
}

fn uri_san(matcher: weft_proto::envoy::r#type::matcher::v3::StringMatcher) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher { san_type: SanType::Uri as i32, matcher: Some(matcher), oid: String::new() }
}

fn provider_instance() -> CertificateProviderPluginInstance {
    CertificateProviderPluginInstance { instance_name: PROVIDER.to_owned(), certificate_name: String::new() }
}

/// `http` and detected ports offer what the caller speaks, which only the client knows.
fn alpn(protocol: Protocol) -> Vec<String> {
    match protocol {
        Protocol::Http2 | Protocol::Grpc => vec!["h2".to_owned()],
        Protocol::Http | Protocol::Detect | Protocol::Tcp => Vec::new(),
    }
}

/// The trust bundle as a secret.
pub fn root_ca(roots: &[Vec<u8>]) -> tls::Secret {
    tls::Secret {
        name: names::ROOTCA.to_owned(),
        r#type: Some(tls::secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(inline(pem(roots))),
            ..CertificateValidationContext::default()
        })),
    }
}

/// Name of the secret in an Envoy's bootstrap that holds its own certificate and key.
pub const OWN_CERTIFICATE: &str = "weft-identity";
/// Name of the certificate provider in a gRPC client's bootstrap.
pub const PROVIDER: &str = "default";
pub(super) const TLS_SOCKET: &str = "envoy.transport_sockets.tls";
/// As peers have it: small rings are uneven.
const MINIMUM_RING_SIZE: u64 = 1024;
/// Retries that an Envoy may always have in flight, whatever the percentage says.
const ENVOY_MIN_RETRY_CONCURRENCY: u32 = 3;
