//! The control plane: configuration, service discovery and certificates.
//!
//! ```text
//! Apply / Delete / Rollback ─► validate ─► store.append(expected revision) ─┐
//! Register / heartbeat / health ─► registry (leases) ───────────────────────┤
//!                                                      index: fold, mark dirty
//!               xDS sessions ◄── resources ◄── translate (pure) ◄── World ◄─┘
//! ```
//!
//! [`start`] connects the parts, [`serve`] is the TLS port that all of them share.

use std::{ffi::OsString, io::Write, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use weft_telemetry::{log, shutdown::Shutdown};

mod body;
pub mod certificates;
pub mod config;
pub mod health;
pub mod index;
pub mod kubernetes;
pub mod metrics;
pub mod offline;
pub mod operator;
mod outbox;
pub mod peer;
pub mod registry;
pub mod serve;
pub mod settings;
pub mod start;
pub mod store;
pub mod translate;
pub mod xds;

use self::settings::{Cli, Command, Settings};

/// Runs the control plane with the arguments of a command line, the program's name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Cli { settings, command } = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output, complaints to standard error; clap knows which is which.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match command {
        Some(Command::Health { timeout }) => check(&settings, timeout),
        Some(Command::Credential) => credential(&settings),
        None => run(&settings),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(settings: &Settings, patience: std::time::Duration) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(health::check(&settings.data_dir, patience))
}

fn credential(settings: &Settings) -> anyhow::Result<()> {
    let text = operator::read(&settings.data_dir.join("operator.json"))?;
    std::io::stdout().write_all(text.as_bytes()).context("standard output cannot be written to")
}

fn run(settings: &Settings) -> anyhow::Result<()> {
    log::init(&settings.log, settings.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("control-plane").enable_all().build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::new();
        shutdown.listen()?;
        let running = start::start(settings).await?;
        tokio::select! {
            ended = running.until(shutdown.graceful.clone()) => ended,
            () = shutdown.now.cancelled() => anyhow::bail!("ended at once, as asked"),
        }
    })
}
