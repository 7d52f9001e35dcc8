//! `weft inject compose`: an overlay beside a team's compose file, and the folder of its control plane.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use weft_inject::compose::{self, Plan};

use super::{docker, folder};
use crate::{credential::Connection, failure::Failure, output};

/// Put the services of a compose file into a mesh, without touching the file.
///
/// Writes compose.weft.yaml beside it, to be given to docker compose as a second file: a control plane, and each service
/// wrapped by a sidecar. The control plane's data, its operator's credential and a join token for each service go into
/// .weft/, for this user alone. Nothing is started. A second run keeps what is there, and renews tokens that end soon.
///
/// Services say more with labels, in the compose file:
///   weft.mesh/ports: "8080/http, 9100/tcp"    what flows where (else the first bytes tell)
///   weft.mesh/service: orders                 name in the mesh, where it is not the service's
///   weft.mesh/version: v2                     version of the application
///   weft.mesh/app-address: 10.0.0.1           where the application listens, if not on loopback
///   weft.mesh/inject: "false"                 leave it as it is
///
/// By default applications call the mesh by local ports and HTTP_PROXY, and no container gets a privilege. --transparent
/// takes their connections by redirect rules instead, for programs that ignore proxy variables; --separate leaves the
/// team's containers as they are, and puts two beside each: its sidecar, and one that owns their network.
///
/// Example:
///   weft inject compose
///   docker compose -f compose.yaml -f compose.weft.yaml up --wait
///   weft --credential .weft/control-plane/operator.json status
#[derive(Args, Debug, Clone)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Compose files, as for docker compose -f [default: those that docker compose finds here].
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Namespace of the services in the mesh.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Only these services.
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    only: Vec<String>,
    /// Not these services.
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    exclude: Vec<String>,
    /// Redirect connections and DNS to the sidecars, instead of local ports and proxy variables.
    ///
    /// Containers get NET_ADMIN for the rules: those of the services, where the applications do not get it; with --separate
    /// those that own the network.
    #[arg(long)]
    transparent: bool,
    /// Sidecars in containers of their own, beside containers that nobody has changed.
    ///
    /// A service then has one container (no --scale). Jobs, whose end others wait for, are wrapped all the same.
    #[arg(long)]
    separate: bool,
    /// Before the names of Weft's images, as in registry.example/weft/.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    image_prefix: String,
    /// Version of Weft's images.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    image_version: String,
    /// The control plane's port on this machine's loopback, for `weft`.
    #[arg(long, value_name = "PORT", default_value_t = 15010, value_parser = clap::value_parser!(u16).range(1..))]
    grpc_port: u16,
    /// The port of its HTTP API there.
    #[arg(long, value_name = "PORT", default_value_t = 15080, value_parser = clap::value_parser!(u16).range(1..))]
    http_port: u16,
    /// Fetch or build images that are not there yet, to learn their entrypoints.
    #[arg(long)]
    pull: bool,
    /// Where the overlay goes; `-`: standard output [default: compose.weft.yaml beside the first file].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only print what would be done.
    #[arg(long, conflicts_with = "remove")]
    dry_run: bool,
    /// Take overlay and .weft/ away, after `docker compose … down`.
    #[arg(long)]
    remove: bool,
}

/// Runs `weft inject compose`.
///
/// # Errors
/// As the exit codes of `weft --help` say.
pub fn run(connection: &Connection, options: Options) -> Result<(), Failure> {
    let files = if options.files.is_empty() { found(Path::new("."))? } else { options.files.clone() };
    let place = files[0].parent().unwrap_or(Path::new(""));
    let overlay = options.output.clone().unwrap_or_else(|| place.join(OVERLAY));
    let data = folder::Folder::at(place.join(FOLDER));
    if options.remove {
        return Ok(remove(&overlay, &data)?);
    }
    let project = docker::project(&files)?;
    let images = docker::images(&project, &files, options.pull)?;
    let user = folder::control_plane_user();
    let wanted = compose::Options {
        namespace: options.namespace.clone(),
        only: options.only.clone(),
        exclude: options.exclude.clone(),
        transparent: options.transparent,
        separate: options.separate,
        image_prefix: options.image_prefix.clone(),
        version: options.image_version.clone(),
        control_plane_user: user.text(),
        grpc_port: options.grpc_port,
        http_port: options.http_port,
        command: command_line(),
        files: files.iter().map(|file| relative(place, file)).collect(),
        data: format!("./{FOLDER}"),
    };
    let plan = compose::plan(&project, &images, &wanted).map_err(|error| Failure::Refused(error.to_string()))?;
    let text = compose::overlay(&plan, &wanted);
    let to_output = overlay == Path::new("-");
    if to_output {
        eprint!("{}", compose::text(&plan));
    } else {
        output::print(&compose::text(&plan))?;
    }
    if !options.dry_run {
        data.fill(connection, &plan, &wanted, user)?;
        if !to_output {
            write(&overlay, &text)?;
        }
    }
    if to_output {
        return output::print(&text);
    }
    output::print(&farewell(&options, &plan, &files, &overlay))
}

/// As docker compose looks for them.
fn found(place: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let exists = |names: &[&str]| names.iter().map(|name| place.join(name)).find(|path| path.is_file());
    let Some(first) = exists(&["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"]) else {
        bail!("there is no compose.yaml here: name the file, as in `weft inject compose ../shop/compose.yaml`");
    };
    let over = [
        "compose.override.yaml",
        "compose.override.yml",
        "docker-compose.override.yml",
        "docker-compose.override.yaml",
    ];
    let plain = |path: PathBuf| path.strip_prefix(".").map(Path::to_path_buf).unwrap_or(path);
    Ok([first].into_iter().chain(exists(&over)).map(plain).collect())
}

fn relative(place: &Path, file: &Path) -> String {
    file.strip_prefix(place).unwrap_or(file).display().to_string()
}

/// As it was typed, for the overlay's header.
fn command_line() -> String {
    let words = std::env::args().skip(1).filter(|word| word != "--dry-run");
    std::iter::once("weft".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let ours =
        std::fs::read_to_string(path).map_or(true, |there| there.starts_with(text.lines().next().unwrap_or_default()));
    if !ours {
        bail!(
            "{} is there and was not made by this command: move it away, or name another with --output",
            path.display()
        );
    }
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

fn remove(overlay: &Path, data: &folder::Folder) -> anyhow::Result<()> {
    data.remove()?;
    match std::fs::remove_file(overlay) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("{} cannot be removed", overlay.display())),
    }
    output::print(&format!("removed {} and {}\n", overlay.display(), data.path().display()))
        .map_err(|error| anyhow::anyhow!("{error}"))
}

fn farewell(options: &Options, plan: &Plan, files: &[PathBuf], overlay: &Path) -> String {
    let files = files.iter().map(|file| format!("-f {} ", file.display())).collect::<String>();
    let count = plan.meshed.len();
    let done = match options.dry_run {
        true => format!("Nothing was written; without --dry-run this makes {}.", overlay.display()),
        false => format!("Wrote {}. Start it:", overlay.display()),
    };
    format!(
        "\n{count} service{} in the mesh `{}`. {done}\n  docker compose {files}-f {} up --wait\n",
        if count == 1 { "" } else { "s" },
        options.namespace,
        overlay.display()
    )
}

const OVERLAY: &str = "compose.weft.yaml";
const FOLDER: &str = ".weft";
