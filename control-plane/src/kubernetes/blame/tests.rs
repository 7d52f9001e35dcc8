use weft_xds::server::Nack;

use super::*;
use crate::translate::tests::{SHOP, WORKLOADS, client, world};

const WEB: &str = "default/frontend/1";
const ORDERS: &str = "default/orders/1";

fn nack(agent: &str, id: &str, ty: ResourceType, name: &str, message: &str) -> Standing {
    let nack = Nack { version: 1, message: message.into() };
    Standing { client: client(agent, id, &[]), ty, name: name.into(), nack }
}

fn sidecar(id: &str, ty: ResourceType, name: &str, error: &str) -> Standing {
    nack("weft-sidecar", id, ty, name, &format!("default/other:80: is fine\n{name}: {error}"))
}

/// `Kind namespace/name`, with its parent, of each object that is told.
fn told(yaml: &str, standing: &[Standing]) -> Vec<String> {
    let refused = refused(&world(yaml, &WORKLOADS), standing);
    let name = |part: &Part| match &part.parent {
        Some(parent) => format!("{} at {parent}", part.object),
        None => part.object.to_string(),
    };
    refused.keys().map(name).collect()
}

#[test]
fn a_cluster_is_made_of_the_policies_that_decided_something_of_it() {
    use ResourceType::Cluster;
    let of = |name: &str| told(SHOP, &[sidecar(WEB, Cluster, name, "lb_policy: is unknown")]);
    assert_eq!(of("default/orders:80"), ["TrafficPolicy default/orders"]);
    assert_eq!(of("default/inventory:9000"), [""; 0], "of its Service alone");
    assert_eq!(of("default/gone:80"), [""; 0]);
    let with_mesh = format!(
        "{SHOP}---\napiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: {{ name: default }}\n\
         spec: {{ defaults: {{ circuitBreaker: {{ successesToClose: 5 }} }} }}\n"
    );
    let both = told(&with_mesh, &[sidecar(WEB, Cluster, "default/orders:80", "circuit_breakers: no")]);
    assert_eq!(both, ["Mesh default", "TrafficPolicy default/orders"], "both decided");
    let mesh = told(&with_mesh, &[sidecar(WEB, Cluster, "default/inventory:9000", "circuit_breakers: no")]);
    assert_eq!(mesh, ["Mesh default"]);
}

#[test]
fn the_field_that_a_sidecar_names_says_which_route() {
    let of = |error: &str| told(SHOP, &[sidecar(WEB, ResourceType::VirtualHost, "outbound/orders.default:80", error)]);
    let route = "HTTPRoute default/orders at default/orders";
    assert_eq!(of("routes[0].match.path: is unknown"), [route]);
    assert_eq!(of("routes[0].route.retry_policy: is unknown"), [route, "TrafficPolicy default/orders"]);
    assert_eq!(of("domains: is empty"), [route, "TrafficPolicy default/orders"], "any of them");
    assert_eq!(of("routes[99].match: is unknown").len(), 2, "there is no such route");
    // Another port has other routes, and without a port the host means port 80.
    let grpc = sidecar(WEB, ResourceType::VirtualHost, "outbound/orders.default:9000", "routes[0].match: no");
    assert_eq!(told(SHOP, &[grpc]), ["GRPCRoute default/orders at default/orders"]);
    let host = sidecar(WEB, ResourceType::VirtualHost, "outbound/orders.default", "routes[0].match: no");
    assert_eq!(told(SHOP, &[host]), [route]);
    for name in ["outbound/frontend.default:80", "outbound/dns:orders.default", "outbound/namespaces", "nonsense"] {
        let refusal = sidecar(WEB, ResourceType::VirtualHost, name, "routes[0].match: no");
        assert_eq!(told(SHOP, &[refusal]), [""; 0], "{name} is made of Services alone");
    }
}

#[test]
fn the_inbound_listener_is_made_of_the_service_own_access_policies() {
    let of = |id: &str, error: &str| told(SHOP, &[sidecar(id, ResourceType::Listener, "inbound", error)]);
    let both = ["AccessPolicy default/orders", "AccessPolicy default/orders-deny"];
    assert_eq!(of(ORDERS, "filter_chains[0]: no"), both);
    assert_eq!(of(ORDERS, r#"filters[0].rules.policies["default/orders-deny/secret"].principals: no"#), both[1..]);
    assert_eq!(of(ORDERS, r#"filters[0].rules.policies["default/orders/frontend"].principals: no"#), both[..1]);
    assert_eq!(of(WEB, "filter_chains[0]: no"), [""; 0], "nobody guards it");
    assert_eq!(of("default/inventory/1", "no"), ["AccessPolicy default/inventory"]);
    let with_mesh =
        format!("{SHOP}---\napiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: {{ name: default }}\nspec: {{}}\n");
    for name in ["inbound", "outbound"] {
        let refusal = sidecar(WEB, ResourceType::Listener, name, "no");
        assert_eq!(told(&with_mesh, &[refusal]), ["Mesh default"], "{name}");
    }
}

#[test]
fn other_clients_are_believed_as_far_as_they_say_something() {
    let envoy = |error: &str| told(SHOP, &[nack("envoy", WEB, ResourceType::Route, "outbound", error)]);
    assert_eq!(envoy("Only a single wildcard domain is permitted"), [""; 0], "it could be any route's");
    let route = "HTTPRoute default/orders at default/orders";
    assert_eq!(envoy("route default/orders/split: total weight 0"), [route]);
    let cluster =
        nack("envoy", WEB, ResourceType::Cluster, "default/orders:80", "Error adding cluster default/orders:80");
    assert_eq!(told(SHOP, &[cluster]), ["TrafficPolicy default/orders"]);
    let grpc = nack("grpc-go", WEB, ResourceType::Listener, "orders:80", "unsupported route action");
    assert_eq!(told(SHOP, &[grpc]), [route, "TrafficPolicy default/orders"]);
}

#[test]
fn the_same_refusal_of_many_is_told_once() {
    use ResourceType::Cluster;
    let many: Vec<Standing> = (1..=5)
        .map(|n| sidecar(&format!("default/frontend/{n}"), Cluster, "default/orders:80", "lb_policy: is\nunknown"))
        .chain([sidecar(ORDERS, Cluster, "default/orders:9000", "lb_policy: is older")])
        .collect();
    let refused = refused(&world(SHOP, &WORKLOADS), &many);
    let text = refused.values().next().unwrap();
    assert_eq!(
        text,
        "default/frontend/1, default/frontend/2, default/frontend/3 and 2 more refuse the cluster default/orders:80: \
         lb_policy: is; default/orders/1 refuses the cluster default/orders:9000: lb_policy: is older"
    );
}

#[test]
fn what_is_shared_is_told_of_each_with_the_names_of_the_others() {
    let refusal = sidecar(WEB, ResourceType::VirtualHost, "outbound/orders.default:80", "domains: is empty");
    let refused = refused(&world(SHOP, &WORKLOADS), &[refusal]);
    let texts: Vec<&str> = refused.values().map(String::as_str).collect();
    assert!(texts[0].contains("(made of this and of TrafficPolicy default/orders): domains"), "{}", texts[0]);
    assert!(texts[1].contains("(made of this and of HTTPRoute default/orders): domains"), "{}", texts[1]);
}

#[test]
fn names_are_words() {
    for (text, name, named) in [
        ("route shop/orders/0 is bad", "shop/orders/0", true),
        ("route shop/orders/01 is bad", "shop/orders/0", false),
        ("route my-shop/orders/0 is bad", "shop/orders/0", false),
        (r#"policies["shop/orders/all"]"#, "shop/orders/", true),
        ("outbound/shop/orders/all", "shop/orders/", false),
        ("see shop/orders/0.", "shop/orders/0", true),
    ] {
        assert_eq!(mentions(text, name), named, "{text}");
    }
}

#[test]
fn what_a_client_sends_is_bounded() {
    let refusals: Vec<Standing> = (0..3000)
        .map(|n| sidecar(WEB, ResourceType::Cluster, "default/orders:80", &format!("{n}{}", "ä".repeat(5000))))
        .collect();
    let refused = refused(&world(SHOP, &WORKLOADS), &refusals);
    let text = refused.values().next().unwrap();
    assert!(text.split("; ").count() <= COMPLAINTS && text.chars().count() < COMPLAINTS * (ERROR + 100));
}
