//! The configuration API: an append-only log of changes to a set of resources. One implementation; [`grpc`] and [`http`]
//! put it on the wire.
//!
//! A change is planned against a revision and appended only if the log still stands there; otherwise it is planned anew.

mod current;
mod error;
pub mod grpc;
mod history;
pub mod http;
mod json;
mod plan;
#[cfg(test)]
mod tests;
mod watch;
mod wire;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use prometheus::Histogram;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use weft_identity::SpiffeId;
use weft_model::{KnownServices, ResourceKey};
use weft_proto::weft::v1;

pub use self::error::ApiError;
use self::{
    current::Current,
    plan::{Edit, Plan, Present},
};
use crate::{
    certificates::{Certificates, Grant},
    index::{self, Worlds},
    kubernetes::Health,
    registry::Registry,
    store::{Log, Meta, Resources, Store, StoreError},
    xds::Sessions,
};

/// The configuration API. Clones share it.
#[derive(Debug, Clone)]
pub struct Configuration {
    shared: Arc<Shared>,
}

/// What the API stands on.
#[derive(Debug)]
pub struct Parts {
    /// The log.
    pub store: Store,
    /// Implicit services.
    pub worlds: Arc<Worlds>,
    /// For the status.
    pub registry: Registry,
    /// For the status, and to wait for acknowledgements.
    pub sessions: Arc<Sessions>,
    /// Join tokens.
    pub certificates: Arc<Certificates>,
    /// How long an append took, to disk.
    pub append_seconds: Histogram,
    /// With `--kubernetes`: how the API server is watched. It then owns the configuration.
    pub kubernetes: Option<Arc<Health>>,
    /// Ends watches.
    pub stop: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    parts: Parts,
    current: Current,
}

/// Who a call comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author(pub String);

/// A change as a request words it.
#[derive(Debug)]
struct Wanted {
    edits: Edits,
    /// 0: no expectation.
    expected_revision: u64,
    dry_run: bool,
    message: String,
    wait_seconds: u32,
}

#[derive(Debug)]
enum Edits {
    Given(Vec<Edit>),
    /// Whatever it takes to hold again what this revision held.
    BackTo(u64),
}

impl Configuration {
    /// The API over its parts.
    pub fn new(parts: Parts) -> Self {
        Self { shared: Arc::new(Shared { parts, current: Current::default() }) }
    }

    /// Applies a set of resources: all of them or none.
    /// # Errors
    /// What is wrong with them; ABORTED when the log does not stand at the expected revision.
    pub async fn apply(&self, request: v1::ApplyRequest, author: Author) -> Result<v1::ApplyResponse, ApiError> {
        let v1::ApplyRequest { sources, expected_revision, dry_run, message, namespace, wait_seconds } = request;
        let namespace = namespace_or_default(namespace);
        let edits = tokio::task::spawn_blocking(move || plan::read(&sources, &namespace)).await??;
        let edits = Edits::Given(edits);
        self.change(Wanted { edits, expected_revision, dry_run, message, wait_seconds }, author).await
    }

    /// Deletes a set of resources: all of them or none.
    /// # Errors
    /// NOT_FOUND when one is not there; else as [`Configuration::apply`].
    pub async fn delete(&self, request: v1::DeleteRequest, author: Author) -> Result<v1::ApplyResponse, ApiError> {
        let v1::DeleteRequest { keys, expected_revision, dry_run, message, wait_seconds } = request;
        if keys.is_empty() {
            return Err(ApiError::new(Code::InvalidArgument, "no resource is named"));
        }
        let mut keys = keys.into_iter().map(|key| wire::key_from_wire(Some(key))).collect::<Result<Vec<_>, _>>()?;
        keys.sort();
        keys.dedup();
        let edits = Edits::Given(keys.into_iter().map(Edit::Delete).collect());
        self.change(Wanted { edits, expected_revision, dry_run, message, wait_seconds }, author).await
    }

    /// Appends a change that restores what an earlier revision held.
    /// # Errors
    /// OUT_OF_RANGE when that revision is not kept; else as [`Configuration::apply`].
    pub async fn rollback(&self, request: v1::RollbackRequest, author: Author) -> Result<v1::ApplyResponse, ApiError> {
        let v1::RollbackRequest { to_revision, message, dry_run, expected_revision, wait_seconds } = request;
        let message = if message.is_empty() { format!("roll back to revision {to_revision}") } else { message };
        let edits = Edits::BackTo(to_revision);
        self.change(Wanted { edits, expected_revision, dry_run, message, wait_seconds }, author).await
    }

    /// What applying the sources would change; without sources, the difference of two revisions.
    /// # Errors
    /// As [`Configuration::apply`].
    pub async fn diff(&self, request: v1::DiffRequest) -> Result<v1::DiffResponse, ApiError> {
        let v1::DiffRequest { sources, namespace, from_revision, to_revision } = request;
        if !sources.is_empty() {
            let request = v1::ApplyRequest { sources, namespace, dry_run: true, ..v1::ApplyRequest::default() };
            let v1::ApplyResponse { revision, changes, warnings, .. } =
                self.apply(request, Author(String::new())).await?;
            return Ok(v1::DiffResponse { revision, changes, warnings });
        }
        let log = self.log();
        let to_revision = if to_revision == 0 { log.head() } else { to_revision };
        let (from, to) = (log.at(from_revision)?, log.at(to_revision)?);
        let changes = differing(&from, &to).map(|key| {
            let after = to.get(key).map(|stored| stored.yaml.as_str());
            wire::change(key, from.get(key).map(AsRef::as_ref), after)
        });
        Ok(v1::DiffResponse { revision: to_revision, changes: changes.collect(), warnings: Vec::new() })
    }

    /// One resource.
    /// # Errors
    /// NOT_FOUND, OUT_OF_RANGE.
    pub fn get(&self, request: v1::GetRequest) -> Result<v1::Resource, ApiError> {
        let key = wire::key_from_wire(request.key)?;
        let (_, resources) = self.at(request.revision)?;
        let stored = resources.get(&key).ok_or_else(|| ApiError::not_found(format!("there is no {key}")))?;
        Ok(wire::resource_to_wire(&key, stored))
    }

    /// Resources by kind and namespace.
    /// # Errors
    /// Unknown kind, OUT_OF_RANGE.
    pub fn list(&self, request: v1::ListRequest) -> Result<v1::ListResponse, ApiError> {
        let filter = Filter::new(&request.kind, request.namespace)?;
        let (revision, resources) = self.at(request.revision)?;
        let found = resources.iter().filter(|(key, _)| filter.takes(key));
        Ok(v1::ListResponse {
            revision,
            resources: found.map(|(key, stored)| wire::resource_to_wire(key, stored)).collect(),
        })
    }

    /// Every resource of a revision as multi-document YAML.
    /// # Errors
    /// OUT_OF_RANGE.
    pub fn export(&self, request: v1::ExportRequest) -> Result<v1::ExportResponse, ApiError> {
        let (revision, resources) = self.at(request.revision)?;
        let documents: Vec<_> = resources.values().map(|stored| stored.yaml.as_str()).collect();
        Ok(v1::ExportResponse { revision, yaml: documents.join("---\n") })
    }

    /// Every sidecar and every workload.
    pub fn status(&self) -> v1::StatusResponse {
        let Parts { store, registry, sessions, certificates, kubernetes, .. } = &self.shared.parts;
        let (issuer, root) = certificates.expiries();
        let port = |port: &index::WorkloadPort| v1::PortStatus {
            name: port.name.to_string(),
            port: port.port.into(),
            protocol: port.protocol.to_string(),
            app_port: port.app.into(),
        };
        let workload =
            |(workload, state): (Arc<index::WorkloadEntry>, crate::registry::lease::State)| v1::WorkloadStatus {
                id: workload.id.to_string(),
                namespace: workload.service.namespace.clone(),
                service: workload.service.name.clone(),
                address: workload.address.to_string(),
                state: state.as_str().to_owned(),
                identity: workload.identity.to_string(),
                labels: workload.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
                weight: workload.weight,
                ports: workload.ports.iter().map(port).collect(),
            };
        v1::StatusResponse {
            control_plane_version: weft_telemetry::VERSION.to_owned(),
            revision: store.log().head(),
            trust_domain: certificates.trust_domain().to_string(),
            sidecars: sessions.status(),
            workloads: registry.workloads().into_iter().map(workload).collect(),
            issuer_expiry: wire::time_to_wire(issuer),
            root_expiry: wire::time_to_wire(root),
            watches: kubernetes.as_ref().map(|health| health.status()).unwrap_or_default(),
        }
    }

    /// Makes a join token.
    /// # Errors
    /// The names or bounds are not acceptable.
    pub async fn create_token(
        &self,
        request: v1::CreateTokenRequest,
        author: Author,
    ) -> Result<v1::CreateTokenResponse, ApiError> {
        let invalid = |message: String| ApiError::new(Code::InvalidArgument, message);
        let certificates = &self.shared.parts.certificates;
        let namespace = namespace_or_default(request.namespace);
        let identity = SpiffeId::new(certificates.trust_domain(), &namespace, &request.service_account);
        let identity = identity.map_err(|error| invalid(format!("no such identity can be: {error}")))?;
        let seconds = if request.ttl_seconds == 0 { 3600 } else { request.ttl_seconds };
        let grant = Grant {
            identity,
            uses: request.uses.max(1),
            ttl: Duration::from_secs(seconds.into()),
            created_by: author.0,
        };
        let (token, record) =
            certificates.create_token(grant, SystemTime::now()).await.map_err(|error| invalid(error.to_string()))?;
        Ok(v1::CreateTokenResponse {
            token: token.to_string(),
            identity: record.identity.to_string(),
            expires: wire::time_to_wire(record.expires),
        })
    }

    /// Whether nothing was ever configured.
    pub fn is_empty(&self) -> bool {
        self.log().head() == 0
    }

    async fn change(&self, wanted: Wanted, author: Author) -> Result<v1::ApplyResponse, ApiError> {
        if self.shared.parts.kubernetes.is_some() && !wanted.dry_run {
            return Err(ApiError::new(Code::FailedPrecondition, IN_KUBERNETES));
        }
        let wanted = Arc::new(wanted);
        for _ in 0..ATTEMPTS {
            let log = self.log();
            let head = log.head();
            if wanted.expected_revision != 0 && wanted.expected_revision != head {
                return Err(StoreError::Conflict { expected: wanted.expected_revision, head }.into());
            }
            let (this, request) = (self.clone(), wanted.clone());
            let plan = tokio::task::spawn_blocking(move || this.plan(&log, &request.edits)).await??;
            if wanted.dry_run || plan.events.is_empty() {
                return Ok(response(head, plan));
            }
            let message = wanted.message.chars().take(MAX_MESSAGE).collect();
            let meta = Meta { author: author.0.clone(), message, time_ms: wire::now_millis() };
            let started = Instant::now();
            match self.shared.parts.store.append(Some(head), plan.events.clone(), meta).await {
                Ok(revision) => {
                    self.shared.parts.append_seconds.observe(started.elapsed().as_secs_f64());
                    tracing::info!(revision, author = author.0, message = wanted.message, "configuration changed");
                    return self.rollout(response(revision, plan), wanted.wait_seconds).await;
                }
                // Someone was faster. Without an expectation the caller only wants it done: weigh it anew.
                Err(StoreError::Conflict { .. }) if wanted.expected_revision == 0 => continue,
                Err(error) => return Err(error.into()),
            }
        }
        Err(ApiError::new(Code::Aborted, "the configuration keeps changing; try again"))
    }

    fn plan(&self, log: &Log, edits: &Edits) -> Result<Plan, ApiError> {
        let unreadable = |error: index::DocumentError| ApiError::new(Code::DataLoss, error.to_string());
        let set = self.shared.current.of(log).map_err(unreadable)?;
        let known = self.known();
        let trust_domain = self.shared.parts.certificates.trust_domain().as_str();
        let present = Present { stored: log.current(), set: &set, known: &known, trust_domain };
        let revision = match edits {
            Edits::Given(edits) => {
                for edit in edits {
                    if let Edit::Delete(key) = edit
                        && !present.stored.contains_key(key)
                    {
                        return Err(ApiError::not_found(format!("there is no {key}; nothing was deleted")));
                    }
                }
                return plan::plan(&present, edits.clone(), false);
            }
            Edits::BackTo(revision) => *revision,
        };
        let then = log.at(revision)?;
        let mut edits = Vec::new();
        for key in differing(present.stored, &then) {
            edits.push(match then.get(key) {
                Some(stored) => Edit::Restore(index::read(key, stored).map_err(unreadable)?),
                None => Edit::Delete(key.clone()),
            });
        }
        plan::plan(&present, edits, true)
    }

    async fn rollout(&self, mut response: v1::ApplyResponse, wait_seconds: u32) -> Result<v1::ApplyResponse, ApiError> {
        if wait_seconds > 0 {
            let wait = Duration::from_secs(wait_seconds.min(MAX_WAIT_SECONDS).into());
            response.rollout = Some(self.shared.parts.sessions.wait(response.revision, wait).await);
        }
        Ok(response)
    }

    fn log(&self) -> Arc<Log> {
        self.shared.parts.store.log()
    }

    /// 0: now.
    fn at(&self, revision: u64) -> Result<(u64, Arc<Resources>), ApiError> {
        let log = self.log();
        let revision = if revision == 0 { log.head() } else { revision };
        Ok((revision, log.at(revision)?))
    }

    fn known(&self) -> KnownServices {
        let world = self.shared.parts.worlds.current();
        let implicit = world.services.iter().filter(|(_, entry)| entry.implicit);
        implicit
            .map(|(key, entry)| (key.clone(), entry.service.spec.ports.iter().map(|port| port.port).collect()))
            .collect()
    }
}

/// Two masters would undo each other's work.
const IN_KUBERNETES: &str = "this control plane takes its configuration from Kubernetes: change it there, as by `kubectl \
                             apply`; dry runs and `weft diff` work here, too";

/// Which resources a List or Watch is about.
#[derive(Debug, Clone)]
struct Filter {
    kind: Option<weft_model::Kind>,
    namespace: String,
}

impl Filter {
    fn new(kind: &str, namespace: String) -> Result<Self, ApiError> {
        let kind = if kind.is_empty() { None } else { Some(wire::kind_from_wire(kind)?) };
        Ok(Self { kind, namespace })
    }

    fn takes(&self, key: &ResourceKey) -> bool {
        self.kind.is_none_or(|kind| kind == key.kind) && (self.namespace.is_empty() || self.namespace == key.namespace)
    }
}

/// Keys whose text is not the same in both, or that only one has. In order.
fn differing<'a>(a: &'a Resources, b: &'a Resources) -> impl Iterator<Item = &'a ResourceKey> {
    let mut keys: Vec<_> = a.keys().chain(b.keys()).collect();
    keys.sort();
    keys.dedup();
    let yaml = |resources: &'a Resources, key| resources.get(key).map(|stored| stored.yaml.as_str());
    keys.into_iter().filter(move |key| yaml(a, key) != yaml(b, key))
}

fn response(revision: u64, plan: Plan) -> v1::ApplyResponse {
    v1::ApplyResponse { revision, changes: plan.changes, warnings: plan.warnings, rollout: None }
}

fn namespace_or_default(namespace: String) -> String {
    if namespace.is_empty() { weft_model::defaults::NAMESPACE.to_owned() } else { namespace }
}

/// Times that a change is weighed anew because others were faster.
const ATTEMPTS: usize = 10;
/// Characters of a change's message that are kept.
const MAX_MESSAGE: usize = 1024;
/// Longest wait for acknowledgements.
const MAX_WAIT_SECONDS: u32 = 600;
