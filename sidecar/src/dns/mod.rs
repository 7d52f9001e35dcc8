//! DNS for applications that do not know of the mesh: names of services get virtual addresses, all else goes to the
//! host's resolvers.
//!
//! ```text
//! server  sockets on loopback           answer  one query: decide, remember, forward
//! wire    messages as bytes             decide  question and what is known → decision; pure
//! names   name → services it may mean   known   what the snapshot and the control plane say of a service
//! cache   answers of other resolvers    forward, resolvers  who they are, and asking them
//! ```
//!
//! Everything runs on a thread of its own. It never asks for the address of a service from outside, and never waits for
//! the control plane when that is away: what is not known then is forwarded.

mod answer;
mod cache;
mod decide;
mod forward;
mod known;
mod metrics;
mod names;
mod resolvers;
mod server;
#[cfg(test)]
mod tests;
pub mod wire;

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    rc::Rc,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use prometheus::Registry;
use tokio_util::sync::CancellationToken;

pub use self::server::Listening;
use self::{answer::Answers, metrics::Metrics, resolvers::Watched};
use crate::shared::Shared;

/// Between looks at `resolv.conf`, at the host's routes, and for the namespaces.
const TICK: Duration = Duration::from_secs(2);
/// The same while the namespaces are not known.
const SOON: Duration = Duration::from_millis(100);
/// An address of the virtual range, to ask the routing table about.
const VIRTUAL_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0x6566, 0x7400, 0, 0, 0, 0xf000, 0x100);

/// Starts the thread; it ends with `stop`.
///
/// # Errors
/// When there is no thread.
///
/// # Panics
/// When the metrics are registered already.
pub fn start(
    listening: Listening,
    shared: Arc<Shared>,
    registry: &Registry,
    stop: CancellationToken,
) -> io::Result<JoinHandle<()>> {
    let metrics = Metrics::register(registry).expect("the names are registered once");
    std::thread::Builder::new().name("dns".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default());
        match runtime {
            Ok(runtime) => runtime.block_on(run(listening, shared, metrics, stop)),
            Err(error) => tracing::error!(%error, "DNS has no runtime"),
        }
    })
}

async fn run(listening: Listening, shared: Arc<Shared>, metrics: Metrics, stop: CancellationToken) {
    let virtual_v6 = listening.ipv6() && shared.settings.transparent.on;
    let own = listening.address;
    let answers = Rc::new(Answers::new(shared.clone(), metrics));
    let mut host = Host { answers: answers.clone(), shared, own, watched: Watched::default(), virtual_v6 };
    host.forward_to(&host.shared.settings.transparent.dns_servers);
    host.look();
    tracing::info!(address = %own, "DNS");
    let upkeep = async {
        loop {
            let known = host.answers.names().keep_namespaces().await;
            tokio::time::sleep(if known { TICK } else { SOON }).await;
            host.look();
        }
    };
    tokio::select! {
        ended = listening.serve(answers) => tracing::error!(?ended, "DNS ended"),
        () = upkeep => {}
        () = stop.cancelled() => {}
    }
}

/// What of the host DNS depends on.
struct Host {
    answers: Rc<Answers>,
    shared: Arc<Shared>,
    own: SocketAddr,
    watched: Watched,
    virtual_v6: bool,
}

impl Host {
    fn look(&mut self) {
        let given = &self.shared.settings.transparent.dns_servers;
        if let Some(found) = self.watched.changed() {
            self.answers.set_search(found.search);
            if given.is_empty() {
                self.forward_to(&found.servers);
            }
        }
        self.answers.set_ipv6(self.virtual_v6 && routed(VIRTUAL_V6));
    }

    /// Never to itself.
    fn forward_to(&self, servers: &[SocketAddr]) {
        let others: Vec<_> = servers.iter().copied().filter(|server| *server != self.own).collect();
        if others.is_empty() && !servers.is_empty() {
            tracing::warn!("no resolver for names outside the mesh: name some with --dns-servers");
        } else {
            tracing::debug!(?others, "resolvers");
        }
        self.answers.set_servers(&others);
    }
}

/// Whether the host has a route to an address: without one, connections to it fail before rules can redirect them.
fn routed(address: Ipv6Addr) -> bool {
    // Nothing is sent: connecting a datagram socket only asks the routing table.
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok_and(|socket| socket.connect((address, 9)).is_ok())
}
