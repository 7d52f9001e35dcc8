//! `weft`: the operator's command, and `weft demo`.
//!
//! - [`commands`]: one file for each. - [`demo`]: a mesh to watch. - [`launch`]: meshes of child processes, which the
//!   demo, the integration tests and the benchmarks share.

mod commands;
pub mod credential;
mod demo;
pub mod failure;
pub mod launch;
mod output;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

/// Operate a Weft service mesh.
///
/// Commands talk to the control plane with an operator credential: the file `operator.json` that the control plane
/// makes in its data directory at first start. It is looked for at --credential, then $WEFT_CREDENTIAL, then
/// weft-data/control-plane/operator.json, then .weft/control-plane/operator.json (`weft inject compose` makes it).
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the configuration was refused, 4 the control plane could not be
/// reached, 5 the log has moved on (--expect-revision), 6 applied but not acknowledged by every sidecar (--wait).
#[derive(Parser)]
#[command(name = "weft", version, max_term_width = 110)]
struct Args {
    #[command(flatten)]
    connection: credential::Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
// A variant without a comment takes that of its options, examples included.
enum Command {
    Demo(demo::Options),
    Apply(commands::apply::Options),
    Delete(commands::delete::Options),
    Get(commands::get::Options),
    Diff(commands::diff::Options),
    History(commands::history::Options),
    Rollback(commands::rollback::Options),
    Export(commands::export::Options),
    Validate(commands::validate::Options),
    Status(commands::status::Options),
    Check(commands::check::Options),
    /// Join tokens, with which a workload gets its first certificate.
    #[command(subcommand)]
    Token(commands::token::Command),
    Certificate(commands::certificate::Options),
    /// Put sidecars into what is deployed.
    #[command(subcommand)]
    Inject(commands::inject::Command),
    /// Print a completion script.
    Completions {
        /// For this shell.
        shell: clap_complete::Shell,
    },
    /// Run a sidecar (the same as weft-sidecar; see `weft sidecar --help`).
    #[command(disable_help_flag = true)]
    Sidecar {
        /// What weft-sidecar takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run a control plane (the same as weft-control-plane; see `weft control-plane --help`).
    #[command(disable_help_flag = true)]
    ControlPlane {
        /// What weft-control-plane takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// One of the demo's applications.
    #[command(hide = true)]
    DemoApp(demo::AppOptions),
}

/// Runs `weft`.
pub fn main() -> ExitCode {
    // The two daemons read their own command lines: flags such as --control-plane mean something else to them.
    let mut words = std::env::args_os().skip(1);
    match words.next().as_ref().and_then(|word| word.to_str()) {
        Some("sidecar") => return weft_sidecar::main(with_name("weft sidecar", words)),
        Some("control-plane") => return weft_control_plane::main(with_name("weft control-plane", words)),
        _ => {}
    }
    let args = Args::parse();
    let connection = args.connection;
    match args.command {
        Command::Sidecar { args } => weft_sidecar::main(with_name("weft sidecar", args.into_iter())),
        Command::ControlPlane { args } => weft_control_plane::main(with_name("weft control-plane", args.into_iter())),
        Command::Demo(options) => demo::main(options),
        Command::DemoApp(options) => demo::app(options),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "weft", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Command::Inject(command) => failure::exit(commands::inject::run(&connection, command)),
        Command::Validate(options) => failure::exit(commands::validate::run(&options)),
        command => failure::exit(run(connection, command)),
    }
}

/// The commands that talk to the control plane.
fn run(connection: credential::Connection, command: Command) -> Result<(), failure::Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Certificate(options) => commands::certificate::run(&connection, options).await,
            Command::Apply(options) => commands::apply::run(connection.open()?, options).await,
            Command::Delete(options) => commands::delete::run(connection.open()?, options).await,
            Command::Get(options) => commands::get::run(connection.open()?, options).await,
            Command::Diff(options) => commands::diff::run(connection.open()?, options).await,
            Command::History(options) => commands::history::run(connection.open()?, options).await,
            Command::Rollback(options) => commands::rollback::run(connection.open()?, options).await,
            Command::Export(options) => commands::export::run(connection.open()?, options).await,
            Command::Check(options) => commands::check::run(&connection, options).await,
            Command::Status(options) => commands::status::run(connection.open()?, options).await,
            Command::Token(command) => commands::token::run(connection.open()?, command).await,
            _ => unreachable!("handled by main"),
        }
    })
}

fn with_name(name: &str, args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    std::iter::once(OsString::from(name)).chain(args).collect()
}
