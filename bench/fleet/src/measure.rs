//! One mesh, from its start to the restart of its control plane: what it cost and how long it took.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use tokio::{sync::mpsc, task::JoinSet};
use weft_identity::{CertificateDer, PrivateKey, SpiffeId, Svid, TrustDomain, ca::Authority, tls};

use crate::{
    board::{Board, Counts},
    mesh::{self, Service, Size, Watched},
    plane::Plane,
    sidecar::Sidecar,
};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Changes of each watched service.
    pub changes: usize,
    /// How long the idle mesh is looked at.
    pub idle: Duration,
}

/// One figure.
pub type Figure = (&'static str, f64);

/// How long anything may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// The same in microseconds: the longest latency there is.
const LONGEST_MICROS: u64 = 120_000_000;
/// Sidecars that begin at a time when the mesh is built. (After a restart all come back as they please.)
const STARTING: usize = 64;
/// The mesh is still when no response came for so long.
const STILL: Duration = Duration::from_secs(1);
/// Between two changes at most: some come in a burst, and some alone.
const PAUSE: Duration = Duration::from_millis(300);
/// Life of the sidecars' certificates.
const CERTIFICATE: Duration = Duration::from_secs(24 * 3600);

/// A mesh that runs.
struct Fleet {
    size: Size,
    plane: Plane,
    board: Arc<Board>,
    sidecars: JoinSet<()>,
    /// Health of the watched services' workloads.
    health: Vec<(Watched, mpsc::Sender<bool>, bool)>,
}

/// Measures one size.
///
/// # Errors
/// When the mesh does not come up, or does not come back.
pub async fn all(program: &Path, folder: &Path, size: Size, effort: Effort) -> Result<Vec<Figure>> {
    let config = folder.join("config");
    std::fs::create_dir_all(&config)?;
    for (number, text) in mesh::config(&size).into_iter().enumerate() {
        std::fs::write(config.join(format!("{number:04}.yaml")), text)?;
    }
    let began = Instant::now();
    let mut plane = Plane::start(program, folder, &config)?;
    let mut figures = vec![("start_s", began.elapsed().as_secs_f64())];
    // What it took to read the files is still with the allocator, more than a fleet of sidecars needs: the second start
    // finds the configuration in the log, as all but the first do.
    plane.restart()?;
    let mut fleet = Fleet::start(size, plane).await?;
    fleet.still().await;
    // Not before the watched services' three are there: what the first sidecar makes the program load is no sidecar's.
    let alone = fleet.plane.memory()?;
    figures.push(("alone_mb", alone as f64 / 1e6));
    fleet.fill().await?;
    fleet.still().await;
    let grown = fleet.plane.memory()? as f64 - alone as f64;
    figures.push(("kb_per_sidecar", grown / 1000.0 / fleet.size.sidecars as f64));
    let connected = (fleet.size.sidecars + Watched::ALL.len()) as f64;
    let idle = fleet.idle(effort.idle).await?;
    figures.push(("cpu_percent_per_sidecar", idle * 100.0 / connected));
    fleet.changes(effort, idle, &mut figures).await?;
    fleet.restart(&mut figures).await?;
    Ok(figures)
}

impl Fleet {
    /// Connects the sidecars of the watched services, and waits until they are in step.
    async fn start(size: Size, plane: Plane) -> Result<Self> {
        let board = Arc::new(Board::new());
        let mut fleet = Self { size, plane, board, sidecars: JoinSet::new(), health: Vec::new() };
        let authority = fleet.plane.authority()?;
        for watched in Watched::ALL {
            let (sender, reports) = mpsc::channel(4);
            fleet.join(&authority, watched.service(), size.sidecars, Vec::new(), reports)?;
            fleet.health.push((watched, sender, true));
        }
        fleet.everybody().await?;
        Ok(fleet)
    }

    /// Connects all others, and waits until they are in step too.
    async fn fill(&mut self) -> Result<()> {
        let (size, authority) = (self.size, self.plane.authority()?);
        for number in 0..size.sidecars {
            let (_, reports) = mpsc::channel(1);
            self.join(&authority, mesh::home(&size, number), number, mesh::calls(&size, number), reports)?;
            let least = (number + Watched::ALL.len()).saturating_sub(STARTING);
            if !self.board.all_in_step(least, PATIENCE).await {
                bail!("only {} of {number} sidecars came into step", self.board.in_step());
            }
            if (number + 1) % 500 == 0 {
                eprintln!("  {} of {} sidecars", number + 1, size.sidecars);
            }
        }
        self.everybody().await
    }

    fn join(
        &mut self,
        authority: &Authority,
        home: Service,
        number: usize,
        calls: Vec<Service>,
        reports: mpsc::Receiver<bool>,
    ) -> Result<()> {
        let tls = certificate(authority, &home)?;
        let board = self.board.clone();
        let sidecar = Sidecar { control_plane: self.plane.grpc.to_string(), tls, home, number, calls, board };
        self.sidecars.spawn(sidecar.run(reports));
        Ok(())
    }

    async fn everybody(&self) -> Result<()> {
        let need = self.sidecars.len();
        if !self.board.all_in_step(need, PATIENCE).await {
            bail!("only {} of {need} sidecars came into step within {PATIENCE:?}", self.board.in_step());
        }
        Ok(())
    }

    /// Waits until nothing is sent any more.
    async fn still(&self) {
        let mut before = self.board.counts();
        loop {
            tokio::time::sleep(STILL).await;
            let now = self.board.counts();
            if now.messages == before.messages {
                return;
            }
            before = now;
        }
    }

    /// Processor time of the control plane in a second, with the fleet connected and nothing to tell.
    async fn idle(&self, time: Duration) -> Result<f64> {
        let (before, began) = (self.plane.cpu()?, Instant::now());
        tokio::time::sleep(time).await;
        Ok((self.plane.cpu()? - before).as_secs_f64() / began.elapsed().as_secs_f64())
    }

    /// Changes the endpoints of each watched service, again and again.
    async fn changes(&mut self, effort: Effort, idle: f64, figures: &mut Vec<Figure>) -> Result<()> {
        for index in 0..self.health.len() {
            let watched = self.health[index].0;
            let mut latency = Histogram::<u64>::new_with_bounds(1, LONGEST_MICROS, 3)?;
            let (cpu, counts, began) = (self.plane.cpu()?, self.board.counts(), Instant::now());
            for _ in 0..effort.changes {
                if let Some(took) = self.change(index).await? {
                    latency.saturating_record(u64::try_from(took.as_micros())?);
                }
                tokio::time::sleep(PAUSE.mul_f64(fastrand::f64())).await;
            }
            self.still().await;
            let used = (self.plane.cpu()? - cpu).as_secs_f64() - idle * began.elapsed().as_secs_f64();
            let Counts { bytes, .. } = self.board.counts();
            let cpu_ms = used * 1e3 / effort.changes as f64;
            let bytes = (bytes - counts.bytes) as f64 / effort.changes as f64;
            let ms = |micros: u64| micros as f64 / 1000.0;
            match watched {
                Watched::All => figures.extend([
                    ("ack_p50_ms", ms(latency.value_at_quantile(0.5))),
                    ("ack_p99_ms", ms(latency.value_at_quantile(0.99))),
                    ("ack_max_ms", ms(latency.max())),
                    ("cpu_ms_per_change", cpu_ms),
                    ("bytes_per_change", bytes),
                ]),
                Watched::One => figures.extend([
                    ("one_ack_p50_ms", ms(latency.value_at_quantile(0.5))),
                    ("one_ack_p99_ms", ms(latency.value_at_quantile(0.99))),
                    ("one_cpu_ms_per_change", cpu_ms),
                    ("one_bytes_per_change", bytes),
                ]),
                Watched::Nobody => {
                    figures.extend([("nobody_cpu_ms_per_change", cpu_ms), ("nobody_bytes_per_change", bytes)])
                }
            }
        }
        Ok(())
    }

    /// One change: from the workload's report to the last acknowledgement; `None` when nobody is interested.
    async fn change(&mut self, index: usize) -> Result<Option<Duration>> {
        let (watched, sender, healthy) = &mut self.health[index];
        *healthy = !*healthy;
        let need = match watched {
            Watched::All => self.size.sidecars,
            Watched::One => 1,
            Watched::Nobody => 0,
        };
        self.board.begin(*watched, *healthy);
        let began = Instant::now();
        sender.send(*healthy).await.context("the watched workload has ended")?;
        if need == 0 {
            return Ok(None);
        }
        let Some(last) = self.board.all_acked(*watched, need, PATIENCE).await else {
            let acks = self.board.acks(*watched);
            bail!("only {acks} of {need} sidecars acknowledged a change of {watched:?} within {PATIENCE:?}");
        };
        Ok(Some(last.saturating_duration_since(began)))
    }

    /// Kills the control plane and starts it again: the time from its start until everybody is in step.
    async fn restart(&mut self, figures: &mut Vec<Figure>) -> Result<()> {
        let lost = self.board.counts().lost;
        // On another thread, or nobody would notice that the control plane is gone.
        let started = tokio::task::block_in_place(|| self.plane.restart())?;
        let up = started.elapsed();
        // Nobody is in step any more: the connections are gone, even if not every task has run since.
        while self.board.in_step() == self.sidecars.len() {
            tokio::task::yield_now().await;
        }
        self.everybody().await?;
        figures.extend([
            ("restart_s", up.as_secs_f64()),
            ("herd_s", started.elapsed().as_secs_f64()),
            ("herd_cpu_s", self.plane.cpu()?.as_secs_f64()),
            ("herd_lost_streams", (self.board.counts().lost - lost) as f64),
            ("herd_mb", self.plane.memory()? as f64 / 1e6),
        ]);
        Ok(())
    }
}

/// A certificate for a workload of this service, as the control plane would give it.
fn certificate(authority: &Authority, home: &Service) -> Result<Arc<rustls::ClientConfig>> {
    let domain = TrustDomain::default();
    let id = SpiffeId::new(&domain, &home.namespace, &home.name)?;
    let key = PrivateKey::generate()?;
    let chain: Vec<CertificateDer<'static>> = authority.sign(&key.csr()?, &id, &[], CERTIFICATE, SystemTime::now())?;
    let svid = Svid::new(chain, key)?;
    let expected = SpiffeId::control_plane(&domain);
    Ok(tls::client_config_expecting(Some(&svid), &authority.bundle(), expected, &[b"h2"])?)
}
