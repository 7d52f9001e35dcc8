//! Kubernetes manifests with sidecars in their pods.
