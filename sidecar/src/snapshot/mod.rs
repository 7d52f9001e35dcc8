//! The configuration in force, as one immutable value, and its one writer.
//!
//! A virtual host is in the snapshot only together with its clusters and their endpoints, so that a request that finds
//! its host finds all that follows from it.

mod writer;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use weft_xds::resource::{Egress, Inbound, Route, VirtualHost};

pub use self::writer::{Settled, Step, Subscription, VIRTUAL_HOST_PREFIX, Writer, clusters_of};
use crate::{
    balance::Upstream,
    route::{Head, RouteIndex},
};

/// Looked into for every request, and filled with names of the control plane alone: the hash need not withstand an
/// attacker who chooses what is stored.
pub type ByName<V> = HashMap<Box<str>, V, foldhash::fast::RandomState>;

/// What is in force. Immutable: a change makes a new one.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Counts the snapshots of this process.
    pub revision: u64,
    /// What comes in. `None`: not known yet, nothing is served.
    pub inbound: Option<Arc<Inbound>>,
    /// What becomes of calls to hosts that are not in the mesh.
    pub egress: Egress,
    /// By canonical authority: `orders.default:80`, or `orders.default` when the caller named no port; or by
    /// address, `10.0.0.5:80`.
    pub virtual_hosts: ByName<VhostState>,
    /// By xDS name, `default/orders:8080`: those that the virtual hosts refer to.
    pub clusters: ByName<Arc<Upstream>>,
}

/// What is known of an authority.
#[derive(Debug, Clone)]
pub enum VhostState {
    /// Its routes; all their clusters are in the snapshot, apart from those that the control plane says do not exist.
    Found(Arc<Host>),
    /// The control plane says that there is no such service. Dropped again after a short time.
    NotFound,
}

/// A virtual host in force.
#[derive(Debug)]
pub struct Host {
    /// Its routes.
    pub routes: Arc<VirtualHost>,
    /// Finds among them.
    pub index: Arc<RouteIndex>,
    /// When it was last used; survives changes of the routes.
    pub used: Arc<LastUsed>,
}

impl Host {
    /// Routes used for the first time `now`.
    #[must_use]
    pub fn new(routes: Arc<VirtualHost>, now: Instant) -> Self {
        Self { index: Arc::new(RouteIndex::new(&routes)), routes, used: Arc::new(LastUsed::new(now)) }
    }

    /// The first route that takes the request.
    #[must_use]
    pub fn route(&self, head: &Head<'_>) -> Option<&Arc<Route>> {
        self.index.find(&self.routes, head)
    }
}

impl Snapshot {
    /// The routes of a canonical authority; using them keeps them from being dropped as idle.
    #[must_use]
    pub fn host(&self, authority: &str) -> Option<&Arc<VirtualHost>> {
        match self.virtual_hosts.get(authority)? {
            VhostState::Found(host) => {
                host.used.touch();
                Some(&host.routes)
            }
            VhostState::NotFound => None,
        }
    }

    /// A cluster by its xDS name.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.clusters.get(name)
    }
}

/// When something was last used, to about a second, cheap to mark from any thread.
#[derive(Debug)]
pub struct LastUsed {
    start: Instant,
    /// Seconds since `start`.
    seconds: AtomicU64,
}

impl LastUsed {
    /// Used now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { start: now, seconds: AtomicU64::new(0) }
    }

    /// Used now.
    pub fn touch(&self) {
        self.touch_at(Instant::now());
    }

    /// Used at `now`.
    pub fn touch_at(&self, now: Instant) {
        let seconds = now.saturating_duration_since(self.start).as_secs();
        // Written once a second at most: the line stays shared between the workers' caches.
        if self.seconds.load(Ordering::Relaxed) < seconds {
            self.seconds.store(seconds, Ordering::Relaxed);
        }
    }

    /// For how long it has not been used.
    #[must_use]
    pub fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start + Duration::from_secs(self.seconds.load(Ordering::Relaxed)))
    }
}
