//! The registration stream: a shell around [`Registry`] that speaks gRPC.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use weft_identity::SpiffeId;
use weft_proto::weft::v1::{
    self, RegisterRequest, RegisterResponse, register_request::Message, register_response,
    registry_service_server::RegistryService,
};

use super::{
    Registry,
    lease::{StreamId, Superseded},
    workload,
};
use crate::{
    index::Worlds,
    outbox::{Gone, Messages, Outbox, outbox},
    peer::Peer,
    xds::Sessions,
};

/// `weft.v1.RegistryService`.
#[derive(Debug, Clone)]
pub struct RegistryGrpc {
    registry: Registry,
    worlds: Arc<Worlds>,
    /// Sequence of the registry's changes that the index has published.
    applied: watch::Receiver<u64>,
    sessions: Arc<Sessions>,
    stop: CancellationToken,
}

impl RegistryGrpc {
    /// The service over a registry and what is made of it. `stop` ends every stream.
    pub fn new(
        registry: Registry,
        worlds: Arc<Worlds>,
        applied: watch::Receiver<u64>,
        sessions: Arc<Sessions>,
        stop: CancellationToken,
    ) -> Self {
        Self { registry, worlds, applied, sessions, stop }
    }
}

#[tonic::async_trait]
impl RegistryService for RegistryGrpc {
    type RegisterStream = Messages<Result<RegisterResponse, Status>>;

    async fn register(
        &self,
        request: Request<Streaming<RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let peer = Peer::of(&request)?;
        let (identity, ip) = (peer.proven()?.clone(), peer.address.ip());
        // A peer that reads no answer is ended.
        let (mut answers, stream) = outbox();
        let mut messages = request.into_inner();
        let service = self.clone();
        // Ends with the stream: each read has a deadline, and the connection's end is an error of it.
        tokio::spawn(async move {
            let serving = async {
                // Boxed: the task's memory is kept for as long as the stream lives.
                let lease = Box::pin(service.first(&mut messages, identity, ip)).await?;
                service.serve(lease, &mut messages, &mut answers).await
            };
            let ended = tokio::select! {
                ended = serving => ended,
                () = service.stop.cancelled() => Err(Status::unavailable("the control plane is going down")),
            };
            if let Err(status) = ended
                && !matches!(timeout(service.registry.ttl(), answers.send(Err(status))).await, Ok(Ok(())))
            {
                tracing::debug!("a registration ended after its stream");
            }
        });
        Ok(Response::new(stream))
    }
}

/// A lease, and when leaving that all is done.
type Answers = Outbox<Result<RegisterResponse, Status>>;

/// A workload's stream. Dropping it is the end of it for the registry.
struct Lease {
    id: Arc<str>,
    stream: StreamId,
    registry: Registry,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (registry, id, stream) = (self.registry.clone(), self.id.clone(), self.stream);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { registry.closed(&id, stream).await })),
            Err(_) => tracing::debug!("a registration outlived the control plane"),
        }
    }
}

impl RegistryGrpc {
    /// The first message registers.
    async fn first(
        &self,
        messages: &mut Streaming<RegisterRequest>,
        identity: SpiffeId,
        ip: IpAddr,
    ) -> Result<Lease, Status> {
        let first = timeout(self.registry.ttl(), messages.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no registration came on the stream"))??;
        let Some(RegisterRequest { message: Some(Message::Workload(message)) }) = first else {
            return Err(Status::invalid_argument("the first message of a registration must be the workload"));
        };
        let workload = workload::read(message, identity, ip)
            .map_err(|refused| Status::invalid_argument(format!("the registration is refused: {refused}")))?;
        if !self.worlds.current().may_act_as(&workload.identity, &workload.service) {
            let (identity, service) = (&workload.identity, &workload.service);
            let message = format!(
                "{identity} may not register for service {service}: its account is not the service's name, and the \
                 Service does not name it in the annotation weft.mesh/service-accounts"
            );
            tracing::warn!(%identity, %service, "a registration was refused");
            return Err(Status::permission_denied(message));
        }
        let id = workload.id.clone();
        tracing::info!(workload = %id, address = %workload.address, "registered");
        let stream = self.registry.register(workload).await;
        let stream = stream.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Lease { id, stream, registry: self.registry.clone() })
    }

    async fn serve(
        &self,
        lease: Lease,
        messages: &mut Streaming<RegisterRequest>,
        answers: &mut Answers,
    ) -> Result<(), Status> {
        let ttl = self.registry.ttl();
        let granted = v1::Lease {
            ttl_milliseconds: u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX),
            revision: self.worlds.current().revision,
        };
        answer(answers, register_response::Message::Lease(granted), ttl).await?;
        loop {
            let message = timeout(ttl, messages.message())
                .await
                .map_err(|_| Status::deadline_exceeded("no heartbeat came within the lease"))??;
            let Some(message) = message else {
                tracing::info!(workload = %lease.id, "the registration stream was closed");
                return Ok(());
            };
            let taken = match message.message {
                Some(Message::Heartbeat(_)) => self.registry.heartbeat(&lease.id, lease.stream),
                // Boxed: rare, and what it needs would have room in the task as long as the stream lives.
                message => Box::pin(self.take(&lease, message, answers)).await?,
            };
            taken.map_err(|Superseded| {
                Status::aborted("another stream registered this workload, or its lease ran out")
            })?;
        }
    }

    /// Takes what a workload says besides that it lives.
    async fn take(
        &self,
        lease: &Lease,
        message: Option<Message>,
        answers: &mut Answers,
    ) -> Result<Result<(), Superseded>, Status> {
        match message {
            Some(Message::Health(report)) => {
                let why: String = report.reason.chars().filter(|c| !c.is_control()).take(256).collect();
                tracing::info!(workload = %lease.id, healthy = report.healthy, reason = why, "health");
                Ok(self.registry.health(&lease.id, lease.stream, report.healthy, &why).await)
            }
            Some(Message::Drain(_)) => {
                let drained = self.drain(lease).await;
                if drained.is_ok() {
                    let message = register_response::Message::Drained(v1::Drained {});
                    answer(answers, message, self.registry.ttl()).await?;
                }
                Ok(drained)
            }
            Some(Message::Workload(_)) => Err(Status::invalid_argument("a stream registers one workload, once")),
            Some(Message::Heartbeat(_)) => Ok(self.registry.heartbeat(&lease.id, lease.stream)),
            None => Err(Status::invalid_argument("an empty message")),
        }
    }

    /// Takes the workload out of the endpoints and waits until those who use them know, for a bounded time.
    async fn drain(&self, lease: &Lease) -> Result<(), Superseded> {
        let sequence = self.registry.drain(&lease.id, lease.stream).await?;
        tracing::info!(workload = %lease.id, "draining");
        let mut applied = self.applied.clone();
        let told = async {
            if applied.wait_for(|&applied| applied >= sequence).await.is_err() {
                return; // The index stopped: the control plane is going down.
            }
            let generation = self.worlds.current().generation;
            if !self.sessions.flushed(generation, TELL_WITHIN).await {
                tracing::info!(workload = %lease.id, "not every sidecar acknowledged the leaving in time");
            }
        };
        if timeout(TELL_WITHIN, told).await.is_err() {
            tracing::info!(workload = %lease.id, "the leaving could not be told in time");
        }
        Ok(())
    }
}

async fn answer(answers: &mut Answers, message: register_response::Message, within: Duration) -> Result<(), Status> {
    let response = RegisterResponse { message: Some(message) };
    match timeout(within, answers.send(Ok(response))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Gone)) => Err(Status::cancelled("the stream ended")),
        Err(_) => Err(Status::deadline_exceeded("the answers are not read")),
    }
}

/// Longest that a leaving workload waits for others to learn of it.
const TELL_WITHIN: Duration = Duration::from_secs(1);
