//! `cargo xtask images`: static programs in images that hold nothing else, from deploy/images/*.Dockerfile, without an
//! engine, a registry or a network; the same bytes for the same sources.

mod archive;
mod context;
mod dockerfile;
mod layer;
mod sbom;
mod tools;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::{build, run};

/// What, and where to.
#[derive(Args)]
pub struct Options {
    /// Load them into the Docker engine as well.
    #[arg(long)]
    pub load: bool,
    /// Where to [default: target/images/PROFILE]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// How the programs are built: release to ship, dev to test.
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    pub profile: Profile,
    /// Take static programs from here and build none.
    #[arg(long, value_name = "DIR")]
    pub binaries: Option<PathBuf>,
    /// Only these images, comma-separated: weft-sidecar, weft-control-plane, weft, weft-init.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub only: Vec<String>,
}

/// How programs are built.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Optimised, for speed and then for size: cargo's profile `dist`.
    Release,
    /// What the tests run.
    Dev,
}

/// One image: its name (a program's package is called as it is), its Dockerfile, what it takes from the context.
struct Kind {
    name: &'static str,
    file: &'static str,
    program: &'static str,
    tools: bool,
}

/// The last one needs packages that may not be there.
const KINDS: &[Kind] = &[
    Kind { name: "weft-sidecar", file: "sidecar.Dockerfile", program: "weft-sidecar", tools: false },
    Kind { name: "weft-control-plane", file: "control-plane.Dockerfile", program: "weft-control-plane", tools: false },
    Kind { name: "weft", file: "weft.Dockerfile", program: "weft", tools: false },
    Kind { name: "weft-init", file: "init.Dockerfile", program: "weft-sidecar", tools: true },
];

/// Makes them, and loads them where that is wanted.
///
/// # Errors
/// When a build fails, a file is missing, or the engine does not take them.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    let images = make(root, options)?;
    if options.load { load(root, &images, &[]) } else { Ok(()) }
}

/// Loads images into the engine that the environment names.
///
/// # Errors
/// When it does not take them.
pub fn load(root: &Path, images: &[PathBuf], env: &[(&'static str, String)]) -> Result<()> {
    for image in images {
        run::quietly_with(root, "docker", &["load", "--quiet", "--input", &image.display().to_string()], env)?;
    }
    Ok(())
}

/// Makes them: their files.
///
/// # Errors
/// When a build fails, or a file is missing.
pub fn make(root: &Path, options: &Options) -> Result<Vec<PathBuf>> {
    for name in &options.only {
        let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
        anyhow::ensure!(names.contains(&name.as_str()), "--only {name}: the images are {}", names.join(", "));
    }
    let target = build::host()?;
    let profile = if options.profile == Profile::Release { "release" } else { "dev" };
    let binaries = match &options.binaries {
        Some(folder) => folder.clone(),
        None => build::programs(root, options.profile == Profile::Release)?,
    };
    let out = match &options.out {
        Some(out) => out.clone(),
        None => build::target(root)?.join("images").join(profile),
    };
    let maker = Maker { root, out: std::path::absolute(out)?, target, binaries, source: context::Source::of(root)? };
    let wanted = |kind: &&Kind| options.only.is_empty() || options.only.iter().any(|name| name == kind.name);
    let image = |kind: &Kind| maker.image(kind).with_context(|| format!("image {}", kind.name));
    KINDS.iter().filter(wanted).map(image).collect()
}

struct Maker<'a> {
    root: &'a Path,
    out: PathBuf,
    target: String,
    binaries: PathBuf,
    source: context::Source,
}

impl Maker<'_> {
    fn image(&self, kind: &Kind) -> Result<PathBuf> {
        let version = env!("CARGO_PKG_VERSION");
        let created = self.source.created()?;
        let context = self.context(kind, version, &created)?;
        let name = format!("deploy/images/{}", kind.file);
        let text = fs::read_to_string(self.root.join(&name)).with_context(|| name.clone())?;
        let arguments = BTreeMap::from([
            ("VERSION", version.to_owned()),
            ("REVISION", self.source.revision.clone()),
            ("CREATED", created.clone()),
        ]);
        let recipe = dockerfile::read(&name, &text, &arguments)?;
        let mut layers = layer::Layers::new(&context, self.source.time);
        let layers: Vec<(String, Vec<u8>)> = (recipe.copies.iter())
            .map(|copies| Ok((format!("COPY {} {}", copies.from.join(" "), copies.to), layers.layer(copies)?)))
            .collect::<Result<_>>()?;
        let file = self.out.join(format!("{}-{version}.tar", kind.name));
        let image = archive::Image {
            tag: &format!("{}:{version}", kind.name),
            architecture: context::architecture(&self.target)?,
            created: &created,
            time: self.source.time,
            config: &recipe.config,
            layers: &layers,
        };
        image.write(&file).with_context(|| file.display().to_string())?;
        let size: usize = layers.iter().map(|(_, tar)| tar.len()).sum();
        eprintln!("xtask: {}: {:.1} MB, {}", image.tag, size as f64 / 1e6, file.display());
        Ok(file)
    }

    /// What the Dockerfile copies from; it stays, for whoever wants to build with `docker build`.
    fn context(&self, kind: &Kind, version: &str, created: &str) -> Result<PathBuf> {
        let context = context::fresh(&self.out.join("context").join(kind.name))?;
        context::place(&self.root.join("LICENSE"), &context.join("LICENSE"), 0o444)?;
        context::program(self.root, &self.binaries.join(kind.program), &context.join(kind.program))?;
        context::folder(&context.join("data"), 0o755)?;
        let mut components = sbom::crates(self.root, kind.program, &self.target)?;
        if kind.tools {
            components.extend(tools::gather(&context.join("tools"))?);
        }
        let beside = self.out.join(format!("{}-{version}.sbom.json", kind.name));
        fs::write(&beside, sbom::document(kind.name, version, created, &components)?)?;
        context::place(&beside, &context.join("sbom.json"), 0o444)?;
        Ok(context)
    }
}
