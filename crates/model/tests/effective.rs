//! Which values hold.

use std::time::Duration;

use weft_model::{
    Balancer, Call, CallRoute, EffectiveTraffic, HttpRoute, Mesh, Resource, RetryOn, TargetKind, TrafficPolicy,
    effective_traffic, grpc_precedence, http_precedence, parse,
};

fn resources(text: &str) -> Vec<Resource> {
    let parsed = parse("f.yaml", text.as_bytes(), "shop");
    assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
    parsed.documents.into_iter().map(|document| document.resource).collect()
}

fn policies(text: &str) -> Vec<TrafficPolicy> {
    let policies = resources(text).into_iter().map(|resource| match resource {
        Resource::TrafficPolicy(policy) => (*policy).clone(),
        other => panic!("{other:?}"),
    });
    policies.collect()
}

const CALL: Call<'_> = Call { namespace: "shop", service: "orders", port: 80, port_name: "http", route: None };

const POLICIES: &str = "
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: rule}
spec:
  targetRefs: [{kind: HTTPRoute, name: orders, sectionName: split}]
  timeouts: {request: 4s}
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: route}
spec:
  targetRefs: [{kind: HTTPRoute, name: orders}]
  timeouts: {request: 3s, perTry: 1s}
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: port}
spec:
  targetRefs: [{kind: Service, name: orders, sectionName: http}]
  timeouts: {request: 2s, connect: 200ms, perTry: 0s}
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: service}
spec:
  targetRefs: [{kind: Service, name: orders}]
  timeouts: {request: 1s, connect: 100ms, perTry: 500ms}
  loadBalancer: {consistentHash: {header: X-User}}
  circuitBreaker: {consecutiveFailures: 2, maxRequests: 9}
  outlierDetection: {baseEjectionTime: 2m}
---
apiVersion: weft.mesh/v1alpha1
kind: TrafficPolicy
metadata: {name: other, namespace: elsewhere}
spec:
  targetRefs: [{kind: Service, name: orders}]
  timeouts: {request: 9s}
";

fn mesh() -> Mesh {
    let text = "
apiVersion: weft.mesh/v1alpha1
kind: Mesh
metadata: {name: default}
spec: {defaults: {circuitBreaker: {}, connectionPool: {maxRequests: 7, maxPendingRequests: 8}, timeouts: {request: 10s}}}
";
    match &resources(text)[0] {
        Resource::Mesh(mesh) => (**mesh).clone(),
        other => panic!("{other:?}"),
    }
}

fn effective(call: &Call<'_>, reverse: bool) -> EffectiveTraffic {
    let mut policies = policies(POLICIES);
    if reverse {
        policies.reverse();
    }
    effective_traffic(Some((&mesh(), 3)), policies.iter().map(|policy| (policy, 7)), call)
}

#[test]
fn the_most_specific_policy_decides_field_by_field() {
    for reverse in [false, true] {
        let traffic = effective(&CALL, reverse);
        assert_eq!(traffic.timeouts.request.value, Some(Duration::from_secs(2)));
        assert_eq!(traffic.timeouts.request.by.as_deref(), Some("shop/port@7"));
        assert_eq!(traffic.timeouts.per_try.value, None, "`0s` switches it off");
        assert_eq!(*traffic.timeouts.connect, Duration::from_millis(200));
        let hash = Balancer::ConsistentHash { header: Some("x-user".to_owned()), virtual_nodes: 150 };
        assert_eq!(*traffic.balancer, hash);
        assert_eq!(*traffic.connection_pool.max_requests, 9);
        assert_eq!(*traffic.connection_pool.max_pending_requests, 8);
        assert_eq!(traffic.connection_pool.max_pending_requests.by.as_deref(), Some("Mesh default@3"));
        assert!(*traffic.circuit_breaker.enabled);
        assert_eq!(*traffic.circuit_breaker.consecutive_failures, 2);
        assert_eq!(*traffic.circuit_breaker.recovery_time, Duration::from_secs(30));
        assert_eq!(*traffic.outlier_detection.max_ejection_time, Duration::from_secs(120), "not below its beginning");
        assert_eq!(traffic.decided_by(), "shop/service@7, Mesh default@3");
    }
}

#[test]
fn a_route_and_its_rule_come_before_the_service() {
    let route = |rule| Call {
        route: Some(CallRoute { kind: TargetKind::HttpRoute, namespace: "shop", name: "orders", rule }),
        ..CALL
    };
    let traffic = effective(&route(None), false);
    assert_eq!(traffic.timeouts.request.value, Some(Duration::from_secs(3)));
    let traffic = effective(&route(Some("split")), false);
    assert_eq!(traffic.timeouts.request.value, Some(Duration::from_secs(4)));
    assert_eq!(traffic.timeouts.per_try.value, Some(Duration::from_secs(1)));
    let other =
        Call { route: Some(CallRoute { kind: TargetKind::GrpcRoute, ..route(None).route.expect("a route") }), ..CALL };
    assert_eq!(effective(&other, false).timeouts.request.value, Some(Duration::from_secs(2)));
}

fn http_route(text: &str) -> HttpRoute {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: orders}}\nspec:\n  parentRefs: \
         [{{kind: Service, name: orders}}]\n  rules:\n{text}"
    );
    match &resources(&text)[0] {
        Resource::HttpRoute(route) => (**route).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_rule_says_itself_comes_first() {
    let route = http_route(
        "  - timeouts: {request: 0s, backendRequest: 7s}\n    retry: {codes: [503], backoff: 1s}\n    backendRefs: \
         [{name: orders, port: 80}]\n",
    );
    let traffic = effective(&CALL, false).with_rule(&route.spec.rules[0], "HTTPRoute shop/orders@9");
    assert_eq!(traffic.timeouts.request.value, None);
    assert_eq!(traffic.timeouts.request.by.as_deref(), Some("HTTPRoute shop/orders@9"));
    assert_eq!(traffic.timeouts.per_try.value, Some(Duration::from_secs(7)));
    assert_eq!(*traffic.retry.attempts, 2);
    assert_eq!(*traffic.retry.status_codes, [503]);
    assert_eq!(*traffic.retry.on, [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Reset]);
    assert_eq!(*traffic.retry.backoff_max, Duration::from_secs(1));
    assert!(traffic.retry_is_explicit());
}

#[test]
fn without_resources_the_built_in_defaults_hold() {
    let traffic = effective_traffic(None, [], &CALL);
    assert_eq!(traffic, EffectiveTraffic::built_in());
    assert_eq!(traffic.decided_by(), "");
    assert_eq!(*traffic.balancer, Balancer::LeastRequest);
    assert!(!*traffic.circuit_breaker.enabled);
    assert!(*traffic.outlier_detection.enabled);
    assert!(!traffic.retry_is_explicit());
}

#[test]
fn the_most_specific_match_comes_first() {
    let route = http_route(
        "  - {name: all, backendRefs: [{name: orders, port: 80}]}
  - name: prefixes
    matches: [{path: {value: /a}}, {path: {value: /a/b}}, {path: {value: /a}, method: GET}]
    backendRefs: [{name: orders, port: 80}]
  - name: headers
    matches: [{path: {value: /a}, headers: [{name: x, value: y}]}, {path: {value: /a}, queryParams: [{name: x, value: y}]}]
    backendRefs: [{name: orders, port: 80}]
  - name: exact
    matches: [{path: {type: Exact, value: /a}}, {path: {type: RegularExpression, value: '/a.*'}}]
    backendRefs: [{name: orders, port: 80}]
",
    );
    let mut earlier = route.clone();
    earlier.metadata.name = "a".to_owned();
    earlier.spec.rules.truncate(1);
    let order = |routes: [&HttpRoute; 2]| -> Vec<String> {
        let places = http_precedence(routes).into_iter().map(|candidate| {
            let rule = candidate.route.spec.rules[candidate.rule].label(candidate.rule);
            let test = candidate.test.map(|test| serde_json::to_string(test).expect("JSON")).unwrap_or_default();
            format!("{} {rule} {test}", candidate.route.metadata.name)
        });
        places.collect()
    };
    let first = order([&route, &earlier]);
    assert_eq!(first, order([&earlier, &route]), "the order of routes makes no difference");
    insta::assert_snapshot!(first.join("\n"));
}

#[test]
fn the_most_specific_grpc_match_comes_first() {
    let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: g}
spec:
  parentRefs: [{kind: Service, name: orders}]
  rules:
  - {name: all, backendRefs: [{name: orders, port: 80}]}
  - {name: service, matches: [{method: {service: a.B}}], backendRefs: [{name: orders, port: 80}]}
  - {name: method, matches: [{method: {service: a.B, method: C}}], backendRefs: [{name: orders, port: 80}]}
  - {name: header, matches: [{headers: [{name: x, value: y}]}], backendRefs: [{name: orders, port: 80}]}
";
    let all = resources(text);
    let Resource::GrpcRoute(route) = &all[0] else { panic!("{all:?}") };
    let order: Vec<usize> = grpc_precedence([&**route]).iter().map(|candidate| candidate.rule).collect();
    assert_eq!(order, [2, 1, 3, 0]);
}
