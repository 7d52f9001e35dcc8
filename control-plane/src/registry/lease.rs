//! Leases: which workloads are there, and until when. Pure: no clock, no I/O.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use weft_xds::resource::Health;

use crate::index::WorkloadEntry;

/// Names one registration stream. A newer stream of the same workload supersedes the older.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// Where a workload stands, as people see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Gets traffic.
    Ready,
    /// Reported itself unhealthy.
    Unhealthy,
    /// Is leaving: no new traffic.
    Draining,
    /// Its stream broke; the rest of its lease runs. It still gets traffic: breakers know better than we do.
    Lost,
}

impl State {
    /// As in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::Unhealthy => "UNHEALTHY",
            Self::Draining => "DRAINING",
            Self::Lost => "LOST",
        }
    }
}

/// A newer stream speaks for the workload, or its lease ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superseded;

/// Whether the endpoints of a service may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// No.
    Nothing,
    /// Yes.
    Changed,
    /// An endpoint went: tell the world without delay.
    Removed,
}

#[derive(Debug)]
struct Lease {
    workload: Arc<WorkloadEntry>,
    /// `None`: lost.
    stream: Option<StreamId>,
    expires: Instant,
    /// Why it is unhealthy, in its own words.
    reason: String,
}

/// Every lease.
#[derive(Debug)]
pub struct Leases {
    ttl: Duration,
    leases: BTreeMap<Arc<str>, Lease>,
    /// Expired leases are being kept because too many expired together.
    holding: bool,
}

impl Leases {
    /// `ttl`: time without a heartbeat after which a workload is gone. Default 15 s.
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, leases: BTreeMap::new(), holding: false }
    }

    /// Length of a lease.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// A workload known from before a restart: it has [`RESTORED_LEASES`] leases to come back.
    pub fn restore(&mut self, workload: Arc<WorkloadEntry>, now: Instant) {
        let id = workload.id.clone();
        let expires = now + self.ttl * RESTORED_LEASES;
        let lease = Lease { workload, stream: None, expires, reason: String::new() };
        self.leases.insert(id, lease);
    }

    /// The first message of a stream.
    pub fn register(&mut self, workload: Arc<WorkloadEntry>, stream: StreamId, now: Instant) -> Effect {
        let id = workload.id.clone();
        let lease = Lease { workload, stream: Some(stream), expires: now + self.ttl, reason: String::new() };
        match self.leases.insert(id.clone(), lease) {
            Some(before) if before.workload == self.leases[&id].workload => Effect::Nothing,
            // It comes back healthy at another address, or less healthy: both take something away.
            Some(before) if before.workload.health == Health::Healthy => Effect::Removed,
            _ => Effect::Changed,
        }
    }

    /// The workload lives.
    /// # Errors
    /// [`Superseded`]: this stream is to end.
    pub fn heartbeat(&mut self, id: &str, stream: StreamId, now: Instant) -> Result<(), Superseded> {
        self.renew(id, stream, now).map(|_| ())
    }

    /// The workload says how it is.
    /// # Errors
    /// As [`Leases::heartbeat`].
    pub fn health(
        &mut self,
        id: &str,
        stream: StreamId,
        healthy: bool,
        reason: &str,
        now: Instant,
    ) -> Result<Effect, Superseded> {
        let lease = self.renew(id, stream, now)?;
        lease.reason = if healthy { String::new() } else { reason.to_owned() };
        let health = if healthy { Health::Healthy } else { Health::Unhealthy };
        // A draining workload stays so, whatever it reports.
        if lease.workload.health == health || lease.workload.health == Health::Draining {
            return Ok(Effect::Nothing);
        }
        Arc::make_mut(&mut lease.workload).health = health;
        Ok(if healthy { Effect::Changed } else { Effect::Removed })
    }

    /// The workload leaves. It stays known until its stream ends.
    /// # Errors
    /// As [`Leases::heartbeat`].
    pub fn drain(&mut self, id: &str, stream: StreamId, now: Instant) -> Result<Effect, Superseded> {
        let lease = self.renew(id, stream, now)?;
        if lease.workload.health == Health::Draining {
            return Ok(Effect::Nothing);
        }
        Arc::make_mut(&mut lease.workload).health = Health::Draining;
        Ok(Effect::Removed)
    }

    /// The stream ended. What drained is gone; what did not has the rest of its lease to come back.
    pub fn closed(&mut self, id: &str, stream: StreamId) -> Effect {
        let Some(lease) = self.leases.get_mut(id).filter(|lease| lease.stream == Some(stream)) else {
            return Effect::Nothing;
        };
        lease.stream = None;
        if lease.workload.health == Health::Draining {
            self.leases.remove(id);
            return Effect::Removed;
        }
        Effect::Nothing
    }

    /// Removes what expired; its ids. Streams of removed workloads find out at their next message.
    ///
    /// When more than half of a mesh expires at once, it is our network that failed, not theirs: nothing is removed
    /// until that is no longer so, or for [`HOLD_LEASES`] leases.
    pub fn expire(&mut self, now: Instant) -> Vec<Arc<str>> {
        let expired: Vec<_> =
            self.leases.iter().filter(|(_, lease)| lease.expires <= now).map(|(id, _)| id.clone()).collect();
        self.holding = self.leases.len() >= HOLD_FROM && expired.len() * 2 > self.leases.len();
        let hold = if self.holding { self.ttl * HOLD_LEASES } else { Duration::ZERO };
        let gone: Vec<_> = expired.into_iter().filter(|id| self.leases[id].expires + hold <= now).collect();
        for id in &gone {
            self.leases.remove(id);
        }
        gone
    }

    /// Whether expired leases are being kept.
    pub fn holding(&self) -> bool {
        self.holding
    }

    /// When [`Leases::expire`] has to be called next.
    pub fn next_expiry(&self, now: Instant) -> Option<Instant> {
        let next = self.leases.values().map(|lease| lease.expires).min()?;
        // While holding, look again now and then.
        Some(if next <= now { now + self.ttl / 4 } else { next })
    }

    /// One workload.
    pub fn get(&self, id: &str) -> Option<&Arc<WorkloadEntry>> {
        self.leases.get(id).map(|lease| &lease.workload)
    }

    /// Every workload with its state and, when unhealthy, the reason it gave.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<WorkloadEntry>, State, &str)> {
        self.leases.values().map(|lease| {
            let state = match (lease.stream, lease.workload.health) {
                (_, Health::Draining) => State::Draining,
                (None, _) => State::Lost,
                (Some(_), Health::Healthy) => State::Ready,
                (Some(_), Health::Unhealthy) => State::Unhealthy,
            };
            (&lease.workload, state, lease.reason.as_str())
        })
    }

    fn renew(&mut self, id: &str, stream: StreamId, now: Instant) -> Result<&mut Lease, Superseded> {
        let lease = self.leases.get_mut(id).filter(|lease| lease.stream == Some(stream)).ok_or(Superseded)?;
        lease.expires = now + self.ttl;
        Ok(lease)
    }
}

/// Leases that a workload has to come back after a restart: sidecars spread their return over up to 30 s, and the time
/// for which the control plane was away was no fault of theirs.
const RESTORED_LEASES: u32 = 4;
/// Fewest workloads for which losing more than half at once is taken for our own fault.
const HOLD_FROM: usize = 10;
/// Longest that expired leases are kept then, in leases.
const HOLD_LEASES: u32 = 20;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use weft_identity::{SpiffeId, TrustDomain};

    use super::*;
    use crate::index::ObjectKey;

    const TTL: Duration = Duration::from_secs(15);

    fn workload(name: u8) -> Arc<WorkloadEntry> {
        let domain = TrustDomain::parse("weft.local").unwrap();
        Arc::new(WorkloadEntry {
            id: format!("default/orders/{name}").into(),
            service: ObjectKey::new("default", "orders"),
            identity: SpiffeId::new(&domain, "default", "orders").unwrap(),
            address: ([10, 0, 0, name], 15006).into(),
            ports: Vec::new(),
            weight: 1,
            labels: Arc::default(),
            region: "".into(),
            zone: "".into(),
            health: Health::Healthy,
        })
    }

    #[derive(Debug, Clone)]
    enum Op {
        Register(u8),
        Heartbeat(u8),
        Report(u8, bool),
        Drain(u8),
        Close(u8),
        Wait(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let name = 0u8..4;
        prop_oneof![
            name.clone().prop_map(Op::Register),
            name.clone().prop_map(Op::Heartbeat),
            (name.clone(), any::<bool>()).prop_map(|(name, healthy)| Op::Report(name, healthy)),
            name.clone().prop_map(Op::Drain),
            name.prop_map(Op::Close),
            (1u64..12).prop_map(Op::Wait),
        ]
    }

    /// What a lease means, said as plainly as possible: seconds since the last sign of life, and flags.
    #[derive(Default, Clone, Copy, PartialEq, Debug)]
    struct Model {
        silent: u64,
        connected: bool,
        draining: bool,
        unhealthy: bool,
    }

    proptest! {
        #[test]
        fn follows_the_model(ops in prop::collection::vec(op(), 1..80)) {
            let mut leases = Leases::new(TTL);
            let mut model: BTreeMap<u8, Model> = BTreeMap::new();
            let mut now = Instant::now();
            let mut streams: BTreeMap<u8, StreamId> = BTreeMap::new();
            for (count, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Register(name) => {
                        streams.insert(name, StreamId(count as u64));
                        leases.register(workload(name), StreamId(count as u64), now);
                        model.insert(name, Model { connected: true, ..Model::default() });
                    }
                    Op::Heartbeat(name) => {
                        let Some(&stream) = streams.get(&name) else { continue };
                        let known = model.get_mut(&name).filter(|model| model.connected);
                        let result = leases.heartbeat(&workload(name).id, stream, now);
                        prop_assert_eq!(result.is_ok(), known.is_some());
                        if let Some(known) = known { known.silent = 0; }
                    }
                    Op::Report(name, healthy) => {
                        let Some(&stream) = streams.get(&name) else { continue };
                        let known = model.get_mut(&name).filter(|model| model.connected);
                        let result = leases.health(&workload(name).id, stream, healthy, "", now);
                        prop_assert_eq!(result.is_ok(), known.is_some());
                        if let Some(known) = known { known.silent = 0; known.unhealthy = !healthy; }
                    }
                    Op::Drain(name) => {
                        let Some(&stream) = streams.get(&name) else { continue };
                        let known = model.get_mut(&name).filter(|model| model.connected);
                        let result = leases.drain(&workload(name).id, stream, now);
                        prop_assert_eq!(result.is_ok(), known.is_some());
                        if let Some(known) = known { known.silent = 0; known.draining = true; }
                    }
                    Op::Close(name) => {
                        let Some(stream) = streams.remove(&name) else { continue };
                        leases.closed(&workload(name).id, stream);
                        if model.get(&name).is_some_and(|model| model.draining) {
                            model.remove(&name);
                        } else if let Some(known) = model.get_mut(&name) {
                            known.connected = false;
                        }
                    }
                    Op::Wait(seconds) => {
                        now += Duration::from_secs(seconds);
                        let gone: BTreeSet<_> = leases.expire(now).into_iter().collect();
                        model.values_mut().for_each(|model| model.silent += seconds);
                        let expected: Vec<u8> =
                            model.iter().filter(|(_, model)| model.silent >= 15).map(|(&name, _)| name).collect();
                        prop_assert_eq!(&gone, &expected.iter().map(|&name| workload(name).id.clone()).collect());
                        model.retain(|name, _| !expected.contains(name));
                    }
                }
                let states: Vec<_> = leases.all().map(|(_, state, _)| state).collect();
                let expected: Vec<_> = model.values().map(|model| match model {
                    Model { draining: true, .. } => State::Draining,
                    Model { connected: false, .. } => State::Lost,
                    Model { unhealthy: true, .. } => State::Unhealthy,
                    _ => State::Ready,
                }).collect();
                prop_assert_eq!(states, expected);
            }
        }
    }

    #[test]
    fn an_older_stream_cannot_end_a_newer_one() {
        let mut leases = Leases::new(TTL);
        let now = Instant::now();
        let id = workload(1).id.clone();
        leases.register(workload(1), StreamId(1), now);
        assert_eq!(leases.register(workload(1), StreamId(2), now), Effect::Nothing, "a reconnect changes nothing");
        assert_eq!(leases.closed(&id, StreamId(1)), Effect::Nothing);
        assert_eq!(leases.heartbeat(&id, StreamId(1), now), Err(Superseded));
        assert_eq!(leases.heartbeat(&id, StreamId(2), now), Ok(()));
        assert!(leases.all().all(|(_, state, _)| state == State::Ready));
    }

    #[test]
    fn a_restart_gives_everyone_time_to_come_back() {
        let mut leases = Leases::new(TTL);
        let now = Instant::now();
        leases.restore(workload(1), now);
        assert!(leases.expire(now + TTL * 4 - Duration::from_millis(1)).is_empty());
        assert_eq!(leases.expire(now + TTL * 4).len(), 1);
    }

    #[test]
    fn losing_most_of_the_mesh_at_once_is_not_believed() {
        let mut leases = Leases::new(TTL);
        let now = Instant::now();
        for name in 0..10 {
            leases.register(workload(name), StreamId(99), now);
        }
        for name in 0..4 {
            leases.register(workload(name), StreamId(u64::from(name)), now + TTL);
        }
        assert!(leases.expire(now + TTL).is_empty(), "6 of 10 are lost");
        assert!(leases.holding());
        leases.register(workload(4), StreamId(4), now + TTL);
        assert_eq!(leases.expire(now + TTL).len(), 5, "half is believed");
        assert!(!leases.holding());
    }

    #[test]
    fn even_a_hold_ends() {
        let mut leases = Leases::new(TTL);
        let now = Instant::now();
        for name in 0..10 {
            leases.register(workload(name), StreamId(99), now);
        }
        assert!(leases.expire(now + TTL * 20).is_empty());
        assert_eq!(leases.expire(now + TTL * 21).len(), 10);
    }
}
