//! What Weft reads from a certificate. Reading says nothing about trust: that is for the verifiers in [`crate::tls`].

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::time::ASN1Time;

use crate::spiffe::{SpiffeId, SpiffeIdError};

/// The SPIFFE ID of a certificate: its one URI SAN.
///
/// # Errors
/// [`PeerError`] when there is none, more than one, or one that is not a SPIFFE ID of Weft's form.
pub fn spiffe_id(der: &[u8]) -> Result<SpiffeId, PeerError> {
    spiffe_id_of(&parse(der)?)
}

/// When a certificate is valid: not before, not after.
///
/// # Errors
/// [`PeerError::Encoding`] when it cannot be read.
pub fn validity(der: &[u8]) -> Result<(SystemTime, SystemTime), PeerError> {
    let cert = parse(der)?;
    Ok((system_time(cert.validity().not_before), system_time(cert.validity().not_after)))
}

/// The serial number in lower-case hexadecimal, as logs show it.
///
/// # Errors
/// [`PeerError::Encoding`] when the certificate cannot be read.
pub fn serial(der: &[u8]) -> Result<String, PeerError> {
    Ok(parse(der)?.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// SHA-256 of a certificate's DER.
pub fn sha256(der: &[u8]) -> [u8; 32] {
    Sha256::digest(der).into()
}

/// Reads every certificate of a PEM text.
///
/// # Errors
/// [`PeerError::Encoding`] when a block is damaged.
pub fn from_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, PeerError> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(|der| der.map_err(|_| PeerError::Encoding)).collect()
}

/// Certificates as PEM, in order.
pub fn to_pem(certs: &[CertificateDer<'_>]) -> String {
    use base64::Engine;
    let mut pem = String::new();
    for cert in certs {
        let text = base64::engine::general_purpose::STANDARD.encode(cert);
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in text.as_bytes().chunks(64) {
            pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PeerError> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], cert)) => Ok(cert),
        Ok(_) | Err(_) => Err(PeerError::Encoding),
    }
}

pub(crate) fn spiffe_id_of(cert: &X509Certificate<'_>) -> Result<SpiffeId, PeerError> {
    let names = cert.subject_alternative_name().map_err(|_| PeerError::Encoding)?.ok_or(PeerError::NoUri)?;
    let mut uri = None;
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(_) if uri.is_some() => return Err(PeerError::SeveralUris),
            GeneralName::URI(text) => uri = Some(*text),
            GeneralName::Invalid(..) => return Err(PeerError::Encoding),
            _ => {}
        }
    }
    SpiffeId::parse(uri.ok_or(PeerError::NoUri)?).map_err(PeerError::NotSpiffe)
}

pub(crate) fn is_ca(cert: &X509Certificate<'_>) -> bool {
    cert.basic_constraints().is_ok_and(|constraints| constraints.is_some_and(|constraints| constraints.value.ca))
}

pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = time.timestamp();
    let offset = Duration::from_secs(seconds.unsigned_abs());
    if seconds >= 0 { SystemTime::UNIX_EPOCH + offset } else { SystemTime::UNIX_EPOCH - offset }
}

/// Why no identity can be read from a peer's certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer sent no certificate.
    #[error("the peer sent no certificate")]
    Missing,
    /// The certificate cannot be read.
    #[error("the certificate cannot be read")]
    Encoding,
    /// The certificate has no URI SAN.
    #[error("the certificate has no URI SAN, so no SPIFFE ID")]
    NoUri,
    /// The certificate has more than one URI SAN.
    #[error("the certificate has more than one URI SAN")]
    SeveralUris,
    /// The URI SAN is not a SPIFFE ID of Weft's form.
    #[error("the URI SAN is not an accepted SPIFFE ID: {0}")]
    NotSpiffe(SpiffeIdError),
}
