//! What a stock Envoy is told.

use std::{collections::BTreeSet, sync::Arc};

use prost::Message;
use weft_proto::envoy::{
    config::{
        cluster::v3::Cluster,
        core::v3::transport_socket,
        listener::v3::Listener,
        route::v3::{Route, RouteConfiguration, route::Action, route_action::ClusterSpecifier},
    },
    extensions::transport_sockets::tls::v3::{
        UpstreamTlsContext, common_tls_context::ValidationContextType, tls_parameters::TlsProtocol,
    },
};
use weft_xds::resource::{Decoded, ResourceType, decode};

use super::{SHOP, WORKLOADS, client, world};
use crate::translate::{Catalog, Client, LISTENERS, OUTBOUND, UPSTREAMS};

fn get<M: Message + Default>(client: &Client, ty: ResourceType, name: &str) -> M {
    let catalog = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    M::decode(&*catalog.get(client, ty, name).unwrap().any.value).unwrap()
}

fn names(client: &Client, ty: ResourceType) -> Vec<String> {
    let catalog = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    catalog.all(client, ty).iter().map(|resource| resource.name.to_string()).collect()
}

fn retry_on(route: &Route) -> &str {
    match &route.action {
        Some(Action::Route(action)) => &action.retry_policy.as_ref().unwrap().retry_on,
        other => panic!("{other:?}"),
    }
}

#[test]
fn goldens() {
    let envoy = client("envoy", "default/frontend/e", &[]);
    insta::assert_debug_snapshot!("envoy-cds", get::<Cluster>(&envoy, ResourceType::Cluster, "default/orders:9000"));
    insta::assert_debug_snapshot!("envoy-lds", get::<Listener>(&envoy, ResourceType::Listener, "outbound"));
}

/// Our own decoder reads what an Envoy gets; only the rewrite of a prefix by an expression is Envoy's alone.
#[test]
fn our_decoder_accepts_it_all() {
    let envoy = client("envoy", "default/frontend/e", &[(LISTENERS, "127.0.0.1:9=inventory:9000")]);
    let catalog = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    for ty in [ResourceType::Cluster, ResourceType::Secret] {
        for resource in catalog.all(&envoy, ty) {
            if let Err(error) = decode(ty, &resource.any) {
                panic!("{ty} {}: {error}", resource.name);
            }
        }
    }
}

#[test]
fn a_cluster_has_what_an_envoy_needs_for_tls() {
    let envoy = client("envoy", "default/frontend/e", &[]);
    let cluster: Cluster = get(&envoy, ResourceType::Cluster, "default/orders:9000");
    let Some(transport_socket::ConfigType::TypedConfig(any)) = cluster.transport_socket.unwrap().config_type else {
        panic!("no transport socket");
    };
    let tls = UpstreamTlsContext::decode(&*any.value).unwrap();
    assert_eq!(tls.sni, "p9000.orders.default.weft");
    let common = tls.common_tls_context.unwrap();
    assert_eq!(common.alpn_protocols, ["h2"]);
    let params = common.tls_params.unwrap();
    assert_eq!(params.tls_maximum_protocol_version, TlsProtocol::TlSv13 as i32);
    assert_eq!(params.ecdh_curves, ["X25519MLKEM768", "X25519", "P-256"]);
    let own = &common.tls_certificate_sds_secret_configs[0];
    assert_eq!((own.name.as_str(), own.sds_config.is_none()), ("weft-identity", true));
    let Some(ValidationContextType::CombinedValidationContext(combined)) = common.validation_context_type else {
        panic!("no combined validation context");
    };
    assert_eq!(combined.validation_context_sds_secret_config.unwrap().name, "ROOTCA");
    assert_eq!(combined.default_validation_context.unwrap().match_typed_subject_alt_names.len(), 1);
    assert!(
        cluster.typed_extension_protocol_options.keys().eq(["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"])
    );
}

#[test]
fn routes_hold_every_http_port_and_unique_domains() {
    let envoy = client("envoy", "default/frontend/e", &[]);
    let routes: RouteConfiguration = get(&envoy, ResourceType::Route, "outbound");
    let hosts: Vec<&str> = routes.virtual_hosts.iter().map(|host| host.name.as_str()).collect();
    let expected = [
        "frontend.default:80",
        "orders.default:80",
        "orders.default:9000",
        "orders-v1.default:80",
        "orders-v2.default:80",
    ];
    assert_eq!(hosts, expected.map(|host| format!("outbound/{host}")));
    let domains: Vec<&String> = routes.virtual_hosts.iter().flat_map(|host| &host.domains).collect();
    assert_eq!(domains.iter().collect::<BTreeSet<_>>().len(), domains.len());
    for domain in ["orders", "orders:80", "orders.default", "orders.default:9000", "frontend.default.svc.cluster.local"]
    {
        assert!(domains.iter().any(|known| *known == domain), "{domain}");
    }
    // Another namespace does not know the short form.
    let elsewhere = client("envoy", "ops/frontend/e", &[]);
    let routes: RouteConfiguration = get(&elsewhere, ResourceType::Route, "outbound");
    assert!(!routes.virtual_hosts.iter().flat_map(|host| &host.domains).any(|domain| domain == "orders"));
}

#[test]
fn what_may_have_been_executed_is_retried_for_idempotent_methods_only() {
    let envoy = client("envoy", "default/frontend/e", &[]);
    let routes: RouteConfiguration = get(&envoy, ResourceType::Route, "outbound");
    let [idempotent, any] = &routes.virtual_hosts[0].routes[..] else { panic!("{routes:?}") };
    assert_eq!(retry_on(idempotent), "connect-failure,refused-stream,reset,gateway-error");
    assert_eq!(idempotent.r#match.as_ref().unwrap().headers[0].name, ":method");
    assert_eq!(retry_on(any), "connect-failure,refused-stream");
    assert!(any.r#match.as_ref().unwrap().headers.is_empty());
    let Some(Action::Route(action)) = &any.action else { panic!("not a route") };
    assert_eq!(action.cluster_specifier, Some(ClusterSpecifier::Cluster("default/frontend:80".to_owned())));
    assert_eq!(action.timeout, Some(prost_types::Duration::default()), "absent would mean 15 s");
}

#[test]
fn a_node_may_want_only_some_services() {
    let scoped = client("envoy", "default/frontend/e", &[(UPSTREAMS, "orders"), (OUTBOUND, "127.0.0.1:9")]);
    let routes: RouteConfiguration = get(&scoped, ResourceType::Route, "outbound");
    assert_eq!(routes.virtual_hosts.len(), 2);
    let clusters = names(&scoped, ResourceType::Cluster);
    assert_eq!(clusters, ["default/orders:80", "default/orders:9000", "default/orders-v1:80", "default/orders-v2:80"]);
    let catalog = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    assert!(catalog.get(&scoped, ResourceType::Cluster, "default/frontend:80").is_none());
    let all = client("envoy", "default/frontend/e", &[]);
    assert!(catalog.get(&all, ResourceType::Cluster, "default/frontend:80").is_some());
    assert_eq!(names(&all, ResourceType::Cluster).len(), 5);
}

#[test]
fn bytes_get_a_listener_when_the_node_asks() {
    let asks = client("envoy", "default/frontend/e", &[(LISTENERS, "127.0.0.1:9=inventory:9000")]);
    assert_eq!(names(&asks, ResourceType::Listener), ["outbound", "outbound/127.0.0.1:9"]);
    assert!(names(&asks, ResourceType::Cluster).contains(&"default/inventory:9000".to_owned()));
    let does_not = client("envoy", "default/frontend/e", &[]);
    assert_eq!(names(&does_not, ResourceType::Listener), ["outbound"]);
    assert!(!names(&does_not, ResourceType::Cluster).contains(&"default/inventory:9000".to_owned()));
    let listener = Catalog::new(Arc::new(world(SHOP, &WORKLOADS))).get(&does_not, ResourceType::Listener, "inbound");
    assert!(listener.is_none());
}

#[test]
fn an_envoys_secret_is_the_trust_bundle_alone() {
    let envoy = client("envoy", "default/frontend/e", &[]);
    let catalog = Catalog::new(Arc::new(world(SHOP, &WORKLOADS)));
    let secret = catalog.get(&envoy, ResourceType::Secret, "ROOTCA").unwrap();
    let Ok(Decoded::Secret(bundle)) = decode(ResourceType::Secret, &secret.any) else { panic!("not a bundle") };
    assert_eq!(bundle.roots.len(), 1);
    assert!(catalog.get(&envoy, ResourceType::Secret, "weft-identity").is_none());
}
