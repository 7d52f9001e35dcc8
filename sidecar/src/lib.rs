//! The sidecar: the proxy beside every service.
//!
//! Two halves that meet in [`shared::Shared`]:
//!
//! - the **control side** (one thread): [`xds`] → [`snapshot`] (validated, immutable) → `ArcSwap`, [`certs`],
//!   [`registration`], [`admin`], [`drain`];
//! - the **data path** (N worker threads): [`listener`] → [`detect`] → [`tls`] → [`http`] | [`tcp`] → [`route`] →
//!   [`policy`] → [`balance`] → [`upstream`].
//!
//! [`start`] puts them together. [`http::request`] has the whole life of a request on one page.

use std::{ffi::OsString, process::ExitCode};

use clap::Parser;

use crate::settings::{Cli, Command, Flags, JOIN_TOKEN, Launch, Settings};

pub mod admin;
pub mod alarm;
pub mod balance;
pub mod cache;
pub mod certs;
pub mod clock;
pub mod demand;
pub mod detect;
pub mod drain;
pub mod health;
pub mod http;
pub mod http1;
pub mod http2;
pub mod install;
pub mod io;
pub mod lend;
pub mod listener;
pub mod metrics;
pub mod policy;
pub mod reason;
pub mod reconnect;
pub mod record;
pub mod registration;
pub mod route;
pub mod settings;
pub mod shared;
pub mod snapshot;
pub mod socket_options;
pub mod sockets;
pub mod start;
pub mod tcp;
pub mod tls;
pub mod upstream;
pub mod vip;
pub mod wait;
pub mod worker;
pub mod wrapper;
pub mod xds;

/// Settings that cannot be obeyed, or a start that failed.
const FAILED: u8 = 1;
/// Flags that cannot be read, as usual.
const USAGE: u8 = 2;

/// Runs `weft-sidecar` with a command line, the program's name first, and returns its exit status.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            if error.print().is_err() {
                // The terminal is gone: there is nobody to tell.
                return ExitCode::from(USAGE);
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    if let Some(Command::Wait { timeout }) = &cli.command {
        return wait_until_ready(&cli.flags, timeout);
    }
    if let Some(Command::Install { directory, tools }) = &cli.command {
        return match install::install(directory, tools.as_deref()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&error, FAILED),
        };
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let settings = match Settings::new(cli.flags, std::env::var(JOIN_TOKEN).ok(), cores) {
        Ok(settings) => settings,
        Err(error) => return complain(&error, USAGE),
    };
    let launch = match cli.command {
        Some(Command::Run(flags)) => match Launch::new(flags) {
            Ok(launch) => Some(launch),
            Err(error) => return complain(&error, USAGE),
        },
        Some(Command::Serve | Command::Install { .. } | Command::Wait { .. }) | None => None,
    };
    let log = match weft_telemetry::log::init(&settings.log, settings.log_format) {
        Ok(log) => log,
        Err(error) => return complain(&error, USAGE),
    };
    start::run(settings, launch, log).unwrap_or_else(|error| complain(&error, FAILED))
}

fn wait_until_ready(flags: &Flags, timeout: &str) -> ExitCode {
    let asked = flags.metrics().and_then(|metrics| Ok((metrics, settings::patience(timeout)?)));
    let (metrics, patience) = match asked {
        Ok(asked) => asked,
        Err(error) => return complain(&error, USAGE),
    };
    match wait::until_ready(metrics, patience) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, FAILED),
    }
}

fn complain(error: &dyn std::error::Error, status: u8) -> ExitCode {
    eprintln!("weft-sidecar: {error}");
    ExitCode::from(status)
}
