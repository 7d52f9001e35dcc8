//! What the watches said, and what follows from it for the mesh. Pure: no clock, no I/O.
//!
//! Nothing is taken away because it was not heard of: only a whole list, or the word that an object is gone, removes. An
//! object that cannot be obeyed changes nothing: the last good one stays in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;
use weft_model::{EndpointSlice, Finding, Kind, Resource, ResourceKey};

use super::{
    discovery::{Changes, Held},
    read::{Object, Reading, Subject},
};
use crate::index::{ObjectKey, PodEntry};

/// One watch: a kind, in one namespace or in all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// What it is about.
    pub subject: Subject,
    /// `None`: the whole cluster.
    pub namespace: Option<String>,
}

impl Scope {
    /// What is to be watched; `namespaces` empty: all of them.
    pub fn all(namespaces: &[String]) -> Vec<Self> {
        let mut scopes = Vec::new();
        for subject in Subject::ALL {
            match subject.namespaced() && !namespaces.is_empty() {
                true => scopes.extend(namespaces.iter().map(|name| Self { subject, namespace: Some(name.clone()) })),
                false => scopes.push(Self { subject, namespace: None }),
            }
        }
        scopes
    }

    fn covers(&self, subject: Subject, key: &ObjectKey) -> bool {
        self.subject == subject && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
    }
}

/// What a watch says.
#[derive(Debug)]
pub enum Heard {
    /// A list begins.
    Begin,
    /// An object is now this.
    Set(Box<Object>),
    /// An object is gone.
    Gone(ObjectKey),
    /// The list is complete.
    Listed,
    /// The cluster does not know the kind.
    NotInstalled,
}

/// An object that may get a status, as it was last seen.
#[derive(Debug, Clone)]
pub struct Known {
    /// Version of its spec.
    pub generation: i64,
    /// Version of the object.
    pub resource_version: String,
    /// Of a route: its parents that are Services, as written.
    pub parents: Vec<Value>,
    /// As in [`Object`].
    pub status: Vec<Value>,
    /// What is wrong with it by itself.
    pub invalid: Vec<Finding>,
}

/// Changes that belong together.
#[derive(Debug, Default)]
pub struct Batch {
    /// For the log. `None`: gone.
    pub resources: BTreeMap<ResourceKey, Option<Resource>>,
    /// For the index.
    pub discovery: Changes,
}

#[derive(Debug, Default)]
struct Progress {
    /// What the list under way has named.
    seen: Option<BTreeSet<ObjectKey>>,
    /// It was whole once, or there is no such kind.
    complete: bool,
}

/// The state of all watches.
#[derive(Debug)]
pub struct State {
    scopes: BTreeMap<Scope, Progress>,
    objects: BTreeMap<ResourceKey, Known>,
    /// What the log and the tables hold, or will hold after this batch.
    held: BTreeMap<Subject, BTreeSet<ObjectKey>>,
    /// As they were last heard of: a whole list repeats what is known.
    pods: BTreeMap<ObjectKey, Arc<PodEntry>>,
    slices: BTreeMap<ObjectKey, Arc<EndpointSlice>>,
    batch: Batch,
    /// What statuses depend on has changed.
    touched: bool,
    /// Nothing is known from before: the mesh begins with everything, or with nothing. A Service must not be there a
    /// moment before the AccessPolicy that guards it.
    holding: bool,
}

impl State {
    /// A state that knows what is held from before.
    pub fn new(scopes: Vec<Scope>, configured: impl Iterator<Item = ResourceKey>, discovered: Held) -> Self {
        let mut held: BTreeMap<Subject, BTreeSet<ObjectKey>> = BTreeMap::new();
        for key in configured.filter(|key| key.kind != Kind::EndpointSlice) {
            held.entry(Subject::Kind(key.kind)).or_default().insert(ObjectKey::new(key.namespace, key.name));
        }
        held.insert(Subject::Pod, discovered.pods);
        held.insert(Subject::Kind(Kind::EndpointSlice), discovered.slices);
        let holding = held.values().all(BTreeSet::is_empty);
        let scopes = scopes.into_iter().map(|scope| (scope, Progress::default())).collect();
        Self {
            scopes,
            objects: BTreeMap::new(),
            held,
            pods: BTreeMap::new(),
            slices: BTreeMap::new(),
            batch: Batch::default(),
            touched: false,
            holding,
        }
    }

    /// A watch said something.
    pub fn on(&mut self, scope: &Scope, heard: Heard) {
        match heard {
            Heard::Begin => self.progress(scope).seen = Some(BTreeSet::new()),
            Heard::Set(object) => {
                if let Some(seen) = &mut self.progress(scope).seen {
                    seen.insert(object.key.clone());
                }
                self.set(scope.subject, *object);
            }
            Heard::Gone(key) => self.drop(scope.subject, &key),
            Heard::Listed => self.listed(scope),
            // Objects that were there stay: a kind that is gone took them along one by one.
            Heard::NotInstalled => self.progress(scope).complete = true,
        }
    }

    /// What is to be done; `None` while the first lists are not complete.
    pub fn take(&mut self) -> Option<Batch> {
        if self.holding {
            if !self.complete() {
                return None;
            }
            self.holding = false;
        }
        Some(std::mem::take(&mut self.batch))
    }

    /// Whether statuses are to be looked at anew.
    pub fn take_touched(&mut self) -> bool {
        std::mem::take(&mut self.touched)
    }

    /// Whether every watch had a whole list once.
    pub fn complete(&self) -> bool {
        self.scopes.values().all(|progress| progress.complete)
    }

    /// Whether the mesh has a configuration, of now or from before.
    pub fn holding(&self) -> bool {
        self.holding
    }

    /// Objects that may get a status.
    pub fn objects(&self) -> impl Iterator<Item = (&ResourceKey, &Known)> {
        self.objects.iter()
    }

    /// How many objects of a scope are held, and how many of them cannot be obeyed.
    pub fn count(&self, scope: &Scope) -> (usize, usize) {
        let all = self.held.get(&scope.subject).into_iter().flatten();
        let held = all.filter(|key| scope.covers(scope.subject, key)).count();
        let invalid = self.objects.iter().filter(|(key, known)| {
            let object = ObjectKey::new(key.namespace.as_str(), key.name.as_str());
            !known.invalid.is_empty() && scope.covers(Subject::Kind(key.kind), &object)
        });
        (held, invalid.count())
    }

    fn progress(&mut self, scope: &Scope) -> &mut Progress {
        self.scopes.entry(scope.clone()).or_default()
    }

    fn set(&mut self, subject: Subject, object: Object) {
        let Object { key, generation, resource_version, reading, parents, status } = object;
        let known = |invalid| Known { generation, resource_version, parents, status, invalid };
        let before = self.held.entry(subject).or_default();
        match (subject, reading) {
            (Subject::Pod, Reading::Pod(pod)) => {
                before.insert(key.clone());
                if self.pods.get(&key).is_none_or(|before| **before != pod) {
                    let pod = Arc::new(pod);
                    self.pods.insert(key.clone(), pod.clone());
                    self.batch.discovery.pods.insert(key, Some(pod));
                }
            }
            (Subject::Kind(_), Reading::Resource(Resource::EndpointSlice(slice))) => {
                let there = !before.insert(key.clone());
                self.objects.remove(&resource_key(Kind::EndpointSlice, &key));
                if self.slices.get(&key).is_none_or(|before| *before != slice) {
                    // One that was there may name fewer addresses now.
                    self.batch.discovery.urgent |= there;
                    self.slices.insert(key.clone(), slice.clone());
                    self.batch.discovery.slices.insert(key, Some(slice));
                }
            }
            (Subject::Kind(kind), Reading::Resource(resource)) => {
                before.insert(key.clone());
                self.touched = true;
                let key = resource_key(kind, &key);
                self.objects.insert(key.clone(), known(Vec::new()));
                self.batch.resources.insert(key, Some(resource));
            }
            (Subject::Kind(kind), Reading::Invalid(findings)) => {
                let key = resource_key(kind, &key);
                if self.objects.get(&key).is_none_or(|before| before.invalid != findings) {
                    tell(&key, &findings);
                }
                self.touched = true;
                self.objects.insert(key, known(findings));
            }
            (Subject::Kind(kind), _) => {
                self.drop(subject, &key);
                // A status from before is to go.
                self.objects.insert(resource_key(kind, &key), known(Vec::new()));
            }
            (Subject::Pod, _) => {}
        }
    }

    fn drop(&mut self, subject: Subject, key: &ObjectKey) {
        let there = self.held.entry(subject).or_default().remove(key);
        self.touched |= !matches!(subject, Subject::Pod | Subject::Kind(Kind::EndpointSlice));
        match subject {
            Subject::Pod => {
                self.pods.remove(key);
                if there {
                    self.batch.discovery.pods.insert(key.clone(), None);
                }
            }
            Subject::Kind(Kind::EndpointSlice) => {
                self.objects.remove(&resource_key(Kind::EndpointSlice, key));
                self.slices.remove(key);
                if there {
                    self.batch.discovery.slices.insert(key.clone(), None);
                    self.batch.discovery.urgent = true;
                }
            }
            Subject::Kind(kind) => {
                let key = resource_key(kind, key);
                self.objects.remove(&key);
                if there {
                    self.batch.resources.insert(key, None);
                }
            }
        }
    }

    fn listed(&mut self, scope: &Scope) {
        let progress = self.progress(scope);
        progress.complete = true;
        let Some(seen) = progress.seen.take() else { return };
        let subject = scope.subject;
        let watched = |key: &ObjectKey| self.scopes.keys().any(|scope| scope.covers(subject, key));
        let held = self.held.get(&subject).into_iter().flatten();
        // What no watch covers any more goes as well: the flags were others when it came.
        let gone = held.filter(|key| !seen.contains(*key) && (scope.covers(subject, key) || !watched(key)));
        for key in gone.cloned().collect::<Vec<_>>() {
            self.drop(subject, &key);
        }
        let Subject::Kind(kind) = subject else { return };
        self.objects.retain(|key, _| {
            let object = ObjectKey::new(key.namespace.as_str(), key.name.as_str());
            key.kind != kind || !scope.covers(subject, &object) || seen.contains(&object)
        });
    }
}

fn resource_key(kind: Kind, key: &ObjectKey) -> ResourceKey {
    ResourceKey::new(kind, key.namespace.as_str(), key.name.as_str())
}

fn tell(key: &ResourceKey, findings: &[Finding]) {
    for finding in findings.iter().take(3) {
        let (field, message, hint) = (&finding.field, &finding.message, &finding.hint);
        tracing::warn!(object = %key, field, hint, "not obeyed, the last good version stays in force: {message}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kubernetes::read::read;

    const POLICY: Subject = Subject::Kind(Kind::TrafficPolicy);

    fn state(held: &[ResourceKey]) -> State {
        State::new(Scope::all(&[]), held.iter().cloned(), Held::default())
    }

    fn scope(subject: Subject) -> Scope {
        Scope { subject, namespace: None }
    }

    fn policy(name: &str, generation: i64, timeout: &str) -> Heard {
        let object = json!({
            "metadata": { "name": name, "namespace": "shop", "generation": generation, "resourceVersion": "1" },
            "spec": { "targetRefs": [{ "kind": "Service", "name": "orders" }], "timeouts": { "request": timeout } }
        });
        Heard::Set(Box::new(read(POLICY, &object)))
    }

    fn list(state: &mut State, subject: Subject, objects: Vec<Heard>) {
        state.on(&scope(subject), Heard::Begin);
        for object in objects {
            state.on(&scope(subject), object);
        }
        state.on(&scope(subject), Heard::Listed);
    }

    fn key(name: &str) -> ResourceKey {
        ResourceKey::new(Kind::TrafficPolicy, "shop", name)
    }

    #[test]
    fn the_first_mesh_is_whole_or_not_there() {
        let mut state = state(&[]);
        list(&mut state, POLICY, vec![policy("a", 1, "1s")]);
        assert!(state.take().is_none() && state.holding(), "the other lists have not come");
        for subject in Subject::ALL.into_iter().filter(|subject| *subject != POLICY) {
            assert!(state.take().is_none());
            match subject.optional() {
                true => state.on(&scope(subject), Heard::NotInstalled),
                false => list(&mut state, subject, vec![]),
            }
        }
        let batch = state.take().unwrap();
        assert_eq!(batch.resources.keys().collect::<Vec<_>>(), [&key("a")]);
        assert!(!state.holding());
    }

    #[test]
    fn only_a_whole_list_takes_away_what_it_does_not_name() {
        let mut state = state(&[key("a"), key("b")]);
        assert!(!state.holding(), "there is something to go on with");
        state.on(&scope(POLICY), Heard::Begin);
        state.on(&scope(POLICY), policy("a", 1, "1s"));
        // The list broke off, and another one begins.
        state.on(&scope(POLICY), Heard::Begin);
        assert!(state.take().unwrap().resources.values().all(Option::is_some));
        state.on(&scope(POLICY), policy("a", 1, "1s"));
        state.on(&scope(POLICY), Heard::Listed);
        assert_eq!(state.take().unwrap().resources[&key("b")], None);
        state.on(&scope(POLICY), Heard::NotInstalled);
        assert!(state.take().unwrap().resources.is_empty());
        assert_eq!(state.count(&scope(POLICY)), (1, 0));
    }

    #[test]
    fn what_cannot_be_obeyed_changes_nothing_and_is_known() {
        let mut state = state(&[key("a")]);
        list(&mut state, POLICY, vec![policy("a", 1, "1s")]);
        state.take();
        state.on(&scope(POLICY), policy("a", 2, "soon"));
        assert!(state.take().unwrap().resources.is_empty());
        assert_eq!(state.count(&scope(POLICY)), (1, 1));
        let (_, known) = state.objects().next().unwrap();
        assert_eq!((known.generation, &*known.invalid[0].field), (2, "spec.timeouts.request"));
        // A list with the broken one in it leaves the good one in force.
        list(&mut state, POLICY, vec![policy("a", 2, "soon")]);
        assert!(state.take().unwrap().resources.is_empty());
        state.on(&scope(POLICY), policy("a", 3, "2s"));
        assert!(state.take().unwrap().resources[&key("a")].is_some());
        assert_eq!(state.count(&scope(POLICY)), (1, 0));
        state.on(&scope(POLICY), Heard::Gone(ObjectKey::new("shop", "a")));
        assert_eq!(state.take().unwrap().resources[&key("a")], None);
    }

    #[test]
    fn a_list_that_repeats_what_is_known_changes_nothing() {
        let pod = |account: &str| {
            let object = json!({
                "metadata": { "name": "a", "namespace": "shop" },
                "spec": { "serviceAccountName": account },
                "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }] }
            });
            Heard::Set(Box::new(read(Subject::Pod, &object)))
        };
        let mut state = state(&[key("a")]);
        list(&mut state, Subject::Pod, vec![pod("one")]);
        assert_eq!(state.take().unwrap().discovery.pods.len(), 1);
        list(&mut state, Subject::Pod, vec![pod("one")]);
        assert!(state.take().unwrap().discovery.is_empty());
        list(&mut state, Subject::Pod, vec![pod("two")]);
        assert_eq!(state.take().unwrap().discovery.pods.len(), 1);
        list(&mut state, Subject::Pod, vec![]);
        assert_eq!(state.take().unwrap().discovery.pods.values().collect::<Vec<_>>(), [&None]);
        assert!(!state.take_touched(), "no status depends on pods");
    }

    #[test]
    fn namespaces_that_are_no_longer_watched_are_let_go() {
        let other = ResourceKey::new(Kind::TrafficPolicy, "other", "a");
        let scopes = Scope::all(&["shop".to_owned(), "bar".to_owned()]);
        assert_eq!(scopes.len(), 7 * 2 + 1, "a Mesh has no namespace");
        let mut state = State::new(scopes, [key("a"), other.clone()].into_iter(), Held::default());
        let bar = Scope { subject: POLICY, namespace: Some("bar".to_owned()) };
        state.on(&bar, Heard::Begin);
        state.on(&bar, Heard::Listed);
        let batch = state.take().unwrap();
        assert_eq!(batch.resources.into_iter().collect::<Vec<_>>(), [(other, None)], "shop has a list of its own");
    }
}
