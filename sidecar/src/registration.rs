//! The workload announces itself: one stream that is the lease.
//!
//! It is opened when there is a certificate, opened again when it breaks, and closed by leaving: `Drain` is sent and
//! `Drained` awaited, after which nothing is announced any more.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::MissedTickBehavior,
};
use tonic::Streaming;
use weft_proto::weft::v1::{
    Drain, HealthReport, Heartbeat, RegisterRequest, RegisterResponse, Workload, WorkloadPort, register_request,
    register_response, registry_service_client::RegistryServiceClient,
};
use weft_xds::resource::Protocol;

use crate::{
    certs::{Certs, CertsError},
    health::Health,
    reconnect::{Reconnect, explain},
    settings::{Advertised, Settings},
    shared::Shared,
};

/// The longest pause between two tries. Shorter than a lease: a control plane that comes back gives known workloads one
/// lease to announce themselves again.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// For the first answer of the stream.
const LEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// Heartbeats are never further apart than this, whatever the lease says.
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(60);

/// Asks the registration to leave.
#[derive(Debug, Clone)]
pub struct Leave(mpsc::Sender<oneshot::Sender<()>>);

impl Leave {
    /// Leaves the registry; returns when the control plane has told callers, or at once when it does not know of this
    /// workload anyway. The caller bounds the wait.
    pub async fn leave(&self) {
        let (done, told) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            // An error means that the stream broke: there is nobody left to wait for.
            drop(told.await);
        }
    }
}

/// The registration's task.
#[derive(Debug)]
pub struct Registration {
    shared: Arc<Shared>,
    certs: Arc<Certs>,
    instance: Box<str>,
    /// As bound.
    inbound: SocketAddr,
    health: watch::Receiver<Health>,
    leave: mpsc::Receiver<oneshot::Sender<()>>,
    /// Told at each success, so that others call the control plane, too.
    reached: Arc<tokio::sync::Notify>,
}

/// Why a stream ended.
#[derive(Debug, Error)]
enum Lost {
    #[error(transparent)]
    Certificate(#[from] CertsError),
    #[error("{}", explain(.0))]
    Refused(Box<tonic::Status>),
    #[error("the control plane ended the stream")]
    Closed,
    #[error("the control plane did not answer in time")]
    Late,
    #[error("the control plane's name `{0}` could not be resolved: {1}")]
    Unresolved(Box<str>, std::io::Error),
}

impl From<tonic::Status> for Lost {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl Registration {
    /// The name of this workload.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// `inbound`: as bound. `reached` is told whenever the control plane answers.
    pub fn new(
        shared: Arc<Shared>,
        certs: Arc<Certs>,
        inbound: SocketAddr,
        health: watch::Receiver<Health>,
        reached: Arc<tokio::sync::Notify>,
    ) -> (Self, Leave) {
        let (sender, leave) = mpsc::channel(1);
        let instance = instance(&shared.settings.data_dir);
        (Self { shared, certs, instance, inbound, health, leave, reached }, Leave(sender))
    }

    /// Announces until asked to leave.
    pub async fn run(mut self) {
        let mut reconnect = Reconnect::new(LONGEST_PAUSE);
        tokio::select! {
            () = self.shared.certified() => {}
            asked = self.leave.recv() => return drop(asked),
        }
        loop {
            match self.announce(&mut reconnect).await {
                Ok(asked) => {
                    tracing::info!("left the registry");
                    if asked.send(()).is_err() {
                        tracing::debug!("nobody waits for that any more");
                    }
                    return;
                }
                Err(lost) => {
                    let pause = reconnect.pause(fastrand::f64());
                    tracing::warn!(error = %lost, retry_in_ms = pause.as_millis(), "not registered");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        // Not known to the control plane: nothing to wait for.
                        asked = self.leave.recv() => return drop(asked),
                    }
                }
            }
        }
    }

    /// One stream, from the first message until it breaks or the workload has left.
    async fn announce(&mut self, reconnect: &mut Reconnect) -> Result<oneshot::Sender<()>, Lost> {
        let (requests, outgoing) = mpsc::channel(8);
        let mut workload = self.workload().await?;
        // A workload that comes back is no worse than before: the control plane must not see it as unhealthy meanwhile.
        workload.healthy = self.healthy().healthy;
        let told = workload.healthy;
        tracing::debug!(?workload, "registering");
        let first = RegisterRequest { message: Some(register_request::Message::Workload(workload)) };
        requests.try_send(first).expect("the channel is new");
        let mut client = RegistryServiceClient::new(self.certs.channel()?);
        let stream = client.register(tokio_stream::wrappers::ReceiverStream::new(outgoing));
        let opened = tokio::select! {
            opened = tokio::time::timeout(LEASE_TIMEOUT, stream) => opened,
            asked = self.leave.recv() => return asked.ok_or(Lost::Closed),
        };
        let mut answers = opened.map_err(|_late| Lost::Late)??.into_inner();
        let lease = tokio::time::timeout(LEASE_TIMEOUT, lease(&mut answers)).await.map_err(|_late| Lost::Late)??;
        reconnect.succeeded();
        self.reached.notify_waiters();
        tracing::info!(instance = &*self.instance, lease_ms = lease.as_millis(), "registered");
        let heartbeat = (lease / 3).clamp(Duration::from_millis(50), LONGEST_HEARTBEAT);
        self.keep(&requests, &mut answers, heartbeat, told).await
    }

    async fn keep(
        &mut self,
        requests: &mpsc::Sender<RegisterRequest>,
        answers: &mut Streaming<RegisterResponse>,
        heartbeat: Duration,
        mut told: bool,
    ) -> Result<oneshot::Sender<()>, Lost> {
        let mut beats = tokio::time::interval_at(tokio::time::Instant::now() + heartbeat, heartbeat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ready = self.shared.watch_ready();
        let mut leaving: Option<oneshot::Sender<()>> = None;
        let mut checked = true;
        loop {
            let healthy = self.healthy();
            if healthy.healthy != told && leaving.is_none() {
                told = healthy.healthy;
                let report = HealthReport { healthy: told, reason: healthy.reason.to_owned() };
                send(requests, register_request::Message::Health(report))?;
            }
            tokio::select! {
                _ = beats.tick() => send(requests, register_request::Message::Heartbeat(Heartbeat {}))?,
                // Without checks nobody reports: the first health stays.
                changed = self.health.changed(), if checked => checked = changed.is_ok(),
                _changed = ready.changed() => {}
                asked = self.leave.recv(), if leaving.is_none() => {
                    send(requests, register_request::Message::Drain(Drain {}))?;
                    leaving = Some(asked.ok_or(Lost::Closed)?);
                }
                answer = answers.message() => match (answer?, &mut leaving) {
                    (None, Some(_)) => return leaving.take().ok_or(Lost::Closed),
                    (None, None) => return Err(Lost::Closed),
                    (Some(RegisterResponse { message: Some(register_response::Message::Drained(_)) }), Some(_)) => {
                        return leaving.take().ok_or(Lost::Closed);
                    }
                    (Some(_), _) => {}
                },
            }
        }
    }

    /// Health as others should see it: the application's, and whether this sidecar can serve.
    fn healthy(&mut self) -> Health {
        match self.shared.missing() {
            Some(reason) => Health { healthy: false, reason },
            None => self.health.borrow_and_update().clone(),
        }
    }

    async fn workload(&mut self) -> Result<Workload, Lost> {
        let settings = &self.shared.settings;
        let ip = match advertised_ip(settings, self.inbound) {
            Some(ip) => ip,
            None => local_address(&settings.control_plane).await?,
        };
        let advertised = settings.address.and_then(|Advertised { port, .. }| port);
        let ports = settings.ports.iter().map(|port| WorkloadPort {
            name: port.name.to_string(),
            port: u32::from(port.port),
            protocol: protocol(port.protocol).to_owned(),
            app_port: u32::from(port.app_port),
        });
        Ok(Workload {
            instance: self.instance.to_string(),
            namespace: settings.namespace.to_string(),
            service: settings.service.to_string(),
            address: ip.to_string(),
            port: u32::from(advertised.unwrap_or(self.inbound.port())),
            ports: ports.collect(),
            weight: settings.weight,
            labels: labels(settings).into_iter().collect(),
            region: settings.region.to_string(),
            zone: settings.zone.to_string(),
            version: settings.app_version.to_string(),
            healthy: false,
        })
    }
}

async fn lease(answers: &mut Streaming<RegisterResponse>) -> Result<Duration, Lost> {
    loop {
        match answers.message().await?.ok_or(Lost::Closed)?.message {
            Some(register_response::Message::Lease(lease)) => {
                return Ok(Duration::from_millis(u64::from(lease.ttl_milliseconds)));
            }
            Some(register_response::Message::Drained(_)) | None => {}
        }
    }
}

/// A full channel means that the control plane does not read: as good as lost.
fn send(requests: &mpsc::Sender<RegisterRequest>, message: register_request::Message) -> Result<(), Lost> {
    requests.try_send(RegisterRequest { message: Some(message) }).map_err(|_full| Lost::Late)
}

/// Label with the name by which this endpoint of a headless service is called.
const HOSTNAME: &str = "weft.mesh/hostname";
/// The control plane takes no more.
const MOST_LABELS: usize = 64;

/// Labels as given, and the name of this machine, by which a headless service's endpoint is called.
fn labels(settings: &Settings) -> BTreeMap<String, String> {
    let mut labels = settings.labels.clone();
    if labels.len() < MOST_LABELS && !labels.contains_key(HOSTNAME) {
        labels.extend(host_name().map(|name| (HOSTNAME.to_owned(), name)));
    }
    labels
}

/// The machine's name up to the first dot, as DNS writes it. `None`: it has none that could be one.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim().split('.').next()?.to_ascii_lowercase();
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
    ((1..=63).contains(&name.len()) && name.chars().all(valid)).then_some(name)
}

/// As the registry writes it; empty: the first bytes tell.
fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Detect => "",
        Protocol::Http => "http",
        Protocol::Http2 => "http2",
        Protocol::Grpc => "grpc",
        Protocol::Tcp => "tcp",
    }
}

/// The address that is set, or that the inbound port is bound to. `None`: bound to all.
fn advertised_ip(settings: &Settings, inbound: SocketAddr) -> Option<IpAddr> {
    match settings.address {
        Some(Advertised { ip, .. }) => Some(ip),
        None => (!inbound.ip().is_unspecified()).then_some(inbound.ip()),
    }
}

/// The address of this machine on the way to the control plane.
async fn local_address(control_plane: &str) -> Result<IpAddr, Lost> {
    let unresolved = |error| Lost::Unresolved(control_plane.into(), error);
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for remote in tokio::net::lookup_host(control_plane).await.map_err(unresolved)? {
        let any: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        // Nothing is sent: connecting a datagram socket only asks the routing table.
        match UdpSocket::bind(any).and_then(|socket| socket.connect(remote).and_then(|()| socket.local_addr())) {
            Ok(local) => return Ok(local.ip()),
            Err(error) => last = error,
        }
    }
    Err(unresolved(last))
}

/// A name of this workload that is unique in its service: host name and a random suffix; the same after a restart with
/// the same data directory, so that a workload that comes back takes its own place.
fn instance(data_dir: &Path) -> Box<str> {
    let path = data_dir.join("instance");
    if let Ok(kept) = std::fs::read_to_string(&path) {
        let kept = kept.trim();
        if !kept.is_empty()
            && kept.len() <= 128
            && kept.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            return kept.into();
        }
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(63).collect();
    let host = if host.is_empty() { "workload".to_owned() } else { host };
    let suffix: String = std::iter::repeat_with(|| fastrand::char('a'..='z')).take(6).collect();
    let instance = format!("{host}-{suffix}");
    // Lost with the power, it costs no more than a new name.
    if let Err(error) = weft_telemetry::files::write_public(&path, instance.as_bytes()) {
        tracing::warn!(%error, "the name of this workload could not be kept");
    }
    instance.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let first = instance(directory.path());
        assert_eq!(instance(directory.path()), first);
        std::fs::write(directory.path().join("instance"), "../x").unwrap();
        assert_ne!(&*instance(directory.path()), "../x");
    }

    #[test]
    fn an_endpoint_is_called_by_the_machines_name_unless_it_says_otherwise() {
        let settings = |labels: &str| {
            let args = ["x", "--service", "db", "--control-plane", "127.0.0.1:1", "--labels", labels];
            let flags = <crate::settings::Cli as clap::Parser>::try_parse_from(args).unwrap().flags;
            Settings::new(flags, None, 1).unwrap()
        };
        let given = labels(&settings("a=b,weft.mesh/hostname=db-0"));
        assert_eq!((&*given["a"], &*given[HOSTNAME]), ("b", "db-0"));
        assert_eq!(labels(&settings("a=b")).get(HOSTNAME).cloned(), host_name());
    }

    #[tokio::test]
    async fn the_way_to_loopback_is_loopback() {
        assert_eq!(local_address("127.0.0.1:15010").await.unwrap(), IpAddr::from([127, 0, 0, 1]));
    }
}
