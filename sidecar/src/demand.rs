//! On demand: the first call to a service fetches its configuration.
//!
//! Callers are on worker threads, the fetching is on the control thread. Many calls for one name wait for one fetch; the
//! wait is bounded, and so is the number of names.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use weft_xds::resource::VirtualHost;

use crate::{
    shared::Shared,
    snapshot::{Snapshot, VhostState},
};

/// The most names that are being fetched or known at one time.
pub const MAX_NAMES: usize = 4096;

/// Asks the control thread for what the snapshot lacks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Demand(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Names that are being fetched, with those who wait for them.
    waiting: Mutex<HashMap<Box<str>, watch::Sender<Option<Outcome>>>>,
    /// To the control thread. As many names as may wait fit in, so that sending never has to.
    wanted: mpsc::Sender<Box<str>>,
    wait: Duration,
    connected: AtomicBool,
}

/// How a fetch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the snapshot.
    Live,
    /// There is no such service.
    NotFound,
    /// There are too many names.
    TooMany,
    /// Nobody answered for long; the next call asks anew.
    Forgotten,
}

/// Routes and the snapshot that has all their clusters.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Take clusters from this one.
    pub snapshot: Arc<Snapshot>,
    /// The routes.
    pub routes: Arc<VirtualHost>,
}

/// Why there are no routes for an authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DemandError {
    /// The control plane says that there is no such service.
    #[error("the mesh has no such service")]
    NotFound,
    /// No answer in time.
    #[error("the control plane did not answer in time (connected: {control_plane_connected})")]
    Timeout {
        /// Whether the stream to the control plane was up when the wait ended.
        control_plane_connected: bool,
    },
    /// The application has asked for more names than a sidecar holds.
    #[error("more than {MAX_NAMES} services are in use by this sidecar")]
    TooMany,
}

impl Demand {
    /// `wait`: the longest that a call waits for its first fetch. The receiver gets each wanted name once.
    #[must_use]
    pub fn new(wait: Duration) -> (Self, mpsc::Receiver<Box<str>>) {
        let (wanted, receiver) = mpsc::channel(MAX_NAMES);
        let inner = Inner { waiting: Mutex::default(), wanted, wait, connected: AtomicBool::new(false) };
        (Self(Arc::new(inner)), receiver)
    }

    /// The routes of a canonical authority (`orders.default:80`), fetched when they are not here yet.
    ///
    /// # Errors
    /// See [`DemandError`].
    pub async fn ensure(&self, shared: &Shared, authority: &str) -> Result<Ready, DemandError> {
        if let Some(known) = Self::known(shared, authority) {
            return known;
        }
        let mut outcome = self.want(authority)?;
        // Between the look and the wish it may have come.
        if let Some(known) = Self::known(shared, authority) {
            return known;
        }
        let settled = tokio::time::timeout(self.0.wait, outcome.wait_for(Option::is_some)).await;
        match settled.map(|settled| settled.ok().and_then(|outcome| *outcome)) {
            Ok(Some(Outcome::NotFound)) => Err(DemandError::NotFound),
            Ok(Some(Outcome::TooMany)) => Err(DemandError::TooMany),
            Ok(Some(Outcome::Live)) => Self::known(shared, authority).unwrap_or(Err(DemandError::NotFound)),
            Ok(Some(Outcome::Forgotten) | None) | Err(_) => {
                Err(DemandError::Timeout { control_plane_connected: self.connected() })
            }
        }
    }

    fn known(shared: &Shared, authority: &str) -> Option<Result<Ready, DemandError>> {
        let snapshot = shared.snapshot.load();
        match snapshot.virtual_hosts.get(authority)? {
            VhostState::NotFound => Some(Err(DemandError::NotFound)),
            VhostState::Found(host) => {
                host.used.touch();
                Some(Ok(Ready { snapshot: snapshot.clone(), routes: host.routes.clone() }))
            }
        }
    }

    fn want(&self, authority: &str) -> Result<watch::Receiver<Option<Outcome>>, DemandError> {
        let mut waiting = self.0.waiting.lock();
        if let Some(fetch) = waiting.get(authority) {
            return Ok(fetch.subscribe());
        }
        if waiting.len() >= MAX_NAMES || self.0.wanted.try_send(authority.into()).is_err() {
            return Err(DemandError::TooMany);
        }
        let (fetch, outcome) = watch::channel(None);
        waiting.insert(authority.into(), fetch);
        Ok(outcome)
    }

    /// Ends the wait for a name. The snapshot that has it is in place before this is called.
    pub fn settle(&self, authority: &str, outcome: Outcome) {
        if let Some(fetch) = self.0.waiting.lock().remove(authority) {
            fetch.send_replace(Some(outcome));
        }
    }

    /// Tells whether the stream to the control plane is up.
    pub fn set_connected(&self, connected: bool) {
        self.0.connected.store(connected, Ordering::Relaxed);
    }

    /// Whether the stream to the control plane is up.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.0.connected.load(Ordering::Relaxed)
    }
}
