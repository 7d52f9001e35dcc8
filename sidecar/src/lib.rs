//! The sidecar: the proxy beside every service.
//!
//! Two halves that meet in [`shared::Shared`]:
//!
//! - the **control side** (one thread): `xds` → [`snapshot`] (validated, immutable) → `ArcSwap`, `certs`, `registration`,
//!   `admin`, `drain`;
//! - the **data path** (N worker threads): `listener` → `detect` → `tls` → `http` | `tcp` → `route` → `policy` →
//!   [`balance`] → `upstream`.
//!
//! `http::request` has the whole life of a request on one page.

pub mod balance;
pub mod cache;
pub mod certs;
pub mod demand;
pub mod drain;
pub mod health;
pub mod policy;
pub mod reconnect;
pub mod registration;
pub mod route;
pub mod settings;
pub mod shared;
pub mod snapshot;
pub mod xds;
