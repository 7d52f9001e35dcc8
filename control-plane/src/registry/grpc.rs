//! The registration stream: a shell around [`Registry`] that speaks gRPC.

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
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
use crate::{index::Worlds, peer::Peer, xds::Sessions};

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
    type RegisterStream = Pin<Box<dyn Stream<Item = Result<RegisterResponse, Status>> + Send>>;

    async fn register(
        &self,
        request: Request<Streaming<RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let peer = Peer::of(&request)?;
        let (identity, ip) = (peer.proven()?.clone(), peer.address.ip());
        // Answers: a lease, and when leaving that all is done. A peer that reads neither is ended.
        let (answers, stream) = mpsc::channel(4);
        let mut messages = request.into_inner();
        let service = self.clone();
        // Ends with the stream: each read has a deadline, and the connection's end is an error of it.
        tokio::spawn(async move {
            let serving = async {
                let lease = service.first(&mut messages, identity, ip).await?;
                service.serve(lease, &mut messages, &answers).await
            };
            let ended = tokio::select! {
                ended = serving => ended,
                () = service.stop.cancelled() => Err(Status::unavailable("the control plane is going down")),
            };
            if let Err(status) = ended
                && answers.send(Err(status)).await.is_err()
            {
                tracing::debug!("a registration ended after its stream");
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

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
        answers: &mpsc::Sender<Result<RegisterResponse, Status>>,
    ) -> Result<(), Status> {
        let ttl = self.registry.ttl();
        let granted = v1::Lease {
            ttl_milliseconds: u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX),
            revision: self.worlds.current().revision,
        };
        answer(answers, register_response::Message::Lease(granted)).await?;
        loop {
            let message = timeout(ttl, messages.message())
                .await
                .map_err(|_| Status::deadline_exceeded("no heartbeat came within the lease"))??;
            let Some(message) = message else {
                tracing::info!(workload = %lease.id, "the registration stream was closed");
                return Ok(());
            };
            match message.message {
                Some(Message::Heartbeat(_)) => self.registry.heartbeat(&lease.id, lease.stream),
                Some(Message::Health(report)) => {
                    let why: String = report.reason.chars().filter(|c| !c.is_control()).take(256).collect();
                    tracing::info!(workload = %lease.id, healthy = report.healthy, reason = why, "health");
                    self.registry.health(&lease.id, lease.stream, report.healthy, &why).await
                }
                Some(Message::Drain(_)) => match self.drain(&lease).await {
                    Ok(()) => {
                        answer(answers, register_response::Message::Drained(v1::Drained {})).await?;
                        Ok(())
                    }
                    Err(superseded) => Err(superseded),
                },
                Some(Message::Workload(_)) => {
                    return Err(Status::invalid_argument("a stream registers one workload, once"));
                }
                None => return Err(Status::invalid_argument("an empty message")),
            }
            .map_err(|Superseded| Status::aborted("another stream registered this workload, or its lease ran out"))?;
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

async fn answer(
    answers: &mpsc::Sender<Result<RegisterResponse, Status>>,
    message: register_response::Message,
) -> Result<(), Status> {
    let response = RegisterResponse { message: Some(message) };
    answers.send(Ok(response)).await.map_err(|_| Status::cancelled("the stream ended"))
}

/// Longest that a leaving workload waits for others to learn of it.
const TELL_WITHIN: Duration = Duration::from_secs(1);
