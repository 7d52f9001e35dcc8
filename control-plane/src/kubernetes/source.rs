//! The source: what the watches say goes into the log (configuration) and to the index (pods, EndpointSlices); what is
//! wrong goes back as statuses.
//!
//! The log stays what it is without a cluster: every change of configuration is a revision, with the API server as its
//! author; history, diff and export work, and a control plane that starts while the API server is away goes on with it.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use weft_identity::TrustBundle;
use weft_model::{Finding, KnownServices, Resource, ResourceKey, ResourceSet, validate};

use super::{
    Cluster, blame,
    discovery::{Discovery, Held},
    health::Health,
    programmed::Refusals,
    root,
    state::{Batch, Heard, Known, Scope, State},
    status, watch,
    writer::{self, Queue, Wanted},
};
use crate::{
    index::{self, Worlds},
    store::{Event, Log, Meta, Store},
    xds::Sessions,
};

/// What the source works on.
#[derive(Debug)]
pub struct Parts {
    /// The API server.
    pub cluster: Cluster,
    /// The log.
    pub store: Store,
    /// The way to the index.
    pub discovery: Discovery,
    /// What of it is on disk.
    pub held: Held,
    /// Implicit services.
    pub worlds: Arc<Worlds>,
    /// The roots to publish.
    pub bundle: tokio::sync::watch::Receiver<Arc<TrustBundle>>,
    /// Where it is told how the watches do.
    pub health: Arc<Health>,
    /// Who is connected, and what they refuse.
    pub sessions: Arc<Sessions>,
    /// Set once there is a mesh to serve.
    pub ready: Arc<AtomicBool>,
}

/// The source and what it knows.
struct Source {
    store: Store,
    discovery: Discovery,
    worlds: Arc<Worlds>,
    health: Arc<Health>,
    ready: Arc<AtomicBool>,
    state: State,
    /// The configuration as the log holds it.
    set: ResourceSet,
    sessions: Arc<Sessions>,
    refusals: Refusals,
    pace: Pace,
    queue: Arc<Queue>,
}

/// Follows the API server until `stop`.
pub async fn run(parts: Parts, stop: CancellationToken) {
    let Parts { cluster, store, discovery, held, worlds, bundle, health, sessions, ready } = parts;
    let scopes = Scope::all(&cluster.namespaces);
    let set = match read(&store.log()) {
        Ok(set) => set,
        Err(error) => {
            tracing::error!(%error, "the configuration on disk cannot be read");
            return;
        }
    };
    let state = State::new(scopes.clone(), set.iter().map(|(key, _)| key.clone()), held);
    ready.store(!state.holding(), Ordering::Relaxed);
    let (out, mut heard) = mpsc::channel(CHANNEL);
    let queue = Arc::new(Queue::default());
    let mut tasks = JoinSet::new();
    for scope in scopes {
        tasks.spawn(watch::run(cluster.client.clone(), scope, health.clone(), out.clone()));
    }
    tasks.spawn(writer::run(cluster.client.clone(), queue.clone(), health.clone(), stop.clone()));
    tasks.spawn(root::run(cluster, discovery.clone(), bundle, stop.clone()));
    let mut refused = sessions.watch_refusals();
    let (refusals, pace) = (Refusals::default(), Pace::new(Instant::now()));
    let mut source = Source { store, discovery, worlds, health, ready, state, set, sessions, refusals, pace, queue };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            next = heard.recv() => match next {
                Some((scope, first)) => source.take(&scope, first, &mut heard),
                None => return,
            },
            Ok(()) = refused.changed() => {
                source.pace.soon(Instant::now());
                continue;
            }
            () = tokio::time::sleep_until(source.pace.at()) => {
                source.judge(Instant::now());
                continue;
            }
            Some(ended) = tasks.join_next() => if let Err(error) = ended {
                tracing::error!(%error, "a part of the Kubernetes source panicked");
                return;
            },
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = source.flush() => {}
        }
    }
}

impl Source {
    /// Everything that has been said by now.
    fn take(&mut self, scope: &Scope, first: Heard, heard: &mut mpsc::Receiver<(Scope, Heard)>) {
        self.state.on(scope, first);
        for _ in 0..MOST_AT_ONCE {
            let Ok((scope, next)) = heard.try_recv() else { break };
            self.state.on(&scope, next);
        }
    }

    async fn flush(&mut self) {
        let Some(Batch { resources, discovery }) = self.state.take() else {
            self.health.count(&self.state);
            return;
        };
        // Addresses first: a service that comes with its addresses is never seen without.
        if let Err(error) = self.discovery.apply(discovery).await {
            tracing::error!(%error, "pods and EndpointSlices cannot be kept on disk");
        }
        if !resources.is_empty() {
            self.append(resources).await;
        }
        self.health.count(&self.state);
        if self.state.take_touched() {
            self.pace.soon(Instant::now());
        }
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Makes the log hold this. A disk that refuses is tried again: the watches wait meanwhile.
    async fn append(&mut self, resources: BTreeMap<ResourceKey, Option<Resource>>) {
        loop {
            let log = self.store.log();
            let events = events(&log, &resources);
            if events.is_empty() {
                break;
            }
            let meta = Meta { author: AUTHOR.to_owned(), message: describe(&log, &events), time_ms: now_millis() };
            match self.store.append(Some(log.head()), events, meta).await {
                Ok(revision) => {
                    tracing::info!(revision, "configuration taken from Kubernetes");
                    break;
                }
                Err(crate::store::StoreError::Conflict { .. }) => {}
                Err(error) => {
                    tracing::error!(%error, "the configuration cannot be written; trying again");
                    tokio::time::sleep(DISK_PAUSE).await;
                }
            }
        }
        for (key, resource) in resources {
            match resource {
                Some(resource) => drop(self.set.insert(resource)),
                None => drop(self.set.remove(&key)),
            }
        }
    }

    /// What is to be written back to whom.
    fn judge(&mut self, now: Instant) {
        let findings: Vec<Finding> = validate(&self.set, &self.known()).into_iter().filter(Finding::is_error).collect();
        let refused = blame::refused(&self.worlds.current(), &self.sessions.refusals());
        let objects: BTreeMap<&ResourceKey, &Known> = self.state.objects().collect();
        if self.pace.young(now) {
            for (key, known) in &objects {
                for (part, text) in status::found(key, known) {
                    self.refusals.found(part, text, known.generation, now.into_std());
                }
            }
        }
        self.refusals.on(refused, |key| objects.get(key).map(|known| known.generation), now.into_std());
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        self.queue.set(wanted(&objects, &self.set, &findings, &self.refusals, &time));
        self.pace.looked(now, self.refusals.due().map(Instant::from_std));
    }

    fn known(&self) -> KnownServices {
        let world = self.worlds.current();
        let implicit = world.services.iter().filter(|(_, entry)| entry.implicit);
        let ports = |entry: &index::ServiceEntry| entry.service.spec.ports.iter().map(|port| port.port).collect();
        implicit.map(|(key, entry)| (key.clone(), ports(entry))).collect()
    }
}

/// The statuses that differ from what is there.
fn wanted(
    objects: &BTreeMap<&ResourceKey, &Known>,
    set: &ResourceSet,
    findings: &[Finding],
    refusals: &Refusals,
    time: &str,
) -> BTreeMap<ResourceKey, Wanted> {
    let mut by_key: BTreeMap<&ResourceKey, Vec<&Finding>> = BTreeMap::new();
    for finding in findings {
        if let Some(key) = &finding.resource {
            by_key.entry(key).or_default().push(finding);
        }
    }
    let mut wanted = BTreeMap::new();
    for (key, known) in objects {
        let findings = by_key.get(key).map_or(&[][..], Vec::as_slice);
        let in_force = set.get(key).is_some();
        if let Some(status) = status::desired(key, known, in_force, findings, refusals, time) {
            let resource_version = known.resource_version.clone();
            wanted.insert((*key).clone(), Wanted { resource_version, status });
        }
    }
    wanted
}

/// When statuses are looked at: soon after something that they depend on, but no more than once in [`SETTLE`].
#[derive(Debug)]
struct Pace {
    started: Instant,
    at: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { started: now, at: now + LOOK_AGAIN }
    }

    /// Something has changed. What follows on it meanwhile is looked at with it.
    fn soon(&mut self, now: Instant) {
        self.at = self.at.min(now + SETTLE);
    }

    /// They have been looked at. `due`: when something is to be said although nothing changes.
    fn looked(&mut self, now: Instant, due: Option<Instant>) {
        // What a registration brought or took may have made a reference good or bad.
        let latest = now + LOOK_AGAIN;
        self.at = due.map_or(latest, |due| due.clamp(now + SETTLE, latest));
    }

    fn at(&self) -> Instant {
        self.at
    }

    /// Whether clients of an earlier process may still be on their way back.
    fn young(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.started) < LOOK_AGAIN
    }
}

fn read(log: &Log) -> Result<ResourceSet, index::DocumentError> {
    log.current().iter().map(|(key, stored)| index::read(key, stored)).collect()
}

/// What makes the log hold this, without what it holds already.
fn events(log: &Log, resources: &BTreeMap<ResourceKey, Option<Resource>>) -> Vec<Event> {
    let mut events = Vec::new();
    for (key, resource) in resources {
        let before = log.current().get(key);
        match (resource, before) {
            (None, None) => {}
            (None, Some(_)) => events.push(Event::Delete { key: key.clone() }),
            (Some(resource), before) => {
                let event = index::write(resource);
                let same = matches!((&event, before), (Event::Set { yaml, .. }, Some(before)) if *yaml == before.yaml);
                if !same {
                    events.push(event);
                }
            }
        }
    }
    events
}

/// For the history: `HTTPRoute shop/orders changed; Service shop/old deleted`.
fn describe(log: &Log, events: &[Event]) -> String {
    let word = |event: &Event| match event {
        Event::Delete { .. } => "deleted",
        Event::Set { key, .. } if log.current().contains_key(key) => "changed",
        Event::Set { .. } => "created",
    };
    let mut lines: Vec<String> =
        events.iter().take(NAMED).map(|event| format!("{} {}", event.key(), word(event))).collect();
    if events.len() > NAMED {
        lines.push(format!("{} more", events.len() - NAMED));
    }
    lines.join("; ")
}

fn now_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Author of what comes from the API server.
const AUTHOR: &str = "kubernetes";
/// Between the watches and the source; a watch waits when it is full.
const CHANNEL: usize = 1024;
/// Changes of one revision.
const MOST_AT_ONCE: usize = 8192;
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Long enough for most clients to have answered what a change made of an object.
const SETTLE: Duration = Duration::from_secs(1);
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// Objects that a revision's message names.
const NAMED: usize = 5;

#[cfg(test)]
mod tests;
