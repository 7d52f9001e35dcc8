//! `cargo xtask bench`: a pair of Weft sidecars beside pairs of Envoys and HAProxies doing the same mutual-TLS hop.
//!
//! Everything runs on this machine at the same time of day: the contestants take turns, round by round, and what counts
//! are the ratios, since the machine is noisy. CPU is what the kernel charged to the two proxies alone.

mod backend;
mod contestants;
mod load;
mod measure;
mod proc;
mod table;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;

use self::{contestants::Kind, measure::Effort};

/// Measure a pair of Weft sidecars beside Envoy and HAProxy.
///
/// Prints one table: medians over the rounds, and ratios to Envoy in the same run. Envoy comes from the environment
/// that `cargo xtask bench` makes, HAProxy from the system; what is missing is left out and named.
#[derive(Parser)]
#[command(name = "cargo xtask bench", version)]
struct Args {
    /// Rounds; in each, every contestant has one turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Three short rounds, about two minutes.
    #[arg(long)]
    quick: bool,
    /// Only these.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Write every figure of every round here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let effort = if args.quick { Effort::quick() } else { Effort::full() };
    let rounds = if args.quick { args.rounds.min(3) } else { args.rounds };
    let backend = backend::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let folder = tempfile::Builder::new().prefix("weft-bench-").tempdir()?;
    let kinds: Vec<Kind> = if args.only.is_empty() { Kind::ALL.to_vec() } else { args.only.clone() };
    let mut results = Vec::new();
    for round in 1..=rounds {
        for kind in &kinds {
            let place = folder.path().join(format!("{kind:?}-{round}").to_lowercase());
            std::fs::create_dir_all(&place)?;
            let outcome = runtime.block_on(async {
                let mut pair = contestants::start(*kind, &place, backend).await?;
                let figures = measure::all(&pair, &effort).await;
                pair.stop().await;
                figures
            });
            match outcome.with_context(|| format!("{kind:?}")) {
                Ok(figures) => {
                    eprintln!("round {round} of {rounds}: {kind:?}: {figures}");
                    results.push((*kind, figures));
                }
                Err(error) => eprintln!("round {round} of {rounds}: left out: {error:#}"),
            }
        }
    }
    print!("{}", table::render(&results));
    if let Some(file) = &args.json {
        std::fs::write(file, table::json(&results)).with_context(|| file.display().to_string())?;
    }
    Ok(())
}
