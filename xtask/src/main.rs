//! Development commands: `cargo xtask test | bench | fleet | images | proto`.

mod bench;
mod build;
mod counts;
mod debian;
mod engine;
mod images;
mod proto;
mod run;
mod system;
mod test;

use std::{path::Path, process::ExitCode};

use clap::{Parser, Subcommand};

/// Development commands of Weft.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that must hold: format, lints, unit, property, integration, interop, document and
    /// deployment tests, and no more
    /// instructions and allocations for a request than the last commit needs.
    ///
    /// Installs the system packages that it needs when it is root on Debian, and otherwise names them.
    Test(test::Options),
    /// Benchmarks beside Envoy, HAProxy and nginx on this machine: tables of ratios. Or a flame graph.
    #[command(disable_help_flag = true)]
    Bench {
        /// What the benchmark takes (see `cargo xtask bench --help`).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// A control plane under thousands of simulated sidecars: how fast a change is everywhere, and what a sidecar costs.
    #[command(disable_help_flag = true)]
    Fleet {
        /// What it takes (see `cargo xtask fleet --help`).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Container images with nothing but a static program, from deploy/images, and what each is made of (SBOM).
    ///
    /// Needs no engine and no registry. Files go to target/images.
    Images(images::Options),
    /// Generate crates/proto/src/generated (needs protoc).
    Proto {
        /// Only fail when what is committed is stale.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match carry_out(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(command: Command) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
    match command {
        Command::Test(options) => test::run(root, &options),
        Command::Bench { args } => bench::run(root, args),
        Command::Fleet { args } => bench::fleet(root, args),
        Command::Images(options) => images::run(root, &options),
        Command::Proto { check } => proto::run(root, check),
    }
}
