//! The registry of open streams: who is there, which change concerns whom, and what has become of it.
//!
//! Owns the index from what a resource is made of to the sessions that subscribed to it, so that a change costs as much
//! as it has readers. A session that is slow finds its changes merged in its mailbox; nobody waits for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use weft_identity::SpiffeId;
use weft_proto::weft::v1;
use weft_xds::{
    resource::ResourceType,
    server::{Nack, TypeStatus},
};

use super::{
    interested::Interested,
    status::{Metrics, RECHECK, Report, nack_to_wire, rfc3339},
};
use crate::{
    index::World,
    translate::{self, Changes, Client, Flavour, Source},
};

/// All open streams.
#[derive(Debug)]
pub struct Sessions {
    state: Mutex<State>,
    next: AtomicU64,
    /// Generation and revision of the world that sessions read.
    now: watch::Sender<Now>,
    /// Woken when a session has answered, come or gone.
    answered: Notify,
    /// Told when the refusals that stand have become others.
    refused: watch::Sender<()>,
    pub(super) metrics: Metrics,
}

/// The world that sessions read.
#[derive(Debug, Clone, Default)]
struct Now {
    generation: u64,
    revision: u64,
    /// In which generation each of the last revisions came.
    revisions: VecDeque<(u64, u64)>,
}

#[derive(Debug, Default)]
struct State {
    sessions: BTreeMap<u64, Known>,
    interest: HashMap<Arc<Interest>, Interested>,
}

/// A session, and what it is interested in: so that one that goes costs as much as it asked for.
#[derive(Debug)]
struct Known {
    session: Arc<Session>,
    /// Each once. It may hold what the session was interested in before.
    interests: HashSet<Arc<Interest>>,
}

/// What a session may be interested in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Interest {
    Source(Source),
    EveryCluster,
}

/// A refusal that stands: the client is connected, and has not taken another version of the resource since.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Who refuses.
    pub client: Client,
    /// Type of the resource.
    pub ty: ResourceType,
    /// Its name.
    pub name: Arc<str>,
    /// Which version, and why.
    pub nack: Nack,
}

/// What a session subscribed to.
type Names = Vec<(ResourceType, Arc<str>)>;

/// One open stream, as others see it.
#[derive(Debug)]
pub struct Session {
    /// Unique in this process.
    pub id: u64,
    /// What its node said.
    pub client: Client,
    /// What its certificate proved.
    pub identity: SpiffeId,
    /// When it came.
    pub since: SystemTime,
    /// When the certificate that it came with expires.
    pub certificate_expiry: Option<SystemTime>,
    /// What it has acknowledged and refused.
    pub report: Report,
    mailbox: Mutex<Mail>,
    notify: Notify,
    closed: AtomicBool,
}

/// Changes that a session has not looked at yet.
#[derive(Debug, Default)]
pub struct Mail {
    /// Everything may have changed.
    pub everything: bool,
    /// Names to look at.
    pub names: BTreeMap<ResourceType, BTreeSet<Arc<str>>>,
    /// When the oldest of them happened.
    pub since: Option<Instant>,
    /// Last generation in here.
    pub generation: u64,
}

impl Mail {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        !self.everything && self.names.is_empty()
    }
}

impl Session {
    /// Waits until there is mail.
    pub async fn mail(&self) {
        loop {
            if !self.mailbox.lock().is_empty() {
                return;
            }
            self.notify.notified().await;
        }
    }

    /// Whether its stream has ended.
    fn closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Takes the mail.
    pub fn take(&self) -> Mail {
        std::mem::take(&mut *self.mailbox.lock())
    }

    fn deposit(&self, generation: u64, at: Instant, put: impl FnOnce(&mut Mail)) {
        let mut mail = self.mailbox.lock();
        put(&mut mail);
        mail.generation = generation;
        mail.since.get_or_insert(at);
        // Before the mailbox is open to the session: "touched" is never older than what it may flush.
        self.report.touched(generation);
        drop(mail);
        self.notify.notify_one();
    }
}

impl Sessions {
    /// A registry without sessions, for a world of this generation and revision.
    pub fn new(world: &World, metrics: Metrics) -> Self {
        let (now, _) = watch::channel(Now { generation: world.generation, revision: world.revision, ..Now::default() });
        let (refused, _) = watch::channel(());
        Self { state: Mutex::default(), next: AtomicU64::new(1), now, answered: Notify::new(), refused, metrics }
    }

    /// Adds a session; it is removed when the guard goes.
    pub fn open(self: &Arc<Self>, client: Client, identity: SpiffeId, expiry: Option<SystemTime>) -> Open {
        let session = Arc::new(Session {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            client,
            identity,
            since: SystemTime::now(),
            certificate_expiry: expiry,
            report: Report::default(),
            mailbox: Mutex::default(),
            notify: Notify::new(),
            closed: AtomicBool::new(false),
        });
        self.metrics.session(agent_label(session.client.flavour), true);
        // Until it has its first configuration.
        session.report.touched(self.now.borrow().generation.max(1));
        let mut state = self.state.lock();
        state.sessions.insert(session.id, Known { session: session.clone(), interests: HashSet::new() });
        drop(state);
        Open { session, sessions: self.clone() }
    }

    /// What a session subscribed to. It hears of every change from this call on.
    pub fn subscribed(&self, session: &Session, ty: ResourceType, name: &Arc<str>, source: Source) {
        if source != Source::Constant {
            self.interested(session, Interest::Source(source), ty, name);
        }
    }

    /// A session takes everything of a type that is there for it.
    pub fn subscribed_all(&self, session: &Session, ty: ResourceType) {
        for (interest, name) in wildcard_interests(&session.client, ty) {
            self.interested(session, interest, ty, &name);
        }
    }

    /// A session no longer takes everything of a type.
    pub fn unsubscribed_all(&self, session: &Session, ty: ResourceType) {
        for (interest, name) in wildcard_interests(&session.client, ty) {
            self.uninterested(session, &interest, ty, &name);
        }
    }

    fn interested(&self, session: &Session, interest: Interest, ty: ResourceType, name: &Arc<str>) {
        let mut state = self.state.lock();
        let State { sessions, interest: all } = &mut *state;
        let interest = match all.get_key_value(&interest) {
            Some((known, _)) => known.clone(),
            None => Arc::new(interest),
        };
        all.entry(interest.clone()).or_default().add(session.id, ty, name);
        if let Some(known) = sessions.get_mut(&session.id) {
            known.interests.insert(interest);
        }
    }

    /// A session no longer wants a name.
    pub fn unsubscribed(&self, session: &Session, ty: ResourceType, name: &str, source: &Source) {
        self.uninterested(session, &Interest::Source(source.clone()), ty, name);
    }

    fn uninterested(&self, session: &Session, interest: &Interest, ty: ResourceType, name: &str) {
        let mut state = self.state.lock();
        let Some(interested) = state.interest.get_mut(interest) else { return };
        let gone = !interested.drop_name(session.id, ty, name);
        if interested.is_empty() {
            state.interest.remove(interest);
        }
        if gone && let Some(known) = state.sessions.get_mut(&session.id) {
            known.interests.remove(interest);
        }
    }

    /// Tells every session that a change concerns. The catalog must already be in the new world.
    pub fn publish(&self, world: &World, changes: &Changes) {
        let at = Instant::now();
        let state = self.state.lock();
        if changes.everything {
            for Known { session, .. } in state.sessions.values() {
                session.deposit(world.generation, at, |mail| mail.everything = true);
            }
        } else {
            for (id, names) in state.concerned(changes) {
                let Some(Known { session, .. }) = state.sessions.get(&id) else { continue };
                session.deposit(world.generation, at, |mail| {
                    for (ty, name) in names {
                        mail.names.entry(ty).or_default().insert(name);
                    }
                });
            }
        }
        drop(state);
        self.now.send_modify(|now| {
            now.generation = world.generation;
            if world.revision != now.revision {
                now.revision = world.revision;
                now.revisions.push_back((world.revision, world.generation));
                if now.revisions.len() > REVISIONS_KEPT {
                    now.revisions.pop_front();
                }
            }
        });
        self.answered.notify_waiters();
    }

    /// A session has answered everything up to a generation.
    pub(super) fn answered(&self, session: &Session, generation: u64, revision: u64) {
        session.report.flushed(generation, revision);
        self.answered.notify_waiters();
    }

    /// Where a session stands with each type.
    pub(super) fn report(&self, session: &Session, types: Vec<TypeStatus>) {
        if session.report.types(types) {
            self.refused.send_replace(());
        }
    }

    /// Told whenever other refusals stand than before.
    pub fn watch_refusals(&self) -> watch::Receiver<()> {
        self.refused.subscribe()
    }

    /// What is refused now, of everybody who is connected.
    pub fn refusals(&self) -> Vec<Standing> {
        let sessions: Vec<Arc<Session>> =
            self.state.lock().sessions.values().map(|known| known.session.clone()).collect();
        let of = |session: Arc<Session>| {
            let standing = session.report.standing().into_iter();
            standing.map(move |(ty, name, nack)| Standing { client: session.client.clone(), ty, name, nack })
        };
        sessions.into_iter().flat_map(of).collect()
    }

    /// How many sessions there are.
    pub fn count(&self) -> usize {
        self.state.lock().sessions.len()
    }

    /// Every session, in order of node id.
    pub fn status(&self) -> Vec<v1::SidecarStatus> {
        let (generation, revision) = {
            let now = self.now.borrow();
            (now.generation, now.revision)
        };
        let sessions: Vec<Arc<Session>> =
            self.state.lock().sessions.values().map(|known| known.session.clone()).collect();
        let mut out: Vec<v1::SidecarStatus> = sessions
            .iter()
            .map(|session| {
                let (types, nacks) = session.report.to_wire(&session.client.id);
                v1::SidecarStatus {
                    id: session.client.id.to_string(),
                    identity: session.identity.to_string(),
                    agent: session.client.agent.clone(),
                    connected_since: rfc3339(session.since),
                    acked_revision: acked_revision(session, generation, revision),
                    types,
                    certificate_expiry: session.certificate_expiry.map(rfc3339).unwrap_or_default(),
                    nacks,
                }
            })
            .collect();
        out.sort_by(|a, b| a.id.cmp(&b.id));
        out
    }

    /// Waits until every session that the revision concerns has answered it, at most `timeout`.
    pub async fn wait(&self, revision: u64, timeout: Duration) -> v1::Rollout {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut now = self.now.subscribe();
        let reached = now.wait_for(|now| now.revision >= revision);
        let generation = match tokio::time::timeout_at(deadline, reached).await {
            Ok(Ok(now)) => now.generation_of(revision),
            // The world never came that far: everybody is pending.
            Ok(Err(_)) | Err(_) => u64::MAX,
        };
        self.settled(generation, deadline).await;
        self.rollout(generation)
    }

    /// Waits until every session has answered everything up to this generation of the world, at most `timeout`;
    /// whether that came about.
    pub async fn flushed(&self, generation: u64, timeout: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut now = self.now.subscribe();
        let reached = now.wait_for(|now| now.generation >= generation);
        matches!(tokio::time::timeout_at(deadline, reached).await, Ok(Ok(_)))
            && self.settled(generation, deadline).await
    }

    async fn settled(&self, generation: u64, deadline: tokio::time::Instant) -> bool {
        let mut waiting = self.pending(generation);
        loop {
            let answered = self.answered.notified();
            // Whoever has answered stays so: each session is looked at once, and the one that is waited for.
            while waiting.last().is_some_and(|session| session.closed() || !is_pending(session, generation)) {
                waiting.pop();
            }
            if waiting.is_empty() {
                return true;
            }
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            // The pause only bounds what a missed wake-up may cost.
            let recheck = deadline.min(tokio::time::Instant::now() + RECHECK);
            if tokio::time::timeout_at(recheck, answered).await.is_err() {
                tracing::trace!(generation, "still waiting for sessions to answer");
            }
        }
    }

    fn pending(&self, generation: u64) -> Vec<Arc<Session>> {
        let state = self.state.lock();
        let all = state.sessions.values().map(|known| &known.session);
        all.filter(|session| is_pending(session, generation)).cloned().collect()
    }

    fn rollout(&self, generation: u64) -> v1::Rollout {
        let state = self.state.lock();
        let mut rollout = v1::Rollout::default();
        for Known { session, .. } in state.sessions.values() {
            let nacks = session.report.nacks_since(generation);
            let pending = is_pending(session, generation);
            if session.report.last_touched() < generation && !pending {
                continue;
            }
            rollout.affected += 1;
            if pending {
                rollout.pending.push(session.client.id.to_string());
            } else if nacks.is_empty() {
                rollout.acked += 1;
            }
            rollout.nacks.extend(nacks.iter().map(|nack| nack_to_wire(&session.client.id, nack)));
        }
        rollout
    }
}

impl Now {
    /// The generation in which a revision came; of one long past: the current one.
    fn generation_of(&self, revision: u64) -> u64 {
        let known = self.revisions.iter().find(|(known, _)| *known >= revision);
        known.map_or(self.generation, |(_, generation)| *generation)
    }
}

impl State {
    fn concerned(&self, changes: &Changes) -> BTreeMap<u64, Names> {
        let mut out: BTreeMap<u64, Names> = BTreeMap::new();
        for source in &changes.sources {
            let Some(interested) = self.interest.get(&Interest::Source(source.clone())) else { continue };
            for it in interested.iter() {
                out.entry(it.session).or_default().push((it.ty, it.name.clone()));
            }
        }
        if !changes.clusters.is_empty()
            && let Some(interested) = self.interest.get(&Interest::EveryCluster)
        {
            for it in interested.iter() {
                let clusters = changes.clusters.iter().map(|name| (ResourceType::Cluster, name.clone()));
                out.entry(it.session).or_default().extend(clusters);
            }
        }
        out
    }
}

/// Whether something up to this generation is still unanswered.
fn is_pending(session: &Session, generation: u64) -> bool {
    let touched = session.report.last_touched();
    let (flushed, _) = session.report.last_flushed();
    flushed < touched && flushed < generation
}

/// A session that nothing is outstanding for runs the newest revision, whether that concerned it or not.
fn acked_revision(session: &Session, generation: u64, revision: u64) -> u64 {
    let (_, acked) = session.report.last_flushed();
    if is_pending(session, generation) { acked } else { revision }
}

/// What a wildcard of a type means to a client.
fn wildcard_interests(client: &Client, ty: ResourceType) -> Vec<(Interest, Arc<str>)> {
    if ty == ResourceType::Cluster {
        return match client.flavour {
            Flavour::Envoy if client.upstreams.is_none() => vec![(Interest::EveryCluster, EVERYTHING.into())],
            // Any route may lead on to another service.
            Flavour::Envoy => [Interest::EveryCluster, Interest::Source(Source::World)]
                .map(|interest| (interest, EVERYTHING.into()))
                .into(),
            Flavour::Sidecar | Flavour::Grpc => Vec::new(),
        };
    }
    let names = translate::fixed_names(client, ty).into_iter();
    let interests = names.filter_map(|name| {
        let source = translate::source(client, ty, &name).filter(|source| *source != Source::Constant)?;
        Some((Interest::Source(source), name))
    });
    interests.collect()
}

fn agent_label(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::Sidecar => "sidecar",
        Flavour::Envoy => "envoy",
        Flavour::Grpc => "grpc",
    }
}

/// An open session. Dropping it closes the session.
#[derive(Debug)]
pub struct Open {
    /// The session.
    pub session: Arc<Session>,
    sessions: Arc<Sessions>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.session.closed.store(true, Ordering::Relaxed);
        let mut state = self.sessions.state.lock();
        let known = state.sessions.remove(&self.session.id);
        for interest in known.into_iter().flat_map(|known| known.interests) {
            let Some(interested) = state.interest.get_mut(&interest) else { continue };
            interested.drop_session(self.session.id);
            if interested.is_empty() {
                state.interest.remove(&interest);
            }
        }
        drop(state);
        self.sessions.metrics.session(agent_label(self.session.client.flavour), false);
        self.sessions.answered.notify_waiters();
        // What it refused is refused by nobody now.
        self.sessions.report(&self.session, Vec::new());
    }
}

/// In place of a name: all of the type are to be looked at.
pub(super) const EVERYTHING: &str = "*";
/// Revisions whose generation is remembered for those who wait for one.
const REVISIONS_KEPT: usize = 256;
