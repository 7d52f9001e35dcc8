//! The world: every fact that translation needs, immutable and complete. Says nothing of xDS.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use weft_identity::{SpiffeId, TrustDomain};
pub use weft_model::ServiceKey;
use weft_model::{AccessPolicy, GrpcRoute, HttpRoute, Mesh, Service, TrafficPolicy};
use weft_xds::resource::Health;

use super::addresses;

/// Namespace and name of a resource whose kind goes without saying.
pub type ObjectKey = ServiceKey;

/// A configured resource and the revision that last changed it.
#[derive(Debug)]
pub struct Versioned<T> {
    /// As applied, defaults not filled in.
    pub resource: Arc<T>,
    /// 0 for what no change of the log declared.
    pub revision: u64,
}

impl<T> Clone for Versioned<T> {
    fn clone(&self) -> Self {
        Self { resource: self.resource.clone(), revision: self.revision }
    }
}

/// A sorted map whose clones share what they have in common: a world costs what differs from the one before.
pub type Map<K, V> = rpds::RedBlackTreeMapSync<K, V>;

/// The set to [`Map`].
pub type Set<K> = rpds::RedBlackTreeSetSync<K>;

/// Every fact at one moment. Cheap to clone, whatever the size of the mesh: the maps are shared.
#[derive(Debug, Clone)]
pub struct World {
    /// Revision of the configuration log that is folded in.
    pub revision: u64,
    /// Counts publications: also grows when only endpoints changed.
    pub generation: u64,
    /// Declared and implicit services with their endpoints.
    pub services: Map<ServiceKey, Arc<ServiceEntry>>,
    /// Those of them whose selector, rather than their name, picks workloads.
    pub selecting: Set<ServiceKey>,
    /// What an address means to whoever connects to it: the best is first.
    pub addresses: Map<SocketAddr, Arc<[Place]>>,
    /// `HTTPRoute`s.
    pub http_routes: Map<ObjectKey, Versioned<HttpRoute>>,
    /// `GRPCRoute`s.
    pub grpc_routes: Map<ObjectKey, Versioned<GrpcRoute>>,
    /// `TrafficPolicy`s.
    pub traffic_policies: Map<ObjectKey, Versioned<TrafficPolicy>>,
    /// `AccessPolicy`s.
    pub access_policies: Map<ObjectKey, Versioned<AccessPolicy>>,
    /// The `Mesh`, or its defaults (revision 0).
    pub mesh: Versioned<Mesh>,
    /// Registered workloads by id, `namespace/service/instance`.
    pub workloads: Map<Arc<str>, Arc<WorkloadEntry>>,
    /// Root certificates, DER.
    pub roots: Arc<Vec<Vec<u8>>>,
    /// Of every identity here.
    pub trust_domain: TrustDomain,
}

impl World {
    /// Workloads registered under a service's name. Their ids begin with it.
    pub fn registered<'a>(&'a self, service: &ServiceKey) -> impl Iterator<Item = &'a Arc<WorkloadEntry>> {
        self.workloads_from(format!("{service}/"))
    }

    /// Workloads of a namespace.
    pub fn workloads_of<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Arc<WorkloadEntry>> {
        self.workloads_from(format!("{namespace}/"))
    }

    fn workloads_from(&self, prefix: String) -> impl Iterator<Item = &Arc<WorkloadEntry>> {
        let from = self.workloads.range(Arc::<str>::from(prefix.as_str())..);
        from.take_while(move |(id, _)| id.starts_with(&prefix)).map(|(_, workload)| workload)
    }

    /// What whoever connects to this address means. Of several the order of [`Place`] decides.
    pub fn at(&self, address: SocketAddr) -> Option<&Place> {
        self.addresses.get(&address)?.first()
    }

    /// Puts a service's entry in place (`None`: there is none any more), and what its addresses stand for.
    pub fn put(&mut self, key: &ServiceKey, entry: Option<ServiceEntry>) {
        let of = |entry: &ServiceEntry| addresses::of(key, entry);
        let before = self.services.get(key).map(|entry| of(entry)).unwrap_or_default();
        let after = entry.as_ref().map(of).unwrap_or_default();
        match entry {
            Some(entry) => self.services.insert_mut(key.clone(), Arc::new(entry)),
            None => drop(self.services.remove_mut(key)),
        }
        addresses::replace(&mut self.addresses, &before, &after);
    }

    /// Services of a namespace that pick workloads by a selector.
    pub fn selecting_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a ServiceKey> {
        let from = self.selecting.range(ServiceKey::new(namespace, String::new())..);
        from.take_while(move |key| key.namespace == namespace)
    }

    /// Whether an identity may register workloads and open xDS for a service: its account is the service's name, one that
    /// the service names in `weft.mesh/service-accounts`, or, in a cluster, that of a pod which the service picks.
    pub fn may_act_as(&self, identity: &SpiffeId, service: &ServiceKey) -> bool {
        if identity.trust_domain() != self.trust_domain.as_str() || identity.namespace() != service.namespace {
            return false;
        }
        let named = |entry: &Arc<ServiceEntry>| entry.owners.contains(identity);
        identity.account() == service.name || self.services.get(service).is_some_and(named)
    }
}

/// A service and who serves it.
#[derive(Debug)]
pub struct ServiceEntry {
    /// As declared, or as its workloads registered it.
    pub service: Arc<Service>,
    /// Revision that last changed the declaration; 0 when implicit.
    pub revision: u64,
    /// No resource declares it.
    pub implicit: bool,
    /// In order of address.
    pub endpoints: Arc<[EndpointEntry]>,
    /// Who may serve it: the identities that its endpoints may prove. In order.
    pub accounts: Arc<[SpiffeId]>,
    /// Who may register as it, whether it has done so or not. In order.
    pub owners: Arc<[SpiffeId]>,
}

/// Label with the name by which one endpoint of a headless service is called.
pub const HOSTNAME: &str = "weft.mesh/hostname";

/// One address of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointEntry {
    /// Where its sidecar listens, or, of a static endpoint, it itself.
    pub ip: IpAddr,
    /// Service ports served here.
    pub ports: Arc<[EndpointPort]>,
    /// At least 1.
    pub weight: u32,
    /// As reported by itself or by its `EndpointSlice`.
    pub health: Health,
    /// Empty when unknown.
    pub region: Arc<str>,
    /// Empty when unknown.
    pub zone: Arc<str>,
    /// What it must prove. `None`: a static endpoint, plain text.
    pub identity: Option<SpiffeId>,
    /// `namespace/service/instance`; empty for a static endpoint.
    pub workload: Arc<str>,
    /// Of the workload; of a static endpoint at most its [`HOSTNAME`].
    pub labels: Arc<BTreeMap<String, String>>,
}

impl EndpointEntry {
    /// Its name within a headless service, when it has one that can be a name of DNS.
    pub fn hostname(&self) -> Option<&str> {
        let label = |name: &&String| {
            (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        self.labels.get(HOSTNAME).filter(label).map(String::as_str)
    }

    /// Where to connect for a port of the service; `None` when it does not serve that port.
    pub fn address(&self, service_port: u16) -> Option<SocketAddr> {
        let port = self.ports.iter().find(|port| port.service == service_port)?;
        Some(SocketAddr::new(self.ip, port.target))
    }
}

/// A port of the service and the port to dial for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPort {
    /// Port of the service.
    pub service: u16,
    /// Port of the address: the sidecar's inbound port, for a workload.
    pub target: u16,
    /// Port of the address on which the application itself listens.
    pub app: u16,
}

/// What an address of the network stands for. In order of preference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Whose it is.
    pub owner: Owner,
    /// The service.
    pub service: ServiceKey,
    /// Its port.
    pub port: u16,
    /// The endpoint that is meant, where its cluster has it. `None`: any.
    pub endpoint: Option<SocketAddr>,
}

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The service's own (`clusterIP`).
    Service,
    /// A workload's, in the service that it registered for.
    Workload,
    /// One that an `EndpointSlice` lists.
    Listed,
    /// A workload's, in a service whose selector picks it.
    Picked,
}

/// A registered workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// `namespace/service/instance`.
    pub id: Arc<str>,
    /// The service it registered for.
    pub service: ServiceKey,
    /// What it proved when it registered.
    pub identity: SpiffeId,
    /// Where its sidecar listens.
    pub address: SocketAddr,
    /// Service ports it serves.
    pub ports: Vec<WorkloadPort>,
    /// 1 to 1000.
    pub weight: u32,
    /// Always with `weft.mesh/service`, and `version` when it gave one.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Empty when unknown.
    pub region: Arc<str>,
    /// Empty when unknown.
    pub zone: Arc<str>,
    /// Healthy, unhealthy or draining.
    pub health: Health,
}

/// A port that a workload serves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkloadPort {
    /// Empty, or the name of the port.
    pub name: Arc<str>,
    /// Port of the service.
    pub port: u16,
    /// `http`, `http2`, `grpc`, `tcp`, or empty: detect.
    pub protocol: Arc<str>,
    /// Where the application listens on the workload's address.
    pub app: u16,
}

/// What a change touched.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dirty {
    /// A service's declaration, a route or a policy that concerns it; also its coming and going.
    Service(ServiceKey),
    /// Only the endpoints of a service.
    Endpoints(ServiceKey),
    /// The mesh: everything may have changed.
    Mesh,
    /// The trust bundle.
    Bundle,
}

/// One publication.
#[derive(Debug, Clone)]
pub struct Update {
    /// The world after the change.
    pub world: Arc<World>,
    /// What differs from the world before.
    pub dirty: Arc<BTreeSet<Dirty>>,
}
