//! Runs a program and shows what it prints.

use std::{ffi::OsStr, path::Path, process::Command, time::Instant};

use anyhow::{Context, Result, bail};

/// Runs cargo in the workspace.
///
/// # Errors
/// When it fails.
pub fn cargo<A: AsRef<OsStr>>(root: &Path, args: &[A]) -> Result<()> {
    program(root, env!("CARGO"), args, &[])
}

/// Runs a program in the workspace.
///
/// # Errors
/// When it cannot be started or fails.
pub fn program<A: AsRef<OsStr>>(root: &Path, name: &str, args: &[A], env: &[(&str, String)]) -> Result<()> {
    let words: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
    let line = format!("{} {}", name.rsplit('/').next().unwrap_or(name), words.join(" "));
    let began = Instant::now();
    let status = Command::new(name)
        .args(args)
        .envs(env.iter().map(|(key, value)| (*key, value)))
        .current_dir(root)
        .status()
        .with_context(|| format!("{name} cannot be started"))?;
    if !status.success() {
        bail!("failed ({status}): {line}");
    }
    eprintln!("xtask: {line}: {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a program that says nothing unless it fails.
///
/// # Errors
/// When it cannot be started or fails: with what it printed.
pub fn quietly<A: AsRef<OsStr>>(root: &Path, name: &str, args: &[A]) -> Result<()> {
    quietly_with(root, name, args, &[])
}

/// The same with further environment.
///
/// # Errors
/// When it cannot be started or fails: with what it printed.
pub fn quietly_with<A: AsRef<OsStr>>(root: &Path, name: &str, args: &[A], env: &[(&str, String)]) -> Result<()> {
    let envs = env.iter().map(|(key, value)| (*key, value));
    let output = Command::new(name).args(args).envs(envs).current_dir(root).output();
    let output = output.with_context(|| format!("{name} cannot be started"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(())
}
