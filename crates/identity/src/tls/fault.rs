//! Why a handshake failed, in few words: for reasons, metric labels and log lines.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

use crate::cert::PeerError;

/// Why a handshake failed. The names that begin with `Refused` are what the other side answered to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HandshakeFault {
    /// The peer sent no certificate.
    #[error("the peer sent no certificate")]
    MissingCertificate,
    /// A certificate of the peer's chain has expired.
    #[error("the peer's certificate has expired")]
    Expired,
    /// A certificate of the peer's chain is not valid yet: a clock may be wrong.
    #[error("the peer's certificate is not valid yet")]
    NotYetValid,
    /// No root in the trust bundle has issued the peer's certificate.
    #[error("the peer's certificate was not issued by a root of the trust bundle")]
    UnknownAuthority,
    /// The peer belongs to another trust domain.
    #[error("the peer belongs to another trust domain")]
    WrongTrustDomain,
    /// The certificate does not hold exactly one URI SAN that is a SPIFFE ID.
    #[error("the peer's certificate does not name exactly one SPIFFE ID")]
    BadIdentity,
    /// The peer has a good identity, but another than expected.
    #[error("the peer is not who was expected")]
    UnexpectedIdentity,
    /// The certificate is a CA's.
    #[error("the peer's certificate is a CA certificate")]
    CaAsLeaf,
    /// The certificate is not for this use: extended key usage missing or another.
    #[error("the peer's certificate lacks the extended key usage")]
    BadKeyUsage,
    /// A CA of the chain may not have issued this: path length or name constraint.
    #[error("a CA of the peer's chain is constrained not to issue this certificate")]
    ConstraintViolated,
    /// The certificate is damaged, or a signature is wrong.
    #[error("the peer's certificate is damaged or its signature is wrong")]
    BadCertificate,
    /// No protocol version, cipher, group or ALPN protocol in common.
    #[error("no TLS version, group or protocol in common with the peer")]
    NothingInCommon,
    /// What came is not TLS.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// The peer demands a certificate, and we sent none.
    #[error("the peer demands a client certificate")]
    RefusedMissingCertificate,
    /// The peer says that our certificate has expired or is not valid yet.
    #[error("the peer says that our certificate has expired or is not valid yet")]
    RefusedExpired,
    /// The peer does not know who issued our certificate.
    #[error("the peer does not trust the issuer of our certificate")]
    RefusedUnknownAuthority,
    /// The peer does not accept our identity.
    #[error("the peer does not accept our identity")]
    RefusedIdentity,
    /// The peer refuses our certificate for another cause.
    #[error("the peer refuses our certificate")]
    RefusedCertificate,
    /// The peer sent another alert.
    #[error("the peer ended the handshake with an alert")]
    RefusedOther,
    /// The connection ended during the handshake.
    #[error("the connection ended during the handshake")]
    Closed,
    /// Anything else.
    #[error("the handshake failed")]
    Other,
}

impl HandshakeFault {
    /// The name in metric labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MissingCertificate => "missing_certificate",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownAuthority => "unknown_authority",
            Self::WrongTrustDomain => "wrong_trust_domain",
            Self::BadIdentity => "bad_identity",
            Self::UnexpectedIdentity => "unexpected_identity",
            Self::CaAsLeaf => "ca_as_leaf",
            Self::BadKeyUsage => "bad_key_usage",
            Self::ConstraintViolated => "constraint_violated",
            Self::BadCertificate => "bad_certificate",
            Self::NothingInCommon => "nothing_in_common",
            Self::NotTls => "not_tls",
            Self::RefusedMissingCertificate => "refused_missing_certificate",
            Self::RefusedExpired => "refused_expired",
            Self::RefusedUnknownAuthority => "refused_unknown_authority",
            Self::RefusedIdentity => "refused_identity",
            Self::RefusedCertificate => "refused_certificate",
            Self::RefusedOther => "refused_other",
            Self::Closed => "closed",
            Self::Other => "other",
        }
    }

    /// Whether the other side refused us, rather than we it.
    pub fn by_peer(self) -> bool {
        match self {
            Self::RefusedMissingCertificate
            | Self::RefusedExpired
            | Self::RefusedUnknownAuthority
            | Self::RefusedIdentity
            | Self::RefusedCertificate
            | Self::RefusedOther
            | Self::Closed => true,
            Self::MissingCertificate
            | Self::Expired
            | Self::NotYetValid
            | Self::UnknownAuthority
            | Self::WrongTrustDomain
            | Self::BadIdentity
            | Self::UnexpectedIdentity
            | Self::CaAsLeaf
            | Self::BadKeyUsage
            | Self::ConstraintViolated
            | Self::BadCertificate
            | Self::NothingInCommon
            | Self::NotTls
            | Self::Other => false,
        }
    }

    /// Classifies what rustls said.
    pub fn from_rustls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::NoCertificatesPresented => Self::MissingCertificate,
            rustls::Error::InvalidCertificate(error) => Self::from_certificate(error),
            rustls::Error::AlertReceived(alert) => Self::from_alert(*alert),
            rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol => Self::NothingInCommon,
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            rustls::Error::PeerMisbehaved(_) | rustls::Error::DecryptError => Self::BadCertificate,
            _ => Self::Other,
        }
    }

    /// Classifies what a TLS stream answered: rustls hides its errors in those of `std::io`.
    pub fn from_io(error: &io::Error) -> Self {
        Self::find(error).unwrap_or(match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Other,
        })
    }

    /// Looks for a TLS failure in an error and its causes, such as those of a gRPC channel.
    pub fn find(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return Some(Self::from_rustls(error));
            }
            if let Some(error) = error.downcast_ref::<io::Error>()
                && let Some(inner) = error.get_ref()
            {
                return Self::find(inner);
            }
            next = error.source();
        }
        None
    }

    fn from_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Other(other) => other.0.downcast_ref::<Self>().copied().unwrap_or(Self::BadCertificate),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::BadKeyUsage,
            CertificateError::ApplicationVerificationFailure => Self::UnexpectedIdentity,
            _ => Self::BadCertificate,
        }
    }

    fn from_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::CertificateRequired => Self::RefusedMissingCertificate,
            AlertDescription::CertificateExpired => Self::RefusedExpired,
            AlertDescription::UnknownCA => Self::RefusedUnknownAuthority,
            AlertDescription::AccessDenied => Self::RefusedIdentity,
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError => Self::RefusedCertificate,
            AlertDescription::NoApplicationProtocol | AlertDescription::ProtocolVersion => Self::NothingInCommon,
            _ => Self::RefusedOther,
        }
    }
}

impl From<PeerError> for HandshakeFault {
    fn from(error: PeerError) -> Self {
        match error {
            PeerError::Missing => Self::MissingCertificate,
            PeerError::Encoding => Self::BadCertificate,
            PeerError::NoUri | PeerError::SeveralUris | PeerError::NotSpiffe(_) => Self::BadIdentity,
        }
    }
}
