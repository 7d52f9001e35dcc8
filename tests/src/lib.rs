//! What the integration tests share: a mesh of real processes, applications inside the test, callers.

pub mod app;
pub mod caller;
pub mod mesh;

pub use self::{app::App, caller::Answer, mesh::Mesh};
