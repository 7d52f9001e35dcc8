//! Connections that are open, opened and closed.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

/// Handles for connections of one kind.
#[derive(Debug, Clone)]
pub struct Connections {
    pub(super) opened: IntCounter,
    pub(super) active: IntGauge,
    pub(super) closed: IntCounterVec,
    pub(super) labels: [&'static str; 2],
}

impl Connections {
    /// A connection opened; it is counted out by drop.
    pub fn open(&self) -> OpenConnection {
        self.opened.inc();
        self.active.inc();
        OpenConnection { handles: self.clone(), reason: "closed" }
    }
}

/// One open connection.
#[derive(Debug)]
pub struct OpenConnection {
    handles: Connections,
    reason: &'static str,
}

impl OpenConnection {
    /// Why it will have closed.
    pub fn closing(&mut self, reason: &'static str) {
        self.reason = reason;
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.handles.active.dec();
        let [direction, peer] = self.handles.labels;
        self.handles.closed.with_label_values(&[direction, peer, self.reason]).inc();
    }
}
