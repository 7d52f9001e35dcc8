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

use crate::{
    shared::Shared,
    snapshot::{Host, Snapshot, VhostState},
};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{mpsc, watch};

/// The most names that are being fetched or known at one time.
pub const MAX_NAMES: usize = 4096;
/// How many of them may be addresses that the application connects to: whoever calls half of the Internet must not find
/// that there is no room left for the names of services.
pub const MAX_ADDRESSES: usize = MAX_NAMES / 2;

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
    pub host: Arc<Host>,
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
        let mut outcome = self.want(authority, MAX_NAMES)?;
        // Between the look and the wish it may have come.
        if let Some(known) = Self::known(shared, authority) {
            return known;
        }
        self.settled(shared, authority, &mut outcome).await
    }

    /// What whoever connects to an address (`10.0.0.5:80`, `[fd00::5]:80`) means. Unlike [`Self::ensure`] it waits for
    /// nobody when the control plane is away: most addresses are not the mesh's, and their connections must go on.
    ///
    /// # Errors
    /// See [`DemandError`].
    pub async fn at(&self, shared: &Shared, address: &str) -> Result<Ready, DemandError> {
        if let Some(known) = Self::known(shared, address) {
            return known;
        }
        let mut outcome = self.want(address, MAX_ADDRESSES)?;
        if let Some(known) = Self::known(shared, address) {
            return known;
        }
        if !self.connected() {
            return Err(DemandError::Timeout { control_plane_connected: false });
        }
        self.settled(shared, address, &mut outcome).await
    }

    async fn settled(
        &self,
        shared: &Shared,
        authority: &str,
        outcome: &mut watch::Receiver<Option<Outcome>>,
    ) -> Result<Ready, DemandError> {
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
                Some(Ok(Ready { snapshot: snapshot.clone(), host: Arc::clone(host) }))
            }
        }
    }

    fn want(&self, authority: &str, most: usize) -> Result<watch::Receiver<Option<Outcome>>, DemandError> {
        let mut waiting = self.0.waiting.lock();
        if let Some(fetch) = waiting.get(authority) {
            return Ok(fetch.subscribe());
        }
        if waiting.len() >= most || self.0.wanted.try_send(authority.into()).is_err() {
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use weft_xds::resource::VirtualHost;

    use super::*;
    use crate::settings::{Cli, Settings};

    const WAIT: Duration = Duration::from_secs(2);
    const NAME: &str = "orders.default:80";

    fn shared() -> (Arc<Shared>, mpsc::Receiver<Box<str>>) {
        let args = ["weft-sidecar", "--service", "web", "--control-plane", "127.0.0.1:1"];
        let flags = <Cli as clap::Parser>::try_parse_from(args).unwrap().flags;
        let (demand, wanted) = Demand::new(WAIT);
        (Shared::new(Settings::new(flags, None, 1).unwrap(), demand), wanted)
    }

    fn publish(shared: &Shared, state: VhostState) {
        let virtual_hosts = std::iter::once((NAME.into(), state)).collect();
        shared.snapshot.store(Arc::new(Snapshot { revision: 1, virtual_hosts, ..Snapshot::default() }));
    }

    fn found() -> VhostState {
        let routes =
            Arc::new(VirtualHost { name: NAME.into(), domains: vec![NAME.into()], routes: Vec::new(), endpoint: None });
        VhostState::Found(Arc::new(Host::new(routes, Instant::now())))
    }

    #[tokio::test(start_paused = true)]
    async fn many_callers_wait_for_one_fetch() {
        let (shared, mut wanted) = shared();
        let calls: Vec<_> = (0..100)
            .map(|_| {
                let shared = shared.clone();
                tokio::spawn(async move { shared.demand.ensure(&shared, NAME).await })
            })
            .collect();
        assert_eq!(wanted.recv().await.as_deref(), Some(NAME));
        publish(&shared, found());
        shared.demand.settle(NAME, Outcome::Live);
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().snapshot.revision, 1);
        }
        assert!(wanted.try_recv().is_err(), "asked once");
        assert!(shared.demand.0.waiting.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_is_bounded_and_says_whether_anyone_was_there() {
        for connected in [false, true] {
            let (shared, _wanted) = shared();
            shared.demand.set_connected(connected);
            let started = tokio::time::Instant::now();
            let error = shared.demand.ensure(&shared, NAME).await.unwrap_err();
            assert_eq!(error, DemandError::Timeout { control_plane_connected: connected });
            assert_eq!(started.elapsed(), WAIT);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_waits_only_while_somebody_can_answer() {
        const ADDRESS: &str = "10.0.0.5:80";
        for connected in [false, true] {
            let (shared, mut wanted) = shared();
            shared.demand.set_connected(connected);
            let started = tokio::time::Instant::now();
            let error = shared.demand.at(&shared, ADDRESS).await.unwrap_err();
            assert_eq!(error, DemandError::Timeout { control_plane_connected: connected });
            assert_eq!(started.elapsed(), if connected { WAIT } else { Duration::ZERO });
            assert_eq!(wanted.recv().await.as_deref(), Some(ADDRESS), "it is asked for all the same");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_leave_room_for_names() {
        let (shared, _wanted) = shared();
        for port in 0..u16::try_from(MAX_ADDRESSES).unwrap() {
            drop(shared.demand.at(&shared, &format!("192.0.2.1:{port}")).await);
        }
        assert_eq!(shared.demand.at(&shared, "192.0.2.2:80").await.unwrap_err(), DemandError::TooMany);
        assert!(matches!(shared.demand.ensure(&shared, NAME).await, Err(DemandError::Timeout { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_exist_is_known_at_once() {
        let (shared, mut wanted) = shared();
        publish(&shared, VhostState::NotFound);
        assert_eq!(shared.demand.ensure(&shared, NAME).await.unwrap_err(), DemandError::NotFound);
        assert!(wanted.try_recv().is_err(), "nobody was asked");
    }

    #[tokio::test(start_paused = true)]
    async fn every_outcome_has_its_error() {
        let table = [
            (Outcome::NotFound, DemandError::NotFound),
            (Outcome::TooMany, DemandError::TooMany),
            (Outcome::Forgotten, DemandError::Timeout { control_plane_connected: false }),
        ];
        for (outcome, error) in table {
            let (shared, mut wanted) = shared();
            let control = {
                let shared = shared.clone();
                async move {
                    wanted.recv().await;
                    shared.demand.settle(NAME, outcome);
                }
            };
            let (answer, ()) = tokio::join!(shared.demand.ensure(&shared, NAME), control);
            assert_eq!(answer.unwrap_err(), error);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_are_fetched_are_bounded() {
        let (shared, _wanted) = shared();
        for index in 0..MAX_NAMES {
            assert!(shared.demand.want(&format!("s{index}"), MAX_NAMES).is_ok());
        }
        assert_eq!(shared.demand.ensure(&shared, NAME).await.unwrap_err(), DemandError::TooMany);
    }
}
