//! A service whose container has a sidecar that starts the application.

use serde_json::{Map, Value, json};

use super::{
    BINARIES, BINARIES_AT, CONTROL_PLANE, INSTALL, comma,
    environment::{hosts, redirect, sidecar},
    secret,
};
use crate::compose::plan::{Meshed, Options, Wrapped};

/// What compose merges over a service.
pub fn service(meshed: &Meshed, wrapped: &Wrapped, options: &Options) -> Value {
    let sidecar = format!("{BINARIES_AT}/weft-sidecar");
    let entrypoint: Vec<&str> =
        [sidecar.as_str(), "run", "--"].into_iter().chain(wrapped.entrypoint.iter().map(String::as_str)).collect();
    let mut service = json!({ "entrypoint": entrypoint });
    if wrapped.repeat_arguments {
        service["command"] = json!(wrapped.arguments);
    }
    service["environment"] = variables(meshed, wrapped, options).into();
    service["secrets"] = json!([secret(meshed)]);
    service["volumes"] = json!([{ "type": "volume", "source": BINARIES, "target": BINARIES_AT, "read_only": true }]);
    service["depends_on"] = json!({
        CONTROL_PLANE: { "condition": "service_healthy" },
        INSTALL: { "condition": "service_completed_successfully" },
    });
    if meshed.redirect.is_some() {
        // For the rules; the application runs as the user that it had.
        service["user"] = json!("0:0");
        service["cap_add"] = json!(wrapped.capabilities);
    }
    let hosts = hosts(meshed);
    if !hosts.is_empty() {
        service["extra_hosts"] = Value::Object(hosts);
    }
    if let Some(networks) = &meshed.joins {
        service["networks"] = networks.iter().map(|name| (name.clone(), json!({}))).collect::<Map<_, _>>().into();
    }
    if wrapped.stop_signal.is_some() {
        // The sidecar's; it passes the service's own on.
        service["stop_signal"] = json!("SIGTERM");
    }
    if wrapped.healthcheck {
        service["healthcheck"] = json!({
            "test": ["CMD", sidecar, "wait", "--timeout", "1s"],
            "interval": "3s",
            "timeout": "3s",
            "retries": 20,
        });
    }
    service
}

fn variables(meshed: &Meshed, wrapped: &Wrapped, options: &Options) -> Map<String, Value> {
    let directory = match wrapped.data_in_memory {
        true => format!("{MEMORY}/{}", secret(meshed)),
        false => DATA_AT.to_owned(),
    };
    let mut variables = sidecar(meshed, &directory, options);
    let mut set = |name: &str, value: String| variables.insert(name.to_owned(), json!(value));
    if let Some(signal) = &wrapped.stop_signal {
        set("WEFT_STOP_SIGNAL", signal.clone());
    }
    if !meshed.no_proxy.is_empty() {
        set("NO_PROXY", comma(meshed.no_proxy.iter().cloned()));
    }
    if let Some(published) = &meshed.redirect {
        set("WEFT_TOOLS", format!("{BINARIES_AT}/tools"));
        if !wrapped.user.is_empty() {
            set("WEFT_APP_USER", wrapped.user.clone());
        }
        if !wrapped.capabilities.is_empty() {
            set("WEFT_APP_DROP", wrapped.capabilities.join(","));
        }
        variables.extend(redirect(published, None));
    }
    variables
}

/// Certificate, key and last known configuration of a sidecar.
const DATA_AT: &str = "/weft-data";
/// In memory and open to every user, also where the container is read-only: every container has it. A `tmpfs` of our own
/// would get the mount point's mode when the container is started again, and be root's alone.
const MEMORY: &str = "/dev/shm";
