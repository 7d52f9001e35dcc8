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

use crate::settings::{
    Accounts, Cli, Command, Flags, Init, InitFlags, JOIN_TOKEN, Launch, LaunchFlags, Own, PauseFlags, Redirect,
    Settings, SettingsError,
};

pub mod admin;
pub mod alarm;
pub mod balance;
pub mod cache;
pub mod capture;
pub mod certs;
pub mod clock;
pub mod demand;
pub mod detect;
pub mod dns;
pub mod drain;
pub mod health;
pub mod http;
pub mod http1;
pub mod http2;
pub mod install;
pub mod io;
pub mod lend;
pub mod listener;
pub mod mark;
pub mod metrics;
pub mod pause;
pub mod policy;
pub mod reason;
pub mod reconnect;
pub mod record;
pub mod redirect;
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
    let mut cli = match Cli::try_parse_from(args) {
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
    if let Some(Command::Pause(flags)) = cli.command {
        return hold_namespace(&cli.flags, flags);
    }
    if let Some(Command::Init(init)) = cli.command {
        return init_rules(&cli.flags, init);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let launch = match cli.command {
        Some(Command::Run(launch)) => Some(wrapped(&mut cli.flags, launch)),
        Some(
            Command::Serve | Command::Init(_) | Command::Install { .. } | Command::Pause(_) | Command::Wait { .. },
        )
        | None => None,
    };
    let launch = match launch.transpose() {
        Ok(launch) => launch,
        Err(error) => return complain(&error, USAGE),
    };
    let settings = match Settings::new(cli.flags, std::env::var(JOIN_TOKEN).ok(), cores) {
        Ok(settings) => settings,
        Err(error) => return complain(&error, USAGE),
    };
    let log = match weft_telemetry::log::init(&settings.log, settings.log_format) {
        Ok(log) => log,
        Err(error) => return complain(&error, USAGE),
    };
    mark::init(&settings.transparent);
    if let Some(Redirect { plan, setter }) = launch.as_ref().and_then(|launch| launch.redirect.as_ref()) {
        match setter.apply(plan) {
            Ok(by) => tracing::info!(by, "{plan}"),
            Err(error) => return complain(&error, FAILED),
        }
    }
    start::run(settings, launch, log).unwrap_or_else(|error| complain(&error, FAILED))
}

fn wrapped(flags: &mut Flags, launch: LaunchFlags) -> Result<Launch, SettingsError> {
    let home = std::env::var("HOME").ok();
    let uid = nix::unistd::geteuid().as_raw();
    Launch::new(flags, launch, Own { uid, home: home.as_deref(), accounts: &Accounts::here() })
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

fn init_rules(flags: &Flags, init: InitFlags) -> ExitCode {
    let init = match Init::new(flags, init) {
        Ok(init) => init,
        Err(error) => return complain(&error, USAGE),
    };
    let done = match init {
        Init::Print(Redirect { plan, setter }) => setter.dry_run(&plan),
        Init::Apply(Redirect { plan, setter }) => setter.apply(&plan).map(|by| format!("{plan}, by {by}\n")),
        Init::Remove(setter) => setter.remove().map(|()| "no connections are redirected\n".to_owned()),
    };
    match done {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => complain(&error, FAILED),
    }
}

fn hold_namespace(flags: &Flags, pause: PauseFlags) -> ExitCode {
    let redirect = match pause.redirect(flags) {
        Ok(redirect) => redirect,
        Err(error) => return complain(&error, USAGE),
    };
    if let Some(Redirect { plan, setter }) = redirect {
        match setter.apply(&plan) {
            Ok(by) => println!("{plan}, by {by}"),
            Err(error) => return complain(&error, FAILED),
        }
    }
    pause::pause().map_or_else(|error| complain(&error, FAILED), |()| ExitCode::SUCCESS)
}

fn complain(error: &dyn std::error::Error, status: u8) -> ExitCode {
    eprintln!("weft-sidecar: {error}");
    ExitCode::from(status)
}
