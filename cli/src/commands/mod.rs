//! One file for each command.

pub mod apply;
pub mod certificate;
pub mod check;
pub mod delete;
pub mod diff;
pub mod export;
pub mod get;
pub mod history;
pub mod inject;
mod kinds;
pub mod rollback;
mod sources;
pub mod status;
pub mod token;
pub mod validate;
