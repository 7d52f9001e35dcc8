//! An SVID: a certificate chain with its private key, the proof of one SPIFFE ID.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use crate::cert::{self, PeerError};
use crate::files;
use crate::key::{KeyError, PrivateKey};
use crate::spiffe::SpiffeId;

/// A certificate chain and its key. `Debug` does not show the key.
#[derive(Debug, Clone)]
pub struct Svid {
    /// The chain, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The identity it proves.
    pub id: SpiffeId,
    /// Not valid before.
    pub not_before: SystemTime,
    /// Not valid after.
    pub not_after: SystemTime,
    pub(crate) key: PrivateKey,
}

impl Svid {
    /// Takes a chain (leaf first) and the leaf's key, and checks that they belong together. The chain's signatures are
    /// the peers' to check.
    ///
    /// # Errors
    /// [`SvidError`] when the leaf cannot be read, proves no SPIFFE ID, is a CA, or has another public key.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, SvidError> {
        let leaf = chain.first().ok_or(SvidError::Leaf(PeerError::Missing))?;
        let parsed = cert::parse(leaf)?;
        if cert::is_ca(&parsed) {
            return Err(SvidError::Ca);
        }
        if parsed.public_key().raw != key.public_key() {
            return Err(SvidError::OtherKey);
        }
        let id = cert::spiffe_id_of(&parsed)?;
        let not_before = cert::system_time(parsed.validity().not_before);
        let not_after = cert::system_time(parsed.validity().not_after);
        Ok(Self { chain, id, not_before, not_after, key })
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Whether the leaf is within its life.
    pub fn valid_at(&self, now: SystemTime) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// The leaf's serial number in hexadecimal.
    pub fn serial(&self) -> String {
        cert::serial(&self.chain[0]).expect("the leaf was read when the SVID was made")
    }

    /// Writes `svid.key` and `svid.pem` into a directory, both 0600.
    ///
    /// A crash at any point leaves a pair that loads: the key file holds the old key and the new one until the
    /// certificate has changed over.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let (key_path, chain_path) = (dir.join(KEY_FILE), dir.join(CHAIN_FILE));
        let new = self.key.to_pem();
        if let Ok(old) = Self::load(dir) {
            files::write_private(&key_path, format!("{new}{}", old.key.to_pem()).as_bytes())?;
        } else {
            files::write_private(&key_path, new.as_bytes())?;
        }
        files::write_private(&chain_path, cert::to_pem(&self.chain).as_bytes())?;
        files::write_private(&key_path, new.as_bytes())
    }

    /// Reads what [`Svid::save`] wrote.
    ///
    /// # Errors
    /// [`SvidError`] when a file is missing or damaged, or no key belongs to the certificate.
    pub fn load(dir: &Path) -> Result<Self, SvidError> {
        let chain = cert::from_pem(&read(&dir.join(CHAIN_FILE))?)?;
        let mut last = SvidError::Key(KeyError::Parse("no private key in the PEM"));
        for key in PrivateKey::all_from_pem(&read(&dir.join(KEY_FILE))?).map_err(SvidError::Key)? {
            match Self::new(chain.clone(), key) {
                Ok(svid) => return Ok(svid),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn read(path: &Path) -> Result<String, SvidError> {
    files::read_private(path).map_err(|error| SvidError::Read { path: path.display().to_string(), kind: error.kind() })
}

/// Why a chain and a key are no SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// The leaf cannot be read or proves no SPIFFE ID.
    #[error(transparent)]
    Leaf(#[from] PeerError),
    /// The leaf is a CA certificate.
    #[error("the certificate is a CA, not a workload's")]
    Ca,
    /// The key is not the one in the certificate.
    #[error("the private key does not belong to the certificate")]
    OtherKey,
    /// The key cannot be read.
    #[error(transparent)]
    Key(KeyError),
    /// A file cannot be read.
    #[error("cannot read {path}: {kind}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        kind: io::ErrorKind,
    },
}

const CHAIN_FILE: &str = "svid.pem";
const KEY_FILE: &str = "svid.key";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;
    use crate::ca::Authority;
    use crate::spiffe::TrustDomain;

    fn issue(authority: &Authority, account: &str) -> Svid {
        let key = PrivateKey::generate().unwrap();
        let id = SpiffeId::new(authority.trust_domain(), "default", account).unwrap();
        let chain =
            authority.sign(&key.csr().unwrap(), &id, &[], Duration::from_secs(3600), SystemTime::now()).unwrap();
        Svid::new(chain, key).unwrap()
    }

    #[test]
    fn it_survives_its_files_and_hides_its_key() {
        let authority = Authority::create(TrustDomain::default(), SystemTime::now()).unwrap();
        let svid = issue(&authority, "orders");
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("orders");
        svid.save(&dir).unwrap();
        for name in [CHAIN_FILE, KEY_FILE] {
            assert_eq!(std::fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let again = Svid::load(&dir).unwrap();
        assert_eq!((&again.chain, &again.id, again.not_after), (&svid.chain, &svid.id, svid.not_after));
        assert!(again.valid_at(SystemTime::now()));
        assert!(!again.valid_at(svid.not_after + Duration::from_secs(1)));
        assert!(!format!("{again:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_crash_while_saving_leaves_a_pair_that_loads() {
        let authority = Authority::create(TrustDomain::default(), SystemTime::now()).unwrap();
        let (old, new) = (issue(&authority, "orders"), issue(&authority, "orders"));
        let root = tempfile::tempdir().unwrap();
        old.save(root.path()).unwrap();
        // The three writes of `save`, one by one.
        let both = format!("{}{}", new.key.to_pem(), old.key.to_pem());
        std::fs::write(root.path().join(KEY_FILE), both).unwrap();
        assert_eq!(Svid::load(root.path()).unwrap().chain, old.chain);
        std::fs::write(root.path().join(CHAIN_FILE), cert::to_pem(&new.chain)).unwrap();
        assert_eq!(Svid::load(root.path()).unwrap().chain, new.chain);
        new.save(root.path()).unwrap();
        assert_eq!(Svid::load(root.path()).unwrap().chain, new.chain);
        let keys = std::fs::read_to_string(root.path().join(KEY_FILE)).unwrap();
        assert_eq!(keys.matches("BEGIN").count(), 1, "the old key is gone");
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let authority = Authority::create(TrustDomain::default(), SystemTime::now()).unwrap();
        let svid = issue(&authority, "orders");
        let other = PrivateKey::generate().unwrap();
        assert_eq!(Svid::new(svid.chain.clone(), other).unwrap_err(), SvidError::OtherKey);
        assert_eq!(Svid::new(vec![], svid.key.clone()).unwrap_err(), SvidError::Leaf(PeerError::Missing));
        let root = authority.bundle().roots().to_vec();
        assert_eq!(Svid::new(root, svid.key.clone()).unwrap_err(), SvidError::Ca);
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Svid::load(dir.path()), Err(SvidError::Read { .. })));
    }
}
