//! Proof → identity → certificate, and the life of the authority and of the control plane's own certificate.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_identity::ca::{Authority, CaError, Request};
use weft_identity::tls::{self, ClientAuth, HandshakeFault, TlsError};
use weft_identity::{JoinToken, Renewal, SpiffeId, TrustBundle, TrustDomain, cert};

use super::limit::Bucket;
use super::metrics::{Metrics, Outcome};
use super::tokens::{Grant, GrantError, TokenError, TokenRecord, Tokens};
use crate::kubernetes::{ReviewError, Reviewer, is_service_account_token};

/// What the certificates manager needs to start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory of the authority's files.
    pub directory: PathBuf,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Files of an authority made elsewhere: PEM chain and key. They replace the one in `directory`, whose root stays
    /// trusted.
    pub import: Option<(PathBuf, PathBuf)>,
    /// Life of a leaf.
    pub ttl: Duration,
    /// DNS names and IP addresses of the control plane's own certificate, besides `weft-control-plane`.
    pub names: Vec<String>,
}

/// The certificates manager. Shared by all of its users.
#[derive(Debug)]
pub struct Certificates {
    settings: Settings,
    authority: ArcSwap<Authority>,
    bundle: watch::Sender<Arc<TrustBundle>>,
    server: ArcSwap<ServerConfig>,
    renewal: Mutex<Renewal>,
    /// Life of a leaf, as the Mesh or else the settings say.
    leaf_ttl: Mutex<Duration>,
    tokens: Tokens,
    /// Of the cluster, if there is one.
    reviewer: OnceLock<Arc<Reviewer>>,
    joins: Mutex<Bucket>,
    renewals: Mutex<Bucket>,
    metrics: Metrics,
}

/// What is sent back for a signing request.
#[derive(Debug, Clone)]
pub(super) struct Issued {
    pub identity: SpiffeId,
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub bundle: Arc<TrustBundle>,
}

/// Why nothing is signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the rate limit on certificates is reached")]
    Shed { retry_after: Duration },
    #[error(transparent)]
    Request(CaError),
    #[error("neither a join token nor a client certificate was given")]
    NoProof,
    #[error(transparent)]
    Token(TokenError),
    #[error(transparent)]
    ServiceAccount(#[from] ReviewError),
    #[error("service-account tokens are not accepted here: this control plane runs without --kubernetes")]
    NoCluster,
    #[error("the client certificate proves nothing: {0}")]
    Certificate(HandshakeFault),
    #[error("nobody is given the control plane's own identity")]
    ControlPlane,
    #[error("the control plane could not sign: {0}")]
    Failed(CaError),
}

impl Certificates {
    /// Loads the authority, or makes one if the directory holds none, and the control plane's own certificate.
    ///
    /// # Errors
    /// [`CertificatesError`] when files cannot be read or written, or the authority is of no use.
    pub fn open(
        settings: Settings,
        tokens: Tokens,
        registry: &prometheus::Registry,
        now: SystemTime,
    ) -> Result<Arc<Self>, CertificatesError> {
        if !(SHORTEST_LIFE..=LONGEST_LIFE).contains(&settings.ttl) {
            return Err(CertificatesError::Ttl);
        }
        let authority = open_authority(&settings, now)?;
        let metrics = Metrics::new(registry)?;
        let (server, renewal) = own_certificate(&settings, &authority, &metrics, now)?;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let rate = REQUESTS_PER_SECOND_AND_CPU * cpus as f64;
        let bucket = || Mutex::new(Bucket::new(rate, Instant::now()));
        let bundle = watch::Sender::new(Arc::new(authority.bundle()));
        metrics.expiry("issuer", authority.issuer_not_after());
        metrics.expiry("root", authority.root_not_after());
        Ok(Arc::new(Self {
            authority: ArcSwap::from_pointee(authority),
            bundle,
            server: ArcSwap::new(server),
            renewal: Mutex::new(renewal),
            leaf_ttl: Mutex::new(settings.ttl),
            tokens,
            reviewer: OnceLock::new(),
            joins: bucket(),
            renewals: bucket(),
            metrics,
            settings,
        }))
    }

    /// The TLS configuration for new connections: TLS 1.3, client certificates verified if sent, `h2` and `http/1.1`.
    /// To be asked for at each accept, since it changes when the certificate is renewed.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.load_full()
    }

    /// The trust bundle, and its changes.
    pub fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundle.subscribe()
    }

    /// Life of the workloads' certificates from now on, as the Mesh has it; `None`: as the settings had it.
    pub fn set_leaf_ttl(&self, ttl: Option<Duration>) {
        *self.leaf_ttl.lock() = ttl.unwrap_or(self.settings.ttl);
    }

    /// When the intermediate and the root expire.
    pub fn expiries(&self) -> (SystemTime, SystemTime) {
        let authority = self.authority.load();
        (authority.issuer_not_after(), authority.root_not_after())
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.settings.trust_domain
    }

    /// The join tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// From now on a service-account token of the reviewer's cluster is a proof, too.
    pub fn accept_service_accounts(&self, reviewer: Arc<Reviewer>) {
        if self.reviewer.set(reviewer).is_err() {
            tracing::warn!("service-account tokens of a second cluster are not accepted");
        }
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// [`GrantError`] when the grant is not to be given or the store does not answer.
    pub async fn create_token(&self, grant: Grant, now: SystemTime) -> Result<(JoinToken, TokenRecord), GrantError> {
        if grant.identity.trust_domain() != self.settings.trust_domain.as_str() {
            return Err(GrantError::OtherTrustDomain);
        }
        let root = self.authority.load().root_sha256();
        let (token, record) = self.tokens.create(grant, root, now).await?;
        tracing::info!(
            token = record.id,
            identity = %record.identity,
            uses = record.uses_left,
            expires = %humantime::format_rfc3339_seconds(record.expires),
            by = record.created_by,
            "join token created"
        );
        Ok((token, record))
    }

    /// Adds a root to the trust bundle, now and at the next start: the overlap while roots change.
    ///
    /// # Errors
    /// [`CertificatesError`] when it is no CA certificate, or the files cannot be written.
    pub fn trust(&self, root: CertificateDer<'static>, now: SystemTime) -> Result<(), CertificatesError> {
        let mut renewal = self.renewal.lock();
        let authority = self.authority.load().trusting(root)?;
        authority.save(&self.settings.directory)?;
        let (server, next) = own_certificate(&self.settings, &authority, &self.metrics, now)?;
        self.bundle.send_replace(Arc::new(authority.bundle()));
        tracing::info!(roots = authority.bundle().roots().len(), "trust bundle changed");
        self.authority.store(Arc::new(authority));
        self.server.store(server);
        *renewal = next;
        Ok(())
    }

    /// Keeps the intermediate and the control plane's own certificate fresh, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let wait = self.renewal.lock().wait(SystemTime::now());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait.max(SHORTEST_WAIT)) => {}
            }
            let now = SystemTime::now();
            if let Err(error) = self.maintain(now) {
                tracing::error!(%error, "the control plane's certificates could not be renewed; trying again");
                self.renewal.lock().failed(now, None, fastrand::f64());
            }
        }
    }

    /// Renews what is due. The lock makes this and [`Certificates::trust`] the only writers, one at a time.
    pub(super) fn maintain(&self, now: SystemTime) -> Result<(), CertificatesError> {
        let mut renewal = self.renewal.lock();
        if let Some(renewed) = self.authority.load().renewed(now)? {
            renewed.save(&self.settings.directory)?;
            self.metrics.expiry("issuer", renewed.issuer_not_after());
            let not_after = humantime::format_rfc3339_seconds(renewed.issuer_not_after());
            tracing::info!(%not_after, "intermediate CA renewed");
            self.authority.store(Arc::new(renewed));
        }
        if renewal.due(now) {
            let (server, next) = own_certificate(&self.settings, &self.authority.load(), &self.metrics, now)?;
            self.server.store(server);
            *renewal = next;
        }
        Ok(())
    }

    /// Answers one signing request, and logs and counts the answer.
    pub(super) async fn issue(
        &self,
        csr: &[u8],
        join_token: &str,
        peer: Option<&[CertificateDer<'static>]>,
        now: SystemTime,
    ) -> Result<Issued, Refused> {
        let answer = self.prove_and_sign(csr, join_token, peer, now).await;
        match &answer {
            Ok(issued) => {
                let joined = !join_token.is_empty();
                let proof = match joined {
                    false => "certificate",
                    true if is_service_account_token(join_token) => "service-account-token",
                    true => "join-token",
                };
                self.metrics.count(if joined { Outcome::Joined } else { Outcome::Renewed });
                tracing::info!(
                    identity = %issued.identity,
                    serial = cert::serial(&issued.chain[0]).unwrap_or_default(),
                    not_after = %humantime::format_rfc3339_seconds(issued.not_after),
                    proof,
                    token = JoinToken::parse(join_token).ok().map(|token| token.id().to_owned()),
                    "certificate issued"
                );
            }
            Err(refused) => {
                self.metrics.count(refused.outcome());
                let identity = peer.and_then(|peer| tls::peer_id(Some(peer)).ok());
                let identity = identity.as_ref().map_or("none", SpiffeId::as_str);
                tracing::warn!(reason = %refused, result = refused.outcome().as_str(), peer = identity, "certificate refused");
            }
        }
        answer
    }

    async fn prove_and_sign(
        &self,
        csr: &[u8],
        join_token: &str,
        peer: Option<&[CertificateDer<'static>]>,
        now: SystemTime,
    ) -> Result<Issued, Refused> {
        // Strangers with bad tokens must not use up what running workloads need: they have a limit of their own.
        let bucket = if join_token.is_empty() && peer.is_some() { &self.renewals } else { &self.joins };
        let room = bucket.lock().take(Instant::now(), fastrand::f64());
        room.map_err(|retry_after| Refused::Shed { retry_after })?;
        // The request is checked before the token is used up for it.
        let request = Request::parse(csr).map_err(Refused::Request)?;
        let identity = match (join_token, peer) {
            ("", None) => return Err(Refused::NoProof),
            ("", Some(peer)) => self.identity_of(peer, now)?,
            (text, _) if is_service_account_token(text) => {
                self.reviewer.get().ok_or(Refused::NoCluster)?.identity(text, now).await?
            }
            (text, _) => {
                let token = JoinToken::parse(text).map_err(|error| Refused::Token(error.into()))?;
                self.tokens.redeem(token, request.key_sha256(), now).await.map_err(Refused::Token)?
            }
        };
        if identity.is_control_plane() {
            return Err(Refused::ControlPlane);
        }
        let authority = self.authority.load();
        let ttl = *self.leaf_ttl.lock();
        let chain = authority.sign_request(&request, &identity, &[], ttl, now).map_err(Refused::Failed)?;
        let (not_before, not_after) = cert::validity(&chain[0]).map_err(|error| Refused::Failed(error.into()))?;
        Ok(Issued { identity, chain, not_before, not_after, bundle: self.bundle.borrow().clone() })
    }

    /// The handshake verified the chain once; a connection can outlive its certificate, or a root its trust.
    fn identity_of(&self, peer: &[CertificateDer<'static>], now: SystemTime) -> Result<SpiffeId, Refused> {
        tls::verify::chain(peer, &self.bundle.borrow(), now).map_err(Refused::Certificate)?;
        tls::peer_id(Some(peer)).map_err(|error| Refused::Certificate(error.into()))
    }
}

impl Refused {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Shed { .. } => Outcome::Shed,
            Self::Request(_) => Outcome::BadRequest,
            Self::Token(TokenError::Store(_)) | Self::Failed(_) | Self::ServiceAccount(ReviewError::Unavailable(_)) => {
                Outcome::Failed
            }
            Self::NoCluster | Self::ServiceAccount(_) | Self::NoProof | Self::Token(_) | Self::Certificate(_) => {
                Outcome::Unproved
            }
            Self::ControlPlane => Outcome::Forbidden,
        }
    }
}

fn open_authority(settings: &Settings, now: SystemTime) -> Result<Authority, CertificatesError> {
    let directory = &settings.directory;
    let domain = || settings.trust_domain.clone();
    let there = Authority::load(domain(), directory, now);
    if let Some((chain, key)) = &settings.import {
        let imported = Authority::import(domain(), &read(chain)?, &read(key)?, now)?;
        return match there {
            // Imported at an earlier start: the files of then, with their intermediate, are used on.
            Ok(Some(there)) if there.same_source(&imported) => Ok(there),
            Ok(Some(there)) => {
                save(replace(&there, imported)?, directory, "CA imported; the former root stays trusted")
            }
            Ok(None) => save(imported, directory, "CA imported"),
            Err(error) => {
                tracing::warn!(%error, "the former CA cannot be used");
                save(imported, directory, "CA imported; nothing of the former one stays trusted")
            }
        };
    }
    match there? {
        Some(authority) => Ok(authority),
        None => save(Authority::create(domain(), now)?, directory, "CA created"),
    }
}

fn replace(former: &Authority, imported: Authority) -> Result<Authority, CaError> {
    former.bundle().roots().iter().try_fold(imported, |authority, root| authority.trusting(root.clone()))
}

fn save(authority: Authority, directory: &Path, what: &str) -> Result<Authority, CertificatesError> {
    authority.save(directory)?;
    tracing::info!(
        directory = %directory.display(),
        trust_domain = %authority.trust_domain(),
        root_not_after = %humantime::format_rfc3339_seconds(authority.root_not_after()),
        "{what}"
    );
    Ok(authority)
}

fn read(path: &Path) -> Result<String, CertificatesError> {
    std::fs::read_to_string(path).map_err(|source| CertificatesError::Read { path: path.to_owned(), source })
}

fn own_certificate(
    settings: &Settings,
    authority: &Authority,
    metrics: &Metrics,
    now: SystemTime,
) -> Result<(Arc<ServerConfig>, Renewal), CertificatesError> {
    let names = settings.names.iter().map(String::as_str).filter(|name| *name != OWN_NAME);
    let names: Vec<&str> = std::iter::once(OWN_NAME).chain(names).collect();
    let svid = authority.control_plane_svid(&names, settings.ttl, now)?;
    let server = tls::server_config(&svid, &authority.bundle(), ClientAuth::Optional, &[b"h2", b"http/1.1"])?;
    metrics.expiry("leaf", svid.not_after);
    Ok((server, Renewal::new(svid.not_before, svid.not_after, fastrand::f64())))
}

/// Why the certificates manager cannot start or renew.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// The authority.
    #[error("certificate authority: {0}")]
    Authority(#[from] CaError),
    /// The TLS configuration.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The life of leaves.
    #[error("certificates live at least 10 seconds and at most 90 days")]
    Ttl,
    /// The metrics are registered already.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// A file to import.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Source: DEFAULTS 1.2, CSR rate.
const REQUESTS_PER_SECOND_AND_CPU: f64 = 50.0;
const SHORTEST_LIFE: Duration = Duration::from_secs(10);
const LONGEST_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
const SHORTEST_WAIT: Duration = Duration::from_millis(500);
const OWN_NAME: &str = weft_proto::connect::SERVER_NAME;
