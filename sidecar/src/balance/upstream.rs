//! A cluster with its endpoints and live state: admits requests, picks endpoints.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use fastrand::Rng;
use weft_xds::resource::{Cluster, Endpoint, Endpoints, Health};

use super::{
    Outcome,
    breaker::{Change, Permit, Phase, Rejected},
    budget::Budget,
    ejection::Room,
    endpoint::{EndpointLive, EndpointState, Picked, StateCounts, nanos},
    level::{Level, View},
    limits::{LimitKind, LimitPermit, Limits},
    live::{Live, count},
};

/// A cluster of one snapshot. Breakers, budget, limits and in-flight counts are shared with the snapshots before it.
#[derive(Debug)]
pub struct Upstream {
    cluster: Arc<Cluster>,
    endpoints: Box<[Arc<EndpointState>]>,
    /// By priority, 0 first; without draining endpoints.
    levels: Box<[Level]>,
    live: Arc<Live>,
    reconciled: Box<[(Arc<EndpointState>, Change)]>,
}

/// Why a request was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The service's breaker rejects.
    BreakerOpen {
        /// From when on a probe may pass. `None`: all probes are out.
        until: Option<Instant>,
    },
    /// A limit is used up.
    Overflow(LimitKind),
}

/// Why no endpoint was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PickError {
    /// The cluster has none.
    NoEndpoints,
    /// None of them takes traffic now.
    NoneReady,
}

impl Upstream {
    /// Builds the cluster of a new snapshot. Endpoints of `previous` with the same address and workload keep their
    /// live state; those that left are let go. What is built is to be used: the live state is `previous`'s own.
    pub fn build(cluster: Arc<Cluster>, endpoints: &Endpoints, previous: Option<&Self>, now: Instant) -> Arc<Self> {
        let live = match previous {
            Some(previous) => Arc::clone(&previous.live),
            None => Live::new(&cluster, now),
        };
        live.configure(&cluster);
        let mut leaving: HashMap<Key<'_>, &Arc<EndpointState>> = previous
            .iter()
            .flat_map(|previous| &previous.endpoints)
            .map(|state| (key(&state.endpoint), state))
            .collect();
        let mut seen = HashMap::new();
        let mut states: Vec<Arc<EndpointState>> = Vec::with_capacity(endpoints.endpoints.len());
        let mut reconciled = Vec::new();
        for endpoint in &endpoints.endpoints {
            if seen.insert(key(endpoint), ()).is_some() {
                continue; // said twice: the first holds
            }
            let state = match leaving.remove(&key(endpoint)) {
                Some(old) => {
                    let state = kept(old, endpoint);
                    let change = state.live.configure(cluster.endpoint_breaker, now);
                    reconciled.extend(change.map(|change| (Arc::clone(&state), change)));
                    state
                }
                None => {
                    let live = EndpointLive::new(Arc::clone(&live), cluster.endpoint_breaker);
                    Arc::new(EndpointState { endpoint: endpoint.clone(), live })
                }
            };
            states.push(state);
        }
        leaving.values().for_each(|left| left.live.depart(now));
        make_room(&cluster, &live.room, &states, now, &mut reconciled);
        let levels = Level::all(&cluster, &states, previous.map(|previous| &*previous.levels));
        Arc::new(Self { cluster, endpoints: states.into(), levels, live, reconciled: reconciled.into() })
    }

    /// The cluster's configuration.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Its endpoints, as the control plane said, without repetitions.
    pub fn endpoints(&self) -> &[Arc<EndpointState>] {
        &self.endpoints
    }

    /// Lets a request in: the limit on requests, then the service's breaker.
    /// # Errors
    /// [`Refused`].
    pub fn admit(&self, now: Instant) -> Result<Admitted, Refused> {
        let requests = self.live.limits.requests.acquire().map_err(Refused::Overflow)?;
        match self.live.breaker.ask(now) {
            Ok((permit, change)) => Ok(Admitted { live: Arc::clone(&self.live), permit, change, _requests: requests }),
            Err(Rejected { until }) => Err(Refused::BreakerOpen { until }),
        }
    }

    /// Picks an endpoint. `hash`: see [`request_hash`](super::request_hash). `tried`: those that this request has been
    /// to already; they are avoided while there are others.
    /// # Errors
    /// [`PickError`].
    pub fn pick(&self, hash: Option<u64>, tried: &[SocketAddr], now: Instant) -> Result<Picked, PickError> {
        self.pick_with(hash, tried, now, fastrand::u64(..))
    }

    /// [`Upstream::pick`] with the chance given.
    /// # Errors
    /// [`PickError`].
    pub fn pick_with(
        &self,
        hash: Option<u64>,
        tried: &[SocketAddr],
        now: Instant,
        random: u64,
    ) -> Result<Picked, PickError> {
        if self.endpoints.is_empty() {
            return Err(PickError::NoEndpoints);
        }
        let mut rng = Rng::with_seed(random);
        let hash = hash.unwrap_or_else(|| rng.u64(..));
        let view = View {
            endpoints: &self.endpoints,
            none_open: self.live.room.open() == 0,
            now: nanos(now.saturating_duration_since(self.live.epoch)),
        };
        let (first, panic) = self.level(&view, &mut rng).ok_or(PickError::NoneReady)?;
        let order = std::iter::once(first).chain((0..self.levels.len()).filter(|&level| level != first));
        for avoid in [tried, &[]] {
            for level in order.clone() {
                if let Some(picked) = self.pick_in(&self.levels[level], &view, panic, hash, avoid, now, &mut rng) {
                    return Ok(picked);
                }
            }
            if tried.is_empty() {
                break;
            }
        }
        Err(PickError::NoneReady)
    }

    /// The endpoint at an address, for a caller that has chosen it: it is not asked whether it is healthy, since a caller
    /// may want to see it come up; its breaker is.
    /// # Errors
    /// [`PickError`].
    pub fn pick_only(&self, address: SocketAddr, now: Instant) -> Result<Picked, PickError> {
        let found = self.endpoints.iter().find(|state| state.address() == address);
        let state = found.ok_or(PickError::NoEndpoints)?;
        state.live.begin();
        match state.live.enter(now, false) {
            Some((permit, change)) => Ok(Picked::new(Arc::clone(state), permit, change, false)),
            None => {
                state.live.end();
                Err(PickError::NoneReady)
            }
        }
    }

    /// The retry budget.
    pub fn budget(&self) -> &Budget {
        &self.live.budget
    }

    /// Limits and their gauges; connections and pending requests are taken here.
    pub fn limits(&self) -> &Limits {
        &self.live.limits
    }

    /// Phase of the service's breaker. `None`: it has none.
    pub fn breaker(&self) -> Option<Phase> {
        self.live.breaker.phase()
    }

    /// How many endpoints are in which state.
    pub fn states(&self) -> StateCounts {
        let mut counts = StateCounts::default();
        self.endpoints.iter().for_each(|state| counts.add(state));
        counts
    }

    /// Picks made under the panic rule since the beginning.
    pub fn panics(&self) -> u64 {
        self.live.panics.load(Relaxed)
    }

    /// Endpoint breakers that had to close when this was built, for metric and log.
    pub fn reconciled(&self) -> &[(Arc<EndpointState>, Change)] {
        &self.reconciled
    }

    /// The level to pick from, and whether the panic rule holds: it does when every level is below the threshold.
    /// A level takes the share of the load that its usable endpoints can bear, with 40 % to spare; the next the rest.
    fn level(&self, view: &View<'_>, rng: &mut Rng) -> Option<(usize, bool)> {
        let threshold = usize::from(self.cluster.panic_percent);
        let below = |level: &Level| level.usable(view) * 100 < threshold * level.len();
        if let [only] = &*self.levels {
            return Some((0, below(only)));
        }
        let panic = self.levels.iter().all(below);
        let bears: Vec<usize> =
            self.levels.iter().map(|level| (level.usable(view) * 140 / level.len()).min(100)).collect();
        let all = bears.iter().sum::<usize>().min(100);
        if all == 0 {
            return (!self.levels.is_empty()).then_some((0, panic));
        }
        let mut ticket = rng.usize(..all);
        for (level, bears) in bears.into_iter().enumerate() {
            if ticket < bears {
                return Some((level, panic));
            }
            ticket -= bears;
        }
        None
    }

    #[expect(clippy::too_many_arguments, reason = "one request's circumstances, used once")]
    fn pick_in(
        &self,
        level: &Level,
        view: &View<'_>,
        panic: bool,
        hash: u64,
        avoid: &[SocketAddr],
        now: Instant,
        rng: &mut Rng,
    ) -> Option<Picked> {
        // A probe may be snatched away between choosing and entering; then that endpoint is no longer usable.
        for _ in 0..=level.len() {
            let chosen = level.choose(view, panic, hash, avoid, rng)?;
            let state = &self.endpoints[chosen];
            match state.live.enter(now, panic) {
                Some((permit, change)) => {
                    if panic {
                        count(&self.live.panics);
                    }
                    return Some(Picked::new(Arc::clone(state), permit, change, panic));
                }
                None => state.live.end(),
            }
        }
        None
    }
}

type Key<'a> = (SocketAddr, &'a str);

/// What makes an endpoint the same in two snapshots.
fn key(endpoint: &Endpoint) -> Key<'_> {
    (endpoint.address, &endpoint.workload)
}

fn kept(old: &Arc<EndpointState>, endpoint: &Endpoint) -> Arc<EndpointState> {
    if old.endpoint == *endpoint {
        return Arc::clone(old);
    }
    Arc::new(EndpointState { endpoint: endpoint.clone(), live: Arc::clone(&old.live) })
}

/// Sets how many may be open, and closes those that would be open soonest until it holds.
fn make_room(
    cluster: &Cluster,
    room: &Room,
    states: &[Arc<EndpointState>],
    now: Instant,
    reconciled: &mut Vec<(Arc<EndpointState>, Change)>,
) {
    let count = |health| states.iter().filter(|state| state.endpoint.health == health).count();
    let healthy = count(Health::Healthy);
    let percent = cluster.endpoint_breaker.map_or(0, |breaker| breaker.max_ejection_percent);
    room.set_max(Room::allowed(healthy + count(Health::Unhealthy), healthy, percent));
    while room.overfull() {
        let soonest = states
            .iter()
            .filter_map(|state| state.live.out_until().map(|until| (until, state)))
            .min_by_key(|&(until, _)| until);
        let Some((_, state)) = soonest else { break };
        let change = state.live.close(now);
        reconciled.extend(change.map(|change| (Arc::clone(state), change)));
    }
}

/// One request that was let in. Dropped without [`Admitted::finish`] it was cancelled.
#[derive(Debug)]
pub struct Admitted {
    /// Letting this request in turned the service's breaker half-open.
    pub change: Option<Change>,
    live: Arc<Live>,
    permit: Option<Permit>,
    _requests: LimitPermit,
}

impl Admitted {
    /// Reports how the request ended, retries included, once; later calls do nothing. The limit is freed by drop.
    /// Returns the change of the service's breaker, for metric and log.
    pub fn finish(&mut self, outcome: Outcome, now: Instant) -> Option<Change> {
        let permit = self.permit.take()?;
        self.live.breaker.on(permit, outcome.into(), now)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.live.breaker.cancel(permit);
        }
    }
}
