//! The trust bundle: the root certificates of one trust domain. Several at once while roots are being rotated.

use std::fs;
use std::io;
use std::path::Path;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

use crate::spiffe::TrustDomain;
use crate::{cert, files};

/// The roots of a trust domain. At least one; in the order given, without repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
}

impl TrustBundle {
    /// Takes root certificates.
    ///
    /// # Errors
    /// [`BundleError`] when there is none, or one that cannot be a trust anchor.
    pub fn new(trust_domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        let mut kept: Vec<CertificateDer<'static>> = Vec::with_capacity(roots.len());
        for root in roots {
            let parsed = cert::parse(&root).map_err(|_| BundleError::Root)?;
            if !cert::is_ca(&parsed) || webpki::anchor_from_trusted_cert(&root).is_err() {
                return Err(BundleError::Root);
            }
            if !kept.contains(&root) {
                kept.push(root);
            }
        }
        if kept.is_empty() { Err(BundleError::Empty) } else { Ok(Self { trust_domain, roots: kept }) }
    }

    /// Reads root certificates from PEM.
    ///
    /// # Errors
    /// As for [`TrustBundle::new`].
    pub fn from_pem(trust_domain: TrustDomain, pem: &str) -> Result<Self, BundleError> {
        Self::new(trust_domain, cert::from_pem(pem).map_err(|_| BundleError::Root)?)
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        cert::to_pem(&self.roots)
    }

    /// The trust domain these roots speak for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The roots, DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// SHA-256 of each root's DER, in order.
    pub fn sha256(&self) -> Vec<[u8; 32]> {
        self.roots.iter().map(|root| cert::sha256(root)).collect()
    }

    /// Writes the bundle as PEM, atomically.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        files::write_private(path, self.to_pem().as_bytes())
    }

    /// Reads a bundle that [`TrustBundle::save`] wrote.
    ///
    /// # Errors
    /// [`BundleError`] when the file cannot be read or holds no roots.
    pub fn load(trust_domain: TrustDomain, path: &Path) -> Result<Self, BundleError> {
        let pem = fs::read_to_string(path).map_err(|error| BundleError::Read(error.kind()))?;
        Self::from_pem(trust_domain, &pem)
    }

    pub(crate) fn anchors(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        for root in &self.roots {
            store.add(root.clone()).expect("checked when the bundle was made");
        }
        store
    }
}

/// Why a trust bundle cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// No root.
    #[error("the trust bundle has no root certificate")]
    Empty,
    /// A root that cannot be read, or is not a CA certificate.
    #[error("the trust bundle holds something that is not a CA certificate")]
    Root,
    /// The file cannot be read.
    #[error("the trust bundle cannot be read: {0}")]
    Read(io::ErrorKind),
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::ca::Authority;
    use crate::{PrivateKey, SpiffeId};

    #[test]
    fn it_survives_its_file_without_repeats() {
        let now = SystemTime::now();
        let roots: Vec<_> = (0..2)
            .flat_map(|_| Authority::create(TrustDomain::default(), now).unwrap().bundle().roots().to_vec())
            .collect();
        let bundle = TrustBundle::new(TrustDomain::default(), [roots.clone(), roots.clone()].concat()).unwrap();
        assert_eq!(bundle.roots(), roots);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.pem");
        bundle.save(&path).unwrap();
        assert_eq!(TrustBundle::load(TrustDomain::default(), &path).unwrap(), bundle);
        assert_eq!(bundle.sha256(), [cert::sha256(&roots[0]), cert::sha256(&roots[1])]);
    }

    #[test]
    fn what_is_no_root_is_refused() {
        let domain = TrustDomain::default();
        assert_eq!(TrustBundle::new(domain.clone(), vec![]), Err(BundleError::Empty));
        assert_eq!(TrustBundle::from_pem(domain.clone(), "nothing"), Err(BundleError::Empty));
        assert_eq!(TrustBundle::new(domain.clone(), vec![vec![1, 2, 3].into()]), Err(BundleError::Root));
        let now = SystemTime::now();
        let authority = Authority::create(domain.clone(), now).unwrap();
        let id = SpiffeId::new(&domain, "default", "orders").unwrap();
        let csr = PrivateKey::generate().unwrap().csr().unwrap();
        let leaf = authority.sign(&csr, &id, &[], Duration::from_secs(60), now).unwrap().remove(0);
        assert_eq!(TrustBundle::new(domain, vec![leaf]), Err(BundleError::Root));
    }
}
