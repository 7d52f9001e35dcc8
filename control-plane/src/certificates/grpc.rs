//! `weft.v1.CertificateService`: the wire's side of the certificates manager.

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::StreamExt;
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status};
use weft_identity::TrustBundle;
use weft_proto::weft::v1::certificate_service_server::{CertificateService, CertificateServiceServer};
use weft_proto::weft::v1::{IssueRequest, IssueResponse, TrustBundleRequest, TrustBundleResponse};

use super::issue::{Certificates, Issued, Refused};
use super::metrics::Outcome;
use crate::kubernetes::ReviewError;
use crate::peer::Peer;

/// The gRPC service. Expects the [`Peer`] among the extensions of a request.
#[derive(Debug, Clone)]
pub struct CertificatesGrpc {
    certificates: Arc<Certificates>,
    stop: CancellationToken,
}

impl CertificatesGrpc {
    /// `stop` ends the streams, so that a shutdown need not wait for clients.
    pub fn new(certificates: Arc<Certificates>, stop: CancellationToken) -> Self {
        Self { certificates, stop }
    }

    /// The service for a tonic router, with requests bounded to 64 KiB.
    pub fn into_service(self) -> CertificateServiceServer<Self> {
        CertificateServiceServer::new(self).max_decoding_message_size(LARGEST_MESSAGE)
    }
}

#[tonic::async_trait]
impl CertificateService for CertificatesGrpc {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let peer = Peer::of(&request)?.certificates.clone();
        let request = request.into_inner();
        let now = SystemTime::now();
        let issued = self.certificates.issue(&request.csr, &request.join_token, peer.as_deref(), now).await;
        issued.map(|issued| Response::new(answer(&issued))).map_err(|refused| status(&refused))
    }

    type TrustBundleStream = Pin<Box<dyn Stream<Item = Result<TrustBundleResponse, Status>> + Send>>;

    async fn trust_bundle(
        &self,
        _request: Request<TrustBundleRequest>,
    ) -> Result<Response<Self::TrustBundleStream>, Status> {
        let bundles = WatchStream::new(self.certificates.bundle());
        let answers = bundles.map(|bundle| {
            let trust_domain = bundle.trust_domain().to_string();
            Ok(TrustBundleResponse { trust_domain, roots: roots(&bundle) })
        });
        Ok(Response::new(Box::pin(answers.take_until(self.stop.clone().cancelled_owned()))))
    }
}

fn answer(issued: &Issued) -> IssueResponse {
    IssueResponse {
        chain: issued.chain.iter().map(|cert| cert.to_vec()).collect(),
        trust_bundle: roots(&issued.bundle),
        identity: issued.identity.to_string(),
        not_before: humantime::format_rfc3339_seconds(issued.not_before).to_string(),
        not_after: humantime::format_rfc3339_seconds(issued.not_after).to_string(),
        trust_domain: issued.bundle.trust_domain().to_string(),
    }
}

fn roots(bundle: &TrustBundle) -> Vec<Vec<u8>> {
    bundle.roots().iter().map(|root| root.to_vec()).collect()
}

pub(super) fn status(refused: &Refused) -> Status {
    let code = match refused.outcome() {
        Outcome::BadRequest => Code::InvalidArgument,
        Outcome::Unproved => Code::Unauthenticated,
        Outcome::Forbidden => Code::PermissionDenied,
        Outcome::Shed => Code::ResourceExhausted,
        Outcome::Failed | Outcome::Joined | Outcome::Renewed => Code::Internal,
    };
    // Try again: it is not the caller's doing.
    let away = matches!(refused, Refused::ServiceAccount(ReviewError::Unavailable(_)));
    let code = if away { Code::Unavailable } else { code };
    let mut status = Status::new(code, refused.to_string());
    if let Refused::Shed { retry_after } = refused {
        let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
        status.metadata_mut().insert(PUSHBACK, MetadataValue::from(millis));
    }
    status
}

/// Retry hint of gRPC itself (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";
const LARGEST_MESSAGE: usize = 64 * 1024;
