//! How programs are built: static, for this machine's processor, so that tests and images share what is built.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::run;

/// Further environment of cargo.
pub type Env = Vec<(&'static str, String)>;

/// The programs' packages.
const PROGRAMS: &[&str] = &["-p", "weft", "-p", "weft-sidecar", "-p", "weft-control-plane"];

/// This machine's target, as in `x86_64-unknown-linux-gnu`.
///
/// # Errors
/// When rustc does not tell.
pub fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.with_context(|| format!("rustc -vV says `{text}`"))?.to_owned())
}

/// Where cargo builds.
///
/// # Errors
/// When the current directory is gone.
pub fn target(root: &Path) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(std::path::absolute(target)?)
}

/// Makes cargo build static programs. With a target named, build scripts and macros stay as they are.
///
/// # Errors
/// When rustc does not tell this machine's target.
pub fn fixed(flags: &str) -> Result<Env> {
    let host = host()?;
    let flags = format!("-C target-feature=+crt-static {flags}");
    let flags = flags.trim_end();
    // The one outdoes the other where it is set.
    let flags = match std::env::var("RUSTFLAGS") {
        Ok(mine) => ("RUSTFLAGS", format!("{mine} {flags}")),
        Err(_) => (variable(&host), flags.to_owned()),
    };
    Ok(vec![("CARGO_BUILD_TARGET", host), flags])
}

fn variable(host: &str) -> &'static str {
    match host.split('-').next() {
        Some("aarch64") => "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
        _ => "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
    }
}

/// Builds the programs, and says where they are.
///
/// # Errors
/// When that fails.
pub fn programs(root: &Path, release: bool) -> Result<PathBuf> {
    let build = [&["build", "--locked", "--quiet", "--bins"][..], PROGRAMS].concat();
    let (args, env) = if release {
        // Where this machine keeps sources is nobody's business, and would make the bytes another's.
        let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| home + "/.cargo"))?;
        let flags = format!("--remap-path-prefix={}=/weft --remap-path-prefix={home}=/cargo", root.display());
        ([&build[..], &["--release"]].concat(), fixed(&flags)?)
    } else {
        (build, fixed("")?)
    };
    run::program(root, env!("CARGO"), &args, &env)?;
    Ok(target(root)?.join(host()?).join(if release { "release" } else { "debug" }))
}
