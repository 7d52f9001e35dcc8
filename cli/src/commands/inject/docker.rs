//! What docker knows of a compose project: the file as compose resolves it, and what the images say.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, bail, ensure};
use weft_inject::compose::{Image, Project, Service};

/// The project as `docker compose config` resolves it; without docker compose, as the file has it.
///
/// # Errors
/// A file cannot be read or resolved.
pub fn project(files: &[PathBuf]) -> anyhow::Result<Project> {
    for file in files {
        ensure!(file.is_file(), "there is no file {}", file.display());
    }
    let mut command = compose(files);
    match command.args(["--profile", "*", "config", "--format", "json"]).output() {
        Ok(output) if output.status.success() => {
            return Ok(Project::read(&String::from_utf8_lossy(&output.stdout), true)?);
        }
        Ok(output) if has_compose() => bail!("docker compose cannot read it: {}", complaint(&output)),
        _ => {}
    }
    let [file] = files else { bail!("several files can be put together by docker compose only, and it is not here") };
    let size = std::fs::metadata(file)?.len();
    ensure!(size <= LARGEST_FILE, "{} has {size} bytes; that is no compose file", file.display());
    let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(Project::read(&text, false)?)
}

/// What the image of each service says, or why it is not known. `pull`: fetch or build those that are missing.
///
/// # Errors
/// Images are missing, with the command that gets them.
pub fn images(
    project: &Project,
    files: &[PathBuf],
    pull: bool,
) -> anyhow::Result<BTreeMap<String, Result<Image, String>>> {
    let mut images = BTreeMap::new();
    if let Err(why) = engine() {
        for service in &project.services {
            images.insert(service.name.clone(), Err(why.clone()));
        }
        return Ok(images);
    }
    let missing = look(project, &mut images)?;
    if missing.is_empty() {
        return Ok(images);
    }
    let (built, fetched): (Vec<&Service>, Vec<&Service>) = missing.into_iter().partition(|service| service.builds);
    for (word, services) in [("build", built), ("pull", fetched)] {
        if pull && !services.is_empty() {
            let mut command = compose(files);
            command.args(["--profile", "*", word]).args(services.iter().map(|service| &service.name));
            let status = command.stdout(Stdio::null()).status().context("docker cannot be run")?;
            ensure!(status.success(), "docker compose {word} failed");
        }
    }
    look(project, &mut images)?;
    Ok(images)
}

/// Asks the engine for every image; the services whose image is not there.
fn look<'a>(
    project: &'a Project,
    images: &mut BTreeMap<String, Result<Image, String>>,
) -> anyhow::Result<Vec<&'a Service>> {
    let mut missing = Vec::new();
    let left_alone = |service: &&Service| service.labels.get("weft.mesh/inject").is_some_and(|label| label == "false");
    for service in project.services.iter().filter(|service| !left_alone(service)) {
        let name = image_name(project, service);
        let output = docker().args(["image", "inspect", &name]).output().context("docker cannot be run")?;
        let image = match output.status.success() {
            true => Ok(Image::read(&String::from_utf8_lossy(&output.stdout))
                .with_context(|| format!("docker image inspect {name}"))?),
            false => {
                missing.push(service);
                let verb = if service.builds { "build" } else { "pull" };
                Err(format!("image {name} is not here yet (`docker compose {verb} {}`, or --pull)", service.name))
            }
        };
        images.insert(service.name.clone(), image);
    }
    Ok(missing)
}

/// What is built has the name that compose gives it.
fn image_name(project: &Project, service: &Service) -> String {
    match &service.image {
        Some(image) => image.clone(),
        None => format!("{}-{}", project.name.as_deref().unwrap_or_default(), service.name),
    }
}

/// Whether there is an engine to ask.
fn engine() -> Result<(), String> {
    match docker().args(["version", "--format", "{{.Server.Version}}"]).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("the Docker engine does not answer ({})", complaint(&output))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("there is no docker here".to_owned()),
        Err(error) => Err(format!("docker cannot be run ({error})")),
    }
}

/// Whether the engine runs without root, so that its containers' root is this user.
pub fn rootless() -> bool {
    let output = docker().args(["info", "--format", "{{.SecurityOptions}}"]).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("rootless"))
}

fn has_compose() -> bool {
    docker().args(["compose", "version"]).output().is_ok_and(|output| output.status.success())
}

fn compose(files: &[PathBuf]) -> Command {
    let mut command = docker();
    command.arg("compose");
    for file in files {
        command.args([Path::new("-f"), file]);
    }
    command
}

fn docker() -> Command {
    let mut command = Command::new("docker");
    command.stdin(Stdio::null());
    command
}

/// The last line that a program said, without its name and time.
fn complaint(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    said.trim().lines().last().unwrap_or("it says nothing").to_owned()
}

const LARGEST_FILE: u64 = 4 << 20;
