//! What cannot be done safely, and why.

use serde_json::Value;

use super::containers::{DATA, IDENTITY, INIT, PORTS, SIDECAR, USER};

/// A refusal: field of the template, problem, what to do.
pub(super) type Refusal = (String, String, String);

/// Containers of other meshes.
const OTHER_MESHES: [&str; 7] =
    ["istio-proxy", "istio-init", "linkerd-proxy", "linkerd-init", "kuma-sidecar", "kuma-init", "consul-dataplane"];

/// Variables of explicit mode.
pub(super) const PROXY: [&str; 4] = ["HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"];

/// Everything that speaks against it. The template has no sidecar.
pub(super) fn check(template: &Value, explicit: bool) -> Vec<Refusal> {
    let spec = &template["spec"];
    let mut found = Vec::new();
    let mut refuse = |field: String, problem: String, hint: &str| found.push((field, problem, hint.to_owned()));
    if spec["hostNetwork"] == true {
        let problem = "the pod shares the network of its node: rules and ports would be the node's, and so those of every \
                       other pod on it";
        refuse("spec.hostNetwork".into(), problem.into(), "remove it, or set `weft.mesh/inject: \"false\"`");
    }
    if spec["os"]["name"] == "windows" {
        refuse("spec.os.name".into(), "the sidecar runs on Linux".into(), "set `weft.mesh/inject: \"false\"`");
    }
    let own_user = format!("the user {USER} is the sidecar's: rules could not tell the application from it");
    if spec["securityContext"]["runAsUser"] == USER {
        refuse("spec.securityContext.runAsUser".into(), own_user.clone(), "run the application as another user");
    }
    for list in ["initContainers", "containers"] {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let at = format!("spec.{list}[{index}]");
            let name = container["name"].as_str().unwrap_or_default();
            if OTHER_MESHES.contains(&name) {
                let problem = format!("`{name}` is the container of another mesh");
                refuse(format!("{at}.name"), problem, "take the pod out of that mesh first");
            }
            if [SIDECAR, INIT].contains(&name) {
                let problem = format!("a container named `{name}` that `weft inject` did not put there");
                refuse(format!("{at}.name"), problem, "rename it or take it out");
            }
            if container["securityContext"]["runAsUser"] == USER {
                refuse(
                    format!("{at}.securityContext.runAsUser"),
                    own_user.clone(),
                    "run the application as another user",
                );
            }
            ports(container, &at, &mut refuse);
            if explicit && list == "containers" {
                proxy(container, &at, &mut refuse);
            }
        }
    }
    for (index, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        if let Some(name) = volume["name"].as_str().filter(|name| [DATA, IDENTITY].contains(name)) {
            refuse(
                format!("spec.volumes[{index}].name"),
                format!("`{name}` is the name of a volume of Weft's"),
                "rename it",
            );
        }
    }
    found
}

fn ports(container: &Value, at: &str, refuse: &mut impl FnMut(String, String, &str)) {
    for (index, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
        if let Some(number) = port["containerPort"].as_u64().filter(|number| PORTS.contains(number)) {
            let problem = format!("{number} is a port of the sidecar's");
            refuse(format!("{at}.ports[{index}].containerPort"), problem, "let the application listen elsewhere");
        }
    }
}

fn proxy(container: &Value, at: &str, refuse: &mut impl FnMut(String, String, &str)) {
    for (index, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
        if let Some(name) = variable["name"].as_str().filter(|name| PROXY.contains(name)) {
            let problem = format!("the container has a `{name}` of its own, which explicit mode would have to replace");
            refuse(format!("{at}.env[{index}]"), problem, "remove it, or use `weft.mesh/mode: transparent`");
        }
    }
}
