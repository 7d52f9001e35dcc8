//! `weft.v1.ConfigService`: the configuration API as gRPC.

use std::pin::Pin;

use futures_util::StreamExt;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use weft_proto::weft::v1::{self, config_service_server::ConfigService};

use super::{Author, Configuration};

#[tonic::async_trait]
impl ConfigService for Configuration {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchEvent, Status>> + Send>>;

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let author = author(&request)?;
        Ok(Response::new(Configuration::apply(self, request.into_inner(), author).await?))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let author = author(&request)?;
        Ok(Response::new(Configuration::delete(self, request.into_inner(), author).await?))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::Resource>, Status> {
        Ok(Response::new(Configuration::get(self, request.into_inner())?))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        Ok(Response::new(Configuration::list(self, request.into_inner())?))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let events = Configuration::watch(self, request.into_inner())?;
        Ok(Response::new(Box::pin(events.map(|event| event.map_err(Status::from)))))
    }

    async fn diff(&self, request: Request<v1::DiffRequest>) -> Result<Response<v1::DiffResponse>, Status> {
        Ok(Response::new(Configuration::diff(self, request.into_inner()).await?))
    }

    async fn history(&self, request: Request<v1::HistoryRequest>) -> Result<Response<v1::HistoryResponse>, Status> {
        Ok(Response::new(Configuration::history(self, request.into_inner())?))
    }

    async fn rollback(&self, request: Request<v1::RollbackRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let author = author(&request)?;
        Ok(Response::new(Configuration::rollback(self, request.into_inner(), author).await?))
    }

    async fn export(&self, request: Request<v1::ExportRequest>) -> Result<Response<v1::ExportResponse>, Status> {
        Ok(Response::new(Configuration::export(self, request.into_inner())?))
    }

    async fn status(&self, _request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(Configuration::status(self)))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let author = author(&request)?;
        Ok(Response::new(Configuration::create_token(self, request.into_inner(), author).await?))
    }
}

/// Put there by the check of the credential.
fn author<T>(request: &Request<T>) -> Result<Author, Status> {
    request.extensions().get().cloned().ok_or_else(|| Status::internal("the credential of this call was not checked"))
}
