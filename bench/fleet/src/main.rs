//! `cargo xtask fleet`: a control plane under thousands of simulated sidecars.
//!
//! The control plane is the real one, a process of its own; the sidecars are tasks of this process, each with its own
//! certificate and its own connections over loopback, which speak what real ones speak. Both share the machine.

mod board;
mod limits;
mod measure;
mod mesh;
mod plane;
mod sidecar;
mod table;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Parser;

use self::{measure::Effort, mesh::Size, table::Sample};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Put a control plane under thousands of simulated sidecars, and see what they cost it.
///
/// Each size of mesh is built once a round: services are declared, sidecars connect over mutual TLS (a discovery stream
/// and a registration, as real ones do), the endpoints of three services are changed again and again (one that all
/// sidecars call, one that one calls, one that nobody calls), and in the end the control plane is killed and started
/// again under the fleet.
///
/// What is printed, for each mesh:
///
///   ack ms       from an endpoint's change to the last acknowledgement of those that it concerns: p50, p99, most
///   kB, CPU %    memory (PSS) and processor of the control plane, for each connected sidecar that does nothing
///   cpu ms       processor of the control plane for one change, when all, one or nobody is interested
///   bytes        sent for one change
///   herd s       from the start of a killed control plane until the whole fleet is in step again
///
/// Examples:
///
///   cargo xtask fleet --quick
///   cargo xtask fleet --sidecars 1000 --services 1000
///   cargo xtask fleet --sidecars 100,1000,5000 --services 100,1000,10000 --json fleet.json
#[derive(Parser)]
#[command(name = "cargo xtask fleet", version, verbatim_doc_comment)]
struct Args {
    /// Numbers of sidecars; every number is measured with every number of services.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,5000", value_parser = clap::value_parser!(u32).range(1..=50_000))]
    sidecars: Vec<u32>,
    /// Numbers of services.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    services: Vec<u32>,
    /// Services that each sidecar calls.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    calls: u32,
    /// Changes of each watched service.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// Seconds for which the idle mesh is looked at.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    idle: u32,
    /// Rounds: every mesh is built so many times.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// About a minute: 100 and 1,000 sidecars, 1,000 services, 30 changes.
    #[arg(long)]
    quick: bool,
    /// The `weft` or `weft-control-plane` program [default: the `weft` beside this program].
    #[arg(long, value_name = "FILE")]
    weft: Option<PathBuf>,
    /// Write every figure of every round here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fleet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let weft = program(args)?;
    let (sidecars, services) = match args.quick {
        true => (vec![100, 1000], vec![1000]),
        false => (args.sidecars.clone(), args.services.clone()),
    };
    let (changes, idle) = if args.quick { (30, 5) } else { (args.changes, args.idle) };
    let effort = Effort { changes: changes as usize, idle: Duration::from_secs(u64::from(idle)) };
    let most = sidecars.iter().max().copied().unwrap_or_default() as usize;
    limits::raise(CONNECTIONS * (most + mesh::Watched::ALL.len()))?;
    let mut samples = Vec::new();
    for round in 1..=args.rounds {
        for (&sidecars, &services) in sidecars.iter().flat_map(|it| services.iter().map(move |that| (it, that))) {
            let case = format!("fleet-{sidecars}x{services}");
            eprintln!("round {round} of {}: {case}", args.rounds);
            let size = Size { sidecars: sidecars as usize, services: services as usize, calls: args.calls as usize };
            let figures = one(&weft, size, effort).with_context(|| case.clone())?;
            for (metric, value) in figures {
                eprintln!("  {metric} {}", table::short(value));
                samples.push(Sample {
                    case: case.clone(),
                    contestant: "weft".to_owned(),
                    metric: metric.to_owned(),
                    round,
                    value,
                });
            }
        }
    }
    print!("{}", table::render(&samples));
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&samples)? + "\n";
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// One mesh, in a runtime and a folder of its own. One thread: the other processor is the control plane's.
fn one(weft: &std::path::Path, size: Size, effort: Effort) -> Result<Vec<measure::Figure>> {
    let folder = tempfile::Builder::new().prefix("weft-fleet-").tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let figures = runtime.block_on(async {
        let task = measure::all(weft, folder.path(), size, effort);
        Box::pin(task).await
    });
    runtime.shutdown_background();
    figures
}

fn program(args: &Args) -> Result<PathBuf> {
    if let Some(file) = &args.weft {
        return Ok(file.clone());
    }
    let beside = std::env::current_exe()?.with_file_name("weft");
    if !beside.exists() {
        bail!(
            "there is no {}: `cargo xtask fleet` builds it first, and so does `cargo build --release --bin weft`; or name \
             one with --weft",
            beside.display()
        );
    }
    Ok(beside)
}

/// Connections of one sidecar: discovery and registration share one.
const CONNECTIONS: usize = 1;
