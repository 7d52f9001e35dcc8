//! Instructions and allocations for one request, compared with the last commit: the step `counts` of `cargo xtask test`.
//!
//! Two sidecars of each commit run under callgrind, which counts what a processor would execute: the machine's noise
//! does not enter. Harnesses for this (gungraun) count a function, or a process from its start to its end; here servers
//! are counted between two moments of their lives.
//!
//! Both commits are built in one place, one after the other: paths are the same, what has not changed is built once, and
//! a developer's own builds are not mixed up with those of another commit.

mod compare;
mod measure;
mod profile;
mod talk;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{build, run, system, test};

/// What a sidecar is made of.
const MADE_OF: &[&str] = &["sidecar", "crates", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo"];

/// Compares the work tree with the last commit, or where they are the same, with the commit before.
///
/// # Errors
/// When a benchmark is more than 3 % worse and HEAD's message does not accept it, or a measurement fails.
pub fn run(root: &Path) -> Result<()> {
    let Ok(head) = commit(root, "HEAD") else {
        return not_compared("git shows no commit here");
    };
    let place = build::target(root)?.join("counts");
    std::fs::create_dir_all(&place)?;
    let now = snapshot(root, &place.join("index"))?;
    let committed = !differ(root, &head, &now)?;
    let Ok(base) = commit(root, if committed { "HEAD~1" } else { "HEAD" }) else {
        return not_compared("there is no earlier commit here (a shallow clone?)");
    };
    if !differ(root, &base, &now)? {
        eprintln!("xtask: counts: same as {base} in all that a sidecar is made of ({})", MADE_OF.join(", "));
        return Ok(());
    }
    system::packages(&["valgrind"])?;
    let weft = test::binaries(root)?.join("weft");
    let (before, after) = (place.join("before"), place.join("after"));
    let tree = Tree { root, place: place.clone() };
    tree.becomes(&base)?;
    if let Err(error) = tree.build(&before) {
        return not_compared(&format!("{base} cannot be built: {error:#}"));
    }
    tree.becomes(&now)?;
    tree.build(&after)?;
    // Of what is not committed yet, no message speaks.
    let trailer = ["log", "-1", "--format=%(trailers:key=Counts,valueonly)"];
    let accepted = if committed { git(root, &trailer)? } else { String::new() };
    let measured_after = || measure::measure(&weft, &after, &place.join("run-after"));
    let measured_before = || measure::measure(&weft, &before, &place.join("run-before"));
    let new = measured_after()?;
    let old = match measured_before() {
        Ok(old) => old,
        Err(error) => return not_compared(&format!("{base} cannot be measured: {error:#}")),
    };
    judge(&old, &new, &accepted).or_else(|error| {
        // How often a task wakes for one request is the kernel's whim, and some 2 % in HTTP/2: the lower one counts.
        eprintln!("xtask: counts: once more, to be sure: {error:#}");
        judge(&lower(&old, measured_before()?), &lower(&new, measured_after()?), &accepted)
    })
}

fn lower(one: &measure::Profiles, mut other: measure::Profiles) -> measure::Profiles {
    let sum = |profile: &profile::Profile| profile.instructions.values().sum::<f64>();
    for (name, profile) in &mut other {
        if let Some(one) = one.get(name).filter(|one| sum(one) < sum(profile)) {
            *profile = one.clone();
        }
    }
    other
}

/// A change that cannot be compared is not held up, and is told so.
fn not_compared(why: &str) -> Result<()> {
    eprintln!("xtask: counts: NOT COMPARED: {why}");
    Ok(())
}

/// `accepted` is why HEAD may be worse, as its message says.
fn judge(before: &measure::Profiles, after: &measure::Profiles, accepted: &str) -> Result<()> {
    let mut complaints = String::new();
    for (name, after) in after {
        let Some(before) = before.get(name) else { continue };
        let sum = |profile: &profile::Profile| -> (f64, f64) {
            (profile.instructions.values().sum(), profile.allocations.values().sum())
        };
        let (old, new) = (sum(before), sum(after));
        eprintln!(
            "  {name:<16} instructions {:>9.0} → {:>9.0} ({:+.2} %), allocations {:>6.2} → {:>6.2}",
            old.0,
            new.0,
            (new.0 / old.0 - 1.0) * 100.0,
            old.1,
            new.1
        );
        complaints.extend(compare::worse(name, before, after));
    }
    if complaints.is_empty() {
        return Ok(());
    }
    if accepted.is_empty() {
        bail!(
            "worse than the last commit (a trailer `Counts: REASON` in the commit's message accepts it):\n{complaints}"
        );
    }
    eprintln!("xtask: counts: accepted, as HEAD says ({accepted}):\n{complaints}");
    Ok(())
}

/// Where both commits are built. It stays from run to run: what is the same in the next one is not built again.
struct Tree<'a> {
    root: &'a Path,
    place: PathBuf,
}

impl Tree<'_> {
    fn path(&self) -> PathBuf {
        self.place.join("tree")
    }

    /// Writes the files that differ, and only those: cargo looks at their times.
    fn becomes(&self, commit: &str) -> Result<()> {
        let (path, index) = (self.path(), self.place.join("tree.index"));
        std::fs::create_dir_all(&path)?;
        let env = [("GIT_WORK_TREE", &*path.to_string_lossy()), ("GIT_INDEX_FILE", &*index.to_string_lossy())];
        git_with(self.root, &["read-tree", "-u", "--reset", commit], &env)?;
        // Those that somebody has changed or removed.
        git_with(self.root, &["checkout-index", "--all", "--force"], &env)?;
        Ok(())
    }

    /// Builds the sidecar as a release, but with its symbols, and puts it aside: the next build replaces it.
    fn build(&self, to: &Path) -> Result<()> {
        let (name, target) = ("weft-sidecar", self.place.join("build"));
        // Where code was inlined from: Weft's own, which is what a commit changes.
        let lines = "profile.release.package.weft-sidecar.debug=\"line-tables-only\"";
        let build = ["rustc", "--locked", "--quiet", "--release", "--config", lines, "-p", name, "--bin", name];
        let args = [&build[..], &["--", "-C", "strip=none"]].concat();
        run::program(&self.path(), env!("CARGO"), &args, &[("CARGO_TARGET_DIR", target.display().to_string())])?;
        std::fs::copy(target.join("release").join(name), to).with_context(|| to.display().to_string())?;
        Ok(())
    }
}

fn commit(root: &Path, name: &str) -> Result<String> {
    git(root, &["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")])
}

/// The work tree as git would commit all of it; the repository's own index stays as it is.
fn snapshot(root: &Path, index: &Path) -> Result<String> {
    let index = index.display().to_string();
    let git = |args: &[&str]| git_with(root, args, &[("GIT_INDEX_FILE", &index)]);
    git(&["read-tree", "HEAD"])?;
    git(&["add", "--all"])?;
    git(&["write-tree"])
}

/// Whether sidecars of the two trees are made of different things.
fn differ(root: &Path, one: &str, other: &str) -> Result<bool> {
    Ok(!git(root, &[&["diff", "--name-only", one, other, "--"], MADE_OF].concat())?.is_empty())
}

fn git(root: &Path, args: &[&str]) -> Result<String> {
    git_with(root, args, &[])
}

fn git_with(root: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<String> {
    let mut command = Command::new("git");
    // Set where git itself has started this, in a hook; they would outdo the directory.
    command.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE").env_remove("GIT_INDEX_FILE");
    let output =
        command.args(args).envs(env.iter().copied()).current_dir(root).output().context("git cannot be started")?;
    ensure!(output.status.success(), "git {}: {}", args[0], String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_rise_fails_unless_the_commit_gives_a_reason() {
        let cost = |cost| {
            let instructions = BTreeMap::from([("steps".to_owned(), cost)]);
            BTreeMap::from([("http1".to_owned(), profile::Profile { instructions, ..Default::default() })])
        };
        assert!(judge(&cost(100.0), &cost(102.0), "").is_ok());
        let error = judge(&cost(100.0), &cost(110.0), "").expect_err("10 %").to_string();
        assert!(error.contains("http1") && error.contains("steps"), "{error}");
        assert!(judge(&cost(100.0), &cost(110.0), "checks more").is_ok());
        assert!(judge(&cost(100.0), &lower(&cost(102.0), cost(110.0)), "").is_ok(), "once was noise");
        assert!(judge(&cost(100.0), &lower(&cost(111.0), cost(110.0)), "").is_err());
    }

    #[test]
    fn a_tree_follows_what_is_committed_and_what_is_not() {
        let (root, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (root, place) = (root.path(), target.path());
        let write = |name: &str, text: &str| std::fs::write(root.join(name), text).unwrap();
        let git = |args: &[&str]| git(root, args).unwrap();
        git(&["init", "--quiet"]);
        std::fs::create_dir(root.join("sidecar")).unwrap();
        write("sidecar/kept.rs", "same");
        write("sidecar/gone.rs", "old");
        git(&["add", "--all"]);
        git(&["-c", "user.name=x", "-c", "user.email=x@x", "commit", "--quiet", "--message", "one"]);
        let head = commit(root, "HEAD").unwrap();
        assert!(!differ(root, &head, &snapshot(root, &place.join("index")).unwrap()).unwrap());

        std::fs::remove_file(root.join("sidecar/gone.rs")).unwrap();
        write("sidecar/new.rs", "new");
        let now = snapshot(root, &place.join("index")).unwrap();
        assert!(differ(root, &head, &now).unwrap());
        assert!(git(&["diff", "--cached", "--name-only"]).is_empty(), "the repository's own index is as it was");

        let tree = Tree { root, place: place.to_path_buf() };
        let files = || -> Vec<String> {
            let entries = std::fs::read_dir(tree.path().join("sidecar")).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let written = || std::fs::metadata(tree.path().join("sidecar/kept.rs")).unwrap().modified().unwrap();
        tree.becomes(&head).unwrap();
        assert_eq!(files(), ["gone.rs", "kept.rs"]);
        let first = written();
        tree.becomes(&now).unwrap();
        assert_eq!(files(), ["kept.rs", "new.rs"]);
        assert_eq!(written(), first, "cargo would build it again");
        std::fs::remove_dir_all(tree.path()).unwrap();
        tree.becomes(&now).unwrap();
        assert_eq!(files(), ["kept.rs", "new.rs"], "also after somebody has cleaned up");
    }
}
