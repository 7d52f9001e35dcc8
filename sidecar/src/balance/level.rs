//! The endpoints of one priority, and the balancer over them.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use fastrand::Rng;
use parking_lot::Mutex;
use weft_xds::resource::{Balancer, Cluster, Health};

use super::{
    endpoint::EndpointState,
    least::{Lottery, least},
    ring::{Ring, VIRTUAL_NODES},
    round_robin::{RoundRobin, Smooth},
};

/// Endpoints of one priority that are not draining.
#[derive(Debug)]
pub(super) struct Level {
    /// Indices into the cluster's endpoints.
    members: Box<[usize]>,
    /// One for each member.
    weights: Box<[u32]>,
    /// Healthy by the control plane's word.
    healthy: usize,
    /// One for each member: address and live state, to go on from one snapshot to the next.
    addresses: Arc<[(SocketAddr, u32)]>,
    picker: Picker,
}

#[derive(Debug)]
enum Picker {
    RoundRobin(RoundRobin),
    Smooth(Smooth),
    LeastRequest(Lottery),
    /// Held while counting and choosing, so that no two workers choose by the same counts.
    LeastConnections(Mutex<()>),
    Ring(Arc<Ring>, u32),
}

/// What a pick sees.
pub(super) struct View<'a> {
    pub endpoints: &'a [Arc<EndpointState>],
    /// No endpoint of the cluster is open.
    pub none_open: bool,
    /// Nanoseconds since the cluster's epoch.
    pub now: u64,
}

impl Level {
    /// The levels of a cluster, by priority.
    pub fn all(cluster: &Cluster, states: &[Arc<EndpointState>], previous: Option<&[Self]>) -> Box<[Self]> {
        let mut members: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (index, state) in states.iter().enumerate() {
            if state.endpoint.health != Health::Draining {
                members.entry(state.endpoint.priority).or_default().push(index);
            }
        }
        let levels = members.into_values().enumerate();
        levels
            .map(|(level, members)| Self::new(cluster, states, members, previous.and_then(|all| all.get(level))))
            .collect()
    }

    fn new(cluster: &Cluster, states: &[Arc<EndpointState>], members: Vec<usize>, previous: Option<&Self>) -> Self {
        let endpoint = |&index: &usize| &states[index].endpoint;
        let addresses: Arc<[_]> = members.iter().map(|m| (endpoint(m).address, endpoint(m).weight.max(1))).collect();
        let weights: Box<[u32]> = addresses.iter().map(|&(_, weight)| weight).collect();
        let healthy = members.iter().filter(|m| endpoint(m).health == Health::Healthy).count();
        let picker = Picker::new(&cluster.balancer, &addresses, &weights, previous);
        Self { members: members.into(), weights, healthy, addresses, picker }
    }

    /// Endpoints of this priority.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Endpoints that are healthy and whose breaker is closed.
    pub fn usable(&self, view: &View<'_>) -> usize {
        if view.none_open {
            return self.healthy;
        }
        let states = self.members.iter().map(|&member| &view.endpoints[member]);
        states.filter(|state| state.endpoint.health == Health::Healthy && state.live.closed()).count()
    }

    /// Chooses an endpoint and counts it in. Returns its index in the cluster.
    pub fn choose(
        &self,
        view: &View<'_>,
        panic: bool,
        hash: u64,
        avoid: &[SocketAddr],
        rng: &mut Rng,
    ) -> Option<usize> {
        let state = |member: usize| &view.endpoints[self.members[member]];
        let usable = |member: usize| {
            let state = state(member);
            let able =
                panic || state.endpoint.health == Health::Healthy && (view.none_open || state.live.passable(view.now));
            able && !avoid.contains(&state.endpoint.address)
        };
        let in_flight = |member: usize| state(member).live.in_flight();
        let begun = |member: usize| {
            state(member).live.begin();
            self.members[member]
        };
        let member = match &self.picker {
            Picker::RoundRobin(turns) => {
                let all = avoid.is_empty() && (panic || view.none_open && self.healthy == self.len());
                turns.pick(self.len(), all, usable)
            }
            Picker::Smooth(smooth) => smooth.pick(&self.weights, usable),
            Picker::LeastRequest(lottery) => lottery.better_of_two(&self.weights, in_flight, usable, rng),
            Picker::LeastConnections(lock) => {
                let _held = lock.lock();
                return least(&self.weights, in_flight, usable, rng).map(begun);
            }
            Picker::Ring(ring, _) => ring.pick(hash, usable),
        };
        member.map(begun)
    }
}

impl Picker {
    /// Goes on where the balancer of `previous` was, if it is of the same kind.
    fn new(
        balancer: &Balancer,
        addresses: &Arc<[(SocketAddr, u32)]>,
        weights: &[u32],
        previous: Option<&Level>,
    ) -> Self {
        match (balancer, previous.map(|level| &level.picker)) {
            (Balancer::RoundRobin, Some(Self::RoundRobin(turns))) => Self::RoundRobin(RoundRobin::after(turns)),
            (Balancer::RoundRobin, _) => Self::RoundRobin(RoundRobin::starting_at(fastrand::usize(..) >> 1)),
            (Balancer::WeightedRoundRobin, Some(Self::Smooth(smooth))) => {
                let old = previous.iter().flat_map(|level| level.addresses.iter()).map(|&(address, _)| address);
                let credit: BTreeMap<SocketAddr, i64> = old.zip(smooth.credit()).collect();
                let of = |(address, _): &(SocketAddr, u32)| credit.get(address).copied().unwrap_or(0);
                Self::Smooth(Smooth::new(addresses.iter().map(of)))
            }
            (Balancer::WeightedRoundRobin, _) => Self::Smooth(Smooth::new(addresses.iter().map(|_| 0))),
            (Balancer::LeastRequest, _) => Self::LeastRequest(Lottery::new(weights)),
            (Balancer::LeastConnections, _) => Self::LeastConnections(Mutex::new(())),
            (Balancer::SourceIp, before) => Self::ring(VIRTUAL_NODES, addresses, previous, before),
            (Balancer::ConsistentHash { virtual_nodes, .. }, before) => {
                Self::ring(*virtual_nodes, addresses, previous, before)
            }
        }
    }

    /// The ring before, when it would come out the same.
    fn ring(nodes: u32, addresses: &[(SocketAddr, u32)], previous: Option<&Level>, before: Option<&Self>) -> Self {
        if let (Some(previous), Some(Self::Ring(ring, before))) = (previous, before)
            && *before == nodes
            && *previous.addresses == *addresses
        {
            return Self::Ring(Arc::clone(ring), nodes);
        }
        Self::Ring(Arc::new(Ring::new(addresses, nodes)), nodes)
    }
}
