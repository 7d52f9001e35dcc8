//! The ConfigMap with the mesh's root certificates: what a sidecar that proves itself by a service-account token trusts at
//! its first contact. It is in the control plane's own namespace, and wherever a pod with a sidecar is.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_identity::TrustBundle;

use super::{Cluster, Discovery};

/// Its name.
pub const ROOT_CONFIG_MAP: &str = "weft-root";
/// The key in it.
pub const ROOT_KEY: &str = "ca.pem";

/// Publishes until `stop`.
pub async fn run(
    cluster: Cluster,
    discovery: Discovery,
    mut bundle: watch::Receiver<Arc<TrustBundle>>,
    stop: CancellationToken,
) {
    let mut done: BTreeSet<String> = BTreeSet::new();
    let mut told: BTreeSet<String> = BTreeSet::new();
    loop {
        let pem = bundle.borrow_and_update().to_pem();
        let mut wanted = discovery.meshed_namespaces();
        wanted.retain(|namespace| cluster.covers(namespace));
        wanted.insert(cluster.own_namespace.clone());
        done.retain(|namespace| wanted.contains(namespace));
        let missing: Vec<String> = wanted.difference(&done).cloned().collect();
        for namespace in missing {
            match publish(&cluster, &namespace, &pem).await {
                Ok(()) => {
                    told.remove(&namespace);
                    done.insert(namespace);
                }
                Err(error) if told.insert(namespace.clone()) => {
                    let map = ROOT_CONFIG_MAP;
                    tracing::warn!(namespace, map, "the root certificates cannot be published; trying again: {error}");
                }
                Err(_told_before) => {}
            }
        }
        let wait = if done.len() == wanted.len() { AGAIN } else { RETRY };
        tokio::select! {
            () = stop.cancelled() => return,
            () = discovery.meshed_changed() => {}
            changed = bundle.changed() => match changed {
                Ok(()) => done.clear(),
                Err(_closed) => return,
            },
            // Somebody may have removed it.
            () = tokio::time::sleep(wait) => if wait == AGAIN { done.clear() },
        }
    }
}

async fn publish(cluster: &Cluster, namespace: &str, pem: &str) -> Result<(), String> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": ROOT_CONFIG_MAP,
            "namespace": namespace,
            "labels": { "app.kubernetes.io/managed-by": super::MANAGER },
        },
        "data": { ROOT_KEY: pem },
    });
    let (params, patch) = (PatchParams::apply(super::MANAGER).force(), Patch::Apply(&map));
    let writing = maps.patch(ROOT_CONFIG_MAP, &params, &patch);
    match tokio::time::timeout(WRITE_TIMEOUT, writing).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(super::explain(&error)),
        Err(_late) => Err("no answer in time".to_owned()),
    }
}

const AGAIN: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(5);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
