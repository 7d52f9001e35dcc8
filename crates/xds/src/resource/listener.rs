//! Listeners.

use super::{Protocol, Rbac};

/// A listener.
#[derive(Debug, Clone)]
pub struct Listener {
    /// xDS name: `inbound` or `outbound`.
    pub name: Box<str>,
    /// What it does.
    pub kind: ListenerKind,
}

/// What a listener does.
#[derive(Debug, Clone)]
pub enum ListenerKind {
    /// Takes the mesh's traffic to the application.
    Inbound(Inbound),
    /// Takes the application's traffic to the mesh.
    Outbound(Outbound),
}

/// The inbound listener.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// One for each port of the service; the first serves connections whose SNI names none.
    pub ports: Vec<InboundPort>,
    /// Plain text is accepted too (mTLS mode `permissive`).
    pub permissive: bool,
}

/// What comes in for one port of the service.
#[derive(Debug, Clone)]
pub struct InboundPort {
    /// SNI that selects it (see [`sni`]). Empty: any.
    pub sni: Box<str>,
    /// `namespace/service`.
    pub service: Box<str>,
    /// Port of the service.
    pub port: u16,
    /// What flows.
    pub protocol: Protocol,
    /// Access rules, in order.
    pub access: Vec<Rbac>,
    /// Whole-request timeout at the callee. `None`: off.
    pub request_timeout: Option<std::time::Duration>,
}

/// The outbound listener.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Name of its route configuration.
    pub route_config: Box<str>,
    /// What becomes of calls to hosts that are not in the mesh.
    pub egress: Egress,
}

/// What becomes of calls to hosts that are not in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Egress {
    /// They go there.
    #[default]
    Any,
    /// They are refused.
    Registered,
}

/// The SNI by which a caller's sidecar names service and port to the callee's: `p80.orders.default.weft`.
pub fn sni(namespace: &str, service: &str, port: u16) -> String {
    format!("p{port}.{service}.{namespace}.weft")
}
