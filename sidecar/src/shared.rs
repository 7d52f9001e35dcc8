//! What the control side and the data path share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;
use weft_identity::{SpiffeId, tls::ClientSessions};

use crate::{capture::Capture, demand::Demand, drain::Drain, settings::Settings, snapshot::Snapshot, vip::Vips};

/// Shared by the control thread and all workers; lives as long as the process.
#[derive(Debug)]
pub struct Shared {
    /// As given at start.
    pub settings: Settings,
    /// The configuration in force. The control thread writes, everyone reads; a request takes one and keeps it.
    pub snapshot: ArcSwap<Snapshot>,
    /// The sidecar's own certificate as rustls configurations. `None` until the first one is there.
    pub tls: ArcSwapOption<TlsMaterial>,
    /// Fetches what the snapshot lacks.
    pub demand: Demand,
    /// Virtual addresses of mesh names.
    pub vips: Vips,
    /// Whether the sides are to end, and what still runs on them.
    pub drain: Drain,
    /// Whether rules lead connections here, in transparent mode.
    pub capture: Capture,
    /// Configuration was there once: from the control plane or from the cache.
    configured: AtomicBool,
    certified: watch::Sender<bool>,
    ready: watch::Sender<bool>,
}

impl Shared {
    /// Nothing known yet.
    #[must_use]
    pub fn new(settings: Settings, demand: Demand) -> Arc<Self> {
        Arc::new(Self {
            capture: Capture::new(settings.transparent.on),
            settings,
            snapshot: ArcSwap::default(),
            tls: ArcSwapOption::empty(),
            demand,
            vips: Vips::default(),
            drain: Drain::default(),
            configured: AtomicBool::new(false),
            certified: watch::channel(false).0,
            ready: watch::channel(false).0,
        })
    }

    /// What is missing before traffic can be served. `None`: nothing, the sidecar is ready.
    #[must_use]
    pub fn missing(&self) -> Option<&'static str> {
        if self.drain.inbound.is_draining() {
            Some("draining")
        } else if self.tls.load().is_none() {
            Some("no certificate yet")
        } else if !self.configured.load(Ordering::Relaxed) {
            Some("no configuration yet: neither from the control plane nor from the cache")
        } else if self.snapshot.load().inbound.is_none() && !self.settings.ports.is_empty() {
            Some("no inbound listener yet: the control plane does not know this service")
        } else {
            self.capture.missing()
        }
    }

    /// Puts a certificate in force.
    pub fn set_tls(&self, material: TlsMaterial) {
        self.tls.store(Some(Arc::new(material)));
        self.certified.send_replace(true);
        self.refresh_ready();
    }

    /// Waits until there is a certificate.
    pub async fn certified(&self) {
        // The sender lives in `self`, so the wait cannot fail.
        drop(self.certified.subscribe().wait_for(|certified| *certified).await);
    }

    /// Waits until the sidecar is ready.
    pub async fn ready(&self) {
        // The sender lives in `self`, so the wait cannot fail.
        drop(self.ready.subscribe().wait_for(|ready| *ready).await);
    }

    /// Follows readiness.
    pub fn watch_ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Configuration is there.
    pub fn set_configured(&self) {
        self.configured.store(true, Ordering::Relaxed);
        self.refresh_ready();
    }

    /// To be called after every change of what [`Self::missing`] looks at.
    pub fn refresh_ready(&self) {
        let ready = self.missing().is_none();
        self.ready.send_if_modified(|before| std::mem::replace(before, ready) != ready);
    }
}

/// The bound sockets of one worker, each its own (SO_REUSEPORT), non-blocking.
#[derive(Debug)]
pub struct Sockets {
    /// From other sidecars. Of each address family one, in transparent mode.
    pub inbound: Vec<std::net::TcpListener>,
    /// From the application. Of each address family one, in transparent mode.
    pub outbound: Vec<std::net::TcpListener>,
    /// From the application, for one upstream each; with its canonical authority.
    pub upstreams: Vec<(std::net::TcpListener, Box<str>)>,
}

/// What one certificate and one trust bundle amount to. Replaced whole when either rotates; connections that live keep
/// the one with which they began.
#[derive(Debug, Clone)]
pub struct TlsMaterial {
    /// Counts rotations; pools and session tickets of another epoch are not used for new connections.
    pub epoch: u64,
    /// Who this sidecar is.
    pub id: SpiffeId,
    /// For inbound: a client certificate is required; offers `h2` and `http/1.1`, and takes peers without ALPN.
    pub server: Arc<ServerConfig>,
    /// For outbound, by what is offered; with the sessions of this epoch.
    clients: Arc<[ClientSessions; 3]>,
}

/// What a client offers in ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// Nothing: opaque TCP.
    None = 0,
    /// `http/1.1`.
    Http1 = 1,
    /// `h2`.
    H2 = 2,
}

impl Alpn {
    /// The protocol names, as rustls wants them.
    #[must_use]
    pub fn protocols(self) -> &'static [&'static [u8]] {
        match self {
            Self::None => &[],
            Self::Http1 => &[b"http/1.1"],
            Self::H2 => &[b"h2"],
        }
    }
}

impl TlsMaterial {
    /// `clients`: for [`Alpn::None`], [`Alpn::Http1`] and [`Alpn::H2`], in this order.
    #[must_use]
    pub fn new(epoch: u64, id: SpiffeId, server: Arc<ServerConfig>, clients: [Arc<ClientConfig>; 3]) -> Self {
        Self { epoch, id, server, clients: Arc::new(clients.map(ClientSessions::new)) }
    }

    /// The configuration for connections to other sidecars. It proves chain and trust domain; whether the peer is who
    /// the cluster says is for the caller to check after the handshake, before the first byte.
    #[must_use]
    pub fn client(&self, alpn: Alpn) -> &Arc<ClientConfig> {
        self.clients[alpn as usize].plain()
    }

    /// The same with the sessions that are kept of one peer.
    #[must_use]
    pub fn sessions(&self, alpn: Alpn) -> &ClientSessions {
        &self.clients[alpn as usize]
    }
}
