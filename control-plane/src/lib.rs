//! The control plane: configuration, service discovery and certificates.
//!
//! ```text
//! Apply / Delete / Rollback ─► validate ─► store.append(expected revision) ─┐
//! Register / heartbeat / health ─► registry (leases) ───────────────────────┤
//!                                                      index: fold, mark dirty
//!               xDS sessions ◄── resources ◄── translate (pure) ◄── World ◄─┘
//! ```

pub mod certificates;
pub mod index;
pub mod peer;
pub mod registry;
pub mod store;
pub mod translate;
pub mod xds;
