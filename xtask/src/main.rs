//! Development commands: `cargo xtask test | bench | proto`.

mod proto;

use std::path::Path;

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
    /// Generate crates/proto/src/generated (needs protoc).
    Proto {
        /// Only fail when what is committed is stale.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
    match Args::parse().command {
        Command::Proto { check } => proto::run(root, check),
    }
}
