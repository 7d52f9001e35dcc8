//! Documents that must be refused, each with the place, the field, the words and what to do. The golden file shows every
//! text beside what is said of it.

use std::fmt::Write;

use weft_model::{MAX_BYTES, parse};

mod cases;
use cases::{mesh, policies};

fn errors(text: &[u8]) -> String {
    let parsed = parse("f.yaml", text, "default");
    parsed.errors.iter().map(|finding| format!("{finding}\n")).collect()
}

/// What comes before and after in most documents.
fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec:\n{spec}")
}

fn http_route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  parentRefs: \
         [{{kind: Service, name: a}}]\n  rules:\n{rules}"
    )
}

fn grpc_route(rules: &str) -> String {
    http_route(rules).replace("HTTPRoute", "GRPCRoute")
}

fn cases() -> Vec<(&'static str, String)> {
    let mut cases = documents();
    cases.extend(services());
    cases.extend(routes());
    cases.extend(policies());
    cases
}

fn documents() -> Vec<(&'static str, String)> {
    vec![
        ("no kind", "apiVersion: v1\nmetadata: {name: a}\n".to_owned()),
        ("unknown kind", "apiVersion: v1\nkind: Servce\n".to_owned()),
        ("foreign kind", "apiVersion: apps/v1\nkind: Deployment\n".to_owned()),
        ("wrong version", "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: HTTPRoute\n".to_owned()),
        ("no version", "kind: Mesh\n".to_owned()),
        ("not a map", "- a\n".to_owned()),
        ("not YAML", "apiVersion: v1\nkind: [Service\n".to_owned()),
        ("tab as indentation", "apiVersion: v1\nkind: Service\nmetadata:\n\tname: a\n".to_owned()),
        ("duplicate key", service("  ports: [{port: 80}]\n  ports: [{port: 81}]\n")),
        ("alias inside of itself", "a: &x [*x]\n".to_owned()),
        ("unknown alias", "a: *x\n".to_owned()),
        ("a key that is a list", "? [a]\n: b\n".to_owned()),
        ("a second document is bad", service("  ports: [{port: 80}]\n") + "---\napiVersion: v1\nkind: Service\n"),
        ("the same resource twice", service("  ports: [{port: 80}]\n") + "---\n" + &service("  ports: [{port: 81}]\n")),
        ("two meshes", mesh("  {}\n") + "---\n" + &mesh("  defaultAccess: deny\n")),
        (
            "in a List",
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  spec: \
             {prts: []}\n"
                .to_owned(),
        ),
        ("a List with more", "apiVersion: v1\nkind: List\nitem: []\n".to_owned()),
    ]
}

fn services() -> Vec<(&'static str, String)> {
    vec![
        ("several unknown fields", service("  port: 80\n  selektor: {}\n  ports:\n  - prot: TCP\n    port: 80\n")),
        ("names", "apiVersion: v1\nkind: Service\nmetadata: {name: My_Service, namespace: a.b}\n".to_owned()),
        (
            "dotted name",
            "apiVersion: v1\nkind: Service\nmetadata: {name: a.b}\nspec: {ports: [{port: 1}]}\n".to_owned(),
        ),
        (
            "annotation",
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, annotations: {weft.mesh/service-account: b}}\nspec: \
             {ports: [{port: 1}]}\n"
                .to_owned(),
        ),
        (
            "accounts",
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, annotations: {weft.mesh/service-accounts: 'b, C'}}\n\
             spec: {ports: [{port: 1}]}\n"
                .to_owned(),
        ),
        ("label", "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {'-x': '-y'}}\n".to_owned()),
        (
            "ports",
            service(
                "  ports:\n  - port: 0\n  - port: 65536\n  - port: -1\n  - port: 8x\n  - port: [80]\n  - port: 1.5\n",
            ),
        ),
        ("ports that clash", service("  ports:\n  - {port: 80, name: a}\n  - {port: 80, name: a}\n  - {port: 81}\n")),
        ("no ports", service("  ports: []\n")),
        ("transport", service("  ports:\n  - {port: 53, protocol: UDP}\n  - {port: 54, protocol: tcp}\n")),
        ("application protocol", service("  ports: [{port: 443, appProtocol: https}]\n")),
        ("unknown application protocol", service("  ports: [{port: 443, appProtocol: grcp}]\n")),
        ("external name", service("  type: ExternalName\n  externalName: example.org\n  ports: [{port: 80}]\n")),
        ("affinity", service("  sessionAffinity: ClientIP\n  publishNotReadyAddresses: true\n  ports: [{port: 80}]\n")),
        (
            "endpoint slice",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: \
             IPv4\nendpoints:\n- addresses: ['::1', 10.0.0.256]\n- addresses: []\nports: [{port: 80}]\n"
                .to_owned(),
        ),
        (
            "endpoint slice, meaning",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: \
             IPv4\nendpoints:\n- addresses: ['::1', 10.0.0.1]\n- addresses: [10.0.0.1, 0.0.0.0]\nports: [{port: 80}, \
             {port: 81}]\n"
                .to_owned(),
        ),
        (
            "names to look up",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: FQDN\nports: \
             [{port: 80}]\n"
                .to_owned(),
        ),
    ]
}

fn routes() -> Vec<(&'static str, String)> {
    let to = "    backendRefs: [{name: b, port: 80}]\n";
    vec![
        ("unknown fields of a route", http_route("  - backendRef: {name: b}\n  hostname: [a]\n")),
        ("hosts", http_route(&format!("  - name: x\n{to}  hostnames: [a.example.org]\n"))),
        (
            "a gateway as parent",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  parentRefs:\n  - \
             {name: gateway}\n  - {kind: Gateway, group: gateway.networking.k8s.io, name: gateway}\n  rules: \
             [{backendRefs: [{name: b, port: 80}]}]\n"
                .to_owned(),
        ),
        (
            "parents",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  parentRefs:\n  - \
             {kind: Gateway, group: gateway.networking.k8s.io, name: g}\n  - {kind: Service, name: a}\n  - {kind: \
             Service, name: a}\n  - {kind: Service, name: a, namespace: other}\n  rules: [{backendRefs: [{name: b, port: \
             80}]}]\n"
                .to_owned(),
        ),
        (
            "paths",
            http_route(&format!(
                "  - matches:\n    - path: {{value: orders}}\n    - path: {{type: Exact, value: '/a//b'}}\n    - path: \
                 {{type: Exact, value: '/a?b'}}\n    - path: {{type: RegularExpression, value: '/(a'}}\n    - path: \
                 {{type: RegularExpression, value: 'a)(b'}}\n    - path: {{type: RegularExpression, value: \
                 '\\w{{1000}}\\w{{1000}}'}}\n{to}"
            )),
        ),
        (
            "match words",
            http_route(&format!(
                "  - matches:\n    - path: {{type: Prefix, value: /}}\n      method: get\n      headers: [{{type: \
                 Regex, name: 'a b', value: x}}]\n{to}"
            )),
        ),
        (
            "headers",
            http_route(&format!(
                "  - matches:\n    - headers:\n      - {{name: ':path', value: x}}\n      - {{name: Connection, value: \
                 x}}\n      - {{name: x-a}}\n{to}"
            )),
        ),
        (
            "headers and queries, meaning",
            http_route(&format!(
                "  - matches:\n    - headers: [{{name: a, value: x}}, {{name: A, value: y}}]\n      queryParams: \
                 [{{name: q, value: '(', type: RegularExpression}}, {{name: q, value: x}}]\n{to}"
            )),
        ),
        (
            "backends",
            http_route(
                "  - backendRefs:\n    - {name: b}\n    - {kind: Pod, name: b, port: 80, weight: -1}\n    - {name: b, \
                 port: 80, wieght: 5}\n",
            ),
        ),
        (
            "backends, meaning",
            http_route(
                "  - backendRefs:\n    - {name: b, port: 80, weight: 0}\n    - {kind: Pod, name: b, port: 80, weight: \
                 0}\n",
            ),
        ),
        ("nowhere", http_route("  - matches: [{path: {value: /}}]\n")),
        (
            "filters",
            http_route(&format!(
                "  - filters:\n    - {{type: RequestMirror, requestMirror: {{backendRef: {{name: b, port: 80}}}}}}\n    \
                 - {{type: ExtensionRef, extensionRef: {{group: a, kind: b, name: c}}}}\n    - type: \
                 RequestHeaderModifer\n{to}"
            )),
        ),
        (
            "filters, meaning",
            http_route(&format!(
                "  - filters:\n    - {{type: RequestRedirect, requestRedirect: {{statusCode: 304}}}}\n    - {{type: \
                 URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath, replacePrefixMatch: /}}}}}}\n    - {{type: \
                 RequestHeaderModifier, responseHeaderModifier: {{remove: [x]}}}}\n    - {{type: \
                 RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: Host, value: b}}], remove: [a, A]}}}}\n    \
                 - {{type: ResponseHeaderModifier, responseHeaderModifier: {{}}}}\n{to}"
            )),
        ),
        (
            "prefix without prefix",
            http_route(&format!(
                "  - matches: [{{path: {{type: Exact, value: /a}}}}]\n    filters: [{{type: URLRewrite, urlRewrite: \
                 {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: /b}}}}}}]\n{to}"
            )),
        ),
        (
            "filter of a backend",
            http_route(
                "  - backendRefs: [{name: b, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: c}}]}]\n",
            ),
        ),
        (
            "time and tries",
            http_route(&format!("  - timeouts: {{request: 15, backendRequest: 5 s}}\n    retry: {{attempts: 99, codes: [200], backoff: fast}}\n{to}")),
        ),
        ("time, meaning", http_route(&format!("  - timeouts: {{request: 5s, backendRequest: 15s}}\n{to}"))),
        (
            "gRPC",
            grpc_route(&format!(
                "  - matches:\n    - method: {{type: RegularExpression, service: 'a.*'}}\n    - method: {{method: \
                 Get}}\n    - method: {{service: a/b}}\n    retry: {{attempts: 1}}\n{to}"
            )),
        ),
        (
            "gRPC filters",
            grpc_route(&format!("  - filters: [{{type: URLRewrite, urlRewrite: {{hostname: c}}}}]\n{to}")),
        ),
    ]
}

#[test]
fn every_error_names_its_place() {
    let mut golden = String::new();
    for (name, text) in cases() {
        let errors = errors(text.as_bytes());
        assert!(!errors.is_empty(), "{name}: nothing is wrong with it\n{text}");
        writeln!(golden, "=== {name}").expect("writing to a String");
        for (index, line) in text.lines().enumerate() {
            writeln!(golden, "{:3} {line}", index + 1).expect("writing to a String");
        }
        writeln!(golden, "--->\n{errors}").expect("writing to a String");
    }
    insta::with_settings!({ prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("bad_documents", golden);
    });
}

#[test]
fn a_bad_document_does_not_hide_the_good_ones() {
    let text = service("  prts: []\n") + "---\n" + &service("  ports: [{port: 80}]\n");
    let parsed = parse("f.yaml", text.as_bytes(), "default");
    assert_eq!(parsed.documents.len(), 1);
    assert_eq!(parsed.documents[0].origin.position().line, 7);
}

#[test]
fn budgets_hold() {
    let large = vec![b' '; MAX_BYTES + 1];
    assert!(errors(&large).contains("larger than"));
    assert!(errors(b"a: \xff\n").starts_with("f.yaml:1:4: not UTF-8"));
    let deep = "[".repeat(100_000);
    assert!(errors(deep.as_bytes()).contains("recursion limit exceeded"), "the scanner's own limit comes first");
    let deep = format!("{}x{}", "[".repeat(65), "]".repeat(65));
    assert!(errors(deep.as_bytes()).contains("nested deeper than 64"));
    let deep = format!("{}x\n", "- ".repeat(1000));
    assert!(errors(deep.as_bytes()).contains("nested deeper than 64"));
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let alias = format!("*a{}", level - 1);
        writeln!(bomb, "a{level}: &a{level} [{}]", vec![alias; 9].join(", ")).expect("writing to a String");
    }
    assert!(errors(bomb.as_bytes()).contains("more than 500000 values"));
    let many = "- x\n".repeat(550_000);
    assert!(errors(many.as_bytes()).contains("more than 500000 values"));
    let aliases = format!("a: &a x\nb: [{}]\n", "*a, ".repeat(1001));
    assert!(errors(aliases.as_bytes()).contains("more than 1000 aliases"));
}

#[test]
fn errors_of_one_document_are_bounded() {
    let text = service("") + &(0..1000).map(|index| format!("  unknown{index}: 1\n")).collect::<String>();
    assert_eq!(errors(text.as_bytes()).lines().count(), 100);
}
