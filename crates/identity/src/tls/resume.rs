//! Sessions that are taken up again: an abbreviated handshake, which costs a third of a full one.
//!
//! What a full handshake proves must hold for one that is taken up, too:
//!
//! - Sessions belong to one configuration, that is to one SVID and one trust bundle. Whichever of the two changes, on
//!   whichever side, makes a new configuration with an empty store, and the next handshake is a full one.
//! - A client keeps them by address, server name and the identities that it expects: what one peer gave is never shown
//!   to another, nor to the same one when somebody else is expected there.
//! - A session is used once, for at most [`LIFE`], and not beyond the server's certificate. That no certificate of the
//!   peer's has expired since is for [`super::proved`] to check.
//! - There is no early data.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::server::StoresServerSessions;
use rustls::{ClientConfig, NamedGroup, ServerConfig};
use rustls_pki_types::ServerName;

use crate::spiffe::SpiffeId;
use crate::svid::Svid;

/// A session is not taken up when it is older than this.
pub const LIFE: Duration = Duration::from_secs(3600);
/// Sessions that a server keeps: about 1 KiB each, since they hold the client's certificates.
const SERVER_SESSIONS: usize = 512;
/// Peers of which a client keeps sessions.
const PEERS: usize = 128;
/// Sessions of one peer: as many new connections to it can be in their handshakes at once and still save work.
const SESSIONS_OF_A_PEER: usize = 4;

/// The same configuration, letting clients take up sessions. `svid` is the one that the configuration presents.
#[must_use]
pub fn resuming(config: &ServerConfig, svid: &Svid) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.session_storage = Arc::new(ServerSessions::new(SERVER_SESSIONS, svid.not_after));
    config.send_tls13_tickets = 1;
    Arc::new(config)
}

/// A server's sessions. One is given out once; the oldest makes room.
struct ServerSessions {
    room: usize,
    /// End of the server's own certificate.
    until: SystemTime,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    sessions: HashMap<Vec<u8>, (Vec<u8>, Instant)>,
    /// Keys in order of arrival; those of sessions that were taken are passed over.
    order: VecDeque<Vec<u8>>,
}

impl ServerSessions {
    fn new(room: usize, until: SystemTime) -> Self {
        Self { room, until, kept: Mutex::default() }
    }

    fn take_at(&self, key: &[u8], now: Instant, clock: SystemTime) -> Option<Vec<u8>> {
        let (session, since) = locked(&self.kept).sessions.remove(key)?;
        (now.saturating_duration_since(since) < LIFE && clock < self.until).then_some(session)
    }
}

impl StoresServerSessions for ServerSessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let mut kept = locked(&self.kept);
        while kept.order.len() >= self.room {
            if let Some(oldest) = kept.order.pop_front() {
                kept.sessions.remove(&oldest);
            }
        }
        kept.order.push_back(key.clone());
        kept.sessions.insert(key, (value, Instant::now()));
        true
    }

    /// Only for TLS 1.2.
    fn get(&self, _key: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.take_at(key, Instant::now(), SystemTime::now())
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl fmt::Debug for ServerSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSessions").field("until", &self.until).finish_non_exhaustive()
    }
}

/// A client's configuration with the sessions of its peers.
#[derive(Debug)]
pub struct ClientSessions {
    config: Arc<ClientConfig>,
    /// The one used last is the last.
    peers: Mutex<Vec<Peer>>,
}

/// Whom a session was made with.
#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    name: Box<str>,
    expected: Box<[SpiffeId]>,
    /// As `ClientSessions::config`, with a store for this peer alone.
    config: Arc<ClientConfig>,
}

impl ClientSessions {
    /// No sessions yet.
    #[must_use]
    pub fn new(config: Arc<ClientConfig>) -> Self {
        Self { config, peers: Mutex::default() }
    }

    /// The configuration as it is, without sessions.
    pub fn plain(&self) -> &Arc<ClientConfig> {
        &self.config
    }

    /// The configuration for a connection to `address` under a server name, where one of `expected` must answer. The
    /// caller checks that it did before it reads from the connection: only then may sessions of it be kept.
    pub fn to(&self, address: SocketAddr, name: &str, expected: &[SpiffeId]) -> Arc<ClientConfig> {
        let mut peers = locked(&self.peers);
        let is = |peer: &Peer| peer.address == address && *peer.name == *name && *peer.expected == *expected;
        // Whom one has called is whom one calls next.
        if let Some(at) = peers.iter().rposition(is) {
            let peer = peers.remove(at);
            let config = Arc::clone(&peer.config);
            peers.push(peer);
            return config;
        }
        if peers.len() >= PEERS {
            peers.remove(0);
        }
        let mut config = (*self.config).clone();
        config.resumption = Resumption::store(Arc::new(PeerSessions::default()));
        let config = Arc::new(config);
        peers.push(Peer { address, name: name.into(), expected: expected.into(), config: Arc::clone(&config) });
        config
    }
}

/// A client's sessions with one peer. rustls keeps in each what verifier and key it was made with, and does not use it
/// with others.
#[derive(Debug, Default)]
struct PeerSessions(Mutex<VecDeque<(Tls13ClientSessionValue, Instant)>>);

impl PeerSessions {
    fn take_at(&self, now: Instant) -> Option<Tls13ClientSessionValue> {
        let (session, since) = locked(&self.0).pop_back()?;
        // The newest is too old: so are all others.
        (now.saturating_duration_since(since) < LIFE).then_some(session)
    }
}

impl ClientSessionStore for PeerSessions {
    fn set_kx_hint(&self, _name: ServerName<'static>, _group: NamedGroup) {}

    /// None: the first group is what every sidecar takes.
    fn kx_hint(&self, _name: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _name: ServerName<'static>, _value: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _name: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _name: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut sessions = locked(&self.0);
        if sessions.len() >= SESSIONS_OF_A_PEER {
            sessions.pop_front();
        }
        sessions.push_back((value, Instant::now()));
    }

    fn take_tls13_ticket(&self, _name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.take_at(Instant::now())
    }
}

/// A store is whole between any two calls: nothing in them can panic half-way.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_gives_a_session_out_once_and_not_for_long() {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let sessions = ServerSessions::new(2, clock + 2 * LIFE);
        let put = |key: u8| assert!(sessions.put(vec![key], vec![key; 3]));
        put(1);
        assert_eq!(sessions.take_at(&[1], now, clock), Some(vec![1; 3]));
        assert_eq!(sessions.take_at(&[1], now, clock), None, "once");
        put(2);
        assert_eq!(sessions.take_at(&[2], now + LIFE * 2, clock), None, "an old one");
        put(3);
        assert_eq!(sessions.take_at(&[3], now, clock + 2 * LIFE), None, "beyond the server's certificate");
        (4..8).for_each(put);
        assert_eq!(sessions.take_at(&[4], now, clock), None, "the oldest made room");
        assert!(locked(&sessions.kept).order.len() <= 2 && locked(&sessions.kept).sessions.len() <= 2);
        assert_eq!(sessions.take_at(&[7], now, clock), Some(vec![7; 3]));
    }
}
