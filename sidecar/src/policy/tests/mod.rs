//! Tests of access rules, retries, timeouts.

mod access;
mod retry;
mod timeouts;
