//! What the integration tests share: a mesh of real processes, applications inside the test, callers.

pub mod api_server;
pub mod app;
pub mod caller;
pub mod dashboards;
pub mod docker;
pub mod identity;
pub mod load;
pub mod mesh;
pub mod netns;
pub mod pair;
pub mod prometheus;
pub mod raw;
pub mod witness;

pub use self::{api_server::ApiServer, app::App, caller::Answer, load::Load, mesh::Mesh, pair::Pair, raw::Raw};
