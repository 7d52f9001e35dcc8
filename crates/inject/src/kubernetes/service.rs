//! Which service a pod belongs to, and by which ports it is called.
//!
//! The name, first that is there: the annotation `weft.mesh/service`; the Service of the input whose selector takes the
//! pod; the labels `app.kubernetes.io/name` and `app`; the workload's name. The ports: the annotation `weft.mesh/ports`;
//! that Service's ports; none, so that the pod is a mere caller.

use serde_json::Value;

use super::{annotations, workload::Workload};

/// A Service of the input.
#[derive(Debug)]
pub(super) struct Service {
    name: String,
    namespace: String,
    value: Value,
}

/// Name and ports of a workload.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Membership {
    pub(super) name: String,
    /// As `WEFT_PORTS` takes them.
    pub(super) ports: Vec<String>,
    /// What a person should know.
    pub(super) note: Option<String>,
}

impl Service {
    /// Reads a document, if it is a Service.
    pub(super) fn of(value: &Value, default_namespace: &str) -> Option<Self> {
        if value["apiVersion"] != "v1" || value["kind"] != "Service" {
            return None;
        }
        let metadata = &value["metadata"];
        Some(Self {
            name: metadata["name"].as_str()?.to_owned(),
            namespace: metadata["namespace"].as_str().unwrap_or(default_namespace).to_owned(),
            value: value.clone(),
        })
    }

    fn takes(&self, workload: &Workload<'_>) -> bool {
        let labels = &workload.template["metadata"]["labels"];
        self.namespace == workload.namespace
            && self.value["spec"]["selector"].as_object().is_some_and(|selector| {
                !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            })
    }

    /// Its ports, the application's own resolved in the pod.
    fn ports(&self, pod: &Value) -> Result<Vec<String>, String> {
        let ports = self.value["spec"]["ports"].as_array().map_or(&[][..], Vec::as_slice);
        ports
            .iter()
            .filter(|port| port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP"))
            .map(|port| {
                let number =
                    port["port"].as_u64().ok_or_else(|| format!("Service {} has a port without number", self.name))?;
                let target = match &port["targetPort"] {
                    Value::String(name) => container_port(pod, name).ok_or_else(|| {
                        format!("Service {} leads to the port `{name}`, which no container of the pod has", self.name)
                    })?,
                    Value::Number(target) => target.as_u64().unwrap_or(number),
                    _ => number,
                };
                let name = port["name"].as_str().unwrap_or_default();
                let lead = if name.is_empty() { String::new() } else { format!("{name}=") };
                let protocol =
                    protocol(port["appProtocol"].as_str(), name).map_or_else(String::new, |word| format!("/{word}"));
                Ok(format!("{lead}{number}:{target}{protocol}"))
            })
            .collect()
    }
}

/// The number of a port that a container has by name.
fn container_port(pod: &Value, name: &str) -> Option<u64> {
    let containers = ["containers", "initContainers"].into_iter().filter_map(|list| pod[list].as_array()).flatten();
    let ports = containers.filter_map(|container| container["ports"].as_array()).flatten();
    ports.into_iter().find(|port| port["name"] == name).and_then(|port| port["containerPort"].as_u64())
}

/// What flows, as the model reads it: `appProtocol`, else the first word of the port's name; `None`: the first bytes tell.
fn protocol(app: Option<&str>, name: &str) -> Option<&'static str> {
    match app.unwrap_or_else(|| name.split('-').next().unwrap_or_default()) {
        "http" | "kubernetes.io/ws" => Some("http"),
        "http2" | "h2c" | "kubernetes.io/h2c" => Some("http2"),
        "grpc" => Some("grpc"),
        "tcp" | "tls" | "https" | "kubernetes.io/wss" => Some("tcp"),
        _ => None,
    }
}

/// Where the workload belongs. An error names what contradicts itself.
pub(super) fn of(workload: &Workload<'_>, services: &[Service]) -> Result<Membership, String> {
    let name = annotations::get(workload.template, "service");
    let own_ports = annotations::get(workload.template, "ports");
    let candidates: Vec<&Service> = match name {
        Some(name) => {
            services.iter().filter(|service| service.name == name && service.namespace == workload.namespace).collect()
        }
        None => services.iter().filter(|service| service.takes(workload)).collect(),
    };
    let service = match candidates.as_slice() {
        [] => None,
        [one] => Some(*one),
        several => {
            let names: Vec<_> = several.iter().map(|service| format!("`{}`", service.name)).collect();
            return Err(format!("the Services {} all take its pods", names.join(", ")));
        }
    };
    let ports = match (own_ports, service) {
        (Some(ports), _) => ports.split(',').map(|port| port.trim().to_owned()).collect(),
        (None, Some(service)) => service.ports(&workload.template["spec"])?,
        (None, None) => Vec::new(),
    };
    let labels = &workload.template["metadata"]["labels"];
    let label = || ["app.kubernetes.io/name", "app"].into_iter().find_map(|key| labels[key].as_str());
    let chosen = name.or(service.map(|service| service.name.as_str())).or_else(label).unwrap_or(&workload.name);
    let note = (ports.is_empty()).then(|| {
        format!(
            "no Service of the input takes its pods, so it can call and not be called as `{chosen}`: put the Service \
             into the same input, or set `weft.mesh/ports`"
        )
    });
    Ok(Membership { name: chosen.to_owned(), ports, note })
}
