//! Documents that must be read, and what becomes of them.

use weft_model::{
    AppProtocol, Finding, Kind, KnownServices, Parsed, Protocol, Resource, ResourceSet, parse, reference, validate,
};

fn read(text: &str) -> Parsed {
    parse("test.yaml", text.as_bytes(), "default")
}

/// The resources of a text that must be without fault.
fn resources(text: &str) -> Vec<Resource> {
    let parsed = read(text);
    assert!(parsed.errors.is_empty(), "{}", list(&parsed.errors));
    parsed.documents.into_iter().map(|document| document.resource).collect()
}

fn list(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("{finding}\n")).collect()
}

#[test]
fn the_examples_of_the_reference_are_a_valid_set() {
    let mut set = ResourceSet::default();
    for kind in Kind::ALL {
        let resources = resources(reference::example(kind));
        assert!(resources.iter().any(|resource| resource.kind() == kind), "{kind}");
        for resource in resources {
            assert!(set.insert(resource).is_none());
        }
    }
    let findings = validate(&set, &KnownServices::new());
    assert!(findings.is_empty(), "{}", list(&findings));
}

#[test]
fn canonical_yaml_reads_back_the_same() {
    for kind in Kind::ALL {
        for resource in resources(reference::example(kind)) {
            let yaml = resource.to_yaml();
            let back = resources(&yaml);
            assert_eq!(back, std::slice::from_ref(&resource), "{yaml}");
            assert_eq!(back[0].to_yaml(), yaml);
            assert_eq!(resources(&resource.to_json()), std::slice::from_ref(&resource));
            let stored: Resource = serde_json::from_str(&resource.to_json()).expect("its own JSON");
            assert_eq!(stored, resource);
        }
    }
}

#[test]
fn canonical_yaml_leaves_defaults_out() {
    let text = "kind: Service\napiVersion: v1\nspec:\n  ports: [{port: 80}]\nmetadata: {name: a}\n";
    let yaml = resources(text)[0].to_yaml();
    insta::assert_snapshot!(yaml, @r"
    apiVersion: v1
    kind: Service
    metadata:
      name: a
      namespace: default
    spec:
      ports:
      - port: 80
    ");
}

#[test]
fn what_kubernetes_hands_out_can_be_applied() {
    let text = r#"
apiVersion: v1
kind: List
metadata:
  resourceVersion: ""
items:
- apiVersion: v1
  kind: Service
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"v1","kind":"Service","metadata":{"name":"web"}}
    creationTimestamp: "2026-01-02T03:04:05Z"
    labels:
      app.kubernetes.io/name: web
    managedFields:
    - apiVersion: v1
      fieldsV1: {f:spec: {f:ports: {}}}
    name: web
    namespace: shop
    resourceVersion: "1234"
    uid: 6a1f6e0c-0d0f-4e58-8cf5-0c7f3c6f1a55
  spec:
    clusterIP: 10.96.10.20
    clusterIPs:
    - 10.96.10.20
    internalTrafficPolicy: Cluster
    ipFamilies:
    - IPv4
    ipFamilyPolicy: SingleStack
    ports:
    - name: http-web
      nodePort: 31234
      port: 80
      protocol: TCP
      targetPort: web
    selector:
      app: web
    sessionAffinity: None
    type: NodePort
  status:
    loadBalancer: {}
- addressType: IPv4
  apiVersion: discovery.k8s.io/v1
  endpoints:
  - addresses:
    - 10.244.1.5
    conditions:
      ready: true
      serving: true
      terminating: false
    nodeName: worker
    targetRef:
      kind: Pod
      name: web-5d59d67564-8p2xk
      namespace: shop
      uid: 0f6bb5d1-6a3e-4d3a-9d0c-6d3f0c0e7f11
    zone: eu-1a
  kind: EndpointSlice
  metadata:
    generateName: web-
    labels:
      kubernetes.io/service-name: web
      endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
    name: web-x7k2p
    namespace: shop
    ownerReferences:
    - {apiVersion: v1, kind: Service, name: web, uid: x}
  ports:
  - name: http-web
    port: 8080
    protocol: TCP
"#;
    let all = resources(text);
    let [Resource::Service(service), Resource::EndpointSlice(slice)] = all.as_slice() else {
        panic!("{all:?}");
    };
    assert_eq!(service.spec.ports[0].app(), Protocol::Http);
    assert_eq!(service.metadata.namespace, "shop");
    assert_eq!(slice.service(), Some("web"));
    assert!(slice.endpoints[0].ready());
}

#[test]
fn json_bom_anchors_and_merge_keys_are_read() {
    let json = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Service\",\n\t\"metadata\": {\"name\": \"a\\u002db\"},\n\t\"spec\": {\"ports\": [{\"port\": 80, \"appProtocol\": \"kubernetes.io\\/h2c\"}]}\n}\n";
    let all = resources(json);
    let Resource::Service(service) = &all[0] else { panic!("{all:?}") };
    assert_eq!(service.metadata.name, "a-b");
    assert_eq!(service.spec.ports[0].app_protocol, Some(AppProtocol::H2c));

    let json = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "annotations":
        {"a": "\ud83d\ude00", "b": "\\ud83d\\ude00", "c": "\u00e9"}}, "spec": {"ports": [{"port": 80}]}}"#;
    let all = resources(json);
    let annotations = &all[0].metadata().annotations;
    assert_eq!(annotations["a"], "\u{1f600}");
    assert_eq!(annotations["b"], r"\ud83d\ude00");
    assert_eq!(annotations["c"], "\u{e9}");

    let bom = "\u{feff}apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
    assert_eq!(resources(bom).len(), 1);

    let merged = "
apiVersion: v1
kind: Service
metadata: {name: a, labels: &l {team: x, tier: front}, annotations: {<<: *l, team: y}}
spec: {ports: [{port: 80}]}
";
    let all = resources(merged);
    let annotations = &all[0].metadata().annotations;
    assert_eq!(annotations["team"], "y");
    assert_eq!(annotations["tier"], "front");
}

#[test]
fn text_stays_as_it_is_written() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: 'on', labels: {version: 1.10, flag: no, number: 007, empty: ''}}
spec: {ports: [{port: 80}]}
";
    let all = resources(text);
    let labels = &all[0].metadata().labels;
    assert_eq!(labels["version"], "1.10");
    assert_eq!(labels["flag"], "no");
    assert_eq!(labels["number"], "007");
    assert_eq!(labels["empty"], "");
    assert_eq!(resources(&all[0].to_yaml()), all);
}

#[test]
fn empty_documents_and_comments_are_no_resources() {
    assert!(resources("").is_empty());
    assert!(resources("# nothing\n---\n---\n# nothing\n...\n").is_empty());
}

#[test]
fn the_name_of_a_port_tells_its_protocol() {
    let app = |port: &str| {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{ports: [{port}]}}\n");
        let Resource::Service(service) = &resources(&text)[0] else { panic!("a Service") };
        service.spec.ports[0].app()
    };
    assert_eq!(app("{port: 80}"), Protocol::Detect);
    assert_eq!(app("{port: 80, name: http}"), Protocol::Http);
    assert_eq!(app("{port: 80, name: http-web}"), Protocol::Http);
    assert_eq!(app("{port: 80, name: httpx}"), Protocol::Detect);
    assert_eq!(app("{port: 80, name: grpc}"), Protocol::Grpc);
    assert_eq!(app("{port: 80, name: http2-a}"), Protocol::Http2);
    assert_eq!(app("{port: 80, name: tcp-db}"), Protocol::Tcp);
    assert_eq!(app("{port: 80, name: http, appProtocol: tcp}"), Protocol::Tcp);
    assert_eq!(app("{port: 5432, appProtocol: postgresql}"), Protocol::Tcp);
}

#[test]
fn ten_thousand_services_fit_into_one_input() {
    let one = |index: usize| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: s{index}\n  namespace: big\n  labels: {{app: \
             s{index}}}\nspec:\n  ports:\n  - name: http\n    port: 80\n    targetPort: 8080\n"
        )
    };
    let text: String = (0..10_000).map(one).collect();
    let set: ResourceSet = resources(&text).into_iter().collect();
    assert_eq!(set.len(), 10_000);
    assert!(validate(&set, &KnownServices::new()).is_empty());
}
