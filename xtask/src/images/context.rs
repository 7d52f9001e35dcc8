//! What a Dockerfile copies from: one folder for each image, made anew, which `docker build` takes just as well.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::run;

/// Copies a file (what a link points to, not the link) with a mode; the folders above it are made.
///
/// # Errors
/// When it cannot be read or written.
pub fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    if let Some(parent) = to.parent() {
        folder(parent, 0o755)?;
    }
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).with_context(|| to.display().to_string())
}

/// Makes a folder and those above it that are not there, all with this mode whatever the umask is.
///
/// # Errors
/// When it cannot be made.
pub fn folder(path: &Path, mode: u32) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        folder(parent, 0o755)?;
    }
    fs::create_dir(path).with_context(|| path.display().to_string())?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| path.display().to_string())
}

/// An empty folder for a context; what was there is removed.
///
/// # Errors
/// When that fails.
pub fn fresh(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| path.display().to_string())?;
    }
    folder(path, 0o755)?;
    Ok(path.to_owned())
}

/// Puts a static program into a context, without its symbols.
///
/// # Errors
/// When it needs a dynamic loader, or cannot be copied.
pub fn program(root: &Path, from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("{} is not there: build it first", from.display()))?;
    if needs_loader(&bytes).with_context(|| from.display().to_string())? {
        bail!("{} is not static: an empty image cannot run it. Leave --binaries away to build it", from.display());
    }
    let (input, output) = (from.display().to_string(), to.display().to_string());
    run::quietly(root, "strip", &["--strip-all", "-o", &output, &input])
        .context("strip (of Debian's binutils) takes the symbols away")?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o555))?;
    Ok(())
}

/// Whether an ELF program (64 bits, little endian) names a dynamic loader.
fn needs_loader(bytes: &[u8]) -> Result<bool> {
    const INTERPRETER: u32 = 3;
    ensure!(bytes.starts_with(b"\x7fELF\x02\x01"), "not a program for a 64-bit little-endian Linux");
    let number = |at: usize, width: usize| -> Result<usize> {
        let field = bytes.get(at..at + width).context("the program's header is cut off")?;
        Ok(field.iter().rev().fold(0, |so_far, &byte| so_far << 8 | usize::from(byte)))
    };
    let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    for index in 0..count {
        if number(table.saturating_add(index * size), 4)? == INTERPRETER as usize {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What Docker calls a processor.
pub fn architecture(target: &str) -> Result<&'static str> {
    match target.split('-').next() {
        Some("x86_64") => Ok("amd64"),
        Some("aarch64") => Ok("arm64"),
        _ => bail!("no image is made for {target}"),
    }
}

/// Where the sources stand, and when that was.
pub struct Source {
    /// The commit, or `unknown`.
    pub revision: String,
    /// Seconds since 1970: `SOURCE_DATE_EPOCH`, or the commit's time.
    pub time: u64,
}

impl Source {
    /// Asks git; a tree without git has no revision, and its time is 1970's.
    ///
    /// # Errors
    /// When `SOURCE_DATE_EPOCH` is not a number.
    pub fn of(root: &Path) -> Result<Self> {
        let git = |args: &[&str]| {
            let output = Command::new("git").args(args).current_dir(root).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let revision = git(&["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
        let time = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(text) => {
                text.parse().with_context(|| format!("SOURCE_DATE_EPOCH is `{text}`: not seconds since 1970"))?
            }
            Err(_) => git(&["log", "-1", "--format=%ct"]).and_then(|text| text.parse().ok()).unwrap_or(0),
        };
        Ok(Self { revision, time })
    }

    /// RFC 3339.
    ///
    /// # Errors
    /// When it is after the year 9999.
    pub fn created(&self) -> Result<String> {
        let seconds = i64::try_from(self.time).context("SOURCE_DATE_EPOCH")?;
        let time = time::OffsetDateTime::from_unix_timestamp(seconds).context("SOURCE_DATE_EPOCH")?;
        Ok(time.format(&time::format_description::well_known::Rfc3339)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let mut program = vec![0; 0x40 + 2 * 0x38];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (program[0x20], program[0x36], program[0x38]) = (0x40, 0x38, 2);
        assert!(!needs_loader(&program).unwrap());
        program[0x40 + 0x38] = 3;
        assert!(needs_loader(&program).unwrap());
        assert!(needs_loader(&program[..0x50]).is_err());
        assert!(needs_loader(b"#!/bin/sh").is_err());
    }
}
