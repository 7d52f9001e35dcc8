//! Logs, the metrics registry, the admin server and shutdown.
