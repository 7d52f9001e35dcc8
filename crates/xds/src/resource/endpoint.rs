//! Endpoints of a cluster.

use std::net::SocketAddr;

use weft_identity::SpiffeId;

/// The endpoints of a cluster (ClusterLoadAssignment).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoints {
    /// Name of the cluster.
    pub cluster: Box<str>,
    /// In order of address.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where its sidecar (or, outside the mesh, it itself) listens.
    pub address: SocketAddr,
    /// At least 1.
    pub weight: u32,
    /// What the control plane knows of its health.
    pub health: Health,
    /// 0 is used first.
    pub priority: u32,
    /// Zone, empty when unknown.
    pub zone: Box<str>,
    /// What it must prove. `None`: plain text, unless the cluster names identities.
    pub identity: Option<SpiffeId>,
    /// `namespace/service/instance`, empty when unknown.
    pub workload: Box<str>,
    /// Its own name within a headless service; else empty.
    pub hostname: Box<str>,
}

/// Health as the control plane reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// Gets traffic.
    #[default]
    Healthy,
    /// Gets none, unless the panic rule applies.
    Unhealthy,
    /// Gets no new traffic.
    Draining,
}
