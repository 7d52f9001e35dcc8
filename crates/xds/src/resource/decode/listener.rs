//! Listeners.

use std::collections::HashSet;

use prost_types::Any;
use weft_proto::{
    envoy::{
        config::{
            core::v3::{TrafficDirection, transport_socket},
            listener::v3::{self as proto, FilterChain, FilterChainMatch, filter, listener_filter},
        },
        extensions::{
            filters::{
                http::rbac::v3 as http_rbac,
                network::{
                    http_connection_manager::v3::{
                        HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier, http_filter,
                    },
                    rbac::v3 as network_rbac,
                    tcp_proxy::v3::TcpProxy,
                },
            },
            transport_sockets::tls::v3::{DownstreamTlsContext, common_tls_context::ValidationContextType},
        },
    },
    weft::v1::{self as wire, InboundExtension, OutboundExtension},
};

use super::{
    super::{Egress, Inbound, InboundPort, Listener, ListenerKind, Outbound, Protocol, Rbac},
    access, cluster, unpack, unpack_known,
    value::{At, Result, err, extension, message_name, name, over_ads, port, server_name, timeout, unsupported},
};

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const HTTP_RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
const NETWORK_RBAC: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";
const CONNECTION_MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// Listener filters that say what the sidecar does anyway.
const LISTENER_FILTERS: [&str; 3] = [
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
];

pub(super) fn decode(proto: proto::Listener) -> Result<Listener> {
    let name = name(&proto.name, "name")?;
    unsupported(proto.api_listener.is_some(), "api_listener")?;
    unsupported(proto.udp_listener_config.is_some(), "udp_listener_config")?;
    unsupported(proto.filter_chain_matcher.is_some(), "filter_chain_matcher")?;
    unsupported(proto.fcds_config.is_some(), "fcds_config")?;
    unsupported(proto.listener_specifier.is_some(), "internal_listener")?;
    for (index, it) in proto.listener_filters.iter().enumerate() {
        listener_filter(it).at_index("listener_filters", index)?;
    }
    let kind = match TrafficDirection::try_from(proto.traffic_direction) {
        Ok(TrafficDirection::Inbound) => ListenerKind::Inbound(inbound(&proto)?),
        Ok(TrafficDirection::Outbound) => ListenerKind::Outbound(outbound(&proto)?),
        Ok(TrafficDirection::Unspecified) | Err(_) => {
            return err("traffic_direction", "is neither INBOUND nor OUTBOUND");
        }
    };
    Ok(Listener { name, kind })
}

fn listener_filter(proto: &proto::ListenerFilter) -> Result<()> {
    match &proto.config_type {
        Some(listener_filter::ConfigType::TypedConfig(any)) if LISTENER_FILTERS.contains(&message_name(any)) => Ok(()),
        _ => err("", format!("{:?} is not supported", proto.name)),
    }
}

fn inbound(proto: &proto::Listener) -> Result<Inbound> {
    let mut chains: Vec<(String, &FilterChain)> = Vec::new();
    chains.extend(proto.filter_chains.iter().enumerate().map(|(at, it)| (format!("filter_chains[{at}]"), it)));
    chains.extend(proto.default_filter_chain.iter().map(|it| ("default_filter_chain".to_owned(), it)));
    let mut names = HashSet::new();
    let mut ports = Vec::with_capacity(chains.len());
    let mut permissive = None;
    for (field, chain) in &chains {
        let port = inbound_port(chain).at(field)?;
        if !names.insert(port.sni.clone()) {
            return err("filter_chain_match.server_names", format!("{:?} occurs twice", port.sni)).at(field);
        }
        let loose = accepts_plain_text(chain).at("transport_socket").at(field)?;
        // One listener, one mode: a port that asks for certificates must not be opened by another that does not.
        if permissive.is_some_and(|it| it != loose) {
            return err("transport_socket", "require_client_certificate differs from that of the first chain")
                .at(field);
        }
        permissive = Some(loose);
        ports.push(port);
    }
    match permissive {
        Some(permissive) => Ok(Inbound { ports, permissive }),
        None => err("filter_chains", "is empty"),
    }
}

fn inbound_port(chain: &FilterChain) -> Result<InboundPort> {
    let extension = match extension::<InboundExtension>(chain.metadata.as_ref())? {
        Some(extension) => extension,
        None => return err("metadata", "has no InboundExtension, so the port is not known"),
    };
    let (access, request_timeout) = filters(&chain.filters).at("filters")?;
    let tcp = cluster::weft_protocol(extension.protocol)? == Protocol::Tcp;
    if tcp == serves_http(&chain.filters) {
        return err("metadata.protocol", "does not fit the last filter");
    }
    Ok(InboundPort {
        sni: chain
            .filter_chain_match
            .as_ref()
            .map(server_names)
            .transpose()
            .at("filter_chain_match")?
            .unwrap_or_default(),
        service: name(&extension.service, "metadata.service")?,
        port: port(extension.port, "metadata.port")?,
        protocol: cluster::weft_protocol(extension.protocol)?,
        access,
        request_timeout,
    })
}

/// The only match that is known is one server name.
fn server_names(proto: &FilterChainMatch) -> Result<Box<str>> {
    unsupported(proto.destination_port.is_some(), "destination_port")?;
    unsupported(!proto.prefix_ranges.is_empty(), "prefix_ranges")?;
    unsupported(!proto.address_suffix.is_empty() || proto.suffix_len.is_some(), "address_suffix")?;
    unsupported(!proto.direct_source_prefix_ranges.is_empty(), "direct_source_prefix_ranges")?;
    unsupported(proto.source_type != 0, "source_type")?;
    unsupported(!proto.source_prefix_ranges.is_empty(), "source_prefix_ranges")?;
    unsupported(!proto.source_ports.is_empty(), "source_ports")?;
    unsupported(!proto.application_protocols.is_empty(), "application_protocols")?;
    if !matches!(proto.transport_protocol.as_str(), "" | "tls") {
        return err("transport_protocol", format!("{:?} is not supported", proto.transport_protocol));
    }
    match proto.server_names.as_slice() {
        [] => Ok("".into()),
        [one] => server_name(one, "server_names"),
        _ => err("server_names", "has more than one name"),
    }
}

/// Whether the chain takes connections that prove no identity.
fn accepts_plain_text(chain: &FilterChain) -> Result<bool> {
    let Some(socket) = &chain.transport_socket else { return Ok(true) };
    let Some(transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return err("typed_config", "is missing");
    };
    let context: DownstreamTlsContext = unpack(any).at("typed_config")?;
    if let Some(common) = &context.common_tls_context {
        let field = "typed_config.common_tls_context";
        cluster::check_common(common).at(field)?;
        // Who may call is said by access rules; a second list here would be one that nobody checks.
        let validation = match &common.validation_context_type {
            Some(ValidationContextType::ValidationContext(context)) => Some(context),
            Some(ValidationContextType::CombinedValidationContext(it)) => it.default_validation_context.as_ref(),
            Some(_) | None => None,
        };
        if let Some(context) = validation {
            cluster::check_validation(context).at("validation_context").at(field)?;
            #[expect(deprecated, reason = "refused in either form")]
            let names =
                !context.match_typed_subject_alt_names.is_empty() || !context.match_subject_alt_names.is_empty();
            unsupported(names, "validation_context.match_typed_subject_alt_names").at(field)?;
        }
    }
    unsupported(context.require_sni == Some(true), "typed_config.require_sni")?;
    Ok(context.require_client_certificate != Some(true))
}

/// Network filters: RBAC ones, then the connection manager or the TCP proxy.
fn filters(filters: &[proto::Filter]) -> Result<(Vec<Rbac>, Option<std::time::Duration>)> {
    let Some((last, before)) = filters.split_last() else { return err("", "is empty") };
    let mut access = Vec::new();
    for (index, filter) in before.iter().enumerate() {
        let rules = typed(filter).and_then(|any| match message_name(any) {
            NETWORK_RBAC => unpack_known::<network_rbac::Rbac>(any).and_then(|it| access::network(&it)),
            other => err("", format!("{other} is not supported before the last filter")),
        });
        access.extend(rules.at_index("", index)?);
    }
    let last_index = filters.len() - 1;
    let any = typed(last).at_index("", last_index)?;
    match message_name(any) {
        TCP_PROXY => {
            unpack::<TcpProxy>(any).at_index("", last_index)?;
            Ok((access, None))
        }
        CONNECTION_MANAGER => {
            let manager: HttpConnectionManager = unpack(any).at_index("", last_index)?;
            access.extend(http_filters(&manager.http_filters, true).at("http_filters").at_index("", last_index)?);
            let longest = manager.common_http_protocol_options.as_ref().and_then(|it| it.max_stream_duration.as_ref());
            let field = "common_http_protocol_options.max_stream_duration";
            Ok((access, timeout(longest, field).at_index("", last_index)?))
        }
        other => err("", format!("{other} is not supported")).at_index("", last_index),
    }
}

fn serves_http(filters: &[proto::Filter]) -> bool {
    filters.last().is_some_and(|it| typed(it).is_ok_and(|any| message_name(any) == CONNECTION_MANAGER))
}

fn typed(filter: &proto::Filter) -> Result<&Any> {
    match &filter.config_type {
        Some(filter::ConfigType::TypedConfig(any)) => Ok(any),
        Some(filter::ConfigType::ConfigDiscovery(_)) => err("config_discovery", "is not supported"),
        None => err("typed_config", "is missing"),
    }
}

/// HTTP filters: RBAC ones where `rbac` allows it, then the router. Others only when optional.
fn http_filters(filters: &[HttpFilter], rbac: bool) -> Result<Vec<Rbac>> {
    let mut access = Vec::new();
    let mut routed = false;
    for (index, filter) in filters.iter().enumerate() {
        if routed {
            return err("", "follows the router").at_index("", index);
        }
        if filter.disabled {
            continue;
        }
        let any = match &filter.config_type {
            Some(http_filter::ConfigType::TypedConfig(any)) => any,
            Some(_) | None if filter.is_optional => continue,
            Some(_) | None => return err("typed_config", "is missing").at_index("", index),
        };
        match message_name(any) {
            ROUTER => routed = true,
            HTTP_RBAC if rbac => {
                let rules = unpack_known::<http_rbac::Rbac>(any).and_then(|it| access::http(&it));
                access.extend(rules.at("typed_config").at_index("", index)?);
            }
            _ if filter.is_optional => {}
            other => return err("", format!("{other} is not supported")).at_index("", index),
        }
    }
    if routed { Ok(access) } else { err("", "has no router at its end") }
}

fn outbound(proto: &proto::Listener) -> Result<Outbound> {
    let (field, chain) = match (proto.filter_chains.as_slice(), &proto.default_filter_chain) {
        ([chain], None) => ("filter_chains[0]", chain),
        ([], Some(chain)) => ("default_filter_chain", chain),
        _ => return err("filter_chains", "must be one chain"),
    };
    if let Some(matches) = &chain.filter_chain_match {
        unsupported(*matches != FilterChainMatch::default(), "filter_chain_match").at(field)?;
    }
    unsupported(chain.transport_socket.is_some(), "transport_socket").at(field)?;
    let [filter] = chain.filters.as_slice() else { return err("filters", "must be one filter").at(field) };
    let manager: HttpConnectionManager = typed(filter).and_then(unpack).at("filters[0]").at(field)?;
    http_filters(&manager.http_filters, false).at("filters[0].http_filters").at(field)?;
    let rds = match &manager.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => rds,
        Some(_) | None => return err("filters[0].route_specifier", "must be rds").at(field),
    };
    over_ads(rds.config_source.as_ref()).at("filters[0].rds.config_source").at(field)?;
    let extension = extension::<OutboundExtension>(proto.metadata.as_ref())?.unwrap_or_default();
    let egress = match wire::Egress::try_from(extension.egress) {
        Ok(wire::Egress::Unspecified | wire::Egress::Any) => Egress::Any,
        Ok(wire::Egress::Registered) => Egress::Registered,
        Err(_) => return err("metadata.egress", format!("{} is not known", extension.egress)),
    };
    Ok(Outbound { route_config: name(&rds.route_config_name, "filters[0].rds.route_config_name").at(field)?, egress })
}
