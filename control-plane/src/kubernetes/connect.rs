//! How the API server is reached: from inside the cluster, or by a kubeconfig file.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// What the flags say of the cluster.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `None`: this process runs in a pod.
    pub kubeconfig: Option<PathBuf>,
    /// Only these are looked at; empty: all.
    pub namespaces: Vec<String>,
    /// Audience that a service-account token must have.
    pub audience: String,
}

/// The API server, as this process may use it.
#[derive(Clone)]
pub struct Cluster {
    /// Cheap to clone: all share one connection pool.
    pub client: Client,
    /// Namespace that this control plane lives in.
    pub own_namespace: String,
    /// Only these are looked at; empty: all.
    pub namespaces: Vec<String>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Cluster")
            .field("own_namespace", &self.own_namespace)
            .field("namespaces", &self.namespaces)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Reads where the API server is and how to prove who we are. Speaks to nobody yet: an API server that is away must
    /// not keep a control plane from starting with what it knows.
    /// # Errors
    /// There is no configuration, or it cannot be used.
    pub async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let mut config = match &settings.kubeconfig {
            Some(path) => {
                let unusable = || format!("--kubeconfig: {} cannot be used", path.display());
                let file = Kubeconfig::read_from(path).with_context(unusable)?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.with_context(unusable)?
            }
            None => Config::incluster().context(
                "--kubernetes: this process does not run in a pod with a service account; name a file with --kubeconfig",
            )?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.write_timeout = Some(WRITE_TIMEOUT);
        let own_namespace = config.default_namespace.clone();
        let client =
            Client::try_from(config).context("--kubernetes: the connection to the API server cannot be made")?;
        Ok(Self { client, own_namespace, namespaces: settings.namespaces.clone() })
    }

    /// Whether a namespace is looked at.
    pub fn covers(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|known| known == namespace)
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
