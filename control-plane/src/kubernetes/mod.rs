//! The Kubernetes source: with `--kubernetes` the API server is where configuration and discovery come from.
//!
//! ```text
//! API server ─► watch (one for each kind) ─► read (pure) ─► state (pure) ─┬─► log ─► index, as ever
//!      ▲                                                                  └─► discovery (pods, slices) ─► index
//!      └── writer ◄── status (pure) ◄── what is wrong with each object ◄── source
//!                         ▲
//!                         └── programmed (pure) ◄── blame (pure) ◄── what clients refuse ◄── xDS
//! ```
//!
//! [`connect`] says how the API server is reached, [`review`] asks it whose a service-account token is, [`root`] publishes
//! the root certificates that such a sidecar trusts.

mod blame;
mod connect;
mod discovery;
mod health;
mod programmed;
mod read;
mod review;
mod root;
mod source;
mod state;
mod status;
mod watch;
mod writer;

pub use self::{
    connect::{Cluster, Settings},
    discovery::{Discovery, Held},
    health::Health,
    review::{ReviewError, Reviewer, is_service_account_token},
    source::{Parts, run},
    state::Scope,
};

/// How this program signs what it writes.
const MANAGER: &str = "weft-control-plane";

/// What went wrong, for people: the API server's own words where it gave some.
pub(crate) fn explain(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} ({})", status.message, status.code);
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}
