//! The control plane: configuration, service discovery and certificates.
