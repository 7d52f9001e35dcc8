//! What resources must obey together.

use weft_model::{Finding, KnownServices, ResourceSet, ServiceKey, introduced, parse_all, validate};

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: [{port: 80, name: http}, {port: 9000, name: grpc}, {port: 5432, name: tcp-db}]}
---
apiVersion: v1
kind: Service
metadata: {name: b}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: c, namespace: other}
spec: {ports: [{port: 80}]}
";

fn set(files: &[(&str, &str)]) -> ResourceSet {
    let parsed = parse_all(files.iter().map(|(name, text)| (*name, text.as_bytes())), "default");
    assert!(parsed.errors.is_empty(), "{}", list(&parsed.errors));
    let mut set = ResourceSet::default();
    for document in parsed.documents {
        set.insert_document(document);
    }
    set
}

fn list(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("{finding}\n")).collect()
}

/// What is found about the text, beside the services.
fn found(text: &str) -> String {
    list(&validate(&set(&[("services.yaml", SERVICES), ("f.yaml", text)]), &KnownServices::new()))
}

fn route(name: &str, parent: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  \
         parentRefs: [{{kind: Service, name: a{parent}}}]\n  rules:\n{rules}"
    )
}

fn policy(name: &str, target: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}}}\nspec:\n  targetRefs: \
         [{target}]\n{spec}"
    )
}

fn access(spec: &str) -> String {
    format!(
        "---\napiVersion: weft.mesh/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p}}\nspec:\n  targetRefs: [{{kind: \
         Service, name: a}}]\n{spec}"
    )
}

#[test]
fn dangling_references() {
    let text = route(
        "r",
        ", port: 81",
        "  - backendRefs: [{name: bb, port: 80}, {name: b, port: 81}]\n  - matches: [{method: GET}]\n    backendRefs: \
         [{name: c, port: 80}]\n  - matches: [{method: PUT}]\n    backendRefs: [{name: c, namespace: other, port: 80}]\n",
    ) + &route("s", ", sectionName: htp", "  - backendRefs: [{name: zzzzz, port: 80}]\n")
        + &policy("p", "{kind: Service, name: x}, {kind: HTTPRoute, name: rr}", "  timeouts: {request: 1s}\n")
        + &policy("q", "{kind: HTTPRoute, name: r, sectionName: one}", "  timeouts: {request: 1s}\n")
        + "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: \
           {kubernetes.io/service-name: x}}\naddressType: IPv4\nports: [{port: 80}]\n---\napiVersion: \
           discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: t, labels: {kubernetes.io/service-name: \
           a}}\naddressType: IPv4\nports: [{port: 80}]\n";
    insta::assert_snapshot!(found(&text));
}

#[test]
fn conflicting_routes() {
    let rules = "  - matches: [{path: {value: /x/}}, {method: GET, path: {type: Exact, value: /y}}]\n    backendRefs: \
                 [{name: b, port: 80}]\n";
    let same = "  - matches: [{path: {type: PathPrefix, value: /x}}]\n    backendRefs: [{name: b, port: 80}]\n";
    insta::assert_snapshot!(found(&(route("r", "", rules) + &route("s", ", port: 80", same))));
    // Another port, another path, another method: no conflict.
    let other = "  - matches: [{path: {value: /x/y}}, {method: PUT, path: {type: Exact, value: /y}}]\n    backendRefs: \
                 [{name: b, port: 80}]\n";
    assert_eq!(found(&(route("r", ", port: 80", rules) + &route("s", ", port: 9000", same))), "");
    assert_eq!(found(&(route("r", "", rules) + &route("s", "", other))), "");
}

#[test]
fn a_rule_that_is_never_used() {
    let rules = "  - backendRefs: [{name: b, port: 80}]\n  - matches: [{path: {value: /}}]\n    backendRefs: [{name: a, \
                 port: 80}]\n";
    insta::assert_snapshot!(found(&route("r", "", rules)));
}

#[test]
fn a_route_for_bytes() {
    let rules = "  - backendRefs: [{name: b, port: 80}]\n";
    insta::assert_snapshot!(found(&route("r", ", port: 5432", rules)));
}

#[test]
fn overlapping_policies() {
    let text = policy(
        "p",
        "{kind: Service, name: a}",
        "  circuitBreaker: {maxRequests: 5}\n  retry: {attempts: 1, perTryTimeout: 1s}\n",
    ) + &policy(
        "q",
        "{kind: Service, name: a}",
        "  connectionPool: {maxRequests: 6, maxConnections: 1}\n  timeouts: {perTry: 2s, connect: 1s}\n",
    );
    insta::assert_snapshot!(found(&text));
    // One port, written in two ways.
    let text = policy("p", "{kind: Service, name: a, port: 80}", "  loadBalancer: {roundRobin: {}}\n")
        + &policy("q", "{kind: Service, name: a, sectionName: http}", "  loadBalancer: {sourceIp: {}}\n");
    insta::assert_snapshot!(found(&text));
    // More or less specific, another port, another field: no overlap.
    let text = policy("p", "{kind: Service, name: a}", "  loadBalancer: {roundRobin: {}}\n")
        + &policy("q", "{kind: Service, name: a, sectionName: http}", "  loadBalancer: {sourceIp: {}}\n")
        + &policy("r", "{kind: Service, name: a, port: 9000}", "  loadBalancer: {sourceIp: {}}\n")
        + &policy("s", "{kind: Service, name: a}", "  timeouts: {request: 1s}\n");
    assert_eq!(found(&text), "");
}

#[test]
fn access_that_means_nothing() {
    insta::assert_snapshot!(found(&access("  action: DENY\n")));
    insta::assert_snapshot!(found(&access("  action: ALLOW\n")));
    let rules = "  rules:\n  - to: [{ports: [80, 81]}, {ports: [5432], methods: [GET]}, {methods: [GET]}]\n";
    insta::assert_snapshot!(found(&access(rules)));
    assert_eq!(found(&access("  action: DENY\n  rules: [{}]\n")), "");
}

#[test]
fn a_service_may_come_from_the_registry() {
    let text = route("r", "", "  - backendRefs: [{name: x, port: 80}]\n");
    let set = set(&[("services.yaml", SERVICES), ("f.yaml", &text)]);
    let known = KnownServices::from([(ServiceKey::new("default", "x"), [80].into())]);
    assert!(validate(&set, &known).is_empty());
    let gone = validate(&set, &KnownServices::new());
    assert_eq!(gone.len(), 1);
    assert!(introduced(&gone, &gone).is_empty(), "a change that does not concern it is not held up");
    assert_eq!(introduced(&[], &gone), gone);
}

#[test]
fn findings_about_stored_resources_name_them() {
    let parsed = parse_all([("f", route("r", "", "  - backendRefs: [{name: x, port: 80}]\n").as_bytes())], "default");
    let set: ResourceSet = parsed.documents.into_iter().map(|document| document.resource).collect();
    insta::assert_snapshot!(list(&validate(&set, &KnownServices::new())));
}
