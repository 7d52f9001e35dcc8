//! Logs, the metrics registry, the admin server and shutdown.
//!
//! - [`log`]: structured logs whose filter can be changed while the process runs.
//! - [`metrics`]: the Prometheus registry and its text exposition.
//! - [`server`]: a small bounded HTTP/1 server for admin and metrics ports.
//! - [`shutdown`]: signals become a cancellation token.
//! - [`files`]: atomic, private writes.
//! - [`memory`]: small pages.
//!
//! This crate knows nothing of what its users do.

pub mod files;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod server;
pub mod shutdown;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
