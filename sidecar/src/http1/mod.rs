//! HTTP/1.1 on the wire, both ends: heads, bodies, connections. What a request means and where it goes is [`crate::http`]'s.
//!
//! Both ends live in the task of the caller's connection: nothing is spawned for a message, and nothing is handed from
//! task to task. [`strict`], [`chunk`], [`decode`] and [`head`] are pure.

pub mod channel;
pub mod chunk;
pub mod client;
pub mod decode;
pub mod head;
pub mod server;
pub mod strict;

#[cfg(test)]
mod tests;
