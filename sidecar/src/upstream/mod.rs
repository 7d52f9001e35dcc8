//! Connections to upstreams and to the application: pools, connects, sends.
//!
//! Owns every connection that this worker opened. Never decides whether a request is tried again.

mod connect;
mod pool;
mod send;

pub use self::{
    connect::{ConnectFailure, Link, connect},
    pool::{Lease, Pools},
    send::{Missed, Sending, Stage, send},
};

use std::{net::SocketAddr, sync::Arc, time::Duration};

use weft_identity::SpiffeId;

use crate::{
    balance::{EndpointState, Upstream},
    shared::Alpn,
};

/// HTTP version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Where a connection goes.
#[derive(Debug, Clone)]
pub enum Destination {
    /// A workload of the mesh.
    Workload(Arc<Upstream>, Arc<EndpointState>),
    /// The application beside this sidecar.
    App(SocketAddr),
    /// A host outside the mesh.
    External(SocketAddr),
}

impl Destination {
    /// Address.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Workload(_, endpoint) => endpoint.address(),
            Self::App(address) | Self::External(address) => *address,
        }
    }

    /// Name of the cluster; empty for the application, `external` outside the mesh.
    pub fn cluster(&self) -> &str {
        match self {
            Self::Workload(upstream, _) => &upstream.cluster().name,
            Self::App(_) => "",
            Self::External(_) => "external",
        }
    }

    /// Server name and the identities of which the peer must prove one; `None`: plain text.
    pub fn tls(&self) -> Option<(&str, &[SpiffeId])> {
        let Self::Workload(upstream, state) = self else { return None };
        let tls = upstream.cluster().tls.as_ref()?;
        match &state.endpoint.identity {
            // Both say something: what the endpoint says must be what the cluster allows, else nobody will do.
            Some(id) if tls.identities.is_empty() || tls.identities.contains(id) => {
                Some((&tls.sni, std::slice::from_ref(id)))
            }
            None if tls.identities.is_empty() => None,
            Some(_) | None => Some((&tls.sni, &tls.identities)),
        }
    }

    fn connect_timeout(&self, app: Duration) -> Duration {
        match self {
            Self::Workload(upstream, _) => upstream.cluster().connect_timeout,
            Self::App(_) => app,
            Self::External(_) => Duration::from_secs(5),
        }
    }

    fn idle(&self, app: Duration) -> Duration {
        match self {
            Self::Workload(upstream, _) => upstream.cluster().pool_idle,
            Self::App(_) | Self::External(_) => app,
        }
    }
}

impl Wire {
    fn alpn(self) -> Alpn {
        match self {
            Self::Http1 => Alpn::Http1,
            Self::Http2 => Alpn::H2,
        }
    }
}
