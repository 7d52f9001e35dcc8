//! Listeners.

use std::net::SocketAddr;

use weft_proto::{
    envoy::{
        config::{
            core::v3::{HttpProtocolOptions, TrafficDirection, TransportSocket, transport_socket},
            listener::v3::{
                ApiListener, Filter, FilterChain, FilterChainMatch, Listener as WireListener, ListenerFilter, filter,
                listener_filter,
            },
            route::v3::{RouteConfiguration, Vhds, VirtualHost},
        },
        extensions::{
            filters::{
                http::router::v3::Router,
                network::{
                    http_connection_manager::v3::{
                        HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
                        http_connection_manager::UpgradeConfig, http_filter,
                    },
                    tcp_proxy::v3::{TcpProxy, tcp_proxy},
                },
            },
            transport_sockets::tls::v3::{
                CommonTlsContext, DownstreamTlsContext, common_tls_context::ValidationContextType,
            },
        },
    },
    weft::v1::{InboundExtension, OutboundExtension},
};
use weft_xds::resource::{Egress, Inbound, InboundPort, Protocol, pack};

use super::{access, cluster};
use crate::translate::{
    names,
    wire::{address, ads, duration, extension, protocol},
};

/// The inbound listener of a sidecar: one filter chain for each port of the service.
pub fn inbound(inbound: &Inbound) -> WireListener {
    WireListener {
        name: names::INBOUND.to_owned(),
        address: Some(address(SocketAddr::from(([0, 0, 0, 0], INBOUND_PORT)))),
        traffic_direction: TrafficDirection::Inbound as i32,
        filter_chains: inbound.ports.iter().map(|port| filter_chain(port, inbound.permissive)).collect(),
        listener_filters: vec![tls_inspector()],
        ..WireListener::default()
    }
}

fn filter_chain(port: &InboundPort, permissive: bool) -> FilterChain {
    let mut filters = Vec::new();
    if port.protocol == Protocol::Tcp {
        filters.extend(port.access.iter().map(access::network_filter));
        filters.push(tcp_proxy(&port.service, port.port));
    } else {
        filters.push(inbound_http(port));
    }
    FilterChain {
        name: port.sni.to_string(),
        filter_chain_match: Some(FilterChainMatch {
            server_names: vec![port.sni.to_string()],
            ..FilterChainMatch::default()
        }),
        filters,
        transport_socket: Some(downstream_tls(permissive)),
        metadata: Some(extension(&InboundExtension {
            port: port.port.into(),
            service: port.service.to_string(),
            protocol: protocol(port.protocol),
        })),
        ..FilterChain::default()
    }
}

fn inbound_http(port: &InboundPort) -> Filter {
    let mut http_filters: Vec<HttpFilter> = port.access.iter().map(access::http_filter).collect();
    http_filters.push(router());
    http(HttpConnectionManager {
        stat_prefix: names::INBOUND.to_owned(),
        http_filters,
        common_http_protocol_options: port.request_timeout.map(|timeout| HttpProtocolOptions {
            max_stream_duration: Some(duration(timeout)),
            ..HttpProtocolOptions::default()
        }),
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            name: names::INBOUND.to_owned(),
            ..RouteConfiguration::default()
        })),
        ..hardened()
    })
}

/// The outbound listener; its routes come by RDS. `egress`: what a sidecar of ours is told besides.
pub fn outbound(bind: SocketAddr, egress: Option<Egress>) -> WireListener {
    use weft_proto::weft::v1::Egress as Wire;
    let manager = HttpConnectionManager {
        stat_prefix: names::OUTBOUND.to_owned(),
        http_filters: vec![router()],
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: names::OUTBOUND.to_owned(),
        })),
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..UpgradeConfig::default() }],
        ..hardened()
    };
    WireListener {
        name: names::OUTBOUND.to_owned(),
        address: Some(address(bind)),
        traffic_direction: TrafficDirection::Outbound as i32,
        filter_chains: vec![FilterChain { filters: vec![http(manager)], ..FilterChain::default() }],
        metadata: egress.map(|egress| {
            let egress = match egress {
                Egress::Any => Wire::Any,
                Egress::Registered => Wire::Registered,
            };
            extension(&OutboundExtension { egress: egress as i32 })
        }),
        ..WireListener::default()
    }
}

/// A local port of an Envoy for one cluster that is not HTTP.
pub fn outbound_tcp(name: &str, bind: SocketAddr, cluster: &str) -> WireListener {
    let proxy = TcpProxy {
        stat_prefix: cluster.to_owned(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    };
    WireListener {
        name: name.to_owned(),
        address: Some(address(bind)),
        traffic_direction: TrafficDirection::Outbound as i32,
        filter_chains: vec![FilterChain { filters: vec![tcp_filter(&proxy)], ..FilterChain::default() }],
        ..WireListener::default()
    }
}

/// A listener that a gRPC channel asks for by its target, with its routes inside.
pub fn api(target: &str, routes: VirtualHost) -> WireListener {
    let manager = HttpConnectionManager {
        stat_prefix: names::OUTBOUND.to_owned(),
        http_filters: vec![router()],
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            name: target.to_owned(),
            virtual_hosts: vec![routes],
            ..RouteConfiguration::default()
        })),
        ..HttpConnectionManager::default()
    };
    WireListener {
        name: target.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(pack(&manager)) }),
        ..WireListener::default()
    }
}

/// The route configuration of a sidecar: virtual hosts are asked for by name.
pub fn on_demand_routes() -> RouteConfiguration {
    RouteConfiguration {
        name: names::OUTBOUND.to_owned(),
        vhds: Some(Vhds { config_source: Some(ads()) }),
        ..RouteConfiguration::default()
    }
}

/// One normalisation of the path before routing and policy alike.
fn hardened() -> HttpConnectionManager {
    use weft_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
    HttpConnectionManager {
        normalize_path: Some(true),
        merge_slashes: true,
        path_with_escaped_slashes_action: hcm::PathWithEscapedSlashesAction::RejectRequest as i32,
        use_remote_address: Some(true),
        skip_xff_append: true,
        ..HttpConnectionManager::default()
    }
}

fn http(manager: HttpConnectionManager) -> Filter {
    Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&manager))),
    }
}

fn router() -> HttpFilter {
    HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack(&Router::default()))),
        ..HttpFilter::default()
    }
}

fn tcp_proxy(service: &str, port: u16) -> Filter {
    tcp_filter(&TcpProxy {
        stat_prefix: names::INBOUND.to_owned(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(format!("{service}:{port}"))),
        ..TcpProxy::default()
    })
}

fn tcp_filter(proxy: &TcpProxy) -> Filter {
    Filter {
        name: "envoy.filters.network.tcp_proxy".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(proxy))),
    }
}

fn tls_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(prost_types::Any {
            type_url: TLS_INSPECTOR.to_owned(),
            value: Vec::new(),
        })),
        ..ListenerFilter::default()
    }
}

fn downstream_tls(permissive: bool) -> TransportSocket {
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: vec!["h2".to_owned(), "http/1.1".to_owned()],
            validation_context_type: Some(ValidationContextType::ValidationContextSdsSecretConfig(
                cluster::root_secret(),
            )),
            ..cluster::common_tls()
        }),
        require_client_certificate: Some(!permissive),
        ..DownstreamTlsContext::default()
    };
    TransportSocket {
        name: cluster::TLS_SOCKET.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack(&context))),
    }
}

/// Where a sidecar takes the mesh's traffic unless its flags say otherwise.
const INBOUND_PORT: u16 = 15006;
const TLS_INSPECTOR: &str = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
