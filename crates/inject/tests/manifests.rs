//! The manifests of `deploy/kubernetes`: what kustomize renders of them and what `weft inject kubernetes` makes of that is
//! what an API server's own types can hold, and names, ports and permissions agree with each other.

use std::{collections::BTreeSet, path::PathBuf, process::Command};

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::{CronJob, Job},
        core::v1::{ConfigMap, Namespace, Pod, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use weft_inject::kubernetes::{AUDIENCE, Mode, Options, ROOT_CONFIG_MAP, inject};

fn folder(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/kubernetes")).join(name)
}

/// What kustomize makes of a folder; `None`, said aloud, where there is no kustomize.
fn kustomize(name: &str) -> Option<String> {
    let given = std::env::var("WEFT_KUSTOMIZE").ok();
    let command = given.clone().unwrap_or_else(|| "kubectl kustomize".to_owned());
    let mut words = command.split_whitespace();
    let program = words.next().expect("WEFT_KUSTOMIZE names a program");
    let output = Command::new(program).args(words).arg(folder(name)).output();
    match output {
        Err(error) if given.is_none() => {
            eprintln!("left out, {name}: no kustomize here (kubectl: {error}); set WEFT_KUSTOMIZE");
            None
        }
        Err(error) => panic!("{command}: {error}"),
        Ok(output) => {
            assert!(output.status.success(), "{command} {name}: {}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8(output.stdout).expect("YAML is text"))
        }
    }
}

fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(text)
        .map(|document| serde::Deserialize::deserialize(document).expect("YAML"));
    let documents: Vec<Value> = documents.filter(|document: &Value| !document.is_null()).collect();
    documents
        .into_iter()
        .flat_map(|document| match document["kind"] == "List" {
            true => document["items"].as_array().expect("items").clone(),
            false => vec![document],
        })
        .collect()
}

/// The document comes back from the type as it was: no field is unknown, and none of another type.
fn holds<T: Serialize + DeserializeOwned>(document: &Value) -> Result<(), String> {
    let typed: T = serde_json::from_value(document.clone()).map_err(|error| error.to_string())?;
    let mut back = serde_json::to_value(typed).map_err(|error| error.to_string())?;
    let mut expected = document.clone();
    tidy(&mut back);
    tidy(&mut expected);
    if back == expected { Ok(()) } else { Err(format!("comes back as {back:#}")) }
}

/// Without what says nothing, fields in order.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(tidy);
            fields.retain(|_, value| !(value.is_null() || *value == json!([])));
            fields.sort_keys();
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        // Bounds of a schema are floating point numbers to an API server.
        Value::Number(number) => *value = number.as_f64().into(),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn typed(document: &Value) -> Result<(), String> {
    match document["kind"].as_str().unwrap_or_default() {
        "Deployment" => holds::<Deployment>(document),
        "StatefulSet" => holds::<StatefulSet>(document),
        "DaemonSet" => holds::<DaemonSet>(document),
        "ReplicaSet" => holds::<ReplicaSet>(document),
        "Job" => holds::<Job>(document),
        "CronJob" => holds::<CronJob>(document),
        "Pod" => holds::<Pod>(document),
        "Service" => holds::<Service>(document),
        "ServiceAccount" => holds::<ServiceAccount>(document),
        "ConfigMap" => holds::<ConfigMap>(document),
        "Namespace" => holds::<Namespace>(document),
        "NetworkPolicy" => holds::<NetworkPolicy>(document),
        "PodDisruptionBudget" => holds::<PodDisruptionBudget>(document),
        "ClusterRole" => holds::<ClusterRole>(document),
        "ClusterRoleBinding" => holds::<ClusterRoleBinding>(document),
        "CustomResourceDefinition" => holds::<CustomResourceDefinition>(document),
        "TrafficPolicy" | "AccessPolicy" | "Mesh" => {
            let text = document.to_string();
            let errors = weft_model::parse("manifest", text.as_bytes(), "default").errors;
            if errors.is_empty() { Ok(()) } else { Err(format!("{errors:#?}")) }
        }
        other => Err(format!("`{other}`: no type for it")),
    }
}

fn all_typed(what: &str, text: &str) {
    for document in documents(text) {
        if let Err(error) = typed(&document) {
            panic!("{what}: {} {}: {error}", document["kind"], document["metadata"]["name"]);
        }
    }
}

fn options(mode: Mode) -> Options {
    Options {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        image_prefix: String::new(),
        control_plane: "weft-control-plane.weft-system.svc:15010".to_owned(),
        trust_domain: String::new(),
        namespace: "default".to_owned(),
        mode,
    }
}

fn injected(text: &str, mode: Mode) -> String {
    match inject(&[("f.yaml", text.as_bytes())], &options(mode)) {
        Ok(output) => output.text,
        Err(problems) => panic!("{problems:#?}"),
    }
}

#[test]
fn what_is_injected_is_what_an_api_server_takes() {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kubernetes")).expect("a folder") {
        let path = entry.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("text");
        // What only rules know would have no effect in explicit mode, and is refused there.
        let explicit = text.replace("weft.mesh/exclude-inbound-ports", "example.com/none");
        for (mode, text) in [(Mode::Transparent, &text), (Mode::Explicit, &explicit)] {
            all_typed(&path.display().to_string(), &injected(text, mode));
        }
    }
}

#[test]
fn what_kustomize_renders_is_what_an_api_server_takes() {
    for name in ["crds", "base", "example", "check"] {
        let Some(text) = kustomize(name) else { continue };
        all_typed(name, &text);
        for document in documents(&text) {
            let pod = pod(&document);
            for container in pod.map(containers).into_iter().flatten() {
                let image = container["image"].as_str().expect("an image");
                let tag = image.rsplit_once(':').map(|(_, tag)| tag);
                assert_eq!(tag, Some(env!("CARGO_PKG_VERSION")), "{name}: {image}");
            }
        }
    }
}

fn find<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = all.iter().find(|document| document["kind"] == kind && document["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The spec of the pods that a document makes.
fn pod(document: &Value) -> Option<&Value> {
    match document["kind"].as_str() {
        Some("Pod") => Some(&document["spec"]),
        Some("Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job") => {
            Some(&document["spec"]["template"]["spec"])
        }
        Some("CronJob") => Some(&document["spec"]["jobTemplate"]["spec"]["template"]["spec"]),
        _ => None,
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().filter_map(|list| pod[list].as_array()).flatten()
}

/// What the profile `restricted` demands and the pod does not give:
/// <https://kubernetes.io/docs/concepts/security/pod-security-standards/>.
fn unrestricted(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if pod[field] == true {
            found.push(field.to_owned());
        }
    }
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let allowed = [
            "configMap",
            "emptyDir",
            "projected",
            "secret",
            "downwardAPI",
            "persistentVolumeClaim",
            "ephemeral",
            "csi",
        ];
        let kinds: Vec<_> = volume.as_object().expect("a volume").keys().filter(|key| *key != "name").collect();
        if !kinds.iter().all(|kind| allowed.contains(&kind.as_str())) {
            found.push(format!("volume {kinds:?}"));
        }
    }
    let shared = &pod["securityContext"];
    for container in containers(pod) {
        let own = &container["securityContext"];
        let either = |field: &str| if own[field].is_null() { &shared[field] } else { &own[field] };
        let mut demand = |holds: bool, what: &str| {
            if !holds {
                found.push(format!("{}: {what}", container["name"]));
            }
        };
        demand(either("runAsNonRoot") == true, "runAsNonRoot");
        demand(either("runAsUser") != 0, "runAsUser");
        demand(either("seccompProfile")["type"] == "RuntimeDefault", "seccompProfile");
        demand(own["allowPrivilegeEscalation"] == false, "allowPrivilegeEscalation");
        demand(own["privileged"] != true, "privileged");
        demand(own["capabilities"]["drop"] == json!(["ALL"]), "capabilities.drop");
        demand(
            own["capabilities"]["add"].is_null() || own["capabilities"]["add"] == json!(["NET_BIND_SERVICE"]),
            "capabilities.add",
        );
        // Not of the profile; ours.
        demand(own["readOnlyRootFilesystem"] == true, "readOnlyRootFilesystem");
        demand(!container["resources"]["limits"]["memory"].is_null(), "a limit of its memory");
    }
    found
}

#[test]
fn pods_need_no_privilege_but_the_one_that_sets_rules() {
    let (Some(base), Some(example), Some(check)) = (kustomize("base"), kustomize("example"), kustomize("check")) else {
        return;
    };
    let base: Vec<Value> = documents(&base).into_iter().chain(documents(&check)).collect();
    let namespace = find(&base, "Namespace", "weft-system");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
    let explicit = documents(&injected(&example, Mode::Explicit));
    let pods: Vec<&Value> = base.iter().chain(&explicit).filter_map(pod).collect();
    assert_eq!(pods.len(), 5);
    for pod in pods {
        assert_eq!(unrestricted(pod), Vec::<String>::new(), "{pod:#}");
    }
    let transparent = documents(&injected(&example, Mode::Transparent));
    for pod in transparent.iter().filter_map(pod) {
        let found = unrestricted(pod);
        assert!(!found.is_empty() && found.iter().all(|what| what.starts_with("\"weft-init\": ")), "{found:?}");
        assert_eq!(pod["initContainers"][0]["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN"]));
    }
}

#[test]
fn names_and_ports_agree() {
    let Some(base) = kustomize("base") else { return };
    let base = documents(&base);
    let name = "weft-control-plane";
    let set = find(&base, "StatefulSet", name);
    let (labels, spec) = (&set["spec"]["template"]["metadata"]["labels"], &set["spec"]["template"]["spec"]);
    let selects = |selector: &Value| {
        let selector = selector.as_object().expect("a selector");
        !selector.is_empty() && selector.iter().all(|(key, value)| labels[key] == *value)
    };
    let service = find(&base, "Service", name);
    assert!(selects(&service["spec"]["selector"]));
    assert!(selects(&set["spec"]["selector"]["matchLabels"]));
    assert!(selects(&find(&base, "PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"]));
    let policy = find(&base, "NetworkPolicy", name);
    assert!(selects(&policy["spec"]["podSelector"]["matchLabels"]));
    assert_eq!((&set["spec"]["serviceName"], &set["spec"]["replicas"]), (&service["metadata"]["name"], &json!(1)));
    // Ports: what the container has, the Service leads to, and the policy lets in.
    let container = &spec["containers"][0];
    let ports = container["ports"].as_array().expect("ports");
    let number = |name: &Value| ports.iter().find(|port| port["name"] == *name).map(|port| &port["containerPort"]);
    let led: BTreeSet<u64> = service["spec"]["ports"]
        .as_array()
        .expect("ports")
        .iter()
        .map(|port| {
            assert_eq!(number(&port["targetPort"]), Some(&port["port"]), "the same inside and outside");
            port["port"].as_u64().expect("a number")
        })
        .collect();
    let ingress = policy["spec"]["ingress"].as_array().expect("rules");
    let let_in: BTreeSet<u64> = ingress
        .iter()
        .flat_map(|rule| rule["ports"].as_array().expect("ports"))
        .filter_map(|port| port["port"].as_u64())
        .collect();
    assert_eq!((led.clone(), let_in), (BTreeSet::from([15010, 15080]), led));
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let action = &container[probe]["httpGet"];
        assert_eq!((number(&action["port"]), &action["scheme"]), (Some(&json!(15080)), &json!("HTTPS")), "{probe}");
    }
    // Account, role, binding.
    find(&base, "ServiceAccount", spec["serviceAccountName"].as_str().expect("an account"));
    let binding = find(&base, "ClusterRoleBinding", name);
    find(&base, "ClusterRole", binding["roleRef"]["name"].as_str().expect("a role"));
    let subject = json!([{ "kind": "ServiceAccount", "name": name, "namespace": "weft-system" }]);
    assert_eq!(binding["subjects"], subject);
    // Volumes, and what sidecars are told.
    let claim = &set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"];
    assert_eq!(container["volumeMounts"][0]["name"], *claim);
    let variable = |name: &str| {
        let all = container["env"].as_array().expect("variables");
        all.iter().find(|variable| variable["name"] == name).map(|variable| variable["value"].as_str().expect("text"))
    };
    let mount = container["volumeMounts"][0]["mountPath"].as_str().expect("a path");
    assert!(variable("WEFT_DATA_DIR").expect("a folder").starts_with(&format!("{mount}/")));
    let address = format!("{name}.{}.svc", set["metadata"]["namespace"].as_str().expect("a namespace"));
    assert_eq!(variable("WEFT_ADVERTISE"), Some(address.as_str()));
    assert_eq!(options(Mode::Explicit).control_plane, format!("{address}:15010"));
    assert_eq!(variable("WEFT_KUBERNETES"), Some("true"));
    assert_eq!(AUDIENCE, "weft", "the control plane's default");
}

/// Each permission, and nothing more. The control plane's tests ask the same of what it calls.
#[test]
fn the_control_plane_may_do_what_it_does_and_nothing_more() {
    let Some(base) = kustomize("base") else { return };
    let base = documents(&base);
    let roles: Vec<_> =
        base.iter().filter(|document| document["kind"].as_str().is_some_and(|kind| kind.ends_with("Role"))).collect();
    assert_eq!(roles.len(), 1);
    let mut granted = BTreeSet::new();
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|word| word.as_str().expect("text").to_owned()).collect()
    };
    for rule in roles[0]["rules"].as_array().expect("rules") {
        for resource in words(&rule["resources"]) {
            let group = words(&rule["apiGroups"]).join(",");
            let names = words(&rule["resourceNames"]).join(",");
            granted.insert(format!("{group}/{resource} {names}: {}", words(&rule["verbs"]).join(" ")));
        }
    }
    let mut wanted = BTreeSet::from([
        "authentication.k8s.io/tokenreviews : create".to_owned(),
        "/configmaps : create".to_owned(),
        format!("/configmaps {ROOT_CONFIG_MAP}: patch"),
    ]);
    for read in [
        "/services",
        "/pods",
        "discovery.k8s.io/endpointslices",
        "gateway.networking.k8s.io/httproutes",
        "gateway.networking.k8s.io/grpcroutes",
        "weft.mesh/trafficpolicies",
        "weft.mesh/accesspolicies",
        "weft.mesh/meshes",
    ] {
        wanted.insert(format!("{read} : list watch"));
        if read.contains('.') && !read.contains("endpointslices") {
            wanted.insert(format!("{read}/status : patch"));
        }
    }
    assert_eq!(granted, wanted);
}

#[test]
fn the_example_is_what_injection_takes() {
    let Some(example) = kustomize("example") else { return };
    let output = inject(&[("example", example.as_bytes())], &options(Mode::Transparent)).expect("it can be injected");
    let told: BTreeSet<String> = output
        .done
        .iter()
        .map(|done| {
            assert_eq!(done.note, None);
            format!("{} {:?}", done.resource, done.what)
        })
        .collect();
    assert_eq!(told.len(), 3, "{told:?}");
    let ports = |name: &str| told.iter().find(|line| line.contains(name)).expect(name).clone();
    assert!(
        ports("Deployment shop/inventory").contains("grpc=9000:9000/grpc")
            && ports("inventory").contains("tcp-stock=9100:9100/tcp")
    );
    assert!(ports("Deployment shop/orders").contains("http=80:8080/http"));
    // The identities that its policies speak of are those of its accounts.
    let all = documents(&example);
    for policy in all.iter().filter(|document| document["kind"] == "AccessPolicy") {
        for rule in policy["spec"]["rules"].as_array().expect("rules") {
            for identity in
                rule["from"][0]["identities"].as_array().into_iter().flatten().filter(|identity| **identity != "*")
            {
                let (namespace, account) =
                    identity.as_str().and_then(|text| text.split_once('/')).expect("NAMESPACE/ACCOUNT");
                assert_eq!(find(&all, "ServiceAccount", account)["metadata"]["namespace"], namespace);
            }
        }
        find(&all, "Service", policy["spec"]["targetRefs"][0]["name"].as_str().expect("a name"));
    }
}

#[test]
fn the_check_runs_where_the_control_plane_lets_it_in() {
    let (Some(base), Some(check)) = (kustomize("base"), kustomize("check")) else { return };
    let (base, check) = (documents(&base), documents(&check));
    let job = find(&check, "Job", "weft-check");
    let template = &job["spec"]["template"];
    // The policy that shuts the control plane in must not shut the check in, which calls every pod of the mesh.
    let policy = find(&base, "NetworkPolicy", "weft-control-plane");
    let selector = policy["spec"]["podSelector"]["matchLabels"].as_object().expect("labels");
    assert!(selector.iter().any(|(key, value)| template["metadata"]["labels"][key] != *value));
    assert_eq!(job["metadata"]["namespace"], "weft-system");
    // A sidecar would refuse what it says in plain text on its way out, and prove nothing.
    let text = serde_json::to_string(job).expect("JSON");
    let output = inject(&[("job.yaml", text.as_bytes())], &options(Mode::Transparent)).expect("it is handed on");
    assert_eq!(documents(&output.text), std::slice::from_ref(job));
    let (container, volume) = (&template["spec"]["containers"][0], &template["spec"]["volumes"][0]);
    assert_eq!(container["volumeMounts"][0]["name"], volume["name"]);
    let mount = container["volumeMounts"][0]["mountPath"].as_str().expect("a path");
    assert_eq!(container["args"], json!(["--credential", format!("{mount}/operator.json"), "check"]));
}

/// Prometheus learns the name of a sidecar's service from the annotation that the injection writes.
#[test]
fn prometheus_reads_what_the_injection_writes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/observe/kubernetes.yml");
    let config = documents(&std::fs::read_to_string(path).expect("text")).remove(0);
    let jobs = config["scrape_configs"].as_array().expect("jobs");
    let names: Vec<_> = jobs.iter().map(|job| job["job_name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["weft-control-plane", "weft-sidecars"], "as the rules know them");
    let relabel = jobs[1]["relabel_configs"].as_array().expect("rules");
    let service = relabel.iter().find(|rule| rule["target_label"] == "service").expect("a rule for `service`");
    assert_eq!(service["source_labels"][1], "__meta_kubernetes_pod_annotation_weft_mesh_injected");
    let regex = regex::Regex::new(&format!("^(?:{})$", service["regex"].as_str().expect("text"))).expect("it compiles");
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kubernetes/deployment.yaml"));
    for mode in [Mode::Transparent, Mode::Explicit] {
        let text = text.as_ref().expect("text").replace("weft.mesh/exclude-inbound-ports", "example.com/none");
        let output = inject(&[("f.yaml", text.as_bytes())], &options(mode)).expect("it can be injected");
        let all = documents(&output.text);
        let deployment = all.iter().find(|document| document["kind"] == "Deployment").expect("a Deployment");
        let annotations = &deployment["spec"]["template"]["metadata"]["annotations"];
        let injected = annotations["weft.mesh/injected"].as_str().expect("the annotation");
        let labels = format!("shop;{injected}");
        let service = regex.replace(&labels, service["replacement"].as_str().expect("text"));
        let variables = pod(deployment).map(containers).into_iter().flatten();
        let named = variables
            .flat_map(|container| container["env"].as_array().into_iter().flatten())
            .find(|variable| variable["name"] == "WEFT_SERVICE")
            .expect("the sidecar knows");
        assert_eq!(service, format!("shop/{}", named["value"].as_str().expect("text")));
        let metrics = jobs[1]["relabel_configs"][0]["regex"].as_str().expect("text");
        assert!(output.text.contains(&format!("name: {metrics}")));
    }
}
