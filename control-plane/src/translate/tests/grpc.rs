//! What a proxyless gRPC client is told.

use std::sync::Arc;

use prost::Message;
use weft_proto::envoy::{
    config::{
        cluster::v3::{Cluster, cluster::LbPolicy},
        core::v3::transport_socket,
        endpoint::v3::ClusterLoadAssignment,
        listener::v3::Listener,
        route::v3::{RouteConfiguration, route::Action, route_match::PathSpecifier},
    },
    extensions::{
        filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::RouteSpecifier,
        },
        transport_sockets::tls::v3::{UpstreamTlsContext, common_tls_context::ValidationContextType},
    },
};
use weft_xds::resource::ResourceType;

use super::{SHOP, WORKLOADS, client, world};
use crate::translate::Catalog;

fn get<M: Message + Default>(ty: ResourceType, name: &str) -> Option<M> {
    let catalog = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    let encoded = catalog.get(&client("gRPC C-core linux", "default/frontend/1", &[]), ty, name)?;
    Some(M::decode(&*encoded.any.value).unwrap())
}

fn routes(target: &str) -> RouteConfiguration {
    let listener: Listener = get(ResourceType::Listener, target).unwrap();
    assert_eq!(listener.name, target);
    assert!(listener.address.is_none() && listener.filter_chains.is_empty());
    let any = listener.api_listener.unwrap().api_listener.unwrap();
    assert!(any.type_url.ends_with("v3.HttpConnectionManager"));
    let manager = HttpConnectionManager::decode(&*any.value).unwrap();
    assert_eq!(manager.http_filters.last().unwrap().name, "envoy.filters.http.router");
    match manager.route_specifier {
        Some(RouteSpecifier::RouteConfig(routes)) => routes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_target_in_any_form_gets_its_listener() {
    for target in ["orders.default:9000", "orders:9000", "orders.default.svc.cluster.local:9000", "Orders.Default:9000"]
    {
        let routes = routes(target);
        assert_eq!(routes.virtual_hosts[0].domains, ["*"]);
        assert_eq!(routes.virtual_hosts[0].routes.len(), 2);
        let path = routes.virtual_hosts[0].routes[0].r#match.as_ref().unwrap().path_specifier.clone();
        assert_eq!(path, Some(PathSpecifier::Path("/shop.Orders/Place".to_owned())));
    }
    assert_eq!(routes("frontend").virtual_hosts[0].routes.len(), 1);
    assert!(get::<Listener>(ResourceType::Listener, "nobody").is_none());
    assert!(get::<Listener>(ResourceType::Listener, "orders.default:1").is_none());
    assert!(get::<RouteConfiguration>(ResourceType::Route, "outbound").is_none());
}

#[test]
fn a_prefix_is_one_that_grpc_knows() {
    let routes = routes("orders:9000");
    for route in &routes.virtual_hosts[0].routes {
        let matches = route.r#match.as_ref().unwrap();
        assert!(
            matches!(matches.path_specifier, Some(PathSpecifier::Path(_) | PathSpecifier::Prefix(_))),
            "{matches:?}"
        );
        assert!(matches.grpc.is_none());
        let Some(Action::Route(action)) = &route.action else { panic!("not a route") };
        let timeout = action.max_stream_duration.unwrap().max_stream_duration.unwrap();
        assert_eq!(timeout.seconds, 5);
        let retry = action.retry_policy.as_ref().unwrap();
        assert_eq!(retry.retry_on, "unavailable", "gRPC has no word for the others");
    }
}

#[test]
fn a_cluster_names_files_and_exact_identities() {
    let cluster: Cluster = get(ResourceType::Cluster, "default/orders:9000").unwrap();
    assert!(cluster.typed_extension_protocol_options.is_empty());
    let Some(transport_socket::ConfigType::TypedConfig(any)) = cluster.transport_socket.unwrap().config_type else {
        panic!("no transport socket");
    };
    let common = UpstreamTlsContext::decode(&*any.value).unwrap().common_tls_context.unwrap();
    assert!(common.tls_certificate_sds_secret_configs.is_empty());
    assert_eq!(common.tls_certificate_provider_instance.unwrap().instance_name, "default");
    let Some(ValidationContextType::CombinedValidationContext(combined)) = common.validation_context_type else {
        panic!("no combined validation context");
    };
    let validation = combined.default_validation_context.unwrap();
    assert_eq!(validation.ca_certificate_provider_instance.unwrap().instance_name, "default");
    #[expect(deprecated, reason = "the only field that gRPC reads")]
    let sans = validation.match_subject_alt_names;
    assert_eq!(sans.len(), 1);
}

#[test]
fn the_balancer_is_one_that_grpc_accepts() {
    for name in ["default/orders:9000", "default/frontend:80", "default/inventory:9000"] {
        let cluster: Cluster = get(ResourceType::Cluster, name).unwrap();
        let known = [LbPolicy::RoundRobin as i32, LbPolicy::RingHash as i32];
        assert!(known.contains(&cluster.lb_policy), "{name}: {}", cluster.lb_policy);
    }
    let cluster: Cluster = get(ResourceType::Cluster, "default/frontend:80").unwrap();
    assert_eq!(cluster.load_balancing_policy.unwrap().policies.len(), 2);
}

#[test]
fn endpoints_have_locality_and_weight() {
    let assignment: ClusterLoadAssignment = get(ResourceType::Endpoints, "default/orders:9000").unwrap();
    let [group] = &assignment.endpoints[..] else { panic!("{assignment:?}") };
    assert_eq!(group.locality.as_ref().unwrap().zone, "a");
    assert_eq!((group.load_balancing_weight, group.lb_endpoints.len()), (Some(3), 3));
}
