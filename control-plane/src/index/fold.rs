//! Folds changes of configuration and workloads into a world, and keeps account of what they touched. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use thiserror::Error;
use weft_identity::{SpiffeId, TrustBundle};
use weft_model::{EndpointSlice, Kind, Mesh, Resource, ResourceKey, Service, TargetKind, TargetRef};

use super::{
    cluster::Facts,
    document, endpoints,
    world::{Dirty, Map, ObjectKey, ServiceEntry, ServiceKey, Set, Versioned, WorkloadEntry, World},
};
use crate::store::{Entry, Event, Log, Stored};

/// A stored document is not readable: the store was written by a version that knew more, or it was edited by hand.
#[derive(Debug, Error)]
#[error("{key} of revision {revision} cannot be read: {source}; this version of Weft is perhaps older than the data")]
pub struct DocumentError {
    /// Which.
    pub key: ResourceKey,
    /// Its revision.
    pub revision: u64,
    /// Why.
    pub source: serde_yaml::Error,
}

/// The world in the making. One owner.
#[derive(Debug)]
pub struct Fold {
    pub(super) world: World,
    pub(super) declared: BTreeMap<ServiceKey, Versioned<Service>>,
    slices: BTreeMap<ObjectKey, Arc<EndpointSlice>>,
    /// Names of the slices of each service.
    slices_of: BTreeMap<ServiceKey, BTreeSet<ObjectKey>>,
    dirty: BTreeSet<Dirty>,
    /// Of a cluster, when there is one.
    pub(super) facts: Option<Facts>,
}

impl Fold {
    /// An empty mesh.
    pub fn new(bundle: &TrustBundle) -> Self {
        let world = World {
            revision: 0,
            generation: 0,
            services: Map::default(),
            selecting: Set::default(),
            addresses: Map::default(),
            http_routes: Map::default(),
            grpc_routes: Map::default(),
            traffic_policies: Map::default(),
            access_policies: Map::default(),
            mesh: Versioned { resource: Arc::new(Mesh::unset()), revision: 0 },
            workloads: Map::default(),
            roots: roots(bundle),
            trust_domain: bundle.trust_domain().clone(),
        };
        Self {
            world,
            declared: BTreeMap::new(),
            slices: BTreeMap::new(),
            slices_of: BTreeMap::new(),
            dirty: BTreeSet::new(),
            facts: None,
        }
    }

    /// Takes over everything that a log holds, in place of what was there. Everything is dirty.
    /// # Errors
    /// A document cannot be read; nothing has changed.
    pub fn reset(&mut self, log: &Log) -> Result<(), DocumentError> {
        let read = |(key, stored): (&ResourceKey, &Arc<Stored>)| Ok((document::read(key, stored)?, stored.revision));
        let documents = log.current().iter().map(read).collect::<Result<Vec<_>, DocumentError>>()?;
        let gone: Vec<_> = self.keys();
        // A cluster's slices are not in the log, and stay.
        let stays = |key: &ResourceKey| self.facts.is_some() && key.kind == Kind::EndpointSlice;
        for key in gone.into_iter().filter(|key| !stays(key)).collect::<Vec<_>>() {
            self.delete(&key);
        }
        for (resource, revision) in documents {
            self.set(resource, revision);
        }
        self.world.revision = log.head();
        self.dirty.insert(Dirty::Mesh);
        Ok(())
    }

    /// One change of the log.
    /// # Errors
    /// A document cannot be read; nothing has changed.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), DocumentError> {
        let mut resources = Vec::with_capacity(entry.events.len());
        for event in &entry.events {
            resources.push(match event {
                Event::Delete { key } => Err(key),
                Event::Set { key, api_version, yaml } => {
                    let stored =
                        Stored { api_version: api_version.clone(), yaml: yaml.clone(), revision: entry.revision };
                    Ok(document::read(key, &stored)?)
                }
            });
        }
        for resource in resources {
            match resource {
                Ok(resource) => self.set(resource, entry.revision),
                Err(key) => self.delete(key),
            }
        }
        self.world.revision = entry.revision;
        Ok(())
    }

    /// A workload came, changed or (`None`) went.
    pub fn workload(&mut self, id: &Arc<str>, workload: Option<Arc<WorkloadEntry>>) {
        let workload = self.registered(id, workload);
        let before = self.world.workloads.get(id).cloned();
        if before == workload {
            return;
        }
        match workload.clone() {
            Some(workload) => self.world.workloads.insert_mut(id.clone(), workload),
            None => drop(self.world.workloads.remove_mut(id)),
        }
        let mut services = BTreeSet::new();
        for workload in before.iter().chain(&workload) {
            services.insert(workload.service.clone());
            services.extend(self.addressed(workload).cloned());
            for key in self.world.selecting_in(&workload.service.namespace) {
                if endpoints::serves(workload, key, &self.declared[key].resource) {
                    services.insert(key.clone());
                }
            }
        }
        for key in services {
            self.rebuild(&key);
        }
    }

    /// The trust bundle as it is now.
    pub fn bundle(&mut self, bundle: &TrustBundle) {
        let roots = roots(bundle);
        if self.world.roots != roots {
            self.world.roots = roots;
            self.dirty.insert(Dirty::Bundle);
        }
    }

    /// The world as it is now.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The world to publish next, and what was touched since the last.
    pub fn publish(&mut self) -> (World, BTreeSet<Dirty>) {
        self.world.generation += 1;
        (self.world.clone(), std::mem::take(&mut self.dirty))
    }

    pub(super) fn set(&mut self, resource: Resource, revision: u64) {
        let key = resource.key();
        let object = ObjectKey::new(key.namespace.as_str(), key.name.as_str());
        match resource {
            Resource::Service(service) => {
                match service.spec.selector.is_empty() {
                    true => drop(self.world.selecting.remove_mut(&object)),
                    false => self.world.selecting.insert_mut(object.clone()),
                }
                self.declared.insert(object.clone(), Versioned { resource: service, revision });
                self.rebuild(&object);
            }
            Resource::EndpointSlice(slice) => {
                let service = slice_service(&slice);
                let before = self.drop_slice(&object);
                if let Some(service) = &service {
                    if let Some(facts) = &mut self.facts {
                        facts.set_slice(&object, Some(service), &slice);
                    }
                    self.slices_of.entry(service.clone()).or_default().insert(object.clone());
                }
                self.slices.insert(object, slice);
                self.rebuild_all(before.into_iter().chain(service));
            }
            Resource::HttpRoute(route) => {
                self.touch_route(Kind::HttpRoute, &object);
                self.world.http_routes.insert_mut(object.clone(), Versioned { resource: route, revision });
                self.touch_route(Kind::HttpRoute, &object);
            }
            Resource::GrpcRoute(route) => {
                self.touch_route(Kind::GrpcRoute, &object);
                self.world.grpc_routes.insert_mut(object.clone(), Versioned { resource: route, revision });
                self.touch_route(Kind::GrpcRoute, &object);
            }
            Resource::TrafficPolicy(policy) => {
                self.touch_targets(&object.namespace, &policy.spec.target_refs);
                let policy = Versioned { resource: policy, revision };
                if let Some(before) = self.world.traffic_policies.get(&object).cloned() {
                    self.touch_targets(&object.namespace, &before.resource.spec.target_refs);
                }
                self.world.traffic_policies.insert_mut(object, policy);
            }
            Resource::AccessPolicy(policy) => {
                self.touch_targets(&object.namespace, &policy.spec.target_refs);
                let policy = Versioned { resource: policy, revision };
                if let Some(before) = self.world.access_policies.get(&object).cloned() {
                    self.touch_targets(&object.namespace, &before.resource.spec.target_refs);
                }
                self.world.access_policies.insert_mut(object, policy);
            }
            Resource::Mesh(mesh) => {
                self.world.mesh = Versioned { resource: mesh, revision };
                self.dirty.insert(Dirty::Mesh);
            }
        }
    }

    pub(super) fn delete(&mut self, key: &ResourceKey) {
        let object = ObjectKey::new(key.namespace.as_str(), key.name.as_str());
        match key.kind {
            Kind::Service => {
                self.world.selecting.remove_mut(&object);
                if self.declared.remove(&object).is_some() {
                    // Its workloads may go on as an implicit service; an old implicit one is not remembered.
                    self.world.put(&object, None);
                    self.rebuild(&object);
                    self.touch_service(&object);
                }
            }
            Kind::EndpointSlice => {
                let before = self.drop_slice(&object);
                self.rebuild_all(before.into_iter());
            }
            Kind::HttpRoute => {
                self.touch_route(Kind::HttpRoute, &object);
                self.world.http_routes.remove_mut(&object);
            }
            Kind::GrpcRoute => {
                self.touch_route(Kind::GrpcRoute, &object);
                self.world.grpc_routes.remove_mut(&object);
            }
            Kind::TrafficPolicy => {
                if let Some(before) = self.world.traffic_policies.get(&object).cloned() {
                    self.world.traffic_policies.remove_mut(&object);
                    self.touch_targets(&object.namespace, &before.resource.spec.target_refs);
                }
            }
            Kind::AccessPolicy => {
                if let Some(before) = self.world.access_policies.get(&object).cloned() {
                    self.world.access_policies.remove_mut(&object);
                    self.touch_targets(&object.namespace, &before.resource.spec.target_refs);
                }
            }
            Kind::Mesh => {
                self.world.mesh = Versioned { resource: Arc::new(Mesh::unset()), revision: 0 };
                self.dirty.insert(Dirty::Mesh);
            }
        }
    }

    /// Keys of everything configured.
    fn keys(&self) -> Vec<ResourceKey> {
        let key = |kind| move |key: &ObjectKey| ResourceKey::new(kind, key.namespace.as_str(), key.name.as_str());
        let mut keys: Vec<_> = self.declared.keys().map(key(Kind::Service)).collect();
        keys.extend(self.slices.keys().map(key(Kind::EndpointSlice)));
        keys.extend(self.world.http_routes.keys().map(key(Kind::HttpRoute)));
        keys.extend(self.world.grpc_routes.keys().map(key(Kind::GrpcRoute)));
        keys.extend(self.world.traffic_policies.keys().map(key(Kind::TrafficPolicy)));
        keys.extend(self.world.access_policies.keys().map(key(Kind::AccessPolicy)));
        keys.push(ResourceKey::new(Kind::Mesh, "", self.world.mesh.resource.metadata.name.as_str()));
        keys
    }

    pub(super) fn rebuild_all(&mut self, services: impl Iterator<Item = ServiceKey>) {
        for key in services.collect::<BTreeSet<_>>() {
            self.rebuild(&key);
        }
    }

    /// Makes one service's entry anew; marks it dirty as far as it changed.
    fn rebuild(&mut self, key: &ServiceKey) {
        let before = self.world.services.get(key).cloned();
        let Some(after) = self.entry(key, before.as_deref()) else {
            if before.is_some() {
                self.world.put(key, None);
                self.touch_service(key);
            }
            return;
        };
        match before {
            Some(before) if same_declaration(&before, &after) => {
                if before.endpoints == after.endpoints {
                    return;
                }
                self.dirty.insert(Dirty::Endpoints(key.clone()));
            }
            _ => self.touch_service(key),
        }
        self.world.put(key, Some(after));
    }

    fn entry(&self, key: &ServiceKey, before: Option<&ServiceEntry>) -> Option<ServiceEntry> {
        let declared = self.declared.get(key);
        let service = match declared {
            Some(declared) => declared.resource.clone(),
            None if self.world.registered(key).next().is_some() => {
                let service = endpoints::implicit(key, self.world.registered(key));
                // The same as before stays the same allocation.
                match before.filter(|before| before.implicit && *before.service == service) {
                    Some(before) => before.service.clone(),
                    None => Arc::new(service),
                }
            }
            // When the last workload has gone, callers are told so, rather than that there never was such a service.
            None => before.filter(|before| before.implicit)?.service.clone(),
        };
        let workloads: Vec<_> = match service.spec.selector.is_empty() {
            true => self.world.registered(key).collect(),
            false => {
                let all = self.world.workloads_of(&key.namespace);
                all.filter(|workload| endpoints::serves(workload, key, &service)).collect()
            }
        };
        // A service that is only remembered has no addresses: a restart forgets it.
        let there = declared.is_some() || !workloads.is_empty();
        let slices = self.slices_of.get(key).filter(|_| there).into_iter().flatten().map(|name| &self.slices[name]);
        let owners = self.own_accounts(key, &service);
        let endpoints = match &self.facts {
            None => endpoints::of(&service, workloads.iter().copied(), slices),
            Some(facts) => {
                // The cluster has weighed labels and probes already: what its slices do not name gets no traffic.
                let listed = declared.is_some() && !service.spec.selector.is_empty();
                let own = workloads.iter().copied().filter(|_| !listed);
                let known = |id: &str| self.world.workloads.get(id).cloned();
                let identity = |account: &str| SpiffeId::new(&self.world.trust_domain, &key.namespace, account).ok();
                let of_slice = |slice| facts.of_slice(key, &service, slice, &known, &identity);
                endpoints::joined(&service, own, slices.flat_map(|slice| of_slice(slice)))
            }
        };
        Some(ServiceEntry {
            accounts: endpoints::accounts(owners.iter().cloned(), workloads.iter().copied()),
            owners,
            endpoints,
            implicit: declared.is_none(),
            revision: declared.map_or(0, |declared| declared.revision),
            service,
        })
    }

    /// Forgets a slice; the service that it was one of.
    fn drop_slice(&mut self, name: &ObjectKey) -> Option<ServiceKey> {
        let slice = self.slices.remove(name)?;
        if let Some(facts) = &mut self.facts {
            facts.set_slice(name, None, &slice);
        }
        let service = slice_service(&slice)?;
        if let Some(names) = self.slices_of.get_mut(&service) {
            names.remove(name);
            if names.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        Some(service)
    }

    /// Who may speak for a service: its own account, those it names, and in a cluster those of its pods. In order.
    fn own_accounts(&self, key: &ServiceKey, service: &Service) -> Arc<[SpiffeId]> {
        let mut names: BTreeSet<&str> = std::iter::once(key.name.as_str()).chain(service.service_accounts()).collect();
        if let Some(facts) = &self.facts {
            names.extend(facts.accounts(key, service));
        }
        let id = |name: &str| match SpiffeId::new(&self.world.trust_domain, &key.namespace, name) {
            Ok(id) => Some(id),
            Err(error) => {
                tracing::warn!(service = %key, account = name, %error, "not a service account");
                None
            }
        };
        names.into_iter().filter_map(id).collect()
    }

    /// A service's declaration changed: it itself, and the services whose routes lead to it.
    fn touch_service(&mut self, key: &ServiceKey) {
        self.dirty.insert(Dirty::Service(key.clone()));
        let mut parents = Vec::new();
        for (route, http) in &self.world.http_routes {
            let mut backends = http.resource.spec.rules.iter().flat_map(|rule| &rule.backend_refs);
            if backends.any(|backend| backend.service(&route.namespace) == *key) {
                parents.extend(http.resource.spec.parent_refs.iter().map(|parent| parent.service(&route.namespace)));
            }
        }
        for (route, grpc) in &self.world.grpc_routes {
            let mut backends = grpc.resource.spec.rules.iter().flat_map(|rule| &rule.backend_refs);
            if backends.any(|backend| backend.service(&route.namespace) == *key) {
                parents.extend(grpc.resource.spec.parent_refs.iter().map(|parent| parent.service(&route.namespace)));
            }
        }
        self.dirty.extend(parents.into_iter().map(Dirty::Service));
    }

    /// A route changed: the services whose traffic it takes.
    fn touch_route(&mut self, kind: Kind, route: &ObjectKey) {
        let parents = match kind {
            Kind::HttpRoute => self.world.http_routes.get(route).map(|route| &route.resource.spec.parent_refs),
            _ => self.world.grpc_routes.get(route).map(|route| &route.resource.spec.parent_refs),
        };
        let parents = parents.into_iter().flatten().map(|parent| Dirty::Service(parent.service(&route.namespace)));
        self.dirty.extend(parents);
    }

    /// A policy changed: the services that it is for, directly or by their routes.
    fn touch_targets(&mut self, namespace: &str, targets: &[TargetRef]) {
        for target in targets {
            let object = ObjectKey::new(namespace, target.name.as_str());
            match target.kind {
                TargetKind::Service => drop(self.dirty.insert(Dirty::Service(object))),
                TargetKind::HttpRoute => self.touch_route(Kind::HttpRoute, &object),
                TargetKind::GrpcRoute => self.touch_route(Kind::GrpcRoute, &object),
            }
        }
    }
}

fn same_declaration(a: &ServiceEntry, b: &ServiceEntry) -> bool {
    Arc::ptr_eq(&a.service, &b.service) && a.implicit == b.implicit && a.accounts == b.accounts && a.owners == b.owners
}

fn roots(bundle: &TrustBundle) -> Arc<Vec<Vec<u8>>> {
    Arc::new(bundle.roots().iter().map(|root| root.to_vec()).collect())
}

fn slice_service(slice: &EndpointSlice) -> Option<ServiceKey> {
    Some(ServiceKey::new(slice.metadata.namespace.as_str(), slice.service()?))
}
