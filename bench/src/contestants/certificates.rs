//! Certificates for the foreign pairs: of the same kind and size as Weft's own.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Result;
use weft_identity::{PrivateKey, SpiffeId, TrustDomain, ca::Authority};

/// The identity of both proxies of a pair.
pub const ID: &str = "spiffe://weft.local/ns/default/sa/bench";

/// Files of a pair.
pub struct Files {
    /// Root.
    pub ca: PathBuf,
    /// Leaf and issuer.
    pub chain: PathBuf,
    /// Key.
    pub key: PathBuf,
    /// Chain and key in one, for HAProxy.
    pub both: PathBuf,
}

/// Makes an authority and a leaf for both proxies of a pair.
///
/// # Errors
/// When a file cannot be written.
pub fn write(place: &Path) -> Result<Files> {
    let now = SystemTime::now();
    let trust_domain: TrustDomain = "weft.local".parse()?;
    let authority = Authority::create(trust_domain.clone(), now)?;
    let id = SpiffeId::new(&trust_domain, "default", "bench")?;
    let key = PrivateKey::generate()?;
    let chain = authority.sign(&key.csr()?, &id, &["bench"], Duration::from_secs(86_400), now)?;
    let svid = weft_identity::Svid::new(chain, key)?;
    svid.save(place)?;
    authority.bundle().save(&place.join("bundle.pem"))?;
    let files = Files {
        ca: place.join("bundle.pem"),
        chain: place.join("svid.pem"),
        key: place.join("svid.key"),
        both: place.join("both.pem"),
    };
    let both = [std::fs::read_to_string(&files.chain)?, std::fs::read_to_string(&files.key)?].concat();
    std::fs::write(&files.both, both)?;
    Ok(files)
}
