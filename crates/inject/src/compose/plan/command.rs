//! What a service runs and on which ports it listens, by the file and its image.

use std::collections::BTreeSet;

use crate::compose::{
    InjectError,
    file::Service,
    image::Image,
    ports::{Port, Protocol, exposed},
};

/// What it runs: entrypoint, arguments, and whether the overlay must repeat the arguments, since compose drops those of the
/// image where an entrypoint is given.
pub fn command(
    service: &Service,
    image: Option<&Image>,
    unknown: &str,
) -> Result<(Vec<String>, Vec<String>, bool), InjectError> {
    let place = format!("services.{}", service.name);
    let (entrypoint, arguments, repeat) = match (&service.entrypoint, &service.command, image) {
        (Some(entrypoint), Some(command), _) => (entrypoint.clone(), command.clone(), false),
        (Some(entrypoint), None, _) => (entrypoint.clone(), Vec::new(), false),
        (None, Some(command), Some(image)) => (image.entrypoint.clone(), command.clone(), false),
        (None, None, Some(image)) => (image.entrypoint.clone(), image.command.clone(), true),
        (None, _, None) => {
            let remedy = "run this where the engine is, or write its `entrypoint` into the compose file, or leave it out \
                          with --exclude or the label weft.mesh/inject: \"false\"";
            return Err(InjectError::new(place, format!("its entrypoint is not known: {unknown}"), remedy));
        }
    };
    if entrypoint.is_empty() && arguments.is_empty() {
        let remedy = "write its `entrypoint` or `command` into the compose file";
        return Err(InjectError::new(place, "neither the file nor the image has a command", remedy));
    }
    Ok((entrypoint, arguments, repeat))
}

/// Ports that others call, when no label says them.
pub fn found_ports(
    service: &Service,
    image: Option<&Image>,
    notes: &mut Vec<String>,
) -> Result<Vec<Port>, InjectError> {
    let mut found = service.ports.clone();
    // What an image exposes is what its own entrypoint listens on.
    let of_image = image.filter(|_| service.entrypoint.is_none());
    for port in of_image.iter().flat_map(|image| &image.exposed) {
        found.extend(exposed(&format!("the image of services.{}", service.name), port)?);
    }
    let mut ports: Vec<Port> = Vec::new();
    let mut datagrams = BTreeSet::new();
    for port in found {
        if !port.tcp {
            datagrams.insert(port.target.to_string());
            continue;
        }
        match ports.iter_mut().find(|known| known.port == port.target) {
            Some(known) => known.protocol = port.protocol.unwrap_or(known.protocol),
            None => ports.push(Port {
                port: port.target,
                app_port: port.target,
                protocol: port.protocol.unwrap_or(Protocol::Detect),
            }),
        }
    }
    if !datagrams.is_empty() {
        let list: Vec<String> = datagrams.into_iter().collect();
        notes.push(format!("port {} is not TCP and stays as it is", list.join(", ")));
    }
    Ok(ports)
}

/// None of them may be the sidecar's.
pub fn own_ports(service: &Service, ports: &[Port]) -> Result<(), InjectError> {
    match ports.iter().find(|port| SIDECAR_PORTS.contains(&port.app_port) || SIDECAR_PORTS.contains(&port.port)) {
        None => Ok(()),
        Some(port) => Err(InjectError::new(
            format!("services.{}.ports", service.name),
            format!("port {} is the sidecar's", port.app_port),
            "move the application, or name its other ports with the label weft.mesh/ports",
        )),
    }
}

const SIDECAR_PORTS: [u16; 5] = [15000, 15001, 15006, 15020, 15053];
