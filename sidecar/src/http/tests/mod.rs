//! Two sidecars, a caller and an application, over real sockets on loopback, in one thread.

mod failures;
mod flow;
mod http1;
mod http2;
pub(crate) mod mesh;
mod retries;
mod streams;
mod tcp;
mod tunnels;
