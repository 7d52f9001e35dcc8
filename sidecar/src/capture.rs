//! Whether rules of this host take the application's connections to this sidecar. Without them it calls past the mesh, in
//! plain text, and nothing else would tell.
//!
//! [`Prober`] connects to [`PROBE`], where nobody listens, as any program would. `weft-sidecar init` redirects that address
//! before all else, so the connection comes to the outbound listener, which knows it by its original destination, says so
//! here ([`Capture::arrived`]) and closes it. Whoever made it, it proves that rules are there. What they leave out on purpose
//! (users, ports, ranges) no probe can find.
//!
//! [`Judge`] makes a state of what probes found; it has no clock. Traffic never waits for any of this.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus::{IntGaugeVec, Opts, Registry};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::watch, time::Instant};

use crate::{
    redirect::{PROBE, PROBE_V6},
    shared::Shared,
};

/// Between two probes while connections come here. Soon enough for an alert, which waits a minute; a connection within the
/// host costs next to nothing, but is one more line for whoever traces system calls.
const PERIOD: Duration = Duration::from_secs(10);
/// The same while they do not: rules that have been set are noticed soon, and the sidecar becomes ready.
const MISSING: Duration = Duration::from_secs(1);
/// So long after the start rules may still be on their way, set by a container that starts at the same time: nobody is
/// alarmed, and who waits for this sidecar does not wait longer than for them.
const STARTING: Duration = Duration::from_secs(3);
/// Between two probes meanwhile.
const SOON: Duration = Duration::from_millis(50);
/// For one probe, which does not leave this host.
const ANSWER: Duration = Duration::from_secs(1);
/// Probes in a row without an answer that must be before it is taken for a no: the host may be busy.
const SILENT_PROBES: u32 = 3;

/// What `/ready` says.
const NOT_CAPTURED: &str = "not captured: no rules take connections to this sidecar; set them with `weft-sidecar init`, its \
                            --outbound, --inbound and --dns as they are here";

/// Rules are set for each family by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4, which rules always redirect.
    V4 = 0,
    /// IPv6, which they may leave alone.
    V6 = 1,
}

impl Family {
    const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Of which family a connection is a probe, by its original destination. `None`: it is none.
    #[must_use]
    pub fn probed(meant: SocketAddr) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.probe() == meant)
    }

    fn probe(self) -> SocketAddr {
        match self {
            Self::V4 => PROBE.into(),
            Self::V6 => PROBE_V6.into(),
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// Whether connections of a family come here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// No probe has told yet; of IPv6 also: they never did, which may be as it was meant.
    #[default]
    Unknown,
    /// They do.
    Captured,
    /// They do not.
    NotCaptured,
}

impl State {
    fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Captured => "captured",
            Self::NotCaptured => "not captured",
        }
    }
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// It came here.
    Here,
    /// Nobody took it, or somebody else did.
    Elsewhere,
    /// Neither, in time.
    Silence,
}

/// Probes of one family → state. No clock.
#[derive(Debug)]
struct Judge {
    /// It should be captured.
    expected: bool,
    state: State,
    silent: u32,
}

impl Judge {
    fn new(family: Family) -> Self {
        // That IPv6 is redirected is known only from seeing it.
        Self { expected: family == Family::V4, state: State::Unknown, silent: 0 }
    }

    /// Takes one probe in: the state, and whether it is another than before. `starting`: see [`STARTING`].
    fn on(&mut self, found: Found, starting: bool) -> (State, bool) {
        let before = self.state;
        match found {
            Found::Here => (self.expected, self.state, self.silent) = (true, State::Captured, 0),
            Found::Elsewhere => {
                self.silent = 0;
                self.lost(starting);
            }
            Found::Silence => {
                self.silent += 1;
                if self.silent >= SILENT_PROBES {
                    self.lost(starting);
                }
            }
        }
        (self.state, self.state != before)
    }

    fn lost(&mut self, starting: bool) {
        if self.expected && !(starting && self.state == State::Unknown) {
            self.state = State::NotCaptured;
        }
    }
}

/// What the sidecar knows of its rules.
#[derive(Debug)]
pub struct Capture {
    /// In explicit mode nothing is redirected, and nothing is looked for.
    on: bool,
    known: Mutex<Known>,
    /// Of each family, told at each probe that arrives.
    arrivals: [watch::Sender<()>; 2],
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    states: [State; 2],
    /// IPv4 was captured once since this process began.
    once: bool,
}

impl Capture {
    /// `on`: in transparent mode.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Self { on, known: Mutex::default(), arrivals: std::array::from_fn(|_| watch::channel(()).0) }
    }

    /// A connection to [`PROBE`] has come to the outbound listener.
    pub fn arrived(&self, family: Family) {
        self.arrivals[family as usize].send_replace(());
    }

    /// Why this sidecar cannot be ready. Rules that get lost later do not make it unready: what was accepted goes on, and
    /// callers are not made to suffer for it.
    #[must_use]
    pub fn missing(&self) -> Option<&'static str> {
        (self.on && !self.known.lock().once).then_some(NOT_CAPTURED)
    }

    /// What is wrong, though the sidecar is or was ready.
    #[must_use]
    pub fn degraded(&self) -> Option<&'static str> {
        match self.known.lock().states {
            [State::NotCaptured, _] => Some(NOT_CAPTURED),
            [_, State::NotCaptured] => {
                Some("not captured over IPv6: its rules are gone; `weft-sidecar init` sets them again")
            }
            _ => None,
        }
    }

    /// For people: of each family. `None` in explicit mode.
    #[must_use]
    pub fn shown(&self) -> Option<[(&'static str, &'static str); 2]> {
        let states = self.known.lock().states;
        self.on.then(|| Family::ALL.map(|family| (family.label(), states[family as usize].label())))
    }

    fn set(&self, family: Family, state: State) {
        let mut known = self.known.lock();
        known.states[family as usize] = state;
        known.once |= (family, state) == (Family::V4, State::Captured);
    }
}

/// Looks for rules as long as the outbound side is open.
#[derive(Debug)]
pub struct Prober {
    shared: Arc<Shared>,
    /// Where rules are to lead, as bound.
    outbound: u16,
    present: IntGaugeVec,
}

impl Prober {
    /// Registers the metric, which is there in transparent mode alone. `outbound`: the port as bound.
    ///
    /// # Errors
    /// When it is registered already.
    pub fn new(shared: Arc<Shared>, outbound: u16, registry: &Registry) -> prometheus::Result<Self> {
        let options = Opts::new(
            "weft_redirect_rules_present",
            "Whether rules take this host's connections to this sidecar: 1, or 0. IPv6: once they did.",
        );
        let present = IntGaugeVec::new(options, &["family"])?;
        // What is not known to be protected is not.
        present.with_label_values(&[Family::V4.label()]).set(0);
        registry.register(Box::new(present.clone()))?;
        Ok(Self { shared, outbound, present })
    }

    /// Probes at once and then for ever, until the outbound side ends, which nobody can reach any more.
    pub async fn run(self) {
        let drain = &self.shared.drain;
        let capture = &self.shared.capture;
        tokio::select! {
            // What is seen of a listener that closes says nothing of rules.
            biased;
            () = drain.abort.cancelled() => {}
            () = drain.outbound.draining() => {}
            () = self.watch(|family| probe(capture.arrivals[family as usize].subscribe(), family.probe())) => {}
        }
    }

    async fn watch<F: Future<Output = Found>>(&self, mut probe: impl FnMut(Family) -> F) {
        let mut judges = Family::ALL.map(Judge::new);
        let began = Instant::now();
        loop {
            let starting = began.elapsed() < STARTING;
            let mut period = PERIOD;
            for family in Family::ALL {
                let judge = &mut judges[family as usize];
                let (state, changed) = judge.on(probe(family).await, starting);
                if changed {
                    self.tell(family, state);
                }
                if judge.expected && state != State::Captured {
                    period = if starting { SOON } else { MISSING };
                }
            }
            tokio::time::sleep(period).await;
        }
    }

    fn tell(&self, family: Family, state: State) {
        self.shared.capture.set(family, state);
        self.shared.refresh_ready();
        let label = family.label();
        self.present.with_label_values(&[label]).set(i64::from(state == State::Captured));
        match state {
            State::Unknown | State::Captured => tracing::info!(family = label, "captured: rules lead connections here"),
            State::NotCaptured => tracing::error!(
                family = label,
                outbound = self.outbound,
                "not captured: no rules take this host's connections to this sidecar, so the application calls past the mesh. \
                 Set them with `weft-sidecar init` in this network namespace, with the --outbound, --inbound and --dns of \
                 this sidecar, or start it as `weft-sidecar run --redirect`"
            ),
        }
    }
}

/// Connects as any program would: without the mark, and as the sidecar's user, which the rules look at later.
async fn probe(mut arrived: watch::Receiver<()>, to: SocketAddr) -> Found {
    let ended = async {
        let mut byte = [0];
        match TcpStream::connect(to).await {
            // Nobody sends anything: this is the end, or whoever took it has waited as long as we do.
            Ok(mut tcp) => drop(tcp.read(&mut byte).await),
            // Nobody there; or it was taken, and ended before we looked.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) => {
            }
            Err(error) => {
                // Out of descriptors, say, which tells nothing of rules.
                tracing::debug!(%error, %to, "no probe for rules");
                return Found::Silence;
            }
        }
        Found::Elsewhere
    };
    let found = tokio::select! {
        _here = arrived.changed() => return Found::Here,
        ended = tokio::time::timeout(ANSWER, ended) => ended.unwrap_or(Found::Silence),
    };
    // The listener says so before it closes.
    match arrived.has_changed() {
        Ok(true) => Found::Here,
        Ok(false) | Err(_) => found,
    }
}

#[cfg(test)]
mod tests;
