//! What only a cluster knows: its pods. They say which account may speak for a service, which endpoint has a sidecar, and
//! which labels a workload has. Pure.
//!
//! An address of an EndpointSlice, a pod and a registered workload are one endpoint when they have the same address in
//! the same namespace: it appears once, behind its sidecar when it has one, in plain text when it has none.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use weft_identity::SpiffeId;
use weft_model::{EndpointSlice, Resource, ResourceKey, Service, SliceEndpoint};
use weft_xds::resource::Health;

use super::{
    endpoints,
    fold::Fold,
    world::{EndpointEntry, EndpointPort, ObjectKey, ServiceKey, WorkloadEntry},
};

/// A pod, as far as the mesh is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodEntry {
    /// Its own addresses; empty while it has none, or when it uses those of its node.
    pub ips: Vec<IpAddr>,
    /// Its service account.
    pub account: String,
    /// What selectors look at.
    pub labels: BTreeMap<String, String>,
    /// Inbound port of its sidecar. `None`: it has none.
    pub inbound: Option<u16>,
}

/// The facts, and where to find them by address.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pods: BTreeMap<ObjectKey, Arc<PodEntry>>,
    pod_at: BTreeMap<At, ObjectKey>,
    /// As they registered, without what their pods add.
    registered: BTreeMap<Arc<str>, Arc<WorkloadEntry>>,
    workloads_at: BTreeMap<At, BTreeSet<Arc<str>>>,
    /// Slices that name an address, and the service of each.
    slices_at: BTreeMap<At, BTreeMap<ObjectKey, ServiceKey>>,
}

type At = (String, IpAddr);

impl Facts {
    fn pod(&self, namespace: &str, ip: IpAddr) -> Option<&Arc<PodEntry>> {
        self.pods.get(self.pod_at.get(&(namespace.to_owned(), ip))?)
    }

    fn pods_of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<PodEntry>> {
        let from = self.pods.range(ObjectKey::new(namespace, String::new())..);
        from.take_while(move |(key, _)| key.namespace == namespace).map(|(_, pod)| pod)
    }

    fn services_at(&self, namespace: &str, ip: IpAddr) -> impl Iterator<Item = &ServiceKey> {
        self.slices_at.get(&(namespace.to_owned(), ip)).into_iter().flat_map(BTreeMap::values)
    }

    fn set_pod(&mut self, key: &ObjectKey, pod: Option<Arc<PodEntry>>) -> Option<Arc<PodEntry>> {
        let before = match &pod {
            Some(pod) => self.pods.insert(key.clone(), pod.clone()),
            None => self.pods.remove(key),
        };
        for ip in before.iter().flat_map(|pod| &pod.ips) {
            let at = (key.namespace.clone(), *ip);
            // An address may have gone to another pod since.
            if self.pod_at.get(&at) == Some(key) {
                self.pod_at.remove(&at);
            }
        }
        for ip in pod.iter().flat_map(|pod| &pod.ips) {
            self.pod_at.insert((key.namespace.clone(), *ip), key.clone());
        }
        before
    }

    fn set_registered(&mut self, id: &Arc<str>, workload: Option<Arc<WorkloadEntry>>) {
        let at = |workload: &WorkloadEntry| (workload.service.namespace.clone(), workload.address.ip());
        let before = match &workload {
            Some(workload) => self.registered.insert(id.clone(), workload.clone()),
            None => self.registered.remove(id),
        };
        if let Some(before) = before
            && let Some(ids) = self.workloads_at.get_mut(&at(&before))
        {
            ids.remove(id);
            if ids.is_empty() {
                self.workloads_at.remove(&at(&before));
            }
        }
        if let Some(workload) = workload {
            self.workloads_at.entry(at(&workload)).or_default().insert(id.clone());
        }
    }

    pub(super) fn set_slice(&mut self, name: &ObjectKey, service: Option<&ServiceKey>, slice: &EndpointSlice) {
        for ip in slice.endpoints.iter().flat_map(SliceEndpoint::addresses) {
            let at = (name.namespace.clone(), ip);
            match service {
                Some(service) => {
                    self.slices_at.entry(at).or_default().insert(name.clone(), service.clone());
                }
                None => {
                    if let Some(slices) = self.slices_at.get_mut(&at) {
                        slices.remove(name);
                        if slices.is_empty() {
                            self.slices_at.remove(&at);
                        }
                    }
                }
            }
        }
    }

    /// Accounts of the pods that a service picks.
    pub(super) fn accounts<'a>(&'a self, key: &'a ServiceKey, service: &'a Service) -> BTreeSet<&'a str> {
        let picked = self.pods_of(&key.namespace).filter(|pod| picks(service, &pod.labels));
        picked.map(|pod| pod.account.as_str()).collect()
    }

    /// Endpoints of a slice, each behind its sidecar when it has one.
    pub(super) fn of_slice(
        &self,
        key: &ServiceKey,
        service: &Service,
        slice: &EndpointSlice,
        workloads: &dyn Fn(&str) -> Option<Arc<WorkloadEntry>>,
        identity: &dyn Fn(&str) -> Option<SpiffeId>,
    ) -> Vec<EndpointEntry> {
        let mut found = Vec::new();
        for mut endpoint in endpoints::of_slice(service, slice) {
            let pod = self.pod(&key.namespace, endpoint.ip);
            let ids = self.workloads_at.get(&(key.namespace.clone(), endpoint.ip));
            // An address is anybody's to claim, a certificate is not: a pod's workload has the pod's account.
            let own = |workload: &Arc<WorkloadEntry>| match pod {
                Some(pod) => workload.identity.account() == pod.account,
                None => workload.service == *key || picks(service, &workload.labels),
            };
            let here = ids.into_iter().flatten().filter_map(|id| workloads(id)).filter(own);
            // A sidecar that was started anew has left an older entry behind, until its lease is over.
            if let Some(workload) = here.max_by_key(|workload| workload.health == Health::Healthy) {
                if workload.health != Health::Draining {
                    found.extend(behind(service, endpoint, &workload));
                }
                continue;
            }
            if let Some((pod, inbound)) = pod.and_then(|pod| Some((pod, pod.inbound?))) {
                // Its sidecar has not registered, or its lease ran out: it is never called in plain text.
                let Some(identity) = identity(&pod.account) else { continue };
                endpoint.identity = Some(identity);
                endpoint.ports = endpoint.ports.iter().map(|port| EndpointPort { target: inbound, ..*port }).collect();
                endpoint.labels = Arc::new(pod.labels.clone());
            }
            found.push(endpoint);
        }
        found
    }
}

/// A slice's endpoint as the workload that it is.
fn behind(service: &Service, endpoint: EndpointEntry, workload: &Arc<WorkloadEntry>) -> Option<EndpointEntry> {
    let own = endpoints::of_workload(service, workload)?;
    // The cluster knows where the application listens, the sidecar where it does itself.
    let listed = |own: &EndpointPort| {
        let port = endpoint.ports.iter().find(|port| port.service == own.service)?;
        Some(EndpointPort { target: own.target, ..*port })
    };
    let ports: Arc<[EndpointPort]> = own.ports.iter().filter_map(listed).collect();
    // Both must find it fit: the cluster looks at its probes, the sidecar at its application.
    let health = if endpoint.health == Health::Healthy { own.health } else { endpoint.health };
    let zone = if own.zone.is_empty() { endpoint.zone } else { own.zone.clone() };
    (!ports.is_empty()).then_some(EndpointEntry { ports, health, zone, ..own })
}

fn picks(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let selector = &service.spec.selector;
    !selector.is_empty() && selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

impl Fold {
    /// From now on pods count, and a service with a selector has the endpoints that its slices name.
    #[must_use]
    pub fn in_cluster(mut self) -> Self {
        self.facts = Some(Facts::default());
        self
    }

    /// A pod came, changed or (`None`) went.
    pub fn pod(&mut self, key: &ObjectKey, pod: Option<Arc<PodEntry>>) {
        let Some(facts) = &mut self.facts else { return };
        let before = facts.set_pod(key, pod.clone());
        if before == pod {
            return;
        }
        let mut services = BTreeSet::new();
        let mut workloads = BTreeMap::new();
        for pod in before.iter().chain(&pod) {
            let picking = self.world.selecting_in(&key.namespace);
            services.extend(picking.filter(|key| picks(&self.declared[*key].resource, &pod.labels)).cloned());
            for ip in &pod.ips {
                services.extend(facts.services_at(&key.namespace, *ip).cloned());
                for id in facts.workloads_at.get(&(key.namespace.clone(), *ip)).into_iter().flatten() {
                    workloads.insert(id.clone(), facts.registered[id].clone());
                }
            }
        }
        for (id, workload) in workloads {
            self.workload(&id, Some(workload));
        }
        self.rebuild_all(services.into_iter());
    }

    /// An EndpointSlice of the cluster came, changed or (`None`) went.
    pub fn slice(&mut self, key: &ObjectKey, slice: Option<Arc<EndpointSlice>>) {
        match slice {
            Some(slice) => self.set(Resource::EndpointSlice(slice), 0),
            None => {
                let kind = weft_model::Kind::EndpointSlice;
                self.delete(&ResourceKey::new(kind, key.namespace.as_str(), key.name.as_str()));
            }
        }
    }

    /// Takes a workload in; what is to be known of it: a pod's workload has the pod's labels.
    pub(super) fn registered(
        &mut self,
        id: &Arc<str>,
        workload: Option<Arc<WorkloadEntry>>,
    ) -> Option<Arc<WorkloadEntry>> {
        let Some(facts) = &mut self.facts else { return workload };
        facts.set_registered(id, workload.clone());
        let workload = workload?;
        let pod = facts.pod(&workload.service.namespace, workload.address.ip());
        let Some(pod) = pod.filter(|pod| pod.account == workload.identity.account()) else { return Some(workload) };
        let mut labels = pod.labels.clone();
        for (name, value) in workload.labels.iter() {
            // What the registry itself wrote there stays; of the rest the cluster knows better.
            if name == crate::registry::SERVICE_LABEL || !labels.contains_key(name) {
                labels.insert(name.clone(), value.clone());
            }
        }
        if labels == *workload.labels {
            return Some(workload);
        }
        Some(Arc::new(WorkloadEntry { labels: Arc::new(labels), ..(*workload).clone() }))
    }

    /// Services of which an EndpointSlice names the address of a workload.
    pub(super) fn addressed(&self, workload: &WorkloadEntry) -> impl Iterator<Item = &ServiceKey> {
        let facts = self.facts.iter();
        facts.flat_map(|facts| facts.services_at(&workload.service.namespace, workload.address.ip()))
    }
}

#[cfg(test)]
mod tests;
