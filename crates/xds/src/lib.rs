//! Both ends of the xDS protocol as state machines, and the only decoder of its resources into validated types. No I/O.
//!
//! - [`resource`]: the validated types and their decoder; what cannot be honoured is an error that names the field.
//! - [`client`] and [`server`]: the protocol, as state machines that take messages and return messages.

pub mod client;
pub mod resource;
pub mod server;
