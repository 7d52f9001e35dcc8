//! The verifier of both sides: chain, validity and usage by webpki, identity by SPIFFE ID.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use sha2::{Digest, Sha256};
use webpki::{EndEntityCert, KeyUsage};

use super::fault::HandshakeFault;
use crate::bundle::TrustBundle;
use crate::cert;
use crate::spiffe::{SpiffeId, TrustDomain};

/// What a chain must lead to.
#[derive(Debug)]
pub(super) enum Anchor {
    /// One of these roots.
    Roots(RootCertStore),
    /// A root in the presented chain that has this SHA-256.
    Pinned([u8; 32]),
}

impl Anchor {
    pub(super) fn roots(bundle: &TrustBundle) -> Self {
        Self::Roots(bundle.anchors())
    }
}

/// Who the peer may be.
#[derive(Debug)]
pub(super) enum Expected {
    /// Anyone of the trust domain.
    TrustDomain(TrustDomain),
    /// This identity.
    Identity(SpiffeId),
    /// The control plane of this trust domain, or of any if none is given.
    ControlPlane(Option<TrustDomain>),
}

/// Which side the peer is.
#[derive(Debug, Clone, Copy)]
enum Side {
    Client,
    Server,
}

/// Verifies the certificates that peers present, as client and as server.
#[derive(Debug)]
pub(super) struct Verifier {
    anchor: Anchor,
    expected: Expected,
    client_required: bool,
    algorithms: WebPkiSupportedAlgorithms,
    known: Known,
}

impl Verifier {
    pub(super) fn new(anchor: Anchor, expected: Expected) -> Self {
        let algorithms = super::provider().signature_verification_algorithms;
        Self { anchor, expected, client_required: true, algorithms, known: Known::default() }
    }

    pub(super) fn requiring(mut self, client_required: bool) -> Self {
        self.client_required = client_required;
        self
    }

    /// Chain first: what an unverified certificate says about itself counts for nothing but the wording of the fault.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
        side: Side,
    ) -> Result<(), rustls::Error> {
        let digest = digest(leaf, rest, side);
        if self.known.holds(&digest, now) {
            return Ok(());
        }
        let id = cert::spiffe_id(leaf);
        let chain = match &self.anchor {
            Anchor::Roots(store) => path(leaf, rest, &store.roots, now, side, &self.algorithms),
            Anchor::Pinned(hash) => match rest.iter().find(|der| cert::sha256(der) == *hash) {
                Some(root) => webpki::anchor_from_trusted_cert(root)
                    .map_err(|_| HandshakeFault::BadCertificate)
                    .and_then(|anchor| path(leaf, rest, &[anchor], now, side, &self.algorithms)),
                None => Err(HandshakeFault::UnknownAuthority),
            },
        };
        let verdict = match (chain, id) {
            (Ok(()), Ok(id)) => self.identity(&id),
            (Ok(()), Err(error)) => Err(error.into()),
            (Err(HandshakeFault::UnknownAuthority), Ok(id)) if self.other_domain(&id) => {
                Err(HandshakeFault::WrongTrustDomain)
            }
            (Err(fault), _) => Err(fault),
        };
        verdict.map_err(|fault| rustls::Error::InvalidCertificate(alerting(fault)))?;
        self.known.remember(digest, leaf, rest);
        Ok(())
    }

    fn identity(&self, id: &SpiffeId) -> Result<(), HandshakeFault> {
        if self.other_domain(id) {
            return Err(HandshakeFault::WrongTrustDomain);
        }
        let accepted = match &self.expected {
            Expected::TrustDomain(_) => true,
            Expected::Identity(expected) => id == expected,
            Expected::ControlPlane(_) => id.is_control_plane(),
        };
        if accepted { Ok(()) } else { Err(HandshakeFault::UnexpectedIdentity) }
    }

    fn other_domain(&self, id: &SpiffeId) -> bool {
        match &self.expected {
            Expected::TrustDomain(domain) | Expected::ControlPlane(Some(domain)) => {
                id.trust_domain() != domain.as_str()
            }
            Expected::Identity(expected) => id.trust_domain() != expected.trust_domain(),
            Expected::ControlPlane(None) => false,
        }
    }
}

/// Chains that this verifier has found good. The verdict follows from the chain's bytes, the verifier's own settings,
/// which do not change, and the time: so it holds for the same bytes while all of their certificates are valid. What a
/// handshake proves of the key is never skipped.
#[derive(Debug, Default)]
struct Known(Mutex<HashMap<[u8; 32], RangeInclusive<UnixTime>>>);

/// Peers are the services that one talks to; when there are more, all are verified anew.
const MAX_KNOWN: usize = 1024;

impl Known {
    fn holds(&self, digest: &[u8; 32], now: UnixTime) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(digest).is_some_and(|validity| validity.contains(&now))
    }

    fn remember(&self, digest: [u8; 32], leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) {
        let unix = |time: SystemTime| UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default());
        let mut common: Option<(UnixTime, UnixTime)> = None;
        for cert in std::iter::once(leaf).chain(rest) {
            // A chain may hold certificates that its verification had no need to read.
            let Ok((from, to)) = cert::validity(cert) else { return };
            let (from, to) = (unix(from), unix(to));
            common = Some(common.map_or((from, to), |(first, last)| (first.max(from), last.min(to))));
        }
        if let Some((from, to)) = common {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.insert(digest, from..=to);
        }
    }
}

/// SHA-256 of a chain and of the side that presents it, each certificate with its length.
fn digest(leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], side: Side) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix([side as u8]);
    for cert in std::iter::once(leaf).chain(rest) {
        hash.update((cert.len() as u64).to_be_bytes());
        hash.update(cert);
    }
    hash.finalize().into()
}

/// Verifies a chain (leaf first) as both kinds of peer would, at a given time.
///
/// # Errors
/// The fault that the peer would find.
pub fn chain(chain: &[CertificateDer<'_>], bundle: &TrustBundle, now: SystemTime) -> Result<(), HandshakeFault> {
    let (leaf, rest) = chain.split_first().ok_or(HandshakeFault::MissingCertificate)?;
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (roots, now) = (bundle.anchors().roots, UnixTime::since_unix_epoch(since));
    let algorithms = super::provider().signature_verification_algorithms;
    for side in [Side::Client, Side::Server] {
        path(leaf, rest, &roots, now, side, &algorithms)?;
    }
    let id = cert::spiffe_id(leaf)?;
    if id.trust_domain() == bundle.trust_domain().as_str() { Ok(()) } else { Err(HandshakeFault::WrongTrustDomain) }
}

fn path(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    roots: &[TrustAnchor<'_>],
    now: UnixTime,
    side: Side,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<(), HandshakeFault> {
    let usage = match side {
        Side::Client => KeyUsage::client_auth(),
        Side::Server => KeyUsage::server_auth(),
    };
    let end = EndEntityCert::try_from(leaf).map_err(|error| fault(&error))?;
    end.verify_for_usage(algorithms.all, roots, rest, now, usage, None, None).map_err(|error| fault(&error))?;
    // webpki forgives a leaf that lacks the extension; to demand it of webpki would demand it of every CA as well.
    let parsed = cert::parse(leaf)?;
    let extension = parsed.extended_key_usage().map_err(|_| HandshakeFault::BadCertificate)?;
    let named = extension.is_some_and(|usages| match side {
        Side::Client => usages.value.client_auth,
        Side::Server => usages.value.server_auth,
    });
    if named { Ok(()) } else { Err(HandshakeFault::BadKeyUsage) }
}

fn fault(error: &webpki::Error) -> HandshakeFault {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } | Error::InvalidCertValidity => HandshakeFault::Expired,
        Error::CertNotValidYet { .. } => HandshakeFault::NotYetValid,
        Error::UnknownIssuer => HandshakeFault::UnknownAuthority,
        Error::CaUsedAsEndEntity => HandshakeFault::CaAsLeaf,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => HandshakeFault::BadKeyUsage,
        Error::NameConstraintViolation
        | Error::PathLenConstraintViolated
        | Error::EndEntityUsedAsCa
        | Error::MaximumPathDepthExceeded => HandshakeFault::ConstraintViolated,
        _ => HandshakeFault::BadCertificate,
    }
}

/// The rustls error that makes the peer see the most telling alert.
fn alerting(fault: HandshakeFault) -> CertificateError {
    match fault {
        HandshakeFault::Expired => CertificateError::Expired,
        HandshakeFault::NotYetValid => CertificateError::NotValidYet,
        HandshakeFault::UnknownAuthority => CertificateError::UnknownIssuer,
        HandshakeFault::BadKeyUsage => CertificateError::InvalidPurpose,
        HandshakeFault::UnexpectedIdentity => CertificateError::ApplicationVerificationFailure,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, Side::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.client_required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, Side::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
