//! Access rules, retry plan, backoff, timeouts. Pure: no I/O, no clock, no chance of its own.

pub mod access;
pub mod backoff;
pub mod retry;
pub mod timeouts;

#[cfg(test)]
mod tests;
