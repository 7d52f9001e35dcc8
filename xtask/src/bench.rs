//! Builds what is measured, sees to it that the peers are there, and runs the benchmark.

use std::path::Path;

use anyhow::Result;

use crate::{run, system};

/// Runs the benchmark with its own arguments.
///
/// # Errors
/// When something is missing, or the benchmark fails.
pub fn run(root: &Path, args: Vec<String>) -> Result<()> {
    let flame = args.iter().any(|arg| arg == "--flame" || arg.starts_with("--flame="));
    let (profile, env) = if flame { flaming()? } else { ("release", measuring(root)?) };
    let mut build = vec!["build".to_owned(), "--profile".to_owned(), profile.to_owned()];
    build.extend(["--bin", "weft", "--bin", "weft-bench", "-p", "weft", "-p", "weft-bench"].map(str::to_owned));
    run::program(root, env!("CARGO"), &build, &env)?;
    let mut line = vec!["run".to_owned(), "--profile".to_owned(), profile.to_owned()];
    line.extend(["--quiet", "-p", "weft-bench", "--"].map(str::to_owned));
    line.extend(args);
    run::program(root, env!("CARGO"), &line, &env)
}

/// Runs the simulated fleet with its own arguments.
///
/// # Errors
/// When it cannot be built, or fails.
pub fn fleet(root: &Path, args: Vec<String>) -> Result<()> {
    run::cargo(
        root,
        &["build", "--release", "--bin", "weft", "--bin", "weft-fleet", "-p", "weft", "-p", "weft-fleet"],
    )?;
    let mut line = ["run", "--release", "--quiet", "-p", "weft-fleet", "--"].map(str::to_owned).to_vec();
    line.extend(args);
    run::cargo(root, &line)
}

type Env = Vec<(&'static str, String)>;

/// The peers.
fn measuring(root: &Path) -> Result<Env> {
    system::packages(&["haproxy", "nginx-light", "libnginx-mod-stream"])?;
    let venv = system::python(root)?;
    Ok(vec![("WEFT_INTEROP_VENV", venv.display().to_string())])
}

/// Symbols by the profile, frame pointers by flags: a profile cannot ask for them.
fn flaming() -> Result<(&'static str, Env)> {
    system::packages(&["linux-perf"])?;
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let flags = format!("{flags} -C force-frame-pointers=yes");
    Ok(("profiling", vec![("RUSTFLAGS", flags.trim().to_owned()), ("CFLAGS", "-fno-omit-frame-pointer".to_owned())]))
}
