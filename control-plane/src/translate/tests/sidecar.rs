//! What Weft's own sidecar is told, as it understands it.

use std::time::Duration;

use weft_xds::resource::{
    Balancer, Cluster, Decoded, Egress, Inbound, ListenerKind, PathMatch, PathRewrite, Permission, Principal, Protocol,
    RbacAction, ResourceType, RouteAction, StringMatch, VirtualHost,
};

use super::{SHOP, WORKLOADS, decoded, decoded_by, fetch, id, world};

fn cluster(yaml: &str, name: &str) -> Cluster {
    match decoded(&world(yaml, &WORKLOADS), ResourceType::Cluster, name) {
        Decoded::Cluster(cluster) => (*cluster).clone(),
        other => panic!("{other:?}"),
    }
}

fn virtual_host(name: &str) -> VirtualHost {
    match decoded(&world(SHOP, &WORKLOADS), ResourceType::VirtualHost, name) {
        Decoded::VirtualHost(host) => (*host).clone(),
        other => panic!("{other:?}"),
    }
}

fn inbound(yaml: &str, node: &str) -> Inbound {
    match decoded_by(&world(yaml, &WORKLOADS), node, ResourceType::Listener, "inbound") {
        Decoded::Listener(listener) => match &listener.kind {
            ListenerKind::Inbound(inbound) => inbound.clone(),
            ListenerKind::Outbound(other) => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// Goldens: whatever changes here changes on every sidecar.
#[test]
fn goldens() {
    let world = world(SHOP, &WORKLOADS);
    let all = [
        (ResourceType::Cluster, "default/orders:80"),
        (ResourceType::Cluster, "default/inventory:9000"),
        (ResourceType::Endpoints, "default/orders:80"),
        (ResourceType::Endpoints, "default/orders-v2:80"),
        (ResourceType::Listener, "inbound"),
        (ResourceType::Listener, "outbound"),
        (ResourceType::Route, "outbound"),
        (ResourceType::VirtualHost, "outbound/orders.default:80"),
        (ResourceType::VirtualHost, "outbound/orders.default:9000"),
        (ResourceType::VirtualHost, "outbound/frontend.default"),
        (ResourceType::VirtualHost, "outbound/10.0.0.11:8080"),
    ];
    for (ty, name) in all {
        let snapshot = format!("sidecar-{ty}-{}", name.replace(['/', ':'], "_"));
        insta::assert_debug_snapshot!(snapshot, decoded_by(&world, "default/orders/1", ty, name));
    }
}

#[test]
fn a_cluster_carries_the_policy_and_its_source() {
    let orders = cluster(SHOP, "default/orders:80");
    assert_eq!((&*orders.service, orders.port, orders.protocol), ("default/orders", 80, Protocol::Http));
    assert_eq!(&*orders.policy, "default/orders@7");
    let header = Some("x-user".parse().unwrap());
    assert_eq!(orders.balancer, Balancer::ConsistentHash { header, virtual_nodes: 200 });
    assert_eq!(orders.connect_timeout, Duration::from_millis(500));
    assert_eq!((orders.limits.requests, orders.limits.pending, orders.limits.connections), (100, 10, u32::MAX));
    let breaker = orders.circuit_breaker.unwrap();
    assert_eq!((breaker.consecutive_failures, breaker.successes_to_close), (4, 3));
    assert_eq!(breaker.recovery_time, Duration::from_secs(20));
    assert_eq!(orders.endpoint_breaker.unwrap().max_ejection_percent, 30);
    assert_eq!((orders.retry_budget.percent, orders.retry_budget.min_per_second), (10, 10));
    let tls = orders.tls.unwrap();
    assert_eq!((&*tls.sni, tls.identities), ("p80.orders.default.weft", vec![id("default", "orders")]));
}

#[test]
fn a_cluster_without_policies_has_the_defaults() {
    let inventory = cluster(SHOP, "default/inventory:9000");
    assert_eq!(
        (inventory.protocol, &inventory.balancer, &*inventory.policy),
        (Protocol::Tcp, &Balancer::LeastRequest, "")
    );
    assert_eq!(inventory.circuit_breaker, None);
    assert_eq!(inventory.endpoint_breaker, Some(Default::default()));
    assert_eq!((inventory.limits, inventory.retry_budget), (Default::default(), Default::default()));
    assert_eq!((inventory.connect_timeout, inventory.pool_idle), (Duration::from_secs(1), Duration::from_secs(60)));
    assert_eq!(inventory.panic_percent, 50);
    // Named by the annotation, though no endpoint proves it yet.
    let identities = inventory.tls.unwrap().identities;
    assert_eq!(identities, [id("default", "inventory"), id("default", "stock")]);
}

#[test]
fn every_balancer_survives_the_wire() {
    let of = |balancer: &str| {
        let policy = format!(
            "{SHOP}---\napiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {{ name: balancer }}\nspec:\n  \
             targetRefs: [{{ kind: Service, name: inventory }}]\n  loadBalancer: {{ {balancer} }}\n"
        );
        cluster(&policy, "default/inventory:9000").balancer
    };
    assert_eq!(of("leastRequest: {}"), Balancer::LeastRequest);
    assert_eq!(of("roundRobin: {}"), Balancer::RoundRobin);
    assert_eq!(of("weightedRoundRobin: {}"), Balancer::WeightedRoundRobin);
    assert_eq!(of("leastConnections: {}"), Balancer::LeastConnections);
    assert_eq!(of("sourceIp: {}"), Balancer::SourceIp);
    let ring = |header| Balancer::ConsistentHash { header, virtual_nodes: 150 };
    assert_eq!(of("consistentHash: { sourceIp: true }"), ring(None));
    assert_eq!(of("consistentHash: { header: x-user }"), ring(Some("x-user".parse().unwrap())));
}

#[test]
fn endpoints_carry_address_weight_zone_and_identity() {
    let Decoded::Endpoints(orders) = decoded(&world(SHOP, &WORKLOADS), ResourceType::Endpoints, "default/orders-v2:80")
    else {
        panic!("not endpoints");
    };
    let [only] = &orders.endpoints[..] else { panic!("{orders:?}") };
    assert_eq!(only.address.to_string(), "10.0.0.13:15006");
    assert_eq!((only.weight, only.priority, &*only.zone, &*only.workload), (1, 0, "a", "default/orders/3"));
    assert_eq!(only.identity, Some(id("default", "orders")));
}

#[test]
fn routes_stand_in_order_of_precedence_and_name_their_source() {
    let host = virtual_host("outbound/orders.default:80");
    let domains: Vec<&str> = host.domains.iter().map(|domain| &**domain).collect();
    assert!(domains.contains(&"orders.default:80") && domains.contains(&"orders.default.svc.cluster.local:80"));
    let names: Vec<&str> = host.routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["default/orders/debug", "default/orders/old", "default/orders/admin", "default/orders/split"]);
    assert_eq!((&*host.routes[3].source, host.routes[3].revision), ("HTTPRoute default/orders rule split", 7));
    let RouteAction::Forward(split) = &host.routes[3].action else { panic!("not a forward") };
    let shares: Vec<_> = split.clusters.iter().map(|cluster| (&*cluster.name, cluster.weight)).collect();
    assert_eq!(shares, [("default/orders-v1:80", 90), ("default/orders-v2:80", 10)]);
    // The policy's.
    assert_eq!(split.timeout, Some(Duration::from_secs(5)));
    let retry = split.retry.as_ref().unwrap();
    assert_eq!((retry.retries, retry.on.gateway_error, retry.on.refused_stream), (3, true, false));
    assert_eq!(retry.on.grpc, [10, 14]);
}

#[test]
fn a_rule_carries_matches_filters_timeouts_and_retries() {
    let host = virtual_host("outbound/orders.default:80");
    let admin = &host.routes[2];
    assert!(matches!(&admin.matches.path, PathMatch::SeparatedPrefix(prefix) if &**prefix == "/admin"));
    assert_eq!(admin.matches.headers.len(), 2);
    let edits = &admin.request_headers;
    assert_eq!(edits.remove, ["x-c"]);
    assert_eq!((edits.set[0].1.to_str().unwrap(), edits.add[0].0.as_str()), ("100%", "x-b"));
    let RouteAction::Forward(forward) = &admin.action else { panic!("not a forward") };
    assert_eq!(forward.timeout, Some(Duration::from_secs(3)));
    let retry = forward.retry.as_ref().unwrap();
    assert_eq!((retry.retries, retry.per_try_timeout), (1, Some(Duration::from_secs(1))));
    assert_eq!(retry.backoff_base, Duration::from_millis(10));
    assert!(retry.on.connect_failure && !retry.on.gateway_error && retry.on.statuses == [503]);
    assert!(matches!(&forward.rewrite, Some(PathRewrite::Prefix(prefix)) if &**prefix == "/"));
    assert_eq!(forward.host_rewrite.as_ref().unwrap(), "internal.example");
    let RouteAction::Redirect(old) = &host.routes[1].action else { panic!("not a redirect") };
    assert_eq!((old.status.as_u16(), old.host.as_deref()), (301, Some("new.example")));
}

#[test]
fn a_port_without_routes_leads_to_the_service_itself() {
    let host = virtual_host("outbound/frontend.default");
    let [only] = &host.routes[..] else { panic!("{host:?}") };
    let RouteAction::Forward(forward) = &only.action else { panic!("not a forward") };
    assert_eq!((&*only.name, &*only.source), ("default", "Service default/frontend"));
    assert_eq!(&*forward.clusters[0].name, "default/frontend:80");
    // Defaults: the sidecar's own policy.
    assert!(forward.retry.is_none() && forward.timeout.is_none());
}

#[test]
fn an_endpoints_address_leads_to_that_endpoint_whatever_the_routes_say() {
    let host = virtual_host("outbound/10.0.0.11:8080");
    assert_eq!(host.endpoint, Some("10.0.0.11:15006".parse().unwrap()));
    let [only] = &host.routes[..] else { panic!("{host:?}") };
    let RouteAction::Forward(forward) = &only.action else { panic!("not a forward") };
    assert_eq!(&*forward.clusters[0].name, "default/orders:80");
    assert_eq!(forward.timeout, Some(Duration::from_secs(5)), "the service's policy holds");
}

#[test]
fn a_services_own_address_leads_to_its_routes() {
    let yaml = SHOP.replace(
        "metadata: { name: orders }\nspec:\n  ports:",
        "metadata: { name: orders }\nspec:\n  \
                             clusterIP: 10.96.0.7\n  clusterIPs: [10.96.0.7, 'fd00::7']\n  ports:",
    );
    assert_ne!(yaml, SHOP);
    let world = world(&yaml, &WORKLOADS);
    let of = |name: &str| match decoded(&world, ResourceType::VirtualHost, name) {
        Decoded::VirtualHost(host) => (*host).clone(),
        other => panic!("{other:?}"),
    };
    let by_name = of("outbound/orders.default:80");
    for address in ["10.96.0.7:80", "[fd00::7]:80"] {
        let host = of(&format!("outbound/{address}"));
        assert_eq!((host.endpoint, host.routes.len()), (None, by_name.routes.len()));
        assert_eq!(*host.domains, [address.into()]);
    }
    let absent =
        fetch(&world, "weft-sidecar", "default/frontend/1", ResourceType::VirtualHost, "outbound/10.96.0.7:81");
    assert!(absent.is_none());
}

#[test]
fn the_mesh_says_what_becomes_of_calls_to_the_outside() {
    let egress = |spec: &str| {
        let mesh = format!("apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: {{ name: default }}\nspec: {spec}\n");
        match decoded(&world(&mesh, &[]), ResourceType::Listener, "outbound") {
            Decoded::Listener(listener) => match &listener.kind {
                ListenerKind::Outbound(outbound) => outbound.egress,
                ListenerKind::Inbound(other) => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(egress("{}"), Egress::Any);
    assert_eq!(egress("{ egress: { mode: any } }"), Egress::Any);
    assert_eq!(egress("{ egress: { mode: registered } }"), Egress::Registered);
}

#[test]
fn a_consistent_hash_tells_the_route_what_to_hash() {
    let host = virtual_host("outbound/orders.default:9000");
    let RouteAction::Forward(forward) = &host.routes[0].action else { panic!("not a forward") };
    assert_eq!(forward.hash.len(), 1);
    assert!(matches!(&host.routes[0].matches.path, PathMatch::Exact(path) if &**path == "/shop.Orders/Place"));
    assert!(host.routes[0].matches.grpc);
}

#[test]
fn what_does_not_exist_is_not_there() {
    let world = world(SHOP, &WORKLOADS);
    let missing = [
        (ResourceType::VirtualHost, "outbound/nobody.default:80"),
        (ResourceType::VirtualHost, "outbound/orders.default:81"),
        (ResourceType::VirtualHost, "outbound/orders.other:80"),
        (ResourceType::VirtualHost, "outbound/orders:80"),
        (ResourceType::Cluster, "default/orders:81"),
        (ResourceType::Cluster, "default/nobody:80"),
        (ResourceType::Endpoints, "default/orders:81"),
        (ResourceType::Listener, "other"),
        (ResourceType::Route, "other"),
        (ResourceType::Secret, "other"),
    ];
    for (ty, name) in missing {
        assert!(fetch(&world, "weft-sidecar", "default/frontend/1", ty, name).is_none(), "{ty} {name}");
    }
    assert!(fetch(&world, "weft-sidecar", "default/nobody/1", ResourceType::Listener, "inbound").is_none());
    let Decoded::Secret(bundle) = decoded(&world, ResourceType::Secret, "ROOTCA") else { panic!("not a secret") };
    assert_eq!(bundle.roots, *world.roots);
}

#[test]
fn the_inbound_listener_holds_the_access_rules_of_each_port() {
    let inbound = inbound(SHOP, "default/orders/1");
    assert!(!inbound.permissive);
    let http = &inbound.ports[0];
    assert_eq!((&*http.sni, &*http.service, http.port), ("p80.orders.default.weft", "default/orders", 80));
    let [deny, allow] = &http.access[..] else { panic!("{:?}", http.access) };
    assert_eq!((deny.action, allow.action), (RbacAction::Deny, RbacAction::Allow));
    assert_eq!((&*deny.policies[0].policy, &*deny.policies[0].rule), ("default/orders-deny", "secret"));
    let rules: Vec<&str> = allow.policies.iter().map(|rule| &*rule.rule).collect();
    assert_eq!(rules, ["1", "frontend"]);
    let [Principal::Authenticated(Some(StringMatch::Exact { value, .. }))] = &allow.policies[1].principals[..] else {
        panic!("{:?}", allow.policies[1])
    };
    assert_eq!(&**value, "spiffe://weft.local/ns/default/sa/frontend");
    assert!(matches!(&allow.policies[1].permissions[..], [Permission::And(all)] if all.len() == 2));
    let Permission::And(secret) = &deny.policies[0].permissions[0] else { panic!("{deny:?}") };
    assert!(matches!(&secret[..], [Permission::Path(_), Permission::Port(80)]), "{secret:?}");
}

#[test]
fn a_service_that_selects_the_workloads_is_no_way_round_their_rules() {
    let inbound = inbound(SHOP, "default/orders/1");
    let alias = inbound.ports.iter().find(|port| &*port.sni == "p80.orders-v2.default.weft").unwrap();
    assert_eq!((&*alias.service, alias.port), ("default/orders", 80));
    assert_eq!(alias.access.len(), inbound.ports[0].access.len());
}

#[test]
fn rules_of_bytes_know_no_http() {
    let inbound = inbound(SHOP, "default/inventory/1");
    let [allow] = &inbound.ports[0].access[..] else { panic!("{:?}", inbound.ports[0]) };
    let rules: Vec<&str> = allow.policies.iter().map(|rule| &*rule.rule).collect();
    assert_eq!(rules, ["orders"], "a rule that speaks of methods never matches bytes");
}

#[test]
fn the_mesh_decides_without_policies() {
    let mesh = |spec: &str| {
        format!(
            "{SHOP}---\napiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: {{ name: default }}\nspec: {{ {spec} }}\n"
        )
    };
    assert!(inbound(SHOP, "default/frontend/1").ports[0].access.is_empty());
    let closed = inbound(&mesh("defaultAccess: deny"), "default/frontend/1");
    let [allow] = &closed.ports[0].access[..] else { panic!("{closed:?}") };
    assert!(allow.action == RbacAction::Allow && allow.policies.is_empty());
    assert!(inbound(&mesh("mtls: { mode: permissive }"), "default/frontend/1").permissive);
}
