//! A service that gets a sidecar, and what follows for it from all others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use super::{
    Skipped,
    command::{command, found_ports, own_ports},
    meshed::{Form, Meshed, Neighbour, Separate, Wrapped},
    networks::{Networks, OWN_NETWORK},
    privilege,
};
use crate::compose::{
    InjectError,
    file::{Project, Service},
    image::Image,
    labels::{Labels, is_name},
    ports::Port,
    words::is_root,
};

/// A service that gets a sidecar, with all that was found out about it.
pub struct Chosen<'a> {
    /// As the file has it.
    pub service: &'a Service,
    labels: Labels,
    image: Option<&'a Image>,
    /// Its name in the mesh.
    pub mesh: String,
    ports: Vec<Port>,
    command: Command,
    /// As whom it runs; empty: root.
    user: String,
    transparent: bool,
    notes: Vec<String>,
}

/// What becomes of its command.
enum Command {
    Wrapped {
        entrypoint: Vec<String>,
        arguments: Vec<String>,
        repeat_arguments: bool,
    },
    /// It is left alone.
    Separate,
}

impl<'a> Chosen<'a> {
    /// Finds out what can be known. `separate`: its sidecar is to be a container of its own.
    pub fn new(
        service: &'a Service,
        mut labels: Labels,
        image: Option<&'a Result<Image, String>>,
        separate: bool,
        transparent: bool,
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
        let user = service.user.clone().or_else(|| image.map(|image| image.user.clone()));
        let command = match separate {
            true => Command::Separate,
            false => {
                let (entrypoint, arguments, repeat_arguments) = command(service, image, unknown)?;
                if transparent && user.is_none() {
                    return Err(InjectError::new(
                        format!("services.{}", service.name),
                        format!("as whom it runs is not known: {unknown}"),
                        "run this where the engine is, or write its `user` into the compose file",
                    ));
                }
                Command::Wrapped { entrypoint, arguments, repeat_arguments }
            }
        };
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
        if image.is_none() && separate {
            notes.push(format!("{unknown}: the ports it exposes are taken from the file alone"));
        } else if image.is_none() {
            notes.push(format!("{unknown}: its user and the ports it exposes are taken from the file alone"));
        }
        let user = user.unwrap_or_default();
        Ok(Self { service, labels, image, mesh, ports, command, user, transparent, notes })
    }

    /// Its sidecar is a container of its own.
    pub fn separate(&self) -> bool {
        matches!(self.command, Command::Separate)
    }

    /// What is to be done with it. `chosen`: it and all others.
    pub fn meshed(
        &self,
        chosen: &[Chosen<'_>],
        skipped: &[Skipped],
        project: &Project,
        addresses: &BTreeMap<&str, Ipv4Addr>,
        networks: &Networks,
    ) -> Meshed {
        let mut notes = self.notes.clone();
        let (neighbours, no_proxy) = match self.transparent {
            true => (Vec::new(), Vec::new()),
            false => self.calls_by_proxy(chosen, skipped, project, addresses, &mut notes),
        };
        let published = self.service.ports.iter().filter(|port| port.published && port.tcp).map(|port| port.target);
        let redirect = self.transparent.then(|| published.collect::<BTreeSet<u16>>());
        for port in redirect.iter().flatten() {
            notes.push(format!("port {port} is published: it is reached in plain text, past the mesh, as before"));
        }
        let grace = self.service.stop_grace_period.unwrap_or(DEFAULT_GRACE);
        Meshed {
            service: self.service.name.clone(),
            mesh: self.mesh.clone(),
            version: self.labels.version.clone(),
            ports: self.ports.clone(),
            app_address: self.labels.app_address.clone(),
            neighbours,
            no_proxy,
            redirect,
            form: self.form(&mut notes),
            drain: grace.saturating_sub(AFTER_DRAIN).clamp(SHORTEST_DRAIN, LONGEST_DRAIN),
            joins: networks.own.then(|| self.service.joined().into_iter().chain([OWN_NETWORK.to_owned()]).collect()),
            notes,
        }
    }

    fn form(&self, notes: &mut Vec<String>) -> Form {
        let (service, image) = (self.service, self.image);
        let (entrypoint, arguments, repeat_arguments) = match &self.command {
            Command::Wrapped { entrypoint, arguments, repeat_arguments } => (entrypoint, arguments, repeat_arguments),
            Command::Separate => {
                let again = service.restart.clone().filter(|restart| restart != "no");
                return Form::Separate(Box::new(Separate {
                    namespace: service.namespace.clone(),
                    names: service.names(),
                    profiles: service.profiles.clone(),
                    restart: again.unwrap_or_else(|| "on-failure".to_owned()),
                    grace: service.stop_grace_period,
                    variables: service.variables.clone(),
                }));
            }
        };
        let signal = service.stop_signal.clone().or_else(|| image.and_then(|image| image.stop_signal.clone()));
        let writable = !service.read_only && image.is_some() && (self.transparent || is_root(&self.user));
        let capabilities = if self.transparent { privilege::missing(service, notes) } else { Vec::new() };
        Form::Wrapped(Wrapped {
            entrypoint: entrypoint.clone(),
            arguments: arguments.clone(),
            repeat_arguments: *repeat_arguments,
            user: self.user.clone(),
            data_in_memory: !writable,
            healthcheck: !service.healthcheck && !image.is_some_and(|image| image.healthcheck),
            // Real-time signals (of systemd's images, say) are not passed on: those get SIGTERM.
            stop_signal: signal
                .filter(|signal| !matches!(signal.as_str(), "SIGTERM" | "TERM" | "15") && !signal.contains("RTM")),
            capabilities,
        })
    }

    /// Services that it calls by local ports, and NO_PROXY.
    fn calls_by_proxy(
        &self,
        chosen: &[Chosen<'_>],
        skipped: &[Skipped],
        project: &Project,
        addresses: &BTreeMap<&str, Ipv4Addr>,
        notes: &mut Vec<String>,
    ) -> (Vec<Neighbour>, Vec<String>) {
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
        (neighbours, no_proxy)
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

fn name_in_mesh(service: &str) -> String {
    let plain = |char: char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '-' };
    service.chars().map(plain).collect::<String>().trim_matches('-').to_owned()
}

/// Compose's own.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// Left of the grace period for the application itself.
const AFTER_DRAIN: Duration = Duration::from_secs(2);
const SHORTEST_DRAIN: Duration = Duration::from_secs(1);
const LONGEST_DRAIN: Duration = Duration::from_secs(30);
