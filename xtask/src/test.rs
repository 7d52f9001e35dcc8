//! `cargo xtask test`: everything that must hold before a change lands.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    build, counts,
    engine::{self, Engine},
    images, proto, run, system,
};

/// Which steps.
#[derive(Args)]
pub struct Options {
    /// Only these steps, comma-separated: format, bans, proto, lint, unit, mesh, deploy, counts.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// A step: its name, and what it does in the workspace.
type Step = (&'static str, fn(&Path) -> Result<()>);

/// The steps, in order: the quick ones first.
const STEPS: &[Step] = &[
    ("format", format),
    ("bans", bans),
    ("proto", fresh_proto),
    ("lint", lint),
    ("unit", unit),
    ("mesh", mesh),
    ("deploy", deploy),
    ("counts", counts::run),
];

/// Runs them.
///
/// # Errors
/// At the first step that fails.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    if let Some(unknown) = options.only.iter().find(|name| !STEPS.iter().any(|(step, _)| step == name)) {
        let names: Vec<_> = STEPS.iter().map(|(step, _)| *step).collect();
        bail!("there is no step `{unknown}`; the steps are {}", names.join(", "));
    }
    for (name, step) in
        STEPS.iter().filter(|(name, _)| options.only.is_empty() || options.only.iter().any(|o| o == name))
    {
        eprintln!("xtask: {name}");
        step(root).with_context(|| format!("step `{name}`"))?;
    }
    eprintln!("xtask: all steps passed");
    Ok(())
}

fn format(root: &Path) -> Result<()> {
    run::cargo(root, &["fmt", "--all", "--check"])
}

fn lint(root: &Path) -> Result<()> {
    cargo(root, &["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"])
}

fn fresh_proto(root: &Path) -> Result<()> {
    system::packages(&["protobuf-compiler", "libprotobuf-dev"])?;
    proto::run(root, true)
}

/// Nothing that is built may be among the crates that deny.toml bans. (The lock file names optional ones as well.)
fn bans(root: &Path) -> Result<()> {
    let policy = std::fs::read_to_string(root.join("deny.toml"))?;
    let bans = policy.split("\n[").find(|table| table.starts_with("bans]")).unwrap_or_default();
    let banned: Vec<&str> =
        bans.lines().filter_map(|line| line.trim().strip_prefix("{ crate = \"")?.split('"').next()).collect();
    if banned.is_empty() {
        bail!("deny.toml bans nothing: it has been written in a way that this check does not read");
    }
    let tree = ["tree", "--workspace", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"];
    let output = Command::new(env!("CARGO")).args(tree).current_dir(root).output()?;
    if !output.status.success() {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let built = String::from_utf8_lossy(&output.stdout).into_owned();
    for name in banned {
        if built.lines().any(|line| line.split(' ').next() == Some(name)) {
            bail!("{name} is built, and deny.toml bans it: `cargo tree -i {name}` says who wants it");
        }
    }
    Ok(())
}

/// Unit, property and in-crate protocol tests, and the examples in docs.
fn unit(root: &Path) -> Result<()> {
    cargo(root, &["test", "--workspace", "--locked", "--quiet"])
}

/// Real processes on loopback, foreign peers, and every command that the documents show.
fn mesh(root: &Path) -> Result<()> {
    system::packages(&["curl"])?;
    let venv = system::python(root)?;
    binaries(root)?;
    let mut env = vec![("WEFT_INTEROP_VENV", venv.display().to_string()), ("WEFT_REQUIRE_INTEROP", "1".to_owned())];
    match system::packages(&["prometheus"]) {
        Ok(()) => env.push(("WEFT_REQUIRE_PROMETHEUS", "1".to_owned())),
        Err(error) => eprintln!("xtask: left out, rules and dashboards in a real Prometheus: {error:#}"),
    }
    match system::namespaces() {
        Ok(()) => env.push(("WEFT_REQUIRE_NETNS", "1".to_owned())),
        Err(error) => eprintln!("xtask: left out, hosts in network namespaces: {error:#}"),
    }
    env.extend(build::fixed("")?);
    let test = [&made_with_all("mesh")[..], &["--", "--test-threads=2"]].concat();
    run::program(root, env!("CARGO"), &test, &env)
}

/// Images, and what runs in them: in the machine's Docker engine, or in one of its own.
fn deploy(root: &Path) -> Result<()> {
    let mut env = build::fixed("")?;
    match engine::kustomize(root) {
        Ok(kustomize) => env.push(("WEFT_KUSTOMIZE", kustomize)),
        Err(error) => eprintln!("xtask: left out, what kustomize makes of the manifests: {error:#}"),
    }
    let made = made_with_all("deploy");
    // The engine's namespace has no way out: what the tests are made of has to be here before.
    run::program(root, env!("CARGO"), &[&made[..], &["--quiet", "--no-run"]].concat(), &env)?;
    let test = [&made[..], &["--", "--test-threads=2"]].concat();
    match Engine::start(root) {
        Ok(engine) => {
            // What is captured, and applications that are not Weft's.
            system::packages(&["tcpdump", "curl", "nginx-light", "redis-server", "prometheus"])?;
            let images = test_images(root)?;
            images::load(root, &images, &engine.env)?;
            let folder = images.first().and_then(|file| file.parent()).context("no image was made")?;
            env.push(("WEFT_IMAGES_DIR", folder.display().to_string()));
            env.push(("WEFT_IMAGES", "loaded".to_owned()));
            env.push(("WEFT_REQUIRE_DOCKER", "1".to_owned()));
            engine.run(root, env!("CARGO"), &test, &env)
        }
        Err(error) => {
            eprintln!("xtask: left out, images and compose in a Docker engine: {error:#}");
            run::program(root, env!("CARGO"), &test, &env)
        }
    }
}

/// A test of processes. With the whole workspace chosen, crates have the features that they had for unit tests, and need not
/// be built once more.
fn made_with_all(test: &str) -> [&str; 5] {
    ["test", "--workspace", "--test", test, "--locked"]
}

/// The images of this tree, made twice: the bytes must be the same.
fn test_images(root: &Path) -> Result<Vec<PathBuf>> {
    let place = build::target(root)?.join("images");
    let make = |name: &str| {
        let binaries = Some(binaries(root)?);
        let out = Some(place.join(name));
        images::make(
            root,
            &images::Options { load: false, out, profile: images::Profile::Dev, binaries, only: Vec::new() },
        )
    };
    let (images, again) = (make("dev")?, make("dev-again")?);
    for (one, other) in images.iter().zip(&again) {
        if std::fs::read(one)? != std::fs::read(other)? {
            bail!("made twice, and not the same bytes: {} and {}", one.display(), other.display());
        }
    }
    std::fs::remove_dir_all(place.join("dev-again"))?;
    Ok(images)
}

/// With everything static: lints, tests and images share one build.
fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    run::program(root, env!("CARGO"), args, &build::fixed("")?)
}

/// Builds Weft's programs as the tests run them; their folder.
///
/// # Errors
/// When that fails.
pub fn binaries(root: &Path) -> Result<PathBuf> {
    build::programs(root, false)
}
