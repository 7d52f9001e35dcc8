//! What is added to a pod: the sidecar, the container that sets the rules, their volumes.

use serde_json::{Map, Value, json};

use super::{Mode, Options, annotations, probes, refuse::PROXY, service::Membership};

/// The sidecar.
pub(super) const SIDECAR: &str = "weft-sidecar";
/// The container that sets the rules.
pub(super) const INIT: &str = "weft-init";
/// The volume with certificate, key and cache.
pub(super) const DATA: &str = "weft-data";
/// The volume with token and root certificate.
pub(super) const IDENTITY: &str = "weft-identity";
/// User of the sidecar, by which the rules tell its packets.
pub(super) const USER: u64 = 15001;
/// Ports of the sidecar: admin, outbound, inbound, metrics and health, DNS.
pub(super) const PORTS: [u64; 5] = [15000, 15001, 15006, METRICS, 15053];
const METRICS: u64 = 15020;

/// ConfigMap that the control plane writes into each namespace: its root certificates.
pub const ROOT_CONFIG_MAP: &str = "weft-root";
/// Key of that ConfigMap.
pub const ROOT_KEY: &str = "ca.pem";
/// Audience of the projected token.
pub const AUDIENCE: &str = "weft";

const DATA_DIR: &str = "/var/lib/weft";
const IDENTITY_DIR: &str = "/var/run/secrets/weft";

/// The kubelet's own, when the pod names none.
const GRACE: u64 = 30;
/// Longest drain, in seconds; and what is left of the grace period for the sidecar to end.
const DRAIN: u64 = 30;
const DRAIN_MARGIN: u64 = 2;

/// Adds everything. The template has nothing of ours.
///
/// # Errors
/// `(field of the template, problem)`.
pub(super) fn add(
    template: &mut Value,
    options: &Options,
    mode: Mode,
    member: &Membership,
) -> Result<(), (String, String)> {
    let environment = environment(template, options, mode, member)?;
    let sidecar = sidecar(template, options, environment);
    let mut first = Vec::new();
    if mode == Mode::Transparent {
        first.push(init(template, options));
    }
    first.push(sidecar);
    if mode == Mode::Explicit {
        proxy(template);
    }
    // First of all: what the application's own init containers call goes through the mesh, too.
    let spec = &mut template["spec"];
    let mut all = first;
    all.append(&mut list(spec, "initContainers").clone());
    *list(spec, "initContainers") = all;
    list(spec, "volumes").extend(volumes());
    let annotations = map(map_of(template, "metadata"), "annotations");
    // The name of the service is for Prometheus, which cannot read a variable of a container.
    let injected = format!("{}, {mode}, {}", options.version, member.name);
    annotations.insert(annotations::INJECTED.to_owned(), injected.into());
    Ok(())
}

/// Takes away what [`add`] added, of this version or an earlier one; whether there was something.
pub(super) fn remove(template: &mut Value) -> bool {
    let Some(injected) = annotations::get(template, "injected").map(str::to_owned) else { return false };
    let explicit = injected.split(", ").nth(1) == Some(Mode::Explicit.as_str());
    let ours = |names: &'static [&'static str]| {
        move |value: &Value| value["name"].as_str().is_some_and(|name| names.contains(&name))
    };
    let spec = &mut template["spec"];
    drop_from(spec, "initContainers", ours(&[SIDECAR, INIT]));
    drop_from(spec, "volumes", ours(&[DATA, IDENTITY]));
    if explicit {
        for list in ["initContainers", "containers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                drop_from(container, "env", ours(&PROXY));
            }
        }
    }
    if let Some(metadata) = template["metadata"].as_object_mut() {
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.shift_remove(annotations::INJECTED);
            if annotations.is_empty() {
                metadata.shift_remove("annotations");
            }
        }
        if metadata.is_empty()
            && let Some(template) = template.as_object_mut()
        {
            template.shift_remove("metadata");
        }
    }
    true
}

/// Takes entries out of a list, and the list itself once it is empty.
fn drop_from(value: &mut Value, list: &str, ours: impl Fn(&Value) -> bool) {
    let Some(object) = value.as_object_mut() else { return };
    let Some(entries) = object.get_mut(list).and_then(Value::as_array_mut) else { return };
    entries.retain(|entry| !ours(entry));
    if entries.is_empty() {
        object.shift_remove(list);
    }
}

/// A list of an object, made when it is not there.
fn list<'a>(object: &'a mut Value, name: &str) -> &'a mut Vec<Value> {
    if !object[name].is_array() {
        object[name] = json!([]);
    }
    object[name].as_array_mut().expect("it was made a list above")
}

fn map_of<'a>(object: &'a mut Value, name: &str) -> &'a mut Value {
    if !object[name].is_object() {
        object[name] = json!({});
    }
    &mut object[name]
}

fn map<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    map_of(object, name).as_object_mut().expect("it was made a map above")
}

/// Variables of the sidecar; those that annotations set come last.
fn environment(
    template: &Value,
    options: &Options,
    mode: Mode,
    member: &Membership,
) -> Result<Vec<Value>, (String, String)> {
    let mut all: Vec<(&str, Value)> = Vec::new();
    let mut text = |name, value: String| {
        if !value.is_empty() {
            all.push((name, json!({ "value": value })));
        }
    };
    text("WEFT_CONTROL_PLANE", options.control_plane.clone());
    text("WEFT_TRUST_DOMAIN", options.trust_domain.clone());
    text("WEFT_SERVICE", member.name.clone());
    text("WEFT_PORTS", member.ports.join(","));
    text("WEFT_LABELS", labels(template));
    text("WEFT_APP_VERSION", version(template).to_owned());
    text("WEFT_DATA_DIR", DATA_DIR.to_owned());
    text("WEFT_JOIN_TOKEN_FILE", format!("{IDENTITY_DIR}/token"));
    text("WEFT_CA_FILE", format!("{IDENTITY_DIR}/{ROOT_KEY}"));
    text("WEFT_DRAIN", format!("{}s", drain(template)));
    if mode == Mode::Transparent {
        text("WEFT_TRANSPARENT", "true".to_owned());
        text("WEFT_PROBES", probes::of(template)?.join(","));
    }
    let mut field = |name, path: &str| all.push((name, json!({ "valueFrom": { "fieldRef": { "fieldPath": path } } })));
    field("WEFT_NAMESPACE", "metadata.namespace");
    field("WEFT_ADDRESS", "status.podIP");
    // Empty where the cluster does not copy the labels of its nodes to pods.
    field("WEFT_REGION", "metadata.labels['topology.kubernetes.io/region']");
    field("WEFT_ZONE", "metadata.labels['topology.kubernetes.io/zone']");
    for setting in annotations::SETTINGS {
        let Some(given) = annotations::get(template, setting.name) else { continue };
        all.retain(|(name, _)| *name != setting.variable);
        let value = match (setting.name, given) {
            ("probe-source", "node") => json!({ "valueFrom": { "fieldRef": { "fieldPath": "status.hostIP" } } }),
            _ => json!({ "value": given }),
        };
        all.push((setting.variable, value));
    }
    Ok(all
        .into_iter()
        .map(|(name, value)| {
            let mut variable = json!({ "name": name });
            if let (Some(variable), Value::Object(value)) = (variable.as_object_mut(), value) {
                variable.extend(value);
            }
            variable
        })
        .collect())
}

/// Labels of the pod as `WEFT_LABELS` takes them; without those that Kubernetes makes anew for each revision.
fn labels(template: &Value) -> String {
    let made = ["pod-template-hash", "controller-revision-hash", "pod-template-generation"];
    let labels = template["metadata"]["labels"].as_object().into_iter().flatten();
    let pairs = labels
        .filter(|(key, _)| !made.contains(&key.as_str()))
        .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)));
    pairs.collect::<Vec<_>>().join(",")
}

fn version(template: &Value) -> &str {
    let labels = &template["metadata"]["labels"];
    ["version", "app.kubernetes.io/version"].into_iter().find_map(|key| labels[key].as_str()).unwrap_or_default()
}

/// Seconds for requests to end: what the grace period leaves.
fn drain(template: &Value) -> u64 {
    let grace = template["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(GRACE);
    grace.saturating_sub(DRAIN_MARGIN).clamp(1, DRAIN)
}

fn sidecar(template: &Value, options: &Options, environment: Vec<Value>) -> Value {
    let ask = |path: &str| json!({ "path": path, "port": METRICS });
    json!({
        "name": SIDECAR,
        "image": options.image(SIDECAR),
        "args": ["serve"],
        // A native sidecar: it is started before the application, and ends after it.
        "restartPolicy": "Always",
        "env": environment,
        "ports": [
            { "name": "weft-inbound", "containerPort": 15006 },
            { "name": "weft-metrics", "containerPort": METRICS },
        ],
        // The application is started once this has succeeded.
        "startupProbe": { "httpGet": ask("/ready"), "periodSeconds": 1, "failureThreshold": 120 },
        "readinessProbe": { "httpGet": ask("/ready"), "periodSeconds": 5, "timeoutSeconds": 3 },
        "livenessProbe": { "httpGet": ask("/live"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6 },
        "resources": resources(template),
        "securityContext": {
            "runAsUser": USER,
            "runAsGroup": USER,
            "runAsNonRoot": true,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            { "name": DATA, "mountPath": DATA_DIR },
            { "name": IDENTITY, "mountPath": IDENTITY_DIR, "readOnly": true },
        ],
    })
}

fn resources(template: &Value) -> Value {
    let get = |name: &str| annotations::get(template, name);
    let mut requests = json!({
        "cpu": get("cpu-request").unwrap_or("10m"),
        "memory": get("memory-request").unwrap_or("32Mi"),
    });
    let mut limits = json!({});
    if let Some(cpu) = get("cpu-limit") {
        limits["cpu"] = cpu.into();
    }
    limits["memory"] = get("memory-limit").unwrap_or("256Mi").into();
    json!({ "requests": requests.take(), "limits": limits })
}

/// Sets the rules, before anything else of the pod runs.
fn init(template: &Value, options: &Options) -> Value {
    let mut arguments = vec!["init".to_owned()];
    for name in annotations::RULES {
        if let Some(value) = annotations::get(template, name) {
            arguments.push(format!("--{name}={value}"));
        }
    }
    // The rules send DNS where the sidecar answers it, or leave it alone.
    if let Some(value) = annotations::get(template, "dns") {
        arguments.push(format!("--dns={value}"));
    }
    json!({
        "name": INIT,
        "image": options.image(INIT),
        "args": arguments,
        "resources": {
            "requests": { "cpu": "10m", "memory": "16Mi" },
            "limits": { "memory": "64Mi" },
        },
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            // Of the pod's own network, and gone when it ends.
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    })
}

/// Proxy variables for every container of the application.
fn proxy(template: &mut Value) {
    for containers in ["initContainers", "containers"] {
        let Some(containers) = template["spec"].get_mut(containers).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let variables = PROXY.map(|name| {
                let without = name.eq_ignore_ascii_case("NO_PROXY");
                let value = if without { "localhost,127.0.0.1,::1" } else { "http://127.0.0.1:15001" };
                json!({ "name": name, "value": value })
            });
            list(container, "env").extend(variables);
        }
    }
}

fn volumes() -> [Value; 2] {
    [
        json!({ "name": DATA, "emptyDir": { "medium": "Memory", "sizeLimit": "32Mi" } }),
        json!({
            "name": IDENTITY,
            "projected": {
                "sources": [
                    { "serviceAccountToken": { "audience": AUDIENCE, "expirationSeconds": 3600, "path": "token" } },
                    { "configMap": { "name": ROOT_CONFIG_MAP, "items": [{ "key": ROOT_KEY, "path": ROOT_KEY }] } },
                ],
            },
        }),
    ]
}
