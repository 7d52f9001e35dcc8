//! The overlay: what compose merges over the team's file.

mod environment;
mod separate;
mod wrapped;

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::plan::{Form, Meshed, OWN_NETWORK, Options, Plan};

/// The overlay's text.
#[must_use]
pub fn overlay(plan: &Plan, options: &Options) -> String {
    let mut services = Map::new();
    services.insert(CONTROL_PLANE.to_owned(), control_plane(plan, options));
    let (mut volumes, mut moved) = (Map::new(), Vec::new());
    if plan.meshed.iter().any(|meshed| matches!(meshed.form, Form::Wrapped(_))) {
        services.insert(INSTALL.to_owned(), install(options));
        volumes.insert(BINARIES.to_owned(), json!({}));
    }
    for meshed in &plan.meshed {
        match &meshed.form {
            Form::Wrapped(wrapped) => {
                services.insert(meshed.service.clone(), wrapped::service(meshed, wrapped, options));
            }
            Form::Separate(separate) => {
                services.insert(meshed.owner(), separate::owner(meshed, separate, plan, options));
                services.insert(meshed.sidecar(), separate::sidecar(meshed, separate, options));
                services.insert(meshed.service.clone(), separate::application(meshed));
                volumes.insert(separate::volume(meshed), json!({}));
                moved.push((meshed.service.as_str(), &separate.namespace));
            }
        }
    }
    let secret =
        |meshed: &Meshed| (secret(meshed), json!({ "file": format!("{}/tokens/{}", options.data, meshed.service) }));
    let mut document = json!({
        "services": services,
        "secrets": plan.meshed.iter().map(secret).collect::<Map<_, _>>(),
    });
    if !volumes.is_empty() {
        document["volumes"] = volumes.into();
    }
    if plan.own_network {
        document["networks"] = json!({ OWN_NETWORK: {} });
    }
    let mut document = serde_yaml::to_value(&document).unwrap_or_default();
    for (service, namespace) in moved {
        separate::take_away(&mut document["services"][service], namespace);
    }
    let body = serde_yaml::to_string(&document).unwrap_or_default();
    format!("{}{body}", header(plan, options))
}

fn header(plan: &Plan, options: &Options) -> String {
    let files = options.files.iter().map(|file| format!("-f {file} ")).collect::<String>();
    // `down` knows only services whose profile it is given, and `run` starts what is beside others too.
    let profiled = |meshed: &Meshed| matches!(&meshed.form, Form::Separate(it) if !it.profiles.is_empty());
    let every = if plan.meshed.iter().any(profiled) { "--profile '*' " } else { "" };
    let mut text = String::new();
    let _ = writeln!(
        text,
        "# Puts the services into a Weft mesh. Generated: change the compose file, or the command, and make it anew:\n#\n\
         #   {}\n#\n# Start:   docker compose {files}-f compose.weft.yaml up --wait\n\
         # Remove:  docker compose {files}-f compose.weft.yaml {every}down --volumes\n#          {} --remove",
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

/// Ends when the program lies in the volume, with what sets rules where these are wanted.
fn install(options: &Options) -> Value {
    json!({
        "image": image(options, if options.transparent { INIT } else { SIDECAR }),
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
/// Images.
const SIDECAR: &str = "weft-sidecar";
const INIT: &str = "weft-init";
/// Volume with the sidecar's program.
const BINARIES: &str = "weft-bin";
/// Where it is mounted.
const BINARIES_AT: &str = "/weft-bin";
