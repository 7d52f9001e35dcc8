//! What is to be done with each service. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use super::{
    InjectError,
    file::{DEFAULT_NETWORK, Project, Service},
    image::Image,
    labels::{Labels, is_name},
    ports::{Port, Protocol, exposed},
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Services that get a sidecar.
    pub meshed: Vec<Meshed>,
    /// Services that are left as they are.
    pub skipped: Vec<Skipped>,
    /// Networks of the control plane.
    pub control_plane_networks: BTreeSet<String>,
    /// A network that the overlay adds, since the services have none in common.
    pub own_network: bool,
}

/// A service that gets a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meshed {
    /// Its name in the file.
    pub service: String,
    /// Its name in the mesh.
    pub mesh: String,
    /// Version of the application.
    pub version: Option<String>,
    /// Ports that others call.
    pub ports: Vec<Port>,
    /// Where the application listens, when not on loopback.
    pub app_address: Option<String>,
    /// The entrypoint that is wrapped.
    pub entrypoint: Vec<String>,
    /// What follows it.
    pub arguments: Vec<String>,
    /// `arguments` are the image's, which compose would drop: the overlay must repeat them.
    pub repeat_arguments: bool,
    /// As whom it runs; empty: root.
    pub user: String,
    /// The data directory is to be in memory: the application may not write its own file system.
    pub data_in_memory: bool,
    /// Services that it may call.
    pub neighbours: Vec<Neighbour>,
    /// NO_PROXY.
    pub no_proxy: Vec<String>,
    /// It has no health check of its own.
    pub healthcheck: bool,
    /// How long requests may take to end.
    pub drain: Duration,
    /// All of its networks, when the overlay must name them.
    pub networks: Option<BTreeSet<String>>,
    /// The signal with which it wants to be stopped, when that is not SIGTERM.
    pub stop_signal: Option<String>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

/// A service that another may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Names by which it is called.
    pub names: Vec<String>,
    /// Its name in the mesh.
    pub mesh: String,
    /// The loopback address that stands for it.
    pub address: Ipv4Addr,
    /// Its ports.
    pub ports: Vec<u16>,
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
    let (mut chosen, mut skipped) = (Vec::new(), Vec::new());
    for service in &project.services {
        let labels = Labels::of(service)?;
        match left_alone(service, &labels, options) {
            Some(reason) => skipped.push(Skipped { service: service.name.clone(), reason }),
            None => chosen.push(Chosen::new(service, labels, images.get(&service.name))?),
        }
    }
    if chosen.is_empty() {
        return Err(InjectError::new("services", "there is none to put into the mesh", "see why each was left out"));
    }
    distinct(&chosen)?;
    let addresses = addresses(chosen.iter().map(|chosen| chosen.service.name.as_str()));
    let networks = Networks::of(project, &chosen);
    let meshed = chosen.iter().map(|one| one.meshed(&chosen, &skipped, project, &addresses, &networks));
    Ok(Plan {
        meshed: meshed.collect(),
        skipped,
        control_plane_networks: networks.control_plane.clone(),
        own_network: networks.own,
    })
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

/// A service that gets a sidecar, with all that was found out about it.
struct Chosen<'a> {
    service: &'a Service,
    labels: Labels,
    image: Option<&'a Image>,
    mesh: String,
    ports: Vec<Port>,
    entrypoint: Vec<String>,
    arguments: Vec<String>,
    repeat_arguments: bool,
    notes: Vec<String>,
}

impl<'a> Chosen<'a> {
    fn new(
        service: &'a Service,
        mut labels: Labels,
        image: Option<&'a Result<Image, String>>,
    ) -> Result<Self, InjectError> {
        let unknown = match image {
            Some(Err(why)) => why.as_str(),
            _ => "nothing is known about its image",
        };
        let image = image.and_then(|image| image.as_ref().ok());
        let mesh = labels.mesh.take().unwrap_or_else(|| name_in_mesh(&service.name));
        if !is_name(&mesh) {
            return Err(InjectError::new(
                format!("services.{}", service.name),
                format!("`{mesh}` cannot be a name in the mesh"),
                "give it one with the label weft.mesh/service",
            ));
        }
        let (entrypoint, arguments, repeat_arguments) = command(service, image, unknown)?;
        let mut notes = Vec::new();
        let ports = match labels.ports.take() {
            Some(ports) => ports,
            None => found_ports(service, image, &mut notes)?,
        };
        own_ports(service, &ports)?;
        if ports.is_empty() {
            notes.push(
                "no TCP port is known: it calls others, and nobody calls it; the label weft.mesh/ports names ports"
                    .to_owned(),
            );
        }
        if image.is_none() {
            notes.push(format!("{unknown}: its user and the ports it exposes are taken from the file alone"));
        }
        Ok(Self { service, labels, image, mesh, ports, entrypoint, arguments, repeat_arguments, notes })
    }

    fn meshed(
        &self,
        chosen: &[Chosen<'_>],
        skipped: &[Skipped],
        project: &Project,
        addresses: &BTreeMap<&str, Ipv4Addr>,
        networks: &Networks,
    ) -> Meshed {
        let joined = self.service.joined();
        let others = chosen.iter().filter(|other| {
            other.service.name != self.service.name
                && !other.ports.is_empty()
                && !joined.is_disjoint(&other.service.joined())
        });
        let all = others.map(|other| Neighbour {
            names: self.calls(other.service),
            mesh: other.mesh.clone(),
            address: addresses[other.service.name.as_str()],
            ports: other.ports.iter().map(|port| port.port).collect(),
        });
        let all = all.filter(|neighbour| !neighbour.names.is_empty());
        // An application that listens on every address needs its port on all of loopback.
        let (by_proxy, neighbours): (Vec<Neighbour>, Vec<Neighbour>) =
            all.partition(|neighbour| neighbour.ports.iter().any(|port| self.listens(*port)));
        let mut notes = self.notes.clone();
        notes.extend(by_proxy.iter().map(|other| {
            let mesh = &other.mesh;
            format!("it listens on a port that {mesh} has, too: calls to {mesh} are in the mesh only by HTTP_PROXY")
        }));
        let unmeshed = skipped.iter().filter_map(|skipped| project.service(&skipped.service));
        let unmeshed =
            unmeshed.filter(|other| !joined.is_disjoint(&other.joined())).flat_map(|other| self.calls(other));
        // The proxy would take these for names of the mesh: they lead to a local port, or past the mesh.
        let aliases = neighbours
            .iter()
            .chain(&by_proxy)
            .flat_map(|other| other.names.iter().filter(|name| **name != other.mesh).cloned());
        let own = self.service.names().into_iter().filter(|name| *name != self.mesh);
        let mut no_proxy: Vec<String> = self.service.no_proxy.iter().cloned().collect();
        for name in aliases.chain(unmeshed).chain(own) {
            if !no_proxy.contains(&name) {
                no_proxy.push(name);
            }
        }
        let user = self.service.user.clone().or_else(|| self.image.map(|image| image.user.clone())).unwrap_or_default();
        let grace = self.service.stop_grace_period.unwrap_or(DEFAULT_GRACE);
        let signal =
            self.service.stop_signal.clone().or_else(|| self.image.and_then(|image| image.stop_signal.clone()));
        Meshed {
            service: self.service.name.clone(),
            mesh: self.mesh.clone(),
            version: self.labels.version.clone(),
            ports: self.ports.clone(),
            app_address: self.labels.app_address.clone(),
            entrypoint: self.entrypoint.clone(),
            arguments: self.arguments.clone(),
            repeat_arguments: self.repeat_arguments,
            data_in_memory: self.service.read_only || !is_root(&user) || self.image.is_none(),
            user,
            neighbours,
            no_proxy,
            healthcheck: !self.service.healthcheck && !self.image.is_some_and(|image| image.healthcheck),
            drain: grace.saturating_sub(AFTER_DRAIN).clamp(SHORTEST_DRAIN, LONGEST_DRAIN),
            networks: networks.own.then(|| joined.into_iter().chain([OWN_NETWORK.to_owned()]).collect()),
            // Real-time signals (of systemd's images, say) are not passed on: those get SIGTERM.
            stop_signal: signal
                .filter(|signal| !matches!(signal.as_str(), "SIGTERM" | "TERM" | "15") && !signal.contains("RTM")),
            notes,
        }
    }

    fn listens(&self, port: u16) -> bool {
        self.ports.iter().any(|own| own.app_port == port)
    }

    /// The names by which this service calls another.
    fn calls(&self, other: &Service) -> Vec<String> {
        let links =
            self.service.links.iter().filter(|(service, _)| *service == other.name).map(|(_, alias)| alias.clone());
        let mut names = other.names();
        names.extend(links);
        names.retain(|name| !self.service.extra_hosts.contains(name));
        names.dedup();
        names
    }
}

/// What it runs: entrypoint, arguments, and whether the overlay must repeat the arguments, since compose drops those of the
/// image where an entrypoint is given.
fn command(
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

fn found_ports(service: &Service, image: Option<&Image>, notes: &mut Vec<String>) -> Result<Vec<Port>, InjectError> {
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

fn own_ports(service: &Service, ports: &[Port]) -> Result<(), InjectError> {
    match ports.iter().find(|port| SIDECAR_PORTS.contains(&port.app_port) || SIDECAR_PORTS.contains(&port.port)) {
        None => Ok(()),
        Some(port) => Err(InjectError::new(
            format!("services.{}.ports", service.name),
            format!("port {} is the sidecar's", port.app_port),
            "move the application, or name its other ports with the label weft.mesh/ports",
        )),
    }
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

/// Where control plane and services meet.
struct Networks {
    control_plane: BTreeSet<String>,
    own: bool,
}

impl Networks {
    /// All must reach each other by the address that a sidecar has towards the control plane: one network in common.
    fn of(project: &Project, chosen: &[Chosen<'_>]) -> Self {
        let mut all = chosen.iter().map(|chosen| chosen.service.joined());
        let first = all.next().unwrap_or_default();
        let common = all.fold(first, |common, joined| common.intersection(&joined).cloned().collect());
        let internal = |name: &String| project.networks.get(name).is_some_and(|network| network.internal);
        let Some(meet) = common.iter().min_by_key(|name| (internal(name), *name != DEFAULT_NETWORK)) else {
            return Self { control_plane: BTreeSet::from([OWN_NETWORK.to_owned()]), own: true };
        };
        let mut control_plane = BTreeSet::from([meet.clone()]);
        if internal(meet) {
            // Ports are published from a network with a way out only.
            control_plane.insert(DEFAULT_NETWORK.to_owned());
        }
        Self { control_plane, own: false }
    }
}

/// A loopback address for each service: by its name, so that it stays when others come and go.
fn addresses<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, Ipv4Addr> {
    let mut taken = BTreeSet::new();
    let mut addresses = BTreeMap::new();
    for name in names.collect::<BTreeSet<_>>() {
        // FNV-1a, folded into 127.88.1.1 to 127.88.254.254.
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let mut slot = hash % SLOTS;
        while !taken.insert(slot) {
            slot = (slot + 1) % SLOTS;
        }
        let part = |number: u32| u8::try_from(number % 254 + 1).unwrap_or(1);
        addresses.insert(name, Ipv4Addr::new(127, 88, part(slot / 254), part(slot)));
    }
    addresses
}

fn name_in_mesh(service: &str) -> String {
    let plain = |char: char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '-' };
    service.chars().map(plain).collect::<String>().trim_matches('-').to_owned()
}

/// Whether a user, as compose and images write it, is root.
pub fn is_root(user: &str) -> bool {
    matches!(user.split(':').next(), None | Some("" | "0" | "root"))
}

/// The network that the overlay adds where the services have none in common.
pub const OWN_NETWORK: &str = "weft-mesh";
/// Compose's own.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// Left of the grace period for the application itself.
const AFTER_DRAIN: Duration = Duration::from_secs(2);
const SHORTEST_DRAIN: Duration = Duration::from_secs(1);
const LONGEST_DRAIN: Duration = Duration::from_secs(30);
const SIDECAR_PORTS: [u16; 5] = [15000, 15001, 15006, 15020, 15053];
const SLOTS: u32 = 254 * 254;
