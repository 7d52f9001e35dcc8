//! `weft-sidecar init`: rules of the kernel that take an application's connections to its sidecar.
//!
//! [`rules`] is what is redirected, [`nft`] and [`iptables`] say it in the words of the two programs, [`apply`] runs
//! those. Weft's rules are in a table (nft) or in chains (iptables) of their own; nothing else on the host is changed.

pub mod apply;
pub mod iptables;
pub mod nft;
pub mod range;
pub mod rules;
pub mod tools;

pub use self::{
    apply::{Backend, RedirectError, Rulesetter},
    rules::{Dns, PROBE, PROBE_V6, Plan},
};

#[cfg(test)]
mod tests;
