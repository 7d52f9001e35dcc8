//! `weft inject kubernetes`: golden files for each kind of workload, twice is once, there and back, and what is refused.

use std::path::PathBuf;

use weft_inject::kubernetes::{Mode, Options, Output, Problem, What, annotations, inject, remove};

fn options() -> Options {
    Options {
        version: "1.2.3".to_owned(),
        image_prefix: String::new(),
        control_plane: "weft-control-plane.weft-system.svc:15010".to_owned(),
        trust_domain: String::new(),
        namespace: "default".to_owned(),
        mode: Mode::Transparent,
    }
}

fn once(text: &str, options: &Options) -> Output {
    let problems = |problems: Vec<Problem>| panic!("{}", problems.iter().map(|p| format!("{p}\n")).collect::<String>());
    inject(&[("app.yaml", text.as_bytes())], options).unwrap_or_else(problems)
}

fn back(text: &str) -> String {
    remove(&[("app.yaml", text.as_bytes())]).expect("YAML").text
}

fn refused(text: &str, options: &Options) -> Vec<String> {
    match inject(&[("app.yaml", text.as_bytes())], options) {
        Ok(output) => panic!("nothing is refused:\n{}", output.text),
        Err(problems) => problems.iter().map(Problem::to_string).collect(),
    }
}

fn fixtures() -> Vec<(String, String)> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kubernetes"));
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        (name, std::fs::read_to_string(&path).expect("a file"))
    };
    paths.into_iter().map(read).collect()
}

/// What the documents of a text mean.
fn meaning(text: &str) -> Vec<serde_json::Value> {
    use serde::Deserialize;
    // Octal, which this reader does not know.
    let text = text.replace("0440", "288");
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| Deserialize::deserialize(document).expect("YAML"))
        .collect()
}

#[test]
fn every_kind_of_workload() {
    for (name, text) in fixtures() {
        let output = once(&text, &options());
        assert!(!output.done.is_empty(), "{name}");
        insta::with_settings!({ prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(format!("kubernetes-{name}"), output.text);
        });
        let again = once(&output.text, &options());
        assert_eq!(again.text, output.text, "{name}: a second time changes something");
        assert_eq!(meaning(&back(&output.text)), meaning(&text), "{name}: not as it was");
    }
}

#[test]
fn a_newer_version_replaces_an_older_one() {
    for (name, text) in fixtures() {
        let new =
            Options { version: "9.9.9".to_owned(), image_prefix: "registry.example/mesh/".to_owned(), ..options() };
        let old = once(&text, &options());
        let upgraded = once(&old.text, &new);
        assert_eq!(meaning(&upgraded.text), meaning(&once(&text, &new).text), "{name}");
        assert!(upgraded.text.contains("registry.example/mesh/weft-sidecar:9.9.9"), "{name}");
        assert!(!upgraded.text.contains("1.2.3"), "{name}");
        // The other mode too, where no annotation says which.
        if text.contains("exclude-inbound-ports") {
            continue;
        }
        let explicit = Options { mode: Mode::Explicit, ..options() };
        assert_eq!(meaning(&once(&old.text, &explicit).text), meaning(&once(&text, &explicit).text), "{name}");
        assert_eq!(meaning(&back(&once(&text, &explicit).text)), meaning(&text), "{name}");
    }
}

#[test]
fn what_is_no_workload_is_handed_on() {
    let text = "# Mine.\napiVersion: v1\nkind: ConfigMap   # spaced\nmetadata: {name: a}\n---\n# Nothing.\n---\napiVersion: \
                example.com/v1\nkind: Deployment\nspec: {template: {spec: {hostNetwork: true}}}\n";
    let output = once(text, &options());
    assert_eq!((output.text.as_str(), output.done.len()), (text, 0));
    assert_eq!(back(text), text);
    let (_, deployment) = fixtures().into_iter().find(|(name, _)| name == "deployment").expect("a fixture");
    assert!(once(&deployment, &options()).text.starts_with("# Comments of what is not touched stay.\n"));
}

fn pod(metadata: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p, {metadata}}}\nspec:\n  {spec}\n")
}

#[test]
fn what_cannot_be_done_safely_is_refused() {
    let app = "containers: [{name: app, image: a}]";
    let explicit = "annotations: {weft.mesh/mode: explicit}";
    let cases = [
        (
            pod("", &format!("hostNetwork: true\n  {app}")),
            "app.yaml:5: Pod default/p: spec.hostNetwork: the pod shares the network of its node",
        ),
        (pod("", &format!("hostNetwork: yes\n  {app}")), "spec.hostNetwork: the pod shares"),
        (pod("", &format!("os: {{name: windows}}\n  {app}")), "spec.os.name: the sidecar runs on Linux"),
        (
            pod("", &format!("securityContext: {{runAsUser: 15001}}\n  {app}")),
            "spec.securityContext.runAsUser: the user 15001",
        ),
        (
            pod("", "containers: [{name: a, image: a, securityContext: {runAsUser: 15001}}]"),
            "spec.containers[0].securityContext.runAsUser",
        ),
        (
            pod("", "containers: [{name: a, image: a, ports: [{containerPort: 80}, {containerPort: 15006}]}]"),
            "spec.containers[0].ports[1].containerPort: 15006 is a port of the sidecar's",
        ),
        (
            pod("", "containers: [{name: a, image: a}, {name: istio-proxy, image: b}]"),
            "spec.containers[1].name: `istio-proxy` is the container of another mesh",
        ),
        (pod("", "containers: [{name: weft-sidecar, image: b}]"), "that `weft inject` did not put there"),
        (pod("", &format!("{app}\n  volumes: [{{name: weft-data, emptyDir: {{}}}}]")), "spec.volumes[0].name"),
        (
            pod(explicit, "containers: [{name: a, image: a, env: [{name: http_proxy, value: b}]}]"),
            "spec.containers[0].env[0]: the container has a `http_proxy` of its own",
        ),
        (
            pod("annotations: {weft.mesh/acess-log: all}", app),
            "metadata.annotations[\"weft.mesh/acess-log\"]: unknown annotation `weft.mesh/acess-log`; did you mean `weft.mesh/access-log`?",
        ),
        (pod("annotations: {weft.mesh/mode: magic}", app), "`magic` is not allowed here; `transparent` or `explicit`"),
        (
            pod("", "containers: [{name: a, image: a, readinessProbe: {httpGet: {port: web}}}]"),
            "spec.containers[0].readinessProbe: \"web\" is no port of the container",
        ),
        ("a: [".to_owned(), "app.yaml:"),
        ("a: 1\na: 2\n".to_owned(), "`a` stands twice in the same map"),
    ];
    for (text, expected) in cases {
        let found = refused(&text, &options());
        assert!(found.iter().any(|line| line.contains(expected)), "{text}\n{found:#?}");
    }
    let deployment = format!(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: apps/v1\n  kind: Deployment\n  metadata: {{name: d, namespace: ns}}\n  \
         spec:\n    template:\n      spec:\n        hostNetwork: true\n        {app}\n"
    );
    let found = refused(&deployment, &options());
    assert!(
        found[0].starts_with("app.yaml:10: Deployment ns/d: items[0].spec.template.spec.hostNetwork: "),
        "{found:?}"
    );
}

#[test]
fn rules_know_what_annotations_say() {
    let app = "containers: [{name: app, image: a}]";
    let text = pod("annotations: {weft.mesh/dns: 'off', weft.mesh/include-outbound-ranges: 10.0.0.0/8}", app);
    let output = once(&text, &options()).text;
    assert!(output.contains("- \"--include-outbound-ranges=10.0.0.0/8\"\n    - \"--dns=off\"\n"), "{output}");
    let found = refused(&text, &Options { mode: Mode::Explicit, ..options() });
    assert!(
        found.len() == 1 && found[0].contains("include-outbound-ranges\"]: explicit mode redirects nothing"),
        "{found:?}"
    );
}

#[test]
fn where_name_and_ports_come_from() {
    let service = |name: &str, selector: &str, port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {selector}, ports: [{port}]}}\n---\n"
        )
    };
    let both = service("a", "{app: x}", "{port: 80, targetPort: 8080, name: grpc-api}")
        + &service("b", "{app: x, tier: back}", "{port: 81}");
    let member = |text: &str| match &once(text, &options()).done[0].what {
        What::Injected { service, ports, .. } => (service.clone(), ports.join(",")),
        other => panic!("{other:?}"),
    };
    let labels = |labels: &str| pod(&format!("labels: {labels}"), "containers: [{name: a, image: a}]");
    assert_eq!(member(&(both.clone() + &labels("{app: x}"))), ("a".into(), "grpc-api=80:8080/grpc".into()));
    let found = refused(&(both.clone() + &labels("{app: x, tier: back}")), &options());
    assert!(
        found[0].contains("the Services `a`, `b` all take its pods; name one by the annotation `weft.mesh/service`"),
        "{found:?}"
    );
    let annotated =
        pod("labels: {app: x, tier: back}, annotations: {weft.mesh/service: b}", "containers: [{name: a, image: a}]");
    assert_eq!(member(&(both.clone() + &annotated)), ("b".into(), "81:81".into()));
    let ports =
        pod("labels: {app: x}, annotations: {weft.mesh/ports: '90, 91:92/tcp'}", "containers: [{name: a, image: a}]");
    assert_eq!(member(&(both.clone() + &ports)), ("a".into(), "90,91:92/tcp".into()));
    assert_eq!(member(&labels("{app: w, app.kubernetes.io/name: z}")), ("z".into(), String::new()));
    assert_eq!(member(&labels("{app: w}")), ("w".into(), String::new()));
    assert_eq!(member(&labels("{}")), ("p".into(), String::new()));
    let note = once(&labels("{}"), &options()).done[0].note.clone().expect("a note");
    assert!(note.contains("put the Service into the same input"), "{note}");
    let named = service("a", "{app: x}", "{port: 80, targetPort: web}") + &labels("{app: x}");
    assert!(refused(&named, &options())[0].contains("leads to the port `web`, which no container of the pod has"));
    // Of another namespace, or without a selector: not the pod's.
    let other = service("a", "{app: x}", "{port: 80}").replace("name: a", "name: a, namespace: ns")
        + &service("c", "{}", "{port: 80}");
    assert_eq!(member(&(other + &labels("{app: x}"))), ("x".into(), String::new()));
}

#[test]
fn several_files_are_one_input() {
    let (service, rest) = fixtures()
        .into_iter()
        .find(|(name, _)| name == "deployment")
        .expect("a fixture")
        .1
        .split_once("---\n")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .expect("two documents");
    let output =
        inject(&[("a.yaml", rest.as_bytes()), ("b.yaml", service.as_bytes())], &options()).expect("both are fine");
    assert!(output.text.contains("http=80:8080/http,stats=9000:9000/tcp\n"), "{}", output.text);
    assert_eq!(meaning(&output.text).len(), 2);
}

#[test]
fn the_page_names_every_annotation() {
    let page = include_str!("../../../docs/kubernetes.md");
    let names = annotations::OWN.iter().map(|(name, _)| *name);
    let all = names.chain(annotations::RULES.iter().copied()).chain(annotations::SETTINGS.iter().map(|one| one.name));
    for name in all {
        assert!(page.contains(&format!("`weft.mesh/{name}`")), "docs/kubernetes.md says nothing of weft.mesh/{name}");
    }
}
