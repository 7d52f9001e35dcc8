//! The CustomResourceDefinitions: fresh, structural, and as strict as the control plane. The schema is evaluated by a
//! JSON Schema library and its rules by a CEL library, in the way of an API server: unknown fields are refused, defaults
//! are filled in first.

use std::{fmt::Write, path::PathBuf};

use serde_json::{Value, json};
use weft_model::{Kind, crd, parse, reference};

mod cases;
mod server;

use server::Server;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/kubernetes/crds"))
}

#[test]
fn the_files_are_fresh() {
    for kind in crd::KINDS {
        let path = folder().join(crd::file(kind).expect("a kind of Weft"));
        let written = crd::render(kind).expect("a kind of Weft");
        if std::env::var_os("WEFT_UPDATE").is_some() {
            std::fs::write(&path, &written).expect("the file can be written");
        }
        let file = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(file == written, "{} is stale: run WEFT_UPDATE=1 cargo test -p weft-model", path.display());
    }
}

/// What an API server demands of a schema: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>.
fn structural(path: &str, schema: &Value, found: &mut Vec<String>) {
    const KNOWN: [&str; 21] = [
        "description",
        "type",
        "format",
        "default",
        "enum",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "maxProperties",
        "required",
        "properties",
        "items",
        "additionalProperties",
        "x-kubernetes-validations",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
    ];
    let node = schema.as_object().expect("a schema is a map");
    for key in node.keys().filter(|key| !KNOWN.contains(&key.as_str())) {
        found.push(format!("{path}: `{key}`"));
    }
    let kind = node.get("type").and_then(Value::as_str).unwrap_or_default();
    if !["object", "array", "string", "integer", "boolean"].contains(&kind) {
        found.push(format!("{path}: type `{kind}`"));
    }
    if kind == "array" && !node.contains_key("items") {
        found.push(format!("{path}: a list of what?"));
    }
    if node.contains_key("properties") && node.contains_key("additionalProperties") {
        found.push(format!("{path}: properties and additionalProperties"));
    }
    // The cost of a rule is estimated from these; without them an API server refuses the rule.
    let bound = match kind {
        "array" => "maxItems",
        "string" if !node.contains_key("enum") && !node.contains_key("format") => "maxLength",
        _ => "type",
    };
    if !node.contains_key(bound) && !["apiVersion", "kind"].iter().any(|field| path.ends_with(field)) {
        found.push(format!("{path}: no {bound}"));
    }
    let fields = node.get("properties").and_then(Value::as_object);
    for name in node.get("required").and_then(Value::as_array).into_iter().flatten() {
        if !fields.is_some_and(|fields| fields.contains_key(name.as_str().unwrap_or_default())) {
            found.push(format!("{path}: requires {name}, which it does not have"));
        }
    }
    for (name, field) in fields.into_iter().flatten() {
        structural(&format!("{path}.{name}"), field, found);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = node.get(key) {
            structural(&format!("{path}[]"), inner, found);
        }
    }
    for rule in node.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
        let message = rule["message"].as_str().unwrap_or_default();
        if message.is_empty() || message.contains('\n') {
            found.push(format!("{path}: a rule needs a message of one line: {rule}"));
        }
        let mut at = schema;
        for step in rule["fieldPath"].as_str().unwrap_or_default().split('.').skip(1) {
            at = &at["properties"][step];
        }
        if at.is_null() {
            found.push(format!("{path}: no field {}", rule["fieldPath"]));
        }
    }
}

#[test]
fn schemas_are_structural() {
    for kind in crd::KINDS {
        let definition = crd::definition(kind).expect("a kind of Weft");
        let names = &definition["spec"]["names"];
        assert_eq!(
            definition["metadata"]["name"],
            format!("{}.{}", names["plural"].as_str().expect("text"), crd::GROUP)
        );
        assert_eq!(format!("{}/{}", crd::GROUP, crd::VERSION), kind.api_version());
        for word in
            [&names["singular"], &names["plural"]].into_iter().chain(names["shortNames"].as_array().expect("a list"))
        {
            assert_eq!(Kind::from_word(word.as_str().expect("text")), Some(kind), "`weft get {word}` knows it too");
        }
        let mut found = Vec::new();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        structural("", schema, &mut found);
        // An API server keeps `metadata` to itself.
        assert!(found.is_empty(), "{kind}:\n{}", found.join("\n"));
    }
}

/// Documents of a text, as JSON.
fn documents(text: &str) -> Vec<Value> {
    use serde::Deserialize;
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).expect("YAML that JSON can hold"))
        .filter(|document| !document.is_null())
        .collect()
}

fn ours(document: &Value) -> bool {
    document["apiVersion"] == "weft.mesh/v1alpha1"
}

#[test]
fn what_weft_takes_an_api_server_takes() {
    let server = Server::new();
    let examples: String = Kind::ALL.into_iter().map(|kind| reference::example(kind).to_owned() + "\n---\n").collect();
    let demo = include_str!("../../../cli/src/demo/mesh.yaml");
    let documents: Vec<Value> = documents(&(examples + demo)).into_iter().filter(ours).collect();
    assert!(documents.len() > 5, "only {} documents", documents.len());
    for document in documents {
        assert_eq!(server.admit(document.clone()).1, Vec::<String>::new(), "{document}");
    }
}

#[test]
fn what_weft_refuses_an_api_server_refuses() {
    let server = Server::new();
    let mut golden = String::new();
    for (name, text) in cases::policies() {
        for document in documents(&text) {
            let found = server.admit(document).1;
            writeln!(golden, "=== {name}\n{}\n", found.join("\n")).expect("writing to a String");
            assert!(!found.is_empty(), "{name}: an API server would take it\n{text}");
        }
    }
    insta::with_settings!({ prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("broken_custom_resources", golden);
    });
}

/// One thing is wrong with each; the words that say so.
const BROKEN: &[(Kind, &str, &str)] = &[
    (
        Kind::TrafficPolicy,
        "{targetRefs: [{kind: Service, name: a}, {kind: Service, name: a}], retry: {}}",
        "a target stands twice",
    ),
    (
        Kind::TrafficPolicy,
        "{targetRefs: [{kind: Service, name: a, group: apps}], retry: {}}",
        "not the group of that kind",
    ),
    (
        Kind::TrafficPolicy,
        "{targetRefs: [{kind: HTTPRoute, name: a, group: ''}], retry: {}}",
        "not the group of that kind",
    ),
    (Kind::TrafficPolicy, "{targetRefs: [{kind: HTTPRoute, name: a, port: 80}], retry: {}}", "a route has no port"),
    (
        Kind::TrafficPolicy,
        "{targetRefs: [{kind: Service, name: a, port: 80, sectionName: b}], retry: {}}",
        "both name a port",
    ),
    (Kind::TrafficPolicy, "{targetRefs: [{kind: Service, name: A}], retry: {}}", "does not match"),
    (Kind::TrafficPolicy, "{targetRefs: [{kind: Pod, name: a}], retry: {}}", "is not one of"),
    (Kind::TrafficPolicy, "{targetRefs: [{kind: GRPCRoute, name: a}], timeouts: {connect: 1s}}", "for a route"),
    (Kind::TrafficPolicy, "{targetRefs: [{kind: GRPCRoute, name: a}], retry: {budget: {}}}", "for a route"),
    (Kind::TrafficPolicy, "{targetRefs: [{kind: GRPCRoute, name: a}], loadBalancer: {roundRobin: {}}}", "for a route"),
    (Kind::TrafficPolicy, "{targetRefs: [{kind: Service, name: a}]}", "sets nothing"),
    (Kind::TrafficPolicy, "{targetRefs: [], retry: {}}", "`targetRefs` is missing"),
    (Kind::TrafficPolicy, "{retry: {}}", "`targetRefs` is missing"),
    (
        Kind::TrafficPolicy,
        "{targetRefs: [{kind: Service, name: a}], retry: {backoff: {base: 1s, max: 999ms}}}",
        "shorter than `base`",
    ),
    (Kind::TrafficPolicy, "{targetRefs: [{kind: Service, name: a}], retry: {statusCodes: [503, 503]}}", "stands twice"),
    (
        Kind::TrafficPolicy,
        "{targetRefs: [{kind: Service, name: a}], retry: {statusCodes: [200]}}",
        "less than the minimum",
    ),
    (
        Kind::TrafficPolicy,
        "{targetRefs: [{kind: Service, name: a}], retry: {perTryTimeout: 2s}, timeouts: {request: 1s}}",
        "longer than the whole",
    ),
    (
        Kind::TrafficPolicy,
        "{targetRefs: [{kind: Service, name: a}], timeouts: {perTry: 1d, request: 1s}}",
        "longer than the whole",
    ),
    (Kind::TrafficPolicy, "{targetRefs: [{kind: Service, name: a}], timeouts: {request: 25h}}", "out of bounds"),
    (Kind::TrafficPolicy, "{targetRefs: [{kind: Service, name: a}], timeouts: {request: 2d}}", "does not match"),
    (Kind::TrafficPolicy, "{targetRefs: [{kind: Service, name: a}], timeouts: {connect: 0s}}", "out of bounds"),
    (Kind::TrafficPolicy, "{targetRefs: [{kind: Service, name: a}], timeouts: {request: 5}}", "is not of type"),
    (
        Kind::TrafficPolicy,
        "{targetRefs: [{kind: Service, name: a}], outlierDetection: {baseEjectionTime: 2m, maxEjectionTime: 1m}}",
        "shorter than",
    ),
    (
        Kind::TrafficPolicy,
        "{targetRefs: [{kind: Service, name: a}], loadBalancer: {consistentHash: {header: Connection}}}",
        "belongs to the connection",
    ),
    (
        Kind::TrafficPolicy,
        "{targetRefs: [{kind: Service, name: a}], loadBalancer: {consistentHash: {header: 'a b'}}}",
        "does not match",
    ),
    (Kind::TrafficPolicy, "{targetRefs: [{kind: Service, name: a}], hedging: {delay: 1s}}", "not supported yet"),
    (Kind::AccessPolicy, "{targetRefs: []}", "less than 1 item"),
    (Kind::AccessPolicy, "{rules: []}", "\"targetRefs\" is a required property"),
    (Kind::AccessPolicy, "{targetRefs: [{kind: Service, name: a, port: 80}]}", "a whole Service"),
    (
        Kind::AccessPolicy,
        "{targetRefs: [{kind: Service, name: a}], rules: [{name: x}, {name: x}]}",
        "have the same name",
    ),
    (Kind::AccessPolicy, "{targetRefs: [{kind: Service, name: a}], rules: [{from: [{}]}]}", "nothing about the caller"),
    (
        Kind::AccessPolicy,
        "{targetRefs: [{kind: Service, name: a}], rules: [{to: [{methods: []}]}]}",
        "nothing about the request",
    ),
    (
        Kind::AccessPolicy,
        "{targetRefs: [{kind: Service, name: a}], rules: [{to: [{paths: ['/a/../b']}]}]}",
        "does not match",
    ),
    (Kind::AccessPolicy, "{targetRefs: [{kind: Service, name: a}], rules: [{when: [{key: a}]}]}", "not supported yet"),
    (Kind::AccessPolicy, "{targetRefs: [{kind: Service, name: a}], action: AUDIT}", "is not one of"),
    (Kind::AccessPolicy, "{targetRefs: [{kind: Service, name: a}], rule: []}", "unexpected"),
    (Kind::Mesh, "{defaults: {targetRefs: [{kind: Service, name: a}]}}", "for every Service"),
    (Kind::Mesh, "{certificates: {ttl: 1s}}", "out of bounds"),
    (Kind::Mesh, "{certificates: {ttl: 91d}}", "does not match"),
    (Kind::Mesh, "{trustDomain: Weft}", "does not match"),
];

/// The same table against Weft itself: the two must agree on every line.
#[test]
fn each_broken_field_is_refused_by_both() {
    let server = Server::new();
    for (kind, spec, expected) in BROKEN {
        let text = format!("apiVersion: weft.mesh/v1alpha1\nkind: {kind}\nmetadata: {{name: default}}\nspec: {spec}\n");
        let found = server.admit(documents(&text).remove(0)).1;
        assert!(found.iter().any(|finding| finding.contains(expected)), "{text}{found:#?}");
        assert!(!parse("f.yaml", text.as_bytes(), "default").errors.is_empty(), "{text}Weft takes it");
    }
}

/// One thing in each might look wrong, and is not.
#[test]
fn what_only_looks_wrong_is_taken_by_both() {
    let server = Server::new();
    let service = "targetRefs: [{kind: Service, name: a}]";
    for (kind, spec) in [
        (Kind::TrafficPolicy, format!("{{{service}, timeouts: {{request: 0s, perTry: 1s}}}}")),
        (Kind::TrafficPolicy, format!("{{{service}, timeouts: {{request: '0'}}}}")),
        (Kind::TrafficPolicy, format!("{{{service}, timeouts: {{request: 1d, perTry: 24h}}}}")),
        (Kind::TrafficPolicy, format!("{{{service}, timeouts: {{request: 1m30s, perTry: 1.5m}}}}")),
        (
            Kind::TrafficPolicy,
            "{targetRefs: [{kind: Service, name: a, port: 80}, {kind: Service, name: a, port: 81}], retry: {}}".into(),
        ),
        (Kind::TrafficPolicy, "{targetRefs: [{kind: Service, name: a}, {kind: HTTPRoute, name: a}], retry: {}}".into()),
        (Kind::TrafficPolicy, "{targetRefs: [{kind: Service, name: a, group: core}], retry: {}}".into()),
        (
            Kind::TrafficPolicy,
            format!("{{{service}, loadBalancer: {{consistentHash: {{header: X-User, sourceIp: false}}}}}}"),
        ),
        (Kind::AccessPolicy, format!("{{{service}, rules: [{{}}, {{name: '0'}}]}}")),
        (
            Kind::AccessPolicy,
            format!("{{{service}, rules: [{{from: [{{identities: ['*', 'a/*', 'a/b', 'spiffe://x/ns/a/sa/b']}}]}}]}}"),
        ),
        (Kind::Mesh, "{}".into()),
        (Kind::Mesh, "{certificates: {ttl: 90d}, defaults: {retry: {}}}".into()),
    ] {
        let text = format!("apiVersion: weft.mesh/v1alpha1\nkind: {kind}\nmetadata: {{name: default}}\nspec: {spec}\n");
        let found = server.admit(documents(&text).remove(0)).1;
        assert!(found.is_empty(), "{text}{found:#?}");
        let errors = parse("f.yaml", text.as_bytes(), "default").errors;
        assert!(errors.is_empty(), "{text}{errors:#?}");
    }
}

#[test]
fn defaults_are_filled_in_where_nothing_is_inherited() {
    let server = Server::new();
    let document = |kind: Kind, spec: Value| json!({ "apiVersion": "weft.mesh/v1alpha1", "kind": kind.as_str(), "metadata": { "name": "default" }, "spec": spec });
    let mesh = server.admit(document(Kind::Mesh, json!({}))).0;
    assert_eq!(mesh["spec"], json!({ "mtls": { "mode": "strict" }, "defaultAccess": "allow" }));
    let bare = json!({ "apiVersion": "weft.mesh/v1alpha1", "kind": "Mesh", "metadata": { "name": "default" } });
    assert_eq!(server.admit(bare).0["spec"], mesh["spec"]);
    let target = json!([{ "kind": "Service", "name": "a" }]);
    let access = server.admit(document(Kind::AccessPolicy, json!({ "targetRefs": target }))).0;
    assert_eq!(access["spec"], json!({ "targetRefs": target, "action": "ALLOW" }));
    let spec = json!({ "targetRefs": target, "retry": {}, "outlierDetection": {} });
    let traffic = server.admit(document(Kind::TrafficPolicy, spec.clone())).0;
    assert_eq!(traffic["spec"], spec, "what the Mesh may set has no default of its own");
}
