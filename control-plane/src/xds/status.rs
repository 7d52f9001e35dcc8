//! What people and other parts of the control plane may know of the sessions: who is connected, what each has
//! acknowledged or refused, and whether a change has reached everybody.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGaugeVec, Opts, Registry};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use weft_proto::weft::v1;
use weft_xds::{
    resource::ResourceType,
    server::{Nack, TypeStatus},
};

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Type of the resources.
    pub ty: ResourceType,
    /// What was refused, as far as is known.
    pub resources: Vec<String>,
    /// The client's words.
    pub message: String,
    /// When.
    pub time: SystemTime,
    /// Generation of the world that was being pushed.
    pub generation: u64,
}

/// What one session reports.
#[derive(Debug, Default)]
pub struct Report {
    inner: Mutex<Reported>,
}

#[derive(Debug, Default)]
struct Reported {
    types: Vec<TypeStatus>,
    nacks: VecDeque<Refusal>,
    /// Everything up to this generation has been answered.
    flushed: u64,
    /// Last generation that changed something for this session.
    touched: u64,
    /// Revision that goes with `flushed`.
    revision: u64,
}

impl Report {
    /// Replaces the state of the types; whether other refusals stand than before.
    pub(super) fn types(&self, types: Vec<TypeStatus>) -> bool {
        let mut inner = self.inner.lock();
        let changed = !refusals(&types).eq(refusals(&inner.types));
        // What has been replaced or taken back is no longer refused.
        inner.nacks.retain(|nack| {
            let state = types.iter().find(|state| state.ty == nack.ty);
            state.is_some_and(|state| {
                nack.resources.iter().any(|name| state.nacks.iter().any(|(refused, _)| **refused == **name))
            })
        });
        inner.types = types;
        changed
    }

    /// Every refusal that stands, but no more than [`STANDING`] of a type.
    pub(super) fn standing(&self) -> Vec<(ResourceType, Arc<str>, Nack)> {
        let inner = self.inner.lock();
        let some = inner.types.iter().flat_map(|state| state.nacks.iter().take(STANDING).map(|nack| (state.ty, nack)));
        some.map(|(ty, (name, nack))| (ty, name.clone(), nack.clone())).collect()
    }

    /// Adds a refusal; whether it is another one than the last of its type.
    pub fn refused(&self, nack: Refusal) -> bool {
        let mut inner = self.inner.lock();
        let last = inner.nacks.iter().rev().find(|known| known.ty == nack.ty);
        let new = last.is_none_or(|known| known.message != nack.message || known.resources != nack.resources);
        if inner.nacks.len() == NACKS_KEPT {
            inner.nacks.pop_front();
        }
        inner.nacks.push_back(nack);
        new
    }

    /// Something of this generation concerns the session.
    pub fn touched(&self, generation: u64) {
        let mut inner = self.inner.lock();
        inner.touched = inner.touched.max(generation);
    }

    /// Everything up to this generation has been answered.
    pub fn flushed(&self, generation: u64, revision: u64) {
        let mut inner = self.inner.lock();
        inner.flushed = inner.flushed.max(generation);
        inner.revision = inner.revision.max(revision);
    }

    /// Last generation that changed something for this session.
    pub fn last_touched(&self) -> u64 {
        self.inner.lock().touched
    }

    /// The generation up to which everything has been answered, and its revision.
    pub fn last_flushed(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.flushed, inner.revision)
    }

    /// Refusals that stand, of this generation or later.
    pub fn nacks_since(&self, generation: u64) -> Vec<Refusal> {
        self.inner.lock().nacks.iter().filter(|nack| nack.generation >= generation).cloned().collect()
    }

    /// The same for people.
    pub fn to_wire(&self, sidecar: &str) -> (Vec<v1::TypeStatus>, Vec<v1::Nack>) {
        let inner = self.inner.lock();
        let types = inner.types.iter().map(|state| v1::TypeStatus {
            type_url: state.ty.url().to_owned(),
            subscribed: count(state.subscribed),
            acked: count(state.acked),
            nacked: count(state.nacks.len()),
            version: format!("{:016x}", state.version),
        });
        (types.collect(), inner.nacks.iter().map(|nack| nack_to_wire(sidecar, nack)).collect())
    }
}

fn refusals(types: &[TypeStatus]) -> impl Iterator<Item = (ResourceType, &(Arc<str>, Nack))> {
    types.iter().flat_map(|state| state.nacks.iter().map(|nack| (state.ty, nack)))
}

/// A refusal for people.
pub fn nack_to_wire(sidecar: &str, nack: &Refusal) -> v1::Nack {
    v1::Nack {
        sidecar: sidecar.to_owned(),
        type_url: nack.ty.url().to_owned(),
        resources: nack.resources.clone(),
        message: nack.message.clone(),
        time: rfc3339(nack.time),
    }
}

/// RFC 3339, UTC.
pub fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

fn count(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Metrics of the discovery service.
#[derive(Debug, Clone)]
pub struct Metrics {
    sessions: IntGaugeVec,
    nacks: IntCounterVec,
    event_to_ack: Histogram,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When the names are taken: the registry already has another discovery service.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let sessions = Opts::new("weft_cp_sessions", "Open discovery streams, by kind of client.");
        let nacks = Opts::new("weft_cp_nacks_total", "Refusals by clients, by type of resource and reason.");
        let event_to_ack = HistogramOpts::new(
            "weft_cp_event_to_ack_seconds",
            "From a change to its acknowledgement by one client, for clients that the change concerns.",
        )
        .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0]);
        let metrics = Self {
            sessions: IntGaugeVec::new(sessions, &["client"])?,
            nacks: IntCounterVec::new(nacks, &["kind", "reason"])?,
            event_to_ack: Histogram::with_opts(event_to_ack)?,
        };
        registry.register(Box::new(metrics.sessions.clone()))?;
        registry.register(Box::new(metrics.nacks.clone()))?;
        registry.register(Box::new(metrics.event_to_ack.clone()))?;
        Ok(metrics)
    }

    pub(super) fn session(&self, client: &str, opened: bool) {
        let gauge = self.sessions.with_label_values(&[client]);
        if opened { gauge.inc() } else { gauge.dec() }
    }

    /// `reason`: `rejected` when the resources are known, else `unattributed`: never the client's words.
    pub(super) fn nack(&self, ty: ResourceType, attributed: bool) {
        let reason = if attributed { "rejected" } else { "unattributed" };
        self.nacks.with_label_values(&[ty.short(), reason]).inc();
    }

    pub(super) fn acked(&self, since: Instant) {
        self.event_to_ack.observe(since.elapsed().as_secs_f64());
    }
}

/// Refusals that a session keeps; older ones are forgotten.
const NACKS_KEPT: usize = 16;
/// Refusals of one type that a session tells of at a time: what refuses more refuses everything.
const STANDING: usize = 1000;
/// How long a wait looks away at most before it looks again.
pub(super) const RECHECK: Duration = Duration::from_millis(250);
