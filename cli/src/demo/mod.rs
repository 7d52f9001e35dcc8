//! `weft demo`: a whole mesh of real processes on loopback, broken and healed before one's eyes.
//!
//! - [`apps`]: the applications. - [`mesh`]: the processes. - [`traffic`]: the callers from outside.
//! - [`scenes`]: what happens, and what it proves. - [`claim`]: what was measured.
//! - [`view`]: what a person sees.

mod apps;
mod claim;
mod mesh;
mod scenes;
mod traffic;
mod view;

use std::{io::IsTerminal, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Result;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

pub use self::apps::{AppOptions, app};
use self::{claim::Claims, mesh::Mesh, traffic::Traffic, view::View};

/// Play a whole mesh on this machine: break things and watch it cope.
///
/// Starts a control plane, three services in five workloads and a sidecar beside each, all as real processes on
/// loopback with free ports; needs no root and no other program, and leaves nothing behind. In a terminal the mesh
/// stays up after the last scene, to be looked at, until Ctrl-C.
///
/// Exit status 0 only if every claim was observed.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// End after this many seconds at the latest (at least 25 are needed to observe every claim).
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// Print each claim with its measured value as JSON, and nothing else.
    #[arg(long)]
    json: bool,
    /// Keep the logs of every process in this folder.
    #[arg(long, value_name = "FOLDER")]
    logs: Option<std::path::PathBuf>,
}

/// Time for the scenes when nothing bounds it.
const UNHURRIED: Duration = Duration::from_secs(75);

/// Plays the demo.
pub fn main(options: Options) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("weft demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(play(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("weft demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn play(options: &Options) -> Result<bool> {
    let live = !options.json && std::io::stdout().is_terminal();
    let claims = Claims::default();
    let view = View::new(live, options.json, claims.clone());
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let mut mesh = Mesh::new(options.logs.as_deref())?;
    let bound = options.seconds.map(Duration::from_secs);
    let deadline = tokio::time::Instant::now() + bound.unwrap_or(Duration::from_secs(86_400));
    let outcome = tokio::select! {
        result = perform(&mut mesh, &view, &claims, bound.unwrap_or(UNHURRIED), live && bound.is_none()) => result,
        _ = interrupt.recv() => { view.note("interrupted"); Ok(()) }
        _ = terminate.recv() => { view.note("terminated"); Ok(()) }
        () = tokio::time::sleep_until(deadline) => { view.note("the time given by --for is up"); Ok(()) }
    };
    let tails = outcome.is_err().then(|| mesh.log_tails());
    mesh.stop().await;
    view.finish();
    if let Some(tails) = tails {
        eprint!("{tails}");
    }
    outcome?;
    Ok(claims.all_observed())
}

/// Starts the mesh and plays the scenes; with `stay` goes on afterwards until someone stops it.
async fn perform(mesh: &mut Mesh, view: &View, claims: &Claims, time: Duration, stay: bool) -> Result<()> {
    view.note("starting a control plane, five workloads and their sidecars");
    mesh.start().await?;
    let traffic = Arc::new(Traffic::default());
    let _driver = traffic.clone().start(mesh.frontend());
    let _drawing = view.draw(mesh.watched(), traffic.clone());
    view.note(&mesh.commands()?);
    scenes::play(mesh, &traffic, view, claims, time).await?;
    if stay {
        view.note("every scene has been played; the mesh stays up until Ctrl-C");
        std::future::pending::<()>().await;
    }
    Ok(())
}
