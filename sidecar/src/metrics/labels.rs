//! Labels: what a series is told apart by.

use crate::reason::Reason;

/// Which way traffic flows, seen from the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From the application into the mesh.
    Outbound,
    /// From the mesh to the application.
    Inbound,
}

impl Direction {
    /// Label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// What a request speaks, as in metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Speaks {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Bytes.
    Tcp,
}

impl Speaks {
    /// Label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// Why an attempt was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptKind {
    /// The first.
    First,
    /// A retry.
    Retry,
    /// The same again, because a pooled connection turned out closed; not counted as a retry.
    ReuseReplay,
}

impl AttemptKind {
    /// Label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Retry => "retry",
            Self::ReuseReplay => "reuse_replay",
        }
    }
}

/// Source, destination and route of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// Which way.
    pub direction: Direction,
    /// `namespace/service`, or `unmeshed`.
    pub source: Box<str>,
    /// `namespace/service`, or `external`.
    pub destination: Box<str>,
    /// Name of the route; empty for TCP and inbound.
    pub route: Box<str>,
}

/// Labels of `weft_requests_total` beyond the flow's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestKey {
    /// What the caller spoke.
    pub protocol: Speaks,
    /// Status of the answer.
    pub code: u16,
    /// gRPC status of the answer.
    pub grpc: Option<u8>,
    /// Why it failed.
    pub reason: Option<Reason>,
    /// The connection on the mesh's side was mutual TLS.
    pub tls: bool,
}

impl RequestKey {
    /// Class of the status: 2 for 2xx, 0 for what is none.
    pub fn class(&self) -> u16 {
        Some(self.code / 100).filter(|class| (1..=5).contains(class)).unwrap_or(0)
    }
}
