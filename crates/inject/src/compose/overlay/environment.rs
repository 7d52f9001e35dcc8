//! Variables, and names with their addresses, of whoever a sidecar is beside.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{CONTROL_PLANE, comma, secret};
use crate::compose::{
    plan::{Meshed, Options},
    words,
};

/// What its sidecar is told. `directory`: where its state is.
pub fn sidecar(meshed: &Meshed, directory: &str, options: &Options) -> Map<String, Value> {
    let mut environment = Map::new();
    let mut set = |name: &str, value: String| {
        environment.insert(name.to_owned(), json!(value));
    };
    set("WEFT_CONTROL_PLANE", format!("{CONTROL_PLANE}:{}", options.grpc_port));
    set("WEFT_JOIN_TOKEN_FILE", format!("/run/secrets/{}", secret(meshed)));
    set("WEFT_DATA_DIR", directory.to_owned());
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
    environment
}

/// What whoever sets the rules is told. `published`: ports of the application that others call in plain text. `more`: such
/// ports of the team's own making.
pub fn redirect(published: &BTreeSet<u16>, more: Option<&str>) -> Map<String, Value> {
    let mut variables = Map::from_iter([("WEFT_REDIRECT".to_owned(), json!("true"))]);
    let ports = published.iter().map(ToString::to_string).chain(more.map(str::to_owned));
    let ports = comma(ports);
    if !ports.is_empty() {
        variables.insert(EXCLUDED.to_owned(), json!(ports));
    }
    variables
}

/// Loopback addresses of those that it may call.
pub fn hosts(meshed: &Meshed) -> Map<String, Value> {
    let of = |neighbour: &crate::compose::plan::Neighbour| {
        let address = json!(neighbour.address.to_string());
        neighbour.names.iter().map(|name| (name.clone(), address.clone())).collect::<Vec<_>>()
    };
    meshed.neighbours.iter().flat_map(of).collect()
}

/// Ports on which rules leave inbound connections alone.
pub const EXCLUDED: &str = "WEFT_EXCLUDE_INBOUND_PORTS";
