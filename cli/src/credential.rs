//! The operator's credential, and the connection that it opens.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use serde::Deserialize;
use tonic::{
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use weft_identity::{SpiffeId, TrustBundle, TrustDomain, tls};
use weft_proto::weft::v1::config_service_client::ConfigServiceClient;

use crate::failure::Failure;

/// Where the credential lies when nothing names it: that of a control plane started here, or by `weft inject compose`.
const DEFAULTS: [&str; 2] = ["weft-data/control-plane/operator.json", ".weft/control-plane/operator.json"];

/// Largest answer that is taken: an export of a large mesh.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// How the control plane is reached.
#[derive(Args, Debug, Clone)]
pub struct Connection {
    /// The operator's credential [default: weft-data/control-plane/operator.json, or that in .weft].
    #[arg(long, global = true, env = "WEFT_CREDENTIAL", value_name = "FILE")]
    pub credential: Option<PathBuf>,
    /// gRPC address of the control plane, when it is not the one in the credential.
    #[arg(long, global = true, env = "WEFT_CONTROL_PLANE", value_name = "HOST:PORT")]
    pub control_plane: Option<String>,
}

/// `operator.json`, as the control plane writes it.
#[derive(Deserialize)]
pub struct Credential {
    /// gRPC address.
    pub grpc: String,
    /// HTTP address.
    #[serde(default)]
    pub http: String,
    /// Root certificates, PEM.
    pub ca: String,
    /// Trust domain of the mesh.
    #[serde(rename = "trustDomain")]
    pub trust_domain: String,
    /// Bearer token.
    pub token: String,
}

/// A client of the configuration API.
pub type Client = ConfigServiceClient<InterceptedService<Channel, Bearer>>;

/// Adds the operator's token to each call.
#[derive(Clone)]
pub struct Bearer {
    token: MetadataValue<Ascii>,
    author: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.token.clone());
        if let Some(author) = &self.author {
            request.metadata_mut().insert("weft-author", author.clone());
        }
        Ok(request)
    }
}

impl Connection {
    /// Reads the credential.
    ///
    /// # Errors
    /// When there is none, or it cannot be read, with what to do.
    pub fn credential(&self) -> anyhow::Result<Credential> {
        let default = || {
            let found = DEFAULTS.iter().find(|path| Path::new(path).exists());
            PathBuf::from(found.unwrap_or(&DEFAULTS[0]))
        };
        let path = self.credential.clone().unwrap_or_else(default);
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "no operator credential at {}: name it with --credential FILE or WEFT_CREDENTIAL; the control plane \
                 writes operator.json to its data directory at first start",
                path.display()
            )
        })?;
        let mut credential: Credential = serde_json::from_str(&text)
            .map_err(|error| anyhow!("{} is not an operator credential: {error}", path.display()))?;
        if let Some(address) = &self.control_plane {
            credential.grpc.clone_from(address);
        }
        Ok(credential)
    }

    /// A client; the connection is made at the first call.
    ///
    /// # Errors
    /// When the credential is missing or unusable.
    pub fn open(&self) -> Result<Client, Failure> {
        let credential = self.credential()?;
        let trust_domain: TrustDomain =
            credential.trust_domain.parse().context("the credential's trust domain is unusable")?;
        let expected = SpiffeId::new(&trust_domain, "weft-system", "control-plane").context("a constant name")?;
        let bundle =
            TrustBundle::from_pem(trust_domain, &credential.ca).context("the credential's certificate is unusable")?;
        let tls = tls::client_config_expecting(None, &bundle, expected, &[b"h2"]).map_err(anyhow::Error::from)?;
        let channel = weft_proto::connect::channel(&credential.grpc, tls).map_err(anyhow::Error::from)?;
        let bearer = Bearer {
            token: format!("Bearer {}", credential.token).parse().context("the credential's token is malformed")?,
            author: std::env::var("USER").ok().and_then(|user| user.parse().ok()),
        };
        Ok(ConfigServiceClient::with_interceptor(channel, bearer).max_decoding_message_size(MAX_ANSWER_BYTES))
    }
}
