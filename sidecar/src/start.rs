//! Composition: what is made in which order, and how it ends.
//!
//! ```text
//! bind → addresses.json → certificate and configuration from disk → workers
//!   → control thread: certificate, xDS, registration, health, admin → ready → (the application)
//! ```
//!
//! The control thread is the calling thread, a runtime of its own; each worker is a thread with a runtime of its own.

use std::{
    ffi::OsString,
    io,
    process::ExitCode,
    sync::Arc,
    thread::JoinHandle,
    time::{Instant, SystemTime},
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use weft_telemetry::{files, log::LogHandle, metrics, server, shutdown::Shutdown};

use crate::{
    admin::Admin,
    capture::Prober,
    certs::Certs,
    demand::Demand,
    dns,
    drain::{self, Ended},
    health::{self, Health},
    listener,
    registration::{Leave, Registration},
    settings::{Launch, Settings},
    shared::{Shared, Sockets},
    sockets::{self, Addresses, BindError, Bound},
    worker::DataPath,
    wrapper::{self, Application, Privileges},
    xds::Xds,
};

/// Exit status when the wrapper is stopped before its application has been started: as if SIGTERM had ended that.
const ASKED_BEFORE_START: u8 = 128 + 15;

/// Why a sidecar does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A directory, file, thread or signal handler.
    #[error("{what}: {source}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// Why it was not.
        source: io::Error,
    },
    /// Two metrics of one name: a bug.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

fn io(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io { what, source }
}

/// Runs a sidecar to its end. `launch`: the application to start, if any.
///
/// # Errors
/// When it cannot start.
pub fn run(settings: Settings, launch: Option<Launch>, log: LogHandle) -> Result<ExitCode, StartError> {
    files::create_private_dir(&settings.data_dir).map_err(io("the data directory"))?;
    raise_descriptor_limit();
    let bound = sockets::bind(&settings)?;
    bound.addresses.write(&settings.data_dir).map_err(io("addresses.json"))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io("the control thread"))?;
    runtime.block_on(control(settings, launch, log, bound))
}

/// The control thread.
async fn control(
    settings: Settings,
    launch: Option<Launch>,
    log: LogHandle,
    bound: Bound,
) -> Result<ExitCode, StartError> {
    let Bound { workers, admin, metrics, dns, addresses } = bound;
    let registry = metrics::registry("weft");
    let (demand, wanted) = Demand::new(settings.on_demand_wait);
    let shared = Shared::new(settings, demand);
    shared.vips.restore(&shared.settings.data_dir);
    let shutdown = Shutdown::new();
    let signals = Signals::install().map_err(io("signal handlers"))?;

    let certs = Certs::new(shared.clone(), &registry)?;
    certs.restore(SystemTime::now());
    let reached = Arc::new(Notify::new());
    let (health, checks) = watch::channel(initial_health(&shared.settings));
    let (registration, leave) =
        Registration::new(shared.clone(), certs.clone(), addresses.inbound, checks, reached.clone());
    let mut xds = Xds::new(shared.clone(), certs.clone(), registration.instance(), wanted, reached, &registry)?;
    xds.restore(Instant::now());
    let path = DataPath::new(shared.clone(), &registry, addresses.all());
    let threads = workers.into_iter().enumerate().map(|(index, sockets)| work(index, path.clone(), sockets));
    let mut threads = threads.collect::<io::Result<Vec<_>>>().map_err(io("a worker thread"))?;

    let stop = CancellationToken::new();
    if let Some(listening) = dns {
        let thread = dns::start(listening, shared.clone(), &registry, stop.clone());
        threads.push(thread.map_err(io("the DNS thread"))?);
    }
    let transparent = shared.settings.transparent.on;
    let prober = transparent.then(|| Prober::new(shared.clone(), addresses.outbound.port(), &registry)).transpose()?;
    let registers = !shared.settings.ports.is_empty();
    let pages = Admin {
        shared: shared.clone(),
        certs: certs.clone(),
        held: xds.held(),
        registry,
        metrics: path.metrics.clone(),
        log,
        shutdown: shutdown.clone(),
        leave: registers.then(|| leave.clone()),
    };
    let mut tasks = JoinSet::new();
    if let Some(prober) = prober {
        tasks.spawn(prober.run());
    }
    let admin = TcpListener::from_std(admin).map_err(io("the admin port"))?;
    let metrics = TcpListener::from_std(metrics).map_err(io("the metrics port"))?;
    tasks.spawn(server::serve(admin, pages.clone().routes(), stop.clone()));
    tasks.spawn(server::serve(metrics, pages.metrics_routes(), stop.clone()));
    tasks.spawn({
        let stop = stop.clone();
        async move { certs.run(stop).await }
    });
    tasks.spawn(xds.run(stop.clone()));
    tasks.spawn({
        let (shared, stop) = (shared.clone(), stop.clone());
        async move { shared.vips.keep(&shared.settings.data_dir, stop).await }
    });
    if registers {
        tasks.spawn(registration.run());
    }
    if let Some(target) = health::target(&shared.settings) {
        tasks.spawn(health::run(target, health));
    }
    tasks.spawn(announce_ready(shared.clone(), addresses.clone()));

    let status = Life { shared: shared.clone(), shutdown, signals, leave, addresses }.run(launch).await;
    shared.drain.abort.cancel();
    stop.cancel();
    finish(tasks, threads).await;
    Ok(ExitCode::from(status))
}

/// A worker thread.
fn work(index: usize, path: Arc<DataPath>, sockets: Sockets) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default());
        match runtime {
            Ok(runtime) => runtime.block_on(listener::run(path, sockets)),
            Err(error) => tracing::error!(%error, "a worker has no runtime"),
        }
    })
}

/// Until the check says otherwise; without a check the application is taken to be healthy.
fn initial_health(settings: &Settings) -> Health {
    match health::target(settings) {
        Some(_) => Health { healthy: false, reason: "the application has not been seen listening yet" },
        None => Health { healthy: true, reason: "" },
    }
}

async fn announce_ready(shared: Arc<Shared>, addresses: Addresses) {
    shared.ready().await;
    tracing::info!(
        service = shared.settings.service_key(),
        outbound = %addresses.outbound,
        inbound = %addresses.inbound,
        admin = %addresses.admin,
        metrics = %addresses.metrics,
        "ready"
    );
}

/// Waits for tasks that end by themselves (the cache is written a last time), and for the workers, a second at most.
async fn finish(mut tasks: JoinSet<()>, threads: Vec<JoinHandle<()>>) {
    const LAST: std::time::Duration = std::time::Duration::from_secs(1);
    let threads = tokio::task::spawn_blocking(move || {
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    });
    let orderly = async {
        // Registration and health checks have no end of their own.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        drop(threads.await);
    };
    if tokio::time::timeout(LAST, orderly).await.is_err() {
        tracing::warn!("workers did not end in time");
    }
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
}

/// Signals that mean something to a sidecar.
struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    hup: tokio::signal::unix::Signal,
    usr1: tokio::signal::unix::Signal,
    usr2: tokio::signal::unix::Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
            usr2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.term.recv() => Signal::SIGTERM,
            _ = self.int.recv() => Signal::SIGINT,
            _ = self.hup.recv() => Signal::SIGHUP,
            _ = self.usr1.recv() => Signal::SIGUSR1,
            _ = self.usr2.recv() => Signal::SIGUSR2,
        }
    }
}

/// From ready to the end.
struct Life {
    shared: Arc<Shared>,
    shutdown: Shutdown,
    signals: Signals,
    leave: Leave,
    addresses: Addresses,
}

impl Life {
    /// The exit status.
    async fn run(mut self, launch: Option<Launch>) -> u8 {
        let Some(launch) = launch else {
            self.until_asked(None).await;
            let shared = self.shared.clone();
            self.drain(async move {
                if shared.settings.transparent.on {
                    drain::left(&shared.drain.outbound).await;
                }
            })
            .await;
            return 0;
        };
        tokio::select! {
            () = self.shared.ready() => {}
            () = until_asked(&mut self.signals, &self.shutdown, None) => {
                self.drain(async {}).await;
                return ASKED_BEFORE_START;
            }
        }
        let environment = self.environment(&launch);
        let Launch { command, user, without, stop_signal, .. } = launch;
        let privileges = Privileges { user, without };
        let started = Application::start(&command, &privileges, &environment, std::process::id() == 1);
        let application = match started {
            Ok(application) => application,
            Err(error) => {
                tracing::error!(command = %command[0].display(), %error, "the application could not be started");
                self.drain(async {}).await;
                return wrapper::status_of(&error);
            }
        };
        tracing::info!(command = %command[0].display(), pid = application.pid(), "application started");
        tokio::select! {
            status = application.ended() => {
                tracing::info!(status, "the application ended");
                self.drain(async {}).await;
                status
            }
            () = until_asked(&mut self.signals, &self.shutdown, Some(&application)) => {
                self.drain_with(&application, stop_signal).await
            }
        }
    }

    /// What the application's environment has beyond the sidecar's.
    fn environment(&self, launch: &Launch) -> Vec<(String, OsString)> {
        let upstreams: Vec<_> =
            self.addresses.upstreams.iter().map(|(_, authority, address)| (authority.clone(), *address)).collect();
        let no_proxy = std::env::var_os("NO_PROXY").or_else(|| std::env::var_os("no_proxy"));
        let mut environment = wrapper::environment(self.addresses.outbound, &upstreams, no_proxy.as_deref());
        if self.shared.settings.transparent.on {
            // Its connections come by themselves, and each by its own destination.
            environment.retain(|(name, _)| !name.to_ascii_lowercase().ends_with("_proxy"));
        }
        environment.extend(launch.home.as_ref().map(|home| ("HOME".to_owned(), home.clone().into())));
        environment
    }

    async fn until_asked(&mut self, application: Option<&Application>) {
        until_asked(&mut self.signals, &self.shutdown, application).await;
    }

    /// Drains around an application: inbound first, then it gets its signal and can call out until it is gone.
    async fn drain_with(&mut self, application: &Application, stop_signal: Signal) -> u8 {
        let told = application.clone();
        self.drain(async move {
            told.signal(stop_signal);
            told.ended().await;
        })
        .await;
        // Still there only when the time was over or a second signal came.
        application.signal(Signal::SIGKILL);
        application.ended().await
    }

    /// Drains; a signal on the way ends it at once.
    async fn drain(&mut self, application: impl Future<Output = ()>) {
        let Self { shared, shutdown, signals, leave, .. } = self;
        shared.refresh_ready();
        tracing::info!(
            inbound = shared.drain.inbound.open(),
            outbound = shared.drain.outbound.open(),
            limit_s = shared.settings.drain.as_secs(),
            "draining"
        );
        let leave = async {
            // A mere caller is not registered.
            if !shared.settings.ports.is_empty() {
                leave.leave().await;
            }
        };
        let drained = drain::drain(&shared.drain, shared.settings.drain, &shutdown.now, leave, application);
        let more = async {
            loop {
                if matches!(signals.next().await, Signal::SIGTERM | Signal::SIGINT) {
                    shutdown.now.cancel();
                }
            }
        };
        let (_, ended) = tokio::select! {
            ended = drained => ended,
            () = more => unreachable!("signals come for ever"),
        };
        match ended {
            Ended::Complete => tracing::info!("drained"),
            Ended::CutOff { connections } => tracing::warn!(connections, "connections were cut off"),
        }
    }
}

/// Waits until the process is asked to stop. Signals that are the application's go to it.
async fn until_asked(signals: &mut Signals, shutdown: &Shutdown, application: Option<&Application>) {
    loop {
        let signal = tokio::select! {
            signal = signals.next() => signal,
            () = shutdown.graceful.cancelled() => return,
        };
        match (signal, application) {
            (Signal::SIGTERM, _) | (Signal::SIGINT, None) => {
                tracing::info!(%signal, "asked to stop");
                shutdown.graceful.cancel();
                return;
            }
            // Ctrl-C reaches every process of the terminal's foreground group: the application has it already.
            (Signal::SIGINT, Some(_)) if io::IsTerminal::is_terminal(&io::stdin()) => {}
            (signal, Some(application)) => application.signal(signal),
            (signal, None) => tracing::debug!(%signal, "nothing to do"),
        }
    }
}

/// As many file descriptors as the system lets this process have.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit on file descriptors stays");
    }
}
