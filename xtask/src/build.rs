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

/// What images hold is built by this profile.
const DIST: &str = "dist";

/// A static program finds its own addresses when it starts; the list of them is some 4 % of its bytes, or next to nothing in
/// the form that glibc reads since 2.36.
fn packed_relocations() -> &'static str {
    let asked = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let version = asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    if reads_packed_relocations(&version) { "-C link-arg=-Wl,-z,pack-relative-relocs" } else { "" }
}

/// `version`: as in `glibc 2.36`.
fn reads_packed_relocations(version: &str) -> bool {
    let numbers = version.trim().strip_prefix("glibc ").and_then(|numbers| numbers.split_once('.'));
    let parsed = numbers.and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    parsed.is_some_and(|version| version >= (2, 36))
}

/// Builds the programs, and says where they are. `release`: as they are shipped, else as the tests run them.
///
/// # Errors
/// When that fails.
pub fn programs(root: &Path, release: bool) -> Result<PathBuf> {
    let build = [&["build", "--locked", "--quiet", "--bins"][..], PROGRAMS].concat();
    let (args, env) = if release {
        // Where this machine keeps sources is nobody's business, and would make the bytes another's.
        let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| home + "/.cargo"))?;
        let remapped = format!("--remap-path-prefix={}=/weft --remap-path-prefix={home}=/cargo", root.display());
        let flags = format!("{remapped} {}", packed_relocations());
        ([&build[..], &["--profile", DIST]].concat(), fixed(&flags)?)
    } else {
        (build, fixed("")?)
    };
    run::program(root, env!("CARGO"), &args, &env)?;
    Ok(target(root)?.join(host()?).join(if release { DIST } else { "debug" }))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_libc_that_cannot_read_packed_relocations_gets_none() {
        for (version, packed) in [("glibc 2.36\n", true), ("glibc 3.0", true), ("glibc 2.35", false), ("", false)] {
            assert_eq!(super::reads_packed_relocations(version), packed, "{version}");
        }
    }
}
