//! The application's own health probes: those that the kubelet sends come in plain text, and the sidecar must know them.

use serde_json::Value;

/// `PATH@PORT,tcp@PORT,grpc@PORT`, each once, of every container but the sidecar. An error names the field.
pub(super) fn of(template: &Value) -> Result<Vec<String>, (String, String)> {
    let mut found = Vec::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in template["spec"][list].as_array().into_iter().flatten().enumerate() {
            for kind in ["startupProbe", "readinessProbe", "livenessProbe"] {
                let probe = &container[kind];
                if let Some(text) =
                    one(probe, container).map_err(|error| (format!("spec.{list}[{index}].{kind}"), error))?
                    && !found.contains(&text)
                {
                    found.push(text);
                }
            }
        }
    }
    Ok(found)
}

fn one(probe: &Value, container: &Value) -> Result<Option<String>, String> {
    // A probe that goes elsewhere does not pass the sidecar.
    let elsewhere = |action: &Value| action["host"].as_str().is_some_and(|host| !host.is_empty());
    if let Some(action) = probe.get("httpGet").filter(|action| !elsewhere(action)) {
        let port = port(&action["port"], container)?;
        // To us a probe by TLS is bytes.
        if action["scheme"].as_str().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
            return Ok(Some(format!("tcp@{port}")));
        }
        let path = action["path"].as_str().unwrap_or("/");
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) || path.contains(',') {
            return Err(format!("`{path}` cannot be told to the sidecar: spaces, commas and letters beyond ASCII"));
        }
        return Ok(Some(format!("{path}@{port}")));
    }
    if let Some(action) = probe.get("tcpSocket").filter(|action| !elsewhere(action)) {
        return Ok(Some(format!("tcp@{}", port(&action["port"], container)?)));
    }
    match probe.get("grpc") {
        Some(action) => Ok(Some(format!("grpc@{}", port(&action["port"], container)?))),
        None => Ok(None),
    }
}

fn port(value: &Value, container: &Value) -> Result<u64, String> {
    let found = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(name) => {
            let named = container["ports"].as_array().into_iter().flatten().find(|port| port["name"] == name.as_str());
            named.and_then(|port| port["containerPort"].as_u64())
        }
        _ => None,
    };
    found.filter(|port| (1..=65535).contains(port)).ok_or_else(|| format!("{value} is no port of the container"))
}
