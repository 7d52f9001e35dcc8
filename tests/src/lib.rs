//! What the integration tests share: a mesh of real processes, applications inside the test, callers.

pub mod app;
pub mod caller;
pub mod docker;
pub mod identity;
pub mod load;
pub mod mesh;
pub mod netns;
pub mod pair;
pub mod raw;
pub mod witness;

pub use self::{app::App, caller::Answer, load::Load, mesh::Mesh, pair::Pair, raw::Raw};
