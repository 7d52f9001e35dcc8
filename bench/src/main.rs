//! `cargo xtask bench`: pairs of proxies that do the same mutual-TLS hop, measured in turns on one machine.
//!
//! What counts are ratios of one run: the machine is noisy, and every contestant meets the same noise. CPU is what the
//! kernel charged to the two proxies alone. See ARCHITECTURE.md for the rooms.

mod backend;
mod cases;
mod contestants;
mod flame;
mod lab;
mod load;
mod proc;
mod report;
mod sample;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::{
    cases::{Case, Effort, When},
    contestants::Kind,
    lab::{Lab, Plan},
};

/// Measure a pair of Weft sidecars beside Envoy, HAProxy, nginx and a plain TCP relay.
///
/// Each contestant is two proxies with mutual TLS 1.3 between them (the relay: without), one worker each, between a lean
/// client and a lean application on this machine; Weft has its control plane, an access policy of ten rules, circuit
/// breaker, retries and outlier detection on. In every round all have their turn, one at a time; tables show medians
/// over the rounds and ratios within them, with their spread. Latency at fixed rates is taken in an open loop: each
/// request has its time, and its latency counts from that time, however late it could be sent.
///
/// Envoy comes from the environment that `cargo xtask bench` makes, HAProxy and nginx from the system. Who is missing or
/// fails is left out and named; who cannot do a case has no figure there. Keep the machine quiet meanwhile.
#[derive(Parser)]
#[command(
    name = "cargo xtask bench",
    version,
    after_help = "Examples:\n  cargo xtask bench --quick                           # a look, two minutes\n  \
                  cargo xtask bench --json run.json --publish         # all, and into docs/performance.md\n  \
                  cargo xtask bench --only weft,haproxy --case http1  # while working on the data path\n  \
                  cargo xtask bench --from run.json,fleet.json        # show earlier runs again"
)]
struct Args {
    /// Rounds; in each, every contestant has its turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Short rounds of the essential cases without nginx, at most three, within two minutes
    #[arg(long)]
    quick: bool,
    /// Only these contestants
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,…")]
    only: Vec<Kind>,
    /// Only these cases, and those whose names begin so before a dash: `rate` is `rate-25`, `rate-50` …
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    case: Vec<String>,
    /// Say which cases there are, and measure nothing
    #[arg(long)]
    list: bool,
    /// Write every figure of every round to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write tables and plots into docs/performance.md
    #[arg(long)]
    publish: bool,
    /// Measure nothing: show what earlier runs wrote with --json
    #[arg(long, value_delimiter = ',', value_name = "FILE,…", conflicts_with_all = ["json", "quick", "only", "case"])]
    from: Vec<PathBuf>,
    /// Measure nothing: draw the flame graph of the Weft pair at load, as SVG, with perf
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "quick", "only", "case", "from", "publish"])]
    flame: Option<PathBuf>,
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
    if args.list {
        for case in cases::ALL {
            println!("{:<16} {}{}", case.name, case.what, case.when.words());
        }
        return Ok(());
    }
    if let Some(file) = &args.flame {
        return flame(file);
    }
    let document = if args.from.is_empty() { measure(args)? } else { report::load(&args.from)? };
    print!("{}", report::render(&document.samples));
    if args.publish {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("bench lies in the workspace")?;
        report::publish(root, &document)?;
    }
    Ok(())
}

/// What was started ends when it is dropped: at the end, or when told to.
fn guarded<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            done = work => Ok(done),
            () = told_to_end() => bail!("told to end; nothing is left running"),
        }
    })
}

fn flame(file: &Path) -> Result<()> {
    let backend = backend::start()?;
    let folder = tempfile::Builder::new().prefix("weft-flame-").tempdir()?;
    guarded(flame::run(&backend, folder.path(), file))?
}

fn measure(args: &Args) -> Result<report::Document> {
    raise_files()?;
    let plan = plan(args)?;
    let kinds = plan.kinds.clone();
    let results = guarded(Lab::new(plan)?.run())?;
    if !results.left_out.is_empty() {
        eprintln!("bench: left out:");
    }
    for (what, why) in &results.left_out {
        eprintln!("  {what}: {why}");
    }
    ensure!(!results.samples.is_empty(), "nothing was measured");
    let meta = report::Meta::gather(results.rounds, args.quick, contestants::versions(&kinds))?;
    if let Some(file) = &args.json {
        let text = report::json(&meta, &results.samples)?;
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    Ok(report::Document { metas: vec![meta], samples: results.samples })
}

fn plan(args: &Args) -> Result<Plan> {
    for name in &args.case {
        ensure!(cases::ALL.iter().any(|case| case.called(name)), "there is no case {name:?}: see --list");
    }
    let asked = |case: &Case| match args.case.as_slice() {
        [] => !args.quick || case.when == When::Always,
        names => names.iter().any(|name| case.called(name)),
    };
    let everyone = Kind::ALL.into_iter().filter(|kind| !args.quick || *kind != Kind::Nginx);
    Ok(Plan {
        kinds: if args.only.is_empty() { everyone.collect() } else { args.only.clone() },
        cases: cases::ALL.iter().filter(|case| asked(case)).copied().collect(),
        rounds: if args.quick { args.rounds.min(3) } else { args.rounds },
        effort: if args.quick { Effort::QUICK } else { Effort::FULL },
        within: args.quick.then_some(QUICK),
    })
}

/// Two minutes, less what a round may take longer than the one before.
const QUICK: Duration = Duration::from_secs(115);

impl Case {
    /// Whether `--case NAME` means it.
    fn called(&self, name: &str) -> bool {
        self.name == name || self.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
    }
}

impl When {
    fn words(self) -> &'static str {
        match self {
            Self::Always => "",
            Self::Full => " [not in --quick]",
            Self::Once => " [once, not in --quick]",
        }
    }
}

/// Thousands of connections need files, here and in the proxies, which inherit the limit.
fn raise_files() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")?;
    }
    Ok(())
}

async fn told_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // No handler can be had: the signals then end the process, as they always do.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_make_a_plan() {
        let plan = |words: &[&str]| plan(&Args::parse_from([&["bench"], words].concat()));
        let quick = plan(&["--quick"]).expect("a plan");
        assert!(quick.cases.iter().all(|case| case.when == When::Always) && !quick.kinds.contains(&Kind::Nginx));
        assert_eq!(quick.rounds, 3);
        let all = plan(&[]).expect("a plan");
        assert_eq!((all.cases.len(), all.kinds.len(), all.rounds), (cases::ALL.len(), Kind::ALL.len(), 5));
        let names =
            |words: &[&str]| -> Vec<&str> { plan(words).expect("a plan").cases.iter().map(|case| case.name).collect() };
        assert_eq!(names(&["--case", "rate,tcp"]), ["rate-25", "rate-50", "rate-75", "rate-half", "tcp", "tcp-bulk"]);
        assert!(plan(&["--case", "htp"]).is_err());
    }
}
