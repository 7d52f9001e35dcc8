//! `weft inject`: sidecars into what teams deploy.

pub mod compose;
mod docker;
mod folder;
pub mod kubernetes;

use clap::Subcommand;

use crate::{credential::Connection, failure::Failure};

/// Where sidecars are put.
#[derive(Subcommand)]
pub enum Command {
    Compose(compose::Options),
    Kubernetes(kubernetes::Options),
}

/// Runs one of them.
///
/// # Errors
/// As the exit codes of `weft --help` say.
pub fn run(connection: &Connection, command: Command) -> Result<(), Failure> {
    match command {
        Command::Compose(options) => compose::run(connection, options),
        Command::Kubernetes(options) => kubernetes::run(&options),
    }
}
