//! What is to be done with one service.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use crate::compose::{namespace::Namespace, ports::Port};

/// A service that gets a sidecar.
#[derive(Debug, Clone, PartialEq)]
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
    /// Services that it may call by local ports; none where connections are redirected.
    pub neighbours: Vec<Neighbour>,
    /// NO_PROXY; empty where connections are redirected.
    pub no_proxy: Vec<String>,
    /// Connections are redirected, but for those to these ports of the application, which are published.
    pub redirect: Option<BTreeSet<u16>>,
    /// How long requests may take to end.
    pub drain: Duration,
    /// Where the sidecar is.
    pub form: Form,
    /// A network that it joins besides its own, and those.
    pub joins: Option<BTreeSet<String>>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

/// Where a service's sidecar is.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// In its container, where it starts the application.
    Wrapped(Wrapped),
    /// In a container of its own.
    Separate(Box<Separate>),
}

/// A service whose entrypoint is wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// The entrypoint that is wrapped.
    pub entrypoint: Vec<String>,
    /// What follows it.
    pub arguments: Vec<String>,
    /// `arguments` are the image's, which compose would drop: the overlay must repeat them.
    pub repeat_arguments: bool,
    /// As whom it runs; empty: root.
    pub user: String,
    /// The data directory is to be in memory: the container's file system cannot be written.
    pub data_in_memory: bool,
    /// It has no health check of its own.
    pub healthcheck: bool,
    /// The signal with which it wants to be stopped, when that is not SIGTERM.
    pub stop_signal: Option<String>,
    /// Capabilities that the sidecar needs and the service would not have.
    pub capabilities: Vec<&'static str>,
}

/// A service that stays as it is, but for its network.
#[derive(Debug, Clone, PartialEq)]
pub struct Separate {
    /// What another container has in its place.
    pub namespace: Namespace,
    /// Every name under which it is found.
    pub names: Vec<String>,
    /// Without one of these, it is not started.
    pub profiles: Vec<String>,
    /// When its companions are started again.
    pub restart: String,
    /// How long its sidecar may take to stop, where the file says so of the service.
    pub grace: Option<Duration>,
    /// Settings of its sidecar: `WEFT_…`.
    pub variables: BTreeMap<String, String>,
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

impl Meshed {
    /// The container of its sidecar, where that is one of its own.
    #[must_use]
    pub fn sidecar(&self) -> String {
        format!("{}-weft", self.service)
    }

    /// The container that owns its network namespace, where that is one of its own.
    #[must_use]
    pub fn owner(&self) -> String {
        owner(&self.service)
    }
}

/// The container that owns a service's network namespace.
pub fn owner(service: &str) -> String {
    format!("{service}-weft-net")
}
