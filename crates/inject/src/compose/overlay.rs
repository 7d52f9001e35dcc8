//! The overlay: what compose merges over the team's file.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{
    plan::{Meshed, OWN_NETWORK, Options, Plan},
    words,
};

/// The overlay's text.
#[must_use]
pub fn overlay(plan: &Plan, options: &Options) -> String {
    let mut services = Map::new();
    services.insert(CONTROL_PLANE.to_owned(), control_plane(plan, options));
    services.insert(INSTALL.to_owned(), install(options));
    for meshed in &plan.meshed {
        services.insert(meshed.service.clone(), service(meshed, options));
    }
    let secret =
        |meshed: &Meshed| (secret(meshed), json!({ "file": format!("{}/tokens/{}", options.data, meshed.service) }));
    let mut document = json!({
        "services": services,
        "secrets": plan.meshed.iter().map(secret).collect::<Map<_, _>>(),
        "volumes": { BINARIES: {} },
    });
    if plan.own_network {
        document["networks"] = json!({ OWN_NETWORK: {} });
    }
    let body = serde_yaml::to_string(&document).unwrap_or_default();
    format!("{}{body}", header(options))
}

fn header(options: &Options) -> String {
    let files = options.files.iter().map(|file| format!("-f {file} ")).collect::<String>();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "# Puts the services into a Weft mesh. Generated: change the compose file, or the command, and make it anew:\n#\n\
         #   {}\n#\n# Start:   docker compose {files}-f compose.weft.yaml up --wait\n\
         # Remove:  docker compose {files}-f compose.weft.yaml down --volumes\n#          {} --remove",
        options.command, options.command
    );
    text
}

fn control_plane(plan: &Plan, options: &Options) -> Value {
    let (grpc, http) = (options.grpc_port, options.http_port);
    json!({
        "image": image(options, CONTROL_PLANE),
        "restart": "unless-stopped",
        "user": options.control_plane_user,
        "read_only": true,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "environment": {
            "WEFT_DATA_DIR": "/data",
            "WEFT_GRPC": format!("0.0.0.0:{grpc}"),
            "WEFT_HTTP": format!("0.0.0.0:{http}"),
            "WEFT_ADVERTISE": "127.0.0.1",
        },
        "volumes": [{ "type": "bind", "source": format!("{}/control-plane", options.data), "target": "/data" }],
        "ports": [format!("127.0.0.1:{grpc}:{grpc}"), format!("127.0.0.1:{http}:{http}")],
        "networks": plan.control_plane_networks.iter().map(|name| (name.clone(), json!({}))).collect::<Map<_, _>>(),
        "healthcheck": {
            "test": ["CMD", "/weft-control-plane", "health"],
            "interval": "2s",
            "timeout": "3s",
            "retries": 15,
        },
    })
}

/// Ends when the program lies in the volume.
fn install(options: &Options) -> Value {
    json!({
        "image": image(options, "weft-sidecar"),
        // A new volume belongs to root.
        "user": "0:0",
        "command": ["install", BINARIES_AT],
        "restart": "on-failure",
        "network_mode": "none",
        "read_only": true,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "volumes": [{ "type": "volume", "source": BINARIES, "target": BINARIES_AT }],
    })
}

fn service(meshed: &Meshed, options: &Options) -> Value {
    let sidecar = format!("{BINARIES_AT}/weft-sidecar");
    let entrypoint: Vec<&str> =
        [sidecar.as_str(), "run", "--"].into_iter().chain(meshed.entrypoint.iter().map(String::as_str)).collect();
    let mut service = json!({ "entrypoint": entrypoint });
    if meshed.repeat_arguments {
        service["command"] = json!(meshed.arguments);
    }
    service["environment"] = Value::Object(environment(meshed, options));
    service["secrets"] = json!([secret(meshed)]);
    service["volumes"] = json!([{ "type": "volume", "source": BINARIES, "target": BINARIES_AT, "read_only": true }]);
    service["depends_on"] = json!({
        CONTROL_PLANE: { "condition": "service_healthy" },
        INSTALL: { "condition": "service_completed_successfully" },
    });
    let hosts = meshed
        .neighbours
        .iter()
        .flat_map(|neighbour| neighbour.names.iter().map(|name| (name.clone(), json!(neighbour.address.to_string()))));
    let hosts: Map<String, Value> = hosts.collect();
    if !hosts.is_empty() {
        service["extra_hosts"] = Value::Object(hosts);
    }
    if let Some(networks) = &meshed.networks {
        service["networks"] = networks.iter().map(|name| (name.clone(), json!({}))).collect::<Map<_, _>>().into();
    }
    if meshed.stop_signal.is_some() {
        // The sidecar's; it passes the service's own on.
        service["stop_signal"] = json!("SIGTERM");
    }
    if meshed.healthcheck {
        service["healthcheck"] = json!({
            "test": ["CMD", sidecar, "wait", "--timeout", "1s"],
            "interval": "3s",
            "timeout": "3s",
            "retries": 20,
        });
    }
    service
}

fn environment(meshed: &Meshed, options: &Options) -> Map<String, Value> {
    let mut environment = Map::new();
    let mut set = |name: &str, value: String| {
        environment.insert(name.to_owned(), json!(value));
    };
    set("WEFT_CONTROL_PLANE", format!("{CONTROL_PLANE}:{}", options.grpc_port));
    set("WEFT_JOIN_TOKEN_FILE", format!("/run/secrets/{}", secret(meshed)));
    set(
        "WEFT_DATA_DIR",
        if meshed.data_in_memory { format!("{MEMORY}/{}", secret(meshed)) } else { DATA_AT.to_owned() },
    );
    set("WEFT_NAMESPACE", options.namespace.clone());
    set("WEFT_SERVICE", meshed.mesh.clone());
    if let Some(version) = &meshed.version {
        set("WEFT_APP_VERSION", words::escape(version));
    }
    if !meshed.ports.is_empty() {
        set("WEFT_PORTS", comma(meshed.ports.iter().map(ToString::to_string)));
    }
    if let Some(address) = &meshed.app_address {
        set("WEFT_APP_ADDRESS", address.clone());
    }
    let upstreams = meshed.neighbours.iter().flat_map(|neighbour| {
        neighbour.ports.iter().map(|port| format!("{}:{port}={}:{port}", neighbour.address, neighbour.mesh))
    });
    let upstreams = comma(upstreams);
    if !upstreams.is_empty() {
        set("WEFT_UPSTREAMS", upstreams);
    }
    set("WEFT_DRAIN", format!("{}ms", meshed.drain.as_millis()));
    if let Some(signal) = &meshed.stop_signal {
        set("WEFT_STOP_SIGNAL", signal.clone());
    }
    if !meshed.no_proxy.is_empty() {
        set("NO_PROXY", comma(meshed.no_proxy.iter().cloned()));
    }
    environment
}

fn comma(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(",")
}

fn secret(meshed: &Meshed) -> String {
    format!("weft-{}", meshed.service)
}

fn image(options: &Options, name: &str) -> String {
    format!("{}{name}:{}", options.image_prefix, options.version)
}

/// Service and image.
const CONTROL_PLANE: &str = "weft-control-plane";
const INSTALL: &str = "weft-install";
/// Volume with the sidecar's program.
const BINARIES: &str = "weft-bin";
/// Where it is mounted.
const BINARIES_AT: &str = "/weft-bin";
/// Certificate, key and last known configuration of a sidecar.
const DATA_AT: &str = "/weft-data";
/// In memory and open to every user, also where the container is read-only: every container has it. A `tmpfs` of our own
/// would get the mount point's mode when the container is started again, and be root's alone.
const MEMORY: &str = "/dev/shm";
