//! The admin pages (loopback) and the metrics port.
//!
//! | page | method | what |
//! |---|---|---|
//! | `/ready`, `/live` | GET | 200, or 503 with what is missing |
//! | `/config_dump` | GET | configuration in force: virtual hosts, inbound, xDS resources with versions, refused ones |
//! | `/clusters` | GET | endpoints, breakers, limits |
//! | `/certs` | GET, POST | certificate and roots; no key is ever shown; a POST renews the certificate now |
//! | `/stats` | GET | metrics |
//! | `/logging` | GET, POST | the log's filter; a POST's body (or `?filter=`) replaces it |
//! | `/drain` | POST | leave the registry, let inbound requests end; the process stays |
//! | `/quit` | POST | as SIGTERM |
//!
//! POSTs need the header `weft-admin: 1`, and every Host must be a loopback name.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use http::StatusCode;
use parking_lot::Mutex;
use prometheus::Registry;
use serde_json::{Value, json};
use weft_identity::{CertificateDer, cert};
use weft_telemetry::{
    log::LogHandle,
    metrics,
    server::{Answer, Call, Guard, Routes, json as json_answer, text, typed},
    shutdown::Shutdown,
};
use weft_xds::resource::{Route, RouteAction};

use crate::{
    balance::Upstream,
    certs::{Certs, rfc3339},
    metrics::Metrics,
    registration::Leave,
    shared::Shared,
    snapshot::{Snapshot, VhostState},
    xds::Held,
};

/// What the pages show and change.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Configuration, certificates, drain.
    pub shared: Arc<Shared>,
    /// The certificate's owner.
    pub certs: Arc<Certs>,
    /// What xDS holds.
    pub held: Arc<Mutex<Held>>,
    /// All metrics.
    pub registry: Registry,
    /// The data path's, whose gauges are read at a scrape.
    pub metrics: Metrics,
    /// The log's filter.
    pub log: LogHandle,
    /// Stopping.
    pub shutdown: Shutdown,
    /// `None`: nothing was registered.
    pub leave: Option<Leave>,
}

impl Admin {
    /// The pages of the admin port.
    #[must_use]
    pub fn routes(self) -> Routes {
        self.pages(Guard::Loopback)
            .get("/stats", page(&self, |admin, _| metrics_page(&admin)))
            .get("/config_dump", page(&self, |admin, _| json_page(&config_dump(&admin))))
            .get("/clusters", page(&self, |admin, _| json_page(&clusters(&admin.shared.snapshot.load()))))
            .get("/certs", page(&self, |admin, _| json_page(&certs(&admin.certs))))
            .get("/logging", page(&self, |admin, _| text(StatusCode::OK, format!("{}\n", admin.log.filter()))))
            .post("/certs", page(&self, |admin, _| renew(&admin)))
            .post("/logging", page(&self, |admin, call| set_filter(&admin, &call)))
            .post("/quit", page(&self, |admin, _| quit(&admin)))
            .post("/drain", page(&self, |admin, _| drain(&admin)))
    }

    /// The pages of the metrics port.
    #[must_use]
    pub fn metrics_routes(self) -> Routes {
        self.pages(Guard::Open).get("/metrics", page(&self, |admin, _| metrics_page(&admin)))
    }

    fn pages(&self, guard: Guard) -> Routes {
        Routes::new(guard)
            .get("/ready", page(self, |admin, _| ready(&admin.shared)))
            .get("/live", page(self, |_, _| text(StatusCode::OK, "live\n")))
    }
}

/// A handler that answers from memory.
fn page(
    admin: &Admin,
    answer: impl Fn(Admin, Call) -> Answer + Clone + Send + Sync + 'static,
) -> impl Fn(Call) -> std::future::Ready<Answer> + Send + Sync + 'static {
    let admin = admin.clone();
    move |call| std::future::ready(answer(admin.clone(), call))
}

fn json_page(value: &Value) -> Answer {
    json_answer(StatusCode::OK, format!("{value:#}\n"))
}

fn metrics_page(admin: &Admin) -> Answer {
    admin.metrics.refresh(&admin.shared.snapshot.load(), Instant::now());
    typed(StatusCode::OK, metrics::CONTENT_TYPE, metrics::render(&admin.registry))
}

fn ready(shared: &Shared) -> Answer {
    match (shared.missing(), shared.capture.degraded()) {
        (None, None) => text(StatusCode::OK, "ready\n"),
        (None, Some(degraded)) => text(StatusCode::OK, format!("ready, but {degraded}\n")),
        (Some(missing), _) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")),
    }
}

fn set_filter(admin: &Admin, call: &Call) -> Answer {
    let body = String::from_utf8_lossy(&call.body);
    let filter = call.param("filter").unwrap_or_else(|| body.trim());
    if filter.is_empty() {
        return text(StatusCode::BAD_REQUEST, "give a filter, as in `info,h2=warn`\n");
    }
    match admin.log.set(filter) {
        Ok(()) => {
            tracing::info!(filter, "log filter changed");
            text(StatusCode::OK, format!("{filter}\n"))
        }
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn renew(admin: &Admin) -> Answer {
    tracing::info!("asked to renew the certificate by the admin port");
    admin.certs.renew_now();
    text(StatusCode::ACCEPTED, "renewing\n")
}

fn quit(admin: &Admin) -> Answer {
    tracing::info!("asked to stop by the admin port");
    admin.shutdown.escalate();
    text(StatusCode::ACCEPTED, "stopping\n")
}

fn drain(admin: &Admin) -> Answer {
    tracing::info!("asked to drain by the admin port");
    let (shared, leave) = (admin.shared.clone(), admin.leave.clone());
    // Owned by nobody: it ends within a second, or with the process.
    tokio::spawn(async move {
        if let Some(leave) = leave
            && tokio::time::timeout(crate::drain::PROPAGATION, leave.leave()).await.is_err()
        {
            tracing::warn!("the control plane did not confirm that this workload leaves; draining all the same");
        }
        shared.drain.inbound.drain();
        shared.refresh_ready();
    });
    text(StatusCode::ACCEPTED, "draining\n")
}

fn certs(certs: &Certs) -> Value {
    let shown = certs.shown();
    let end = |der: &CertificateDer<'_>| cert::validity(der).ok().map(|(_, not_after)| rfc3339(not_after));
    let certificate = shown.svid.map(|svid| {
        json!({
            "identity": svid.id.as_str(),
            "serial": svid.serial(),
            "notBefore": rfc3339(svid.not_before),
            "notAfter": rfc3339(svid.not_after),
            "valid": svid.valid_at(SystemTime::now()),
            "issuerNotAfter": svid.chain.get(1).and_then(end),
        })
    });
    let roots = shown.bundle.map(|bundle| {
        let hex = |hash: [u8; 32]| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let roots = bundle.roots().iter().zip(bundle.sha256());
        roots.map(|(root, hash)| json!({ "sha256": hex(hash), "notAfter": end(root) })).collect::<Vec<_>>()
    });
    json!({ "epoch": shown.epoch, "certificate": certificate, "roots": roots })
}

fn clusters(snapshot: &Snapshot) -> Value {
    let mut clusters: Vec<_> = snapshot.clusters.values().collect();
    clusters.sort_by(|one, other| one.cluster().name.cmp(&other.cluster().name));
    clusters.into_iter().map(|upstream| cluster(upstream)).collect()
}

fn cluster(upstream: &Upstream) -> Value {
    let cluster = upstream.cluster();
    let limits = upstream.limits().all().map(|limit| {
        json!({ "limit": limit.kind().label(), "inUse": limit.used(), "max": limit.max(), "rejected": limit.rejected() })
    });
    let endpoints = upstream.endpoints().iter().map(|state| {
        let endpoint = &state.endpoint;
        json!({
            "address": endpoint.address.to_string(),
            "workload": endpoint.workload,
            "identity": endpoint.identity.as_ref().map(|id| id.as_str()),
            "weight": endpoint.weight,
            "priority": endpoint.priority,
            "zone": endpoint.zone,
            "health": format!("{:?}", endpoint.health).to_lowercase(),
            "breaker": state.phase().label(),
            "inFlight": state.in_flight(),
        })
    });
    json!({
        "name": cluster.name,
        "service": cluster.service,
        "port": cluster.port,
        "protocol": format!("{:?}", cluster.protocol).to_lowercase(),
        "balancer": format!("{:?}", cluster.balancer),
        "tls": cluster.tls.as_ref().map(|tls| &tls.sni),
        "policy": cluster.policy,
        "circuitBreaker": upstream.breaker().map(|phase| phase.label()),
        "retriesAvailable": upstream.budget().available(Instant::now()),
        "panics": upstream.panics(),
        "limits": limits,
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn config_dump(admin: &Admin) -> Value {
    let snapshot = admin.shared.snapshot.load();
    let mut hosts: Vec<_> = snapshot.virtual_hosts.iter().collect();
    hosts.sort_by_key(|(authority, _)| *authority);
    let hosts = hosts.into_iter().map(|(authority, state)| match state {
        VhostState::NotFound => json!({ "authority": authority, "state": "not found" }),
        VhostState::Found(host) => json!({
            "authority": authority,
            "state": "live",
            "idleSeconds": host.used.idle(Instant::now()).as_secs(),
            "domains": host.routes.domains,
            "routes": host.routes.routes.iter().map(|it| route(it)).collect::<Vec<_>>(),
        }),
    });
    json!({
        "version": weft_telemetry::VERSION,
        "service": admin.shared.settings.service_key(),
        "revision": snapshot.revision,
        "missing": admin.shared.missing(),
        "redirectRules": admin.shared.capture.shown().map(Value::from_iter),
        "xds": xds(&admin.held.lock()),
        "inbound": snapshot.inbound.as_ref().map(|inbound| inbound_ports(inbound)),
        "virtualHosts": hosts.collect::<Vec<_>>(),
        "settings": format!("{:?}", admin.shared.settings),
    })
}

fn xds(held: &Held) -> Value {
    let resources = held.resources.values().map(|resource| {
        json!({
            "type": resource.ty.short(),
            "name": resource.name,
            "version": resource.version,
            "bytes": resource.any.value.len(),
        })
    });
    let rejects = held.rejects.iter().map(|((ty, name), rejection)| {
        json!({ "type": ty.short(), "name": name, "version": rejection.version, "error": rejection.error })
    });
    json!({
        "connected": held.connected,
        "error": held.error,
        "resources": resources.collect::<Vec<_>>(),
        "rejected": rejects.collect::<Vec<_>>(),
    })
}

fn inbound_ports(inbound: &weft_xds::resource::Inbound) -> Value {
    let ports = inbound.ports.iter().map(|port| {
        let rules = port.access.iter().flat_map(|rbac| {
            let action = format!("{:?}{}", rbac.action, if rbac.shadow { " (only counted)" } else { "" });
            rbac.policies.iter().map(move |rule| format!("{action} {}/{}", rule.policy, rule.rule))
        });
        json!({
            "service": port.service,
            "port": port.port,
            "sni": port.sni,
            "protocol": format!("{:?}", port.protocol).to_lowercase(),
            "access": rules.collect::<Vec<_>>(),
        })
    });
    json!({ "permissive": inbound.permissive, "ports": ports.collect::<Vec<_>>() })
}

fn route(route: &Route) -> Value {
    let action = match &route.action {
        RouteAction::Forward(forward) => {
            let clusters =
                forward.clusters.iter().map(|cluster| json!({ "name": cluster.name, "weight": cluster.weight }));
            json!({
                "forward": clusters.collect::<Vec<_>>(),
                "timeoutMs": forward.timeout.map(|timeout| timeout.as_millis()),
                "retries": forward.retry.as_ref().map(|retry| retry.retries),
            })
        }
        RouteAction::Redirect(redirect) => json!({ "redirect": redirect.status.as_u16() }),
        RouteAction::Respond { status, .. } => json!({ "respond": status.as_u16() }),
    };
    json!({
        "name": route.name,
        "path": format!("{:?}", route.matches.path),
        "action": action,
        "source": route.source,
        "revision": route.revision,
    })
}

#[cfg(test)]
mod tests;
