//! What is to be done with each service. Pure.

mod chosen;
mod command;
mod meshed;
mod networks;
mod privilege;

use std::collections::{BTreeMap, BTreeSet};

use self::{
    chosen::Chosen,
    networks::{Networks, addresses},
};
pub use self::{
    meshed::{Form, Meshed, Neighbour, Separate, Wrapped, owner},
    networks::OWN_NETWORK,
};
use super::{
    InjectError,
    file::{Project, Service},
    image::Image,
    labels::Labels,
};

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Namespace of all services.
    pub namespace: String,
    /// Only these services; empty: all.
    pub only: Vec<String>,
    /// Not these.
    pub exclude: Vec<String>,
    /// Connections come to the sidecars by redirect rules and names, and not by proxy variables and local ports.
    pub transparent: bool,
    /// Sidecars are containers of their own.
    pub separate: bool,
    /// Before the names of Weft's images, as in `registry.example/`.
    pub image_prefix: String,
    /// Of Weft's images.
    pub version: String,
    /// As whom the control plane runs: owner of its data directory, as in `1000:1000`.
    pub control_plane_user: String,
    /// Port of the control plane for sidecars and `weft`.
    pub grpc_port: u16,
    /// Port of its HTTP API.
    pub http_port: u16,
    /// The command that makes the overlay anew, for its header.
    pub command: String,
    /// The team's files, for the header.
    pub files: Vec<String>,
    /// Folder of control plane and tokens, as the overlay names it.
    pub data: String,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Services that get a sidecar.
    pub meshed: Vec<Meshed>,
    /// Services that are left as they are.
    pub skipped: Vec<Skipped>,
    /// Networks of the control plane.
    pub control_plane_networks: BTreeSet<String>,
    /// A network that the overlay adds, since the services have none in common.
    pub own_network: bool,
    /// What is worth knowing of all of it.
    pub notes: Vec<String>,
}

/// A service that is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its name.
    pub service: String,
    /// Why.
    pub reason: String,
}

/// Plans. `images`: what is known of each service's image, or why nothing is.
///
/// # Errors
/// The first thing that makes it impossible.
pub fn plan(
    project: &Project,
    images: &BTreeMap<String, Result<Image, String>>,
    options: &Options,
) -> Result<Plan, InjectError> {
    for name in options.only.iter().chain(&options.exclude) {
        if project.service(name).is_none() {
            let names: Vec<&str> = project.services.iter().map(|service| service.name.as_str()).collect();
            return Err(InjectError::new(
                format!("services.{name}"),
                "there is no such service",
                format!("there are {}", names.join(", ")),
            ));
        }
    }
    let jobs: BTreeSet<&String> = project.services.iter().flat_map(|service| &service.waits_for_the_end_of).collect();
    let (mut chosen, mut skipped) = (Vec::new(), Vec::new());
    for service in &project.services {
        let labels = Labels::of(service)?;
        match left_alone(service, &labels, options) {
            Some(reason) => skipped.push(Skipped { service: service.name.clone(), reason }),
            None => {
                // A job takes its sidecar along when it ends, which only a wrapper can see.
                let separate = options.separate && !jobs.contains(&service.name);
                chosen.push(Chosen::new(service, labels, images.get(&service.name), separate, options.transparent)?);
            }
        }
    }
    if chosen.is_empty() {
        return Err(InjectError::new("services", "there is none to put into the mesh", "see why each was left out"));
    }
    distinct(&chosen)?;
    separable(&chosen, project)?;
    let addresses = addresses(chosen.iter().map(|chosen| chosen.service.name.as_str()));
    let networks = Networks::of(project, &chosen);
    let meshed = chosen.iter().map(|one| one.meshed(&chosen, &skipped, project, &addresses, &networks));
    let meshed: Vec<Meshed> = meshed.collect();
    let notes = notes(&meshed, &skipped, project, &networks, options);
    Ok(Plan {
        meshed,
        skipped,
        control_plane_networks: networks.control_plane.clone(),
        own_network: networks.own,
        notes,
    })
}

/// What is worth knowing of all services.
fn notes(
    meshed: &[Meshed],
    skipped: &[Skipped],
    project: &Project,
    networks: &Networks,
    options: &Options,
) -> Vec<String> {
    let mut notes = Vec::new();
    if networks.own {
        notes.push(format!(
            "the services have no network in common: all join one more, {OWN_NETWORK}; who may call whom there is what an \
             AccessPolicy says"
        ));
    }
    if !options.transparent {
        return notes;
    }
    if meshed.iter().any(|meshed| matches!(meshed.form, Form::Wrapped(_))) {
        notes.push(
            "wrapped containers start as root with NET_ADMIN, for the rules; applications run as the users that they had, \
             without it. What `docker compose exec` starts is root's: give it `--user`"
                .to_owned(),
        );
    }
    let networked = |name: &&str| project.service(name).is_some_and(|service| !service.joined().is_empty());
    let outside: Vec<&str> = skipped.iter().map(|skipped| skipped.service.as_str()).filter(networked).collect();
    if !outside.is_empty() {
        notes.push(format!(
            "not in the mesh: {}. What they send to its services in plain text is refused, but for published ports, until a \
             Mesh says `permissive`",
            outside.join(", ")
        ));
    }
    notes
}

fn left_alone(service: &Service, labels: &Labels, options: &Options) -> Option<String> {
    if labels.left_alone {
        return Some("its label weft.mesh/inject is \"false\"".to_owned());
    }
    if options.exclude.contains(&service.name) {
        return Some("--exclude names it".to_owned());
    }
    if !options.only.is_empty() && !options.only.contains(&service.name) {
        return Some("--only does not name it".to_owned());
    }
    let mode = service.network_mode.as_deref()?;
    Some(match mode {
        "host" => "it shares the host's network, where the ports of a sidecar are everybody's".to_owned(),
        "none" => "it has no network".to_owned(),
        _ => match mode.split_once(':') {
            Some((_, other)) => format!("it shares the network of {other}, and two sidecars cannot share their ports"),
            None => format!("its network_mode is {mode}"),
        },
    })
}

/// Two services may share a name in the mesh when both say so: versions of one. By chance they may not.
fn distinct(chosen: &[Chosen<'_>]) -> Result<(), InjectError> {
    for (index, one) in chosen.iter().enumerate() {
        let same = chosen[..index].iter().find(|other| other.mesh == one.mesh);
        let Some(same) = same else { continue };
        let said = |chosen: &Chosen<'_>| {
            chosen.service.labels.contains_key("weft.mesh/service") || chosen.service.name == chosen.mesh
        };
        if !(said(one) && said(same)) {
            return Err(InjectError::new(
                format!("services.{}", one.service.name),
                format!("in the mesh it and {} would both be `{}`", same.service.name, one.mesh),
                "give one of them another name with the label weft.mesh/service",
            ));
        }
    }
    Ok(())
}

/// Sidecars in containers of their own: whether each service can share its network with one.
fn separable(chosen: &[Chosen<'_>], project: &Project) -> Result<(), InjectError> {
    for one in chosen.iter().filter(|one| one.separate()) {
        let name = &one.service.name;
        let place = |field: &str| format!("services.{name}{field}");
        let replicas = one.service.replicas;
        if replicas > 1 {
            let problem = format!("{replicas} containers cannot share the network of one sidecar");
            return Err(InjectError::new(place(".scale"), problem, "leave --separate away, or have one of them"));
        }
        for companion in [format!("{name}-weft"), owner(name)] {
            if project.service(&companion).is_some() {
                let problem = format!("`{companion}` would be a container of its sidecar");
                return Err(InjectError::new(place(""), problem, "rename the service that has this name"));
            }
        }
        let guest =
            project.services.iter().find(|other| other.network_mode.as_deref() == Some(&format!("service:{name}")));
        if let Some(guest) = guest {
            return Err(InjectError::new(
                format!("services.{}.network_mode", guest.name),
                format!("`service:{name}` would be a container without a network of its own"),
                format!("leave --separate away, or {name} out with --exclude"),
            ));
        }
    }
    Ok(())
}
