//! Private keys and certificate signing requests.
//!
//! A key is made where it is used and never leaves: its bytes come out only as PEM for the owner's own file, and as the
//! signing key of a rustls configuration.

use std::fmt;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A private key. Cheap to clone; `Debug` shows nothing of it.
#[derive(Clone)]
pub struct PrivateKey(Arc<KeyPair>);

impl PrivateKey {
    /// Makes a new ECDSA P-256 key.
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the system's random source fails.
    pub fn generate() -> Result<Self, KeyError> {
        let pair =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| KeyError::Generate(error.to_string()))?;
        Ok(Self(Arc::new(pair)))
    }

    /// Reads the first private key of a PEM text (PKCS#8, SEC1 or PKCS#1).
    ///
    /// # Errors
    /// [`KeyError::Parse`]; the message holds nothing of the key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        Self::all_from_pem(pem)?.into_iter().next().ok_or(KeyError::Parse("no private key in the PEM"))
    }

    /// Reads every private key of a PEM text.
    ///
    /// # Errors
    /// As for [`PrivateKey::from_pem`].
    pub(crate) fn all_from_pem(pem: &str) -> Result<Vec<Self>, KeyError> {
        PrivateKeyDer::pem_slice_iter(pem.as_bytes())
            .map(|der| {
                let der = der.map_err(|_| KeyError::Parse("the PEM is damaged"))?;
                let pair =
                    KeyPair::try_from(&der).map_err(|_| KeyError::Parse("the key is damaged or of an unknown kind"))?;
                Ok(Self(Arc::new(pair)))
            })
            .collect()
    }

    /// The key as PKCS#8 PEM, for its owner's file of mode 0600.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// A signing request (PKCS#10, DER) with an empty subject: the authority takes only the public key from it.
    ///
    /// # Errors
    /// [`KeyError::Sign`] when signing fails.
    pub fn csr(&self) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&*self.0).map_err(|error| KeyError::Sign(error.to_string()))?;
        Ok(csr.der().to_vec())
    }

    /// The public key, as the DER of a SubjectPublicKeyInfo.
    pub fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// The key pair, for rcgen to sign with.
    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }

    /// The key in the form that rustls takes.
    pub(crate) fn der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

/// Why a key could not be made, read or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The system's random source or the cryptographic library failed.
    #[error("could not make a key: {0}")]
    Generate(String),
    /// The text holds no usable key.
    #[error("could not read the private key: {0}")]
    Parse(&'static str),
    /// Signing failed.
    #[error("could not sign: {0}")]
    Sign(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file_and_hides_in_debug() {
        let key = PrivateKey::generate().unwrap();
        let again = PrivateKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(key.public_key(), again.public_key());
        assert_eq!(format!("{key:?}"), "PrivateKey(redacted)");
        assert_ne!(PrivateKey::generate().unwrap().public_key(), key.public_key());
    }

    #[test]
    fn damaged_keys_are_refused_without_showing_them() {
        let pem = PrivateKey::generate().unwrap().to_pem();
        let cut = pem.replacen("M", "N", 1);
        for bad in ["", "not a key", &cut, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let error = PrivateKey::from_pem(bad).unwrap_err().to_string();
            assert!(error.starts_with("could not read the private key"), "{error}");
        }
    }
}
