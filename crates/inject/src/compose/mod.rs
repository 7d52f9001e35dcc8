//! An overlay beside a compose file, which puts a sidecar into each of its services.
//!
//! ```text
//! compose.yaml ─► file ─┐
//!                       ├─► plan ─► text     what will be done, for people
//! image inspect ► image ┘      └──► overlay  compose.weft.yaml
//! ```
//!
//! Pure: who reads files and asks the engine is `weft inject compose`.

mod file;
mod image;
mod labels;
mod namespace;
mod overlay;
mod plan;
mod ports;
mod text;
mod words;

#[cfg(test)]
mod tests;

pub use self::{
    file::{Network, Project, Service},
    image::Image,
    labels::PREFIX as LABEL_PREFIX,
    overlay::overlay,
    plan::{Form, Meshed, Neighbour, Options, Plan, Separate, Skipped, Wrapped, plan},
    ports::{Port, Protocol},
    text::text,
};

/// Why nothing can be injected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}; {remedy}")]
pub struct InjectError {
    /// Where in the compose file, as in `services.orders.ports`.
    pub place: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl InjectError {
    fn new(place: impl Into<String>, problem: impl ToString, remedy: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.to_string(), remedy: remedy.into() }
    }
}
