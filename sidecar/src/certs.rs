//! The sidecar's own certificate: obtained, kept, renewed, and made into rustls configurations.
//!
//! The key is made here and never leaves the data directory. A renewal swaps [`TlsMaterial`] whole: new connections use
//! the new certificate, those that live go on with theirs.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use thiserror::Error;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use weft_identity::{
    BundleError, CertificateDer, KeyError, PrivateKey, Renewal, SpiffeId, Svid, SvidError, TrustBundle, cert,
    tls::{self, ClientAuth, TlsError},
};
use weft_proto::weft::v1::{IssueRequest, IssueResponse, certificate_service_client::CertificateServiceClient};

use crate::{
    mark,
    reconnect::explain,
    settings::SettingsError,
    shared::{Alpn, Shared, TlsMaterial},
};

const BUNDLE_FILE: &str = "bundle.pem";
/// For one request of a certificate, from the dial on.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(10);
/// Two certificates are obtained at least this far apart, however the clock jumps; less when they are short-lived.
const LEAST_INTERVAL: Duration = Duration::from_secs(30);

/// Owner of the sidecar's certificate.
#[derive(Debug)]
pub struct Certs {
    shared: Arc<Shared>,
    state: Mutex<State>,
    metrics: CertMetrics,
    wanted: Notify,
}

#[derive(Debug, Default)]
struct State {
    svid: Option<Arc<Svid>>,
    /// When it came here; the file's time when it was on disk.
    since: Option<SystemTime>,
    bundle: Option<Arc<TrustBundle>>,
    epoch: u64,
    /// To the control plane, with this very certificate.
    channel: Option<Channel>,
}

/// What `/certs` shows; no key.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The current certificate, if there is one.
    pub svid: Option<Arc<Svid>>,
    /// The roots that are trusted.
    pub bundle: Option<Arc<TrustBundle>>,
    /// Counts rotations.
    pub epoch: u64,
}

/// Why there is no (new) certificate.
#[derive(Debug, Error)]
pub enum CertsError {
    /// Nothing to prove the identity with.
    #[error(
        "no certificate yet, and no join token: make one with `weft token create` and set WEFT_JOIN_TOKEN or --join-token-file"
    )]
    NoProof,
    /// The certificate is over and there is no token.
    #[error(
        "the certificate has expired, and there is no join token to obtain a new one with: make one with `weft token create`"
    )]
    Expired,
    /// The token's file.
    #[error(transparent)]
    Token(#[from] SettingsError),
    /// The token is none.
    #[error("join token: {0}")]
    TokenText(String),
    /// A service-account token alone does not say whom to trust.
    #[error(
        "the token is a Kubernetes service-account token, which does not name the control plane's CA: mount the \
         ConfigMap `weft-root` and name its ca.pem with --ca-file"
    )]
    NoCa,
    /// The file with the CA.
    #[error("--ca-file: {0}")]
    CaFile(BundleError),
    /// A key could not be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// rustls refused.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address of the control plane.
    #[error("--control-plane: {0}")]
    Address(#[from] weft_proto::connect::AddressError),
    /// The control plane said no, or did not answer.
    #[error("{}", explain(.0))]
    Refused(Box<tonic::Status>),
    /// What it sent is not a certificate for the key.
    #[error("the control plane sent a certificate that cannot be used: {0}")]
    Svid(#[from] SvidError),
    /// What it sent is not a trust bundle.
    #[error("the control plane sent a trust bundle that cannot be used: {0}")]
    Bundle(#[from] BundleError),
    /// It belongs to another mesh.
    #[error("the certificate is for {found}, but the trust domain of this sidecar is {expected}; see --trust-domain")]
    TrustDomain {
        /// Of the certificate.
        found: SpiffeId,
        /// As set.
        expected: String,
    },
}

impl Certs {
    /// Nothing known yet.
    ///
    /// # Errors
    /// When the metrics are registered already.
    pub fn new(shared: Arc<Shared>, registry: &Registry) -> prometheus::Result<Arc<Self>> {
        let metrics = CertMetrics::register(registry)?;
        Ok(Arc::new(Self { shared, state: Mutex::default(), metrics, wanted: Notify::new() }))
    }

    /// Takes up what is in the data directory, if it is there and not over. Whether it is.
    pub fn restore(&self, now: SystemTime) -> bool {
        let (directory, trust_domain) = (&self.shared.settings.data_dir, &self.shared.settings.trust_domain);
        let svid = match Svid::load(directory) {
            Ok(svid) => svid,
            Err(SvidError::Read { kind: std::io::ErrorKind::NotFound, .. }) => return false,
            Err(error) => {
                tracing::warn!(%error, "the certificate on disk cannot be used");
                return false;
            }
        };
        let bundle = match TrustBundle::load(trust_domain.clone(), &directory.join(BUNDLE_FILE)) {
            Ok(bundle) => bundle,
            Err(error) => {
                tracing::warn!(%error, "the trust bundle on disk cannot be used");
                return false;
            }
        };
        if !svid.valid_at(now) || svid.id.trust_domain() != trust_domain.as_str() {
            tracing::warn!(id = %svid.id, not_after = %rfc3339(svid.not_after), "the certificate on disk is over or of another mesh");
            return false;
        }
        let written = std::fs::metadata(directory.join("svid.pem")).and_then(|file| file.modified()).ok();
        let since = written.filter(|written| svid.valid_at(*written)).unwrap_or(svid.not_before);
        tracing::info!(id = %svid.id, not_after = %rfc3339(svid.not_after), "certificate taken from disk");
        self.install(|state| {
            (state.svid, state.since, state.bundle) = (Some(Arc::new(svid)), Some(since), Some(Arc::new(bundle)));
        })
        .inspect_err(|error| tracing::warn!(%error, "the certificate on disk cannot be used"))
        .is_ok()
    }

    /// What is in force.
    pub fn shown(&self) -> Shown {
        let state = self.state.lock();
        Shown { svid: state.svid.clone(), bundle: state.bundle.clone(), epoch: state.epoch }
    }

    /// A channel to the control plane, proving this sidecar's identity. All who ask share one connection, until the
    /// certificate or the roots change: for the control plane a connection is most of what a sidecar costs.
    ///
    /// # Errors
    /// When there is no certificate yet.
    pub fn channel(&self) -> Result<Channel, CertsError> {
        let mut state = self.state.lock();
        if let Some(channel) = &state.channel {
            return Ok(channel.clone());
        }
        let (Some(svid), Some(bundle)) = (&state.svid, &state.bundle) else { return Err(CertsError::NoProof) };
        let expected = SpiffeId::control_plane(&self.shared.settings.trust_domain);
        let tls = tls::client_config_expecting(Some(svid), bundle, expected, &[b"h2"])?;
        let channel = weft_proto::connect::channel_prepared(&self.shared.settings.control_plane, tls, mark::prepare)?;
        state.channel = Some(channel.clone());
        Ok(channel)
    }

    /// Other roots are to be trusted from now on; they are kept on disk, too.
    pub fn set_roots(&self, roots: &[Vec<u8>]) {
        let roots: Vec<_> = roots.iter().map(|root| CertificateDer::from(root.clone())).collect();
        let bundle = match TrustBundle::new(self.shared.settings.trust_domain.clone(), roots) {
            Ok(bundle) => bundle,
            Err(error) => {
                tracing::error!(%error, "the new trust bundle cannot be used; the old one stays");
                return;
            }
        };
        if self.shown().bundle.is_some_and(|before| before.roots() == bundle.roots()) {
            return;
        }
        let bundle = Arc::new(bundle);
        // In force first: a root that was retired is not trusted for as long as the disk takes.
        match self.install(|state| state.bundle = Some(Arc::clone(&bundle))) {
            Ok(()) => {
                tracing::info!(roots = bundle.roots().len(), "trust bundle changed");
                save_bundle(&bundle, &self.shared.settings.data_dir);
            }
            Err(error) => tracing::error!(%error, "the new trust bundle cannot be used"),
        }
    }

    /// Renews the certificate now, long before its time.
    pub fn renew_now(&self) {
        self.wanted.notify_one();
    }

    /// Obtains the first certificate and renews it, for ever.
    pub async fn run(&self, stop: CancellationToken) {
        let mut renewal = self.plan();
        let mut obtained: Option<Instant> = None;
        // Kept from try to try: the control plane takes a join token again for the same key, so that a lost answer does
        // not use it up.
        let mut pending: Option<PrivateKey> = None;
        loop {
            let wait = renewal.wait(SystemTime::now()).max(self.interval().saturating_sub(match obtained {
                Some(at) => at.elapsed(),
                None => Duration::MAX,
            }));
            let wanted = tokio::select! {
                () = tokio::time::sleep(wait) => false,
                () = self.wanted.notified() => true,
                () = stop.cancelled() => return,
            };
            if !wanted && !renewal.due(SystemTime::now()) {
                continue;
            }
            match self.obtain(&mut pending).await {
                Ok(svid) => {
                    tracing::info!(id = %svid.id, not_after = %rfc3339(svid.not_after), "certificate obtained");
                    self.metrics.renewals.with_label_values(&["ok"]).inc();
                    (renewal, obtained) = (self.plan(), Some(Instant::now()));
                }
                Err(error) => {
                    self.metrics.renewals.with_label_values(&["failed"]).inc();
                    renewal.failed(SystemTime::now(), retry_after(&error), fastrand::f64());
                    let again = renewal.wait(SystemTime::now());
                    tracing::warn!(%error, retry_in_ms = again.as_millis(), "no new certificate yet");
                }
            }
        }
    }

    /// When the certificate in force is to be renewed; at once when there is none.
    fn plan(&self) -> Renewal {
        let state = self.state.lock();
        match (&state.svid, state.since) {
            // Its life begins when it came here: the beginning that it states is set back for clocks that are behind.
            (Some(svid), Some(since)) => Renewal::new(since.max(svid.not_before), svid.not_after, fastrand::f64()),
            _ => Renewal::new(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH, 0.0),
        }
    }

    /// The least time between two certificates.
    fn interval(&self) -> Duration {
        let state = self.state.lock();
        let life =
            state.svid.as_ref().zip(state.since).map(|(svid, since)| {
                svid.not_after.duration_since(since.max(svid.not_before)).unwrap_or(Duration::MAX)
            });
        life.map_or(LEAST_INTERVAL, |life| (life / 4).clamp(Duration::from_secs(1), LEAST_INTERVAL))
    }

    /// Obtains a certificate: with the current one as proof while it is valid, else, or when that is refused, with the
    /// join token.
    async fn obtain(&self, pending: &mut Option<PrivateKey>) -> Result<Arc<Svid>, CertsError> {
        let current = self.shown().svid;
        let token = self.shared.settings.join_token.as_ref();
        let key = match pending {
            Some(key) => key.clone(),
            None => pending.insert(PrivateKey::generate()?).clone(),
        };
        let valid = current.as_ref().is_some_and(|svid| svid.valid_at(SystemTime::now()));
        let answer = match (valid, token) {
            (true, None) => self.renew(&key).await?,
            (true, Some(token)) => match self.renew(&key).await {
                Err(CertsError::Refused(status)) if is_denial(&status) => {
                    tracing::warn!(error = explain(&status), "renewal refused; trying the join token");
                    join::join(&self.shared.settings, &key, token).await?
                }
                answer => answer?,
            },
            (false, Some(token)) => join::join(&self.shared.settings, &key, token).await?,
            (false, None) if current.is_some() => return Err(CertsError::Expired),
            (false, None) => return Err(CertsError::NoProof),
        };
        // What follows is about this answer; the next certificate gets a key of its own.
        *pending = None;
        self.accept(answer, key)
    }

    async fn renew(&self, key: &PrivateKey) -> Result<IssueResponse, CertsError> {
        issue(self.channel()?, IssueRequest { csr: key.csr()?, join_token: String::new() }).await
    }

    /// Checks what was issued, keeps it, puts it in force.
    fn accept(&self, answer: IssueResponse, key: PrivateKey) -> Result<Arc<Svid>, CertsError> {
        let settings = &self.shared.settings;
        let svid = Svid::new(answer.chain.into_iter().map(CertificateDer::from).collect(), key)?;
        if svid.id.trust_domain() != settings.trust_domain.as_str() {
            return Err(CertsError::TrustDomain { found: svid.id, expected: settings.trust_domain.to_string() });
        }
        let roots = answer.trust_bundle.into_iter().map(CertificateDer::from).collect();
        let bundle = TrustBundle::new(settings.trust_domain.clone(), roots)?;
        save_bundle(&bundle, &settings.data_dir);
        if let Err(error) = svid.save(&settings.data_dir) {
            tracing::error!(%error, "the certificate could not be kept; the next start needs a join token");
        }
        let svid = Arc::new(svid);
        self.install(|state| {
            (state.svid, state.since) = (Some(svid.clone()), Some(SystemTime::now()));
            state.bundle = Some(Arc::new(bundle));
        })?;
        Ok(svid)
    }

    /// Changes the state and puts what follows from it in force; on an error nothing has changed.
    fn install(&self, change: impl FnOnce(&mut State)) -> Result<(), CertsError> {
        let mut state = self.state.lock();
        let mut next = State {
            svid: state.svid.clone(),
            since: state.since,
            bundle: state.bundle.clone(),
            epoch: state.epoch + 1,
            channel: None,
        };
        change(&mut next);
        if let (Some(svid), Some(bundle)) = (&next.svid, &next.bundle) {
            let material = material(next.epoch, svid, bundle)?;
            self.metrics.show(svid, bundle);
            *state = next;
            drop(state);
            self.shared.set_tls(material);
        } else {
            *state = next;
        }
        Ok(())
    }
}

fn material(epoch: u64, svid: &Svid, bundle: &TrustBundle) -> Result<TlsMaterial, TlsError> {
    let server = tls::server_config(svid, bundle, ClientAuth::Required, &[b"h2", b"http/1.1"])?;
    let server = tls::resuming(&server, svid);
    let client = |alpn: Alpn| tls::client_config(Some(svid), bundle, alpn.protocols());
    let clients = [client(Alpn::None)?, client(Alpn::Http1)?, client(Alpn::H2)?];
    Ok(TlsMaterial::new(epoch, svid.id.clone(), server, clients))
}

async fn issue(channel: Channel, request: IssueRequest) -> Result<IssueResponse, CertsError> {
    let mut client = CertificateServiceClient::new(channel);
    match tokio::time::timeout(ISSUE_TIMEOUT, client.issue(request)).await {
        Ok(answer) => answer.map(tonic::Response::into_inner).map_err(|status| CertsError::Refused(Box::new(status))),
        Err(_late) => {
            let status = tonic::Status::deadline_exceeded("the control plane did not answer in 10 s");
            Err(CertsError::Refused(Box::new(status)))
        }
    }
}

fn is_denial(status: &tonic::Status) -> bool {
    matches!(status.code(), tonic::Code::Unauthenticated | tonic::Code::PermissionDenied)
}

/// The pause that the control plane asked for, if it did.
fn retry_after(error: &CertsError) -> Option<Duration> {
    let CertsError::Refused(status) = error else { return None };
    let millis = status.metadata().get("grpc-retry-pushback-ms")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

fn save_bundle(bundle: &TrustBundle, directory: &Path) {
    if let Err(error) = bundle.save(&directory.join(BUNDLE_FILE)) {
        tracing::error!(%error, "the trust bundle could not be kept");
    }
}

/// A time for people.
pub fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

#[derive(Debug)]
struct CertMetrics {
    expiry: IntGaugeVec,
    renewals: IntCounterVec,
}

impl CertMetrics {
    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let expiry = IntGaugeVec::new(
            Opts::new("weft_certificate_expiry_timestamp_seconds", "When a certificate in use expires, in Unix time."),
            &["kind"],
        )?;
        let renewals = IntCounterVec::new(
            Opts::new("weft_certificate_renewals_total", "Certificates asked for, by result."),
            &["result"],
        )?;
        for result in ["ok", "failed"] {
            renewals.with_label_values(&[result]);
        }
        registry.register(Box::new(expiry.clone()))?;
        registry.register(Box::new(renewals.clone()))?;
        Ok(Self { expiry, renewals })
    }

    fn show(&self, svid: &Svid, bundle: &TrustBundle) {
        let set = |kind: &str, at: Option<SystemTime>| {
            let seconds = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).map(|since| since.as_secs());
            if let Some(seconds) = seconds.and_then(|seconds| i64::try_from(seconds).ok()) {
                self.expiry.with_label_values(&[kind]).set(seconds);
            }
        };
        let end = |der: &CertificateDer<'_>| cert::validity(der).ok().map(|(_, not_after)| not_after);
        set("leaf", Some(svid.not_after));
        set("issuer", svid.chain.get(1).and_then(end));
        set("root", bundle.roots().iter().filter_map(end).min());
    }
}

mod join;
#[cfg(test)]
mod tests;
