//! The certificate authority: a root of ten years, an intermediate of one that renews itself, and leaves of a day.
//!
//! Signs what the caller has proved: the SAN comes from the identity given, and of a signing request only the public key
//! is used. The root's key is not needed to sign leaves; an imported authority may well lack it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::bundle::{BundleError, TrustBundle};
use crate::cert::{self, PeerError};
use crate::files;
use crate::key::{KeyError, PrivateKey};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::{Svid, SvidError};
use crate::tls::verify;

/// A certificate authority for one trust domain. Cheap to clone; never changed in place, so that it can be shared and
/// swapped.
#[derive(Debug, Clone)]
pub struct Authority {
    trust_domain: TrustDomain,
    /// The root that the issuer descends from comes first, then others that are trusted while roots change.
    roots: Vec<CertificateDer<'static>>,
    root_key: Option<PrivateKey>,
    /// The certificate that signs leaves, and what leads from it to the root, without the root.
    issuer: Vec<CertificateDer<'static>>,
    issuer_key: PrivateKey,
}

impl Authority {
    /// Makes a new root and a new intermediate below it.
    ///
    /// # Errors
    /// [`CaError`] when the system's random source fails.
    pub fn create(trust_domain: TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let root_key = PrivateKey::generate()?;
        let mut params = ca_params(&trust_domain, "root", now, ROOT_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let root = CertifiedIssuer::self_signed(params, root_key.pair())?.der().clone();
        let (issuer, issuer_key) = new_issuer(&trust_domain, &root, &root_key, now)?;
        Ok(Self { trust_domain, roots: vec![root], root_key: Some(root_key), issuer: vec![issuer], issuer_key })
    }

    /// Takes an authority made elsewhere: a PEM chain (the CA that is to sign first, its root last) and that CA's key.
    ///
    /// A self-signed root with its key is taken as well: it gets an intermediate of its own, which renews itself.
    ///
    /// # Errors
    /// [`CaError`] when the chain does not end in a self-signed root, the key is another's, or leaves signed by it would
    /// be refused by peers: wrong usages, a path length too short, name constraints, expiry.
    pub fn import(trust_domain: TrustDomain, chain_pem: &str, key_pem: &str, now: SystemTime) -> Result<Self, CaError> {
        let mut chain = cert::from_pem(chain_pem)?;
        let key = PrivateKey::from_pem(key_pem)?;
        let first = chain.first().ok_or(CaError::Chain("holds no certificate"))?;
        if cert::parse(first)?.public_key().raw != key.public_key() {
            return Err(CaError::Chain("does not begin with the certificate of the given key"));
        }
        let root = chain.pop().ok_or(CaError::Chain("holds no certificate"))?;
        if !self_signed(&root)? {
            return Err(CaError::Chain("does not end in a self-signed root"));
        }
        let authority = if chain.is_empty() {
            let (issuer, issuer_key) = new_issuer(&trust_domain, &root, &key, now)?;
            Self { trust_domain, roots: vec![root], root_key: Some(key), issuer: vec![issuer], issuer_key }
        } else {
            Self { trust_domain, roots: vec![root], root_key: None, issuer: chain, issuer_key: key }
        };
        authority.check(now)?;
        Ok(authority)
    }

    /// Reads and signs a request: [`Request::parse`], then [`Authority::sign_request`].
    ///
    /// # Errors
    /// As for those two.
    pub fn sign(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        dns: &[&str],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        self.sign_request(&Request::parse(csr)?, id, dns, ttl, now)
    }

    /// Signs a request: a chain of leaf and intermediates, without the root. The leaf is valid from five minutes ago
    /// (a tenth of `ttl` if that is less) to `now + ttl`, or to the end of the issuer. `dns` adds DNS names or IP addresses.
    ///
    /// # Errors
    /// [`CaError::OtherTrustDomain`] for an identity that is not this authority's to give, [`CaError::IssuerExpired`].
    pub fn sign_request(
        &self,
        request: &Request,
        id: &SpiffeId,
        dns: &[&str],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        if id.trust_domain() != self.trust_domain.as_str() {
            return Err(CaError::OtherTrustDomain);
        }
        let end = self.issuer_not_after();
        if end <= now {
            return Err(CaError::IssuerExpired);
        }
        let mut params = CertificateParams::new(dns.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        params.subject_alt_names.insert(0, SanType::URI(id.as_str().try_into()?));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
        params.serial_number = Some(new_serial()?);
        params.not_before = (now - BACK_DATED.min(ttl / 10)).into();
        params.not_after = now.checked_add(ttl).map_or(end, |wished| wished.min(end)).into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.issuer[0], self.issuer_key.pair())?;
        let leaf = params.signed_by(&request.key, &issuer)?;
        Ok(std::iter::once(leaf.into()).chain(self.issuer.iter().cloned()).collect())
    }

    /// Makes a key and an SVID for the control plane itself. Its chain ends in the root, so that a client that knows no
    /// more than the root's hash can check it.
    ///
    /// # Errors
    /// [`CaError`] when the system's random source fails or the issuer has expired.
    pub fn control_plane_svid(&self, dns: &[&str], ttl: Duration, now: SystemTime) -> Result<Svid, CaError> {
        let id = SpiffeId::control_plane(&self.trust_domain);
        let key = PrivateKey::generate()?;
        let mut chain = self.sign(&key.csr()?, &id, dns, ttl, now)?;
        chain.push(self.roots[0].clone());
        Ok(Svid::new(chain, key)?)
    }

    /// The authority with a new intermediate, if half of the old one's life is over and the root's key is here; `None`
    /// if there is nothing to do. Leaves of the old intermediate stay valid.
    ///
    /// # Errors
    /// [`CaError`] when the system's random source fails or the root has expired.
    pub fn renewed(&self, now: SystemTime) -> Result<Option<Self>, CaError> {
        let Some(root_key) = &self.root_key else { return Ok(None) };
        let (not_before, not_after) = cert::validity(&self.issuer[0])?;
        let life = not_after.duration_since(not_before).unwrap_or_default();
        if now < not_before + life / 2 {
            return Ok(None);
        }
        let (issuer, issuer_key) = new_issuer(&self.trust_domain, &self.roots[0], root_key, now)?;
        Ok(Some(Self { issuer: vec![issuer], issuer_key, ..self.clone() }))
    }

    /// The authority with one more root in its bundle: the overlap while roots change.
    ///
    /// # Errors
    /// [`CaError::Bundle`] when it is not a CA certificate.
    pub fn trusting(&self, root: CertificateDer<'static>) -> Result<Self, CaError> {
        let mut roots = self.roots.clone();
        roots.push(root);
        let bundle = TrustBundle::new(self.trust_domain.clone(), roots)?;
        Ok(Self { roots: bundle.roots().to_vec(), ..self.clone() })
    }

    /// Whether this authority came of the same import as another: same root, and the same issuer or one of our own making.
    pub fn same_source(&self, other: &Self) -> bool {
        let own_issuers = self.root_key.is_some() && other.root_key.is_some();
        self.roots[0] == other.roots[0] && (own_issuers || self.issuer == other.issuer)
    }

    /// The trust domain that this authority speaks for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The trust bundle.
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.trust_domain.clone(), self.roots.clone()).expect("roots are checked when they are taken")
    }

    /// SHA-256 of the active root: what join tokens carry.
    pub fn root_sha256(&self) -> [u8; 32] {
        cert::sha256(&self.roots[0])
    }

    /// When the active root expires.
    pub fn root_not_after(&self) -> SystemTime {
        cert::validity(&self.roots[0]).expect("roots are checked when they are taken").1
    }

    /// When the intermediate expires: the first of those that lead to the root.
    pub fn issuer_not_after(&self) -> SystemTime {
        let ends =
            self.issuer.iter().map(|der| cert::validity(der).expect("issuers are checked when they are taken").1);
        ends.min().unwrap_or_else(|| self.root_not_after())
    }

    /// Writes `root.pem`, `root.key`, `issuer.pem`, `issuer.key` into a directory of mode 0700, each 0600 and whole.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn save(&self, dir: &Path) -> Result<(), CaError> {
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            files::write_private(&path, text.as_bytes()).map_err(|error| CaError::file(&path, &error))
        };
        write(ROOT_CERT, &cert::to_pem(&self.roots))?;
        match &self.root_key {
            Some(key) => write(ROOT_KEY, &key.to_pem())?,
            // One that an earlier authority left is not this root's.
            None => remove(&dir.join(ROOT_KEY))?,
        }
        // Like an SVID, the key file holds both keys while the certificate changes over.
        let new = self.issuer_key.to_pem();
        let old = files::read_private(&dir.join(ISSUER_KEY)).unwrap_or_default();
        write(ISSUER_KEY, &format!("{new}{old}"))?;
        write(ISSUER_CERT, &cert::to_pem(&self.issuer))?;
        write(ISSUER_KEY, &new)
    }

    /// Reads what [`Authority::save`] wrote; `None` when the directory holds no authority.
    ///
    /// # Errors
    /// [`CaError`] when a file is damaged or missing, or the authority can no longer sign what peers accept. An intermediate
    /// that is due is renewed and saved first.
    pub fn load(trust_domain: TrustDomain, dir: &Path, now: SystemTime) -> Result<Option<Self>, CaError> {
        let read = |name: &str| {
            let path = dir.join(name);
            files::read_private(&path).map_err(|error| CaError::file(&path, &error))
        };
        if !dir.join(ISSUER_CERT).exists() {
            return Ok(None);
        }
        let roots = TrustBundle::from_pem(trust_domain.clone(), &read(ROOT_CERT)?)?.roots().to_vec();
        let root_key = match dir.join(ROOT_KEY).exists() {
            true => Some(PrivateKey::from_pem(&read(ROOT_KEY)?)?),
            false => None,
        };
        if let Some(key) = &root_key
            && cert::parse(&roots[0])?.public_key().raw != key.public_key()
        {
            return Err(CaError::Chain("does not end in the root of the key in root.key"));
        }
        let issuer = cert::from_pem(&read(ISSUER_CERT)?)?;
        let first = issuer.first().ok_or(CaError::Chain("holds no certificate"))?;
        let public = cert::parse(first)?.public_key().raw.to_vec();
        let keys = PrivateKey::all_from_pem(&read(ISSUER_KEY)?)?;
        let issuer_key = keys.into_iter().find(|key| key.public_key() == public);
        let issuer_key = issuer_key.ok_or(CaError::Chain("does not begin with the certificate of the given key"))?;
        let authority = Self { trust_domain, roots, root_key, issuer, issuer_key };
        // An intermediate that expired while the control plane was off is replaced, not mourned.
        let renewed = authority.renewed(now)?;
        if let Some(renewed) = &renewed {
            renewed.save(dir)?;
        }
        let authority = renewed.unwrap_or(authority);
        authority.check(now)?;
        Ok(Some(authority))
    }

    /// Signs a leaf for nobody and verifies it as a peer would. What webpki lets pass and other clients do not, the
    /// root's path length and the key usages of CAs, is checked beside.
    fn check(&self, now: SystemTime) -> Result<(), CaError> {
        for (below, der) in self.issuer.iter().chain(&self.roots[..1]).enumerate() {
            let ca = cert::parse(der)?;
            let constraints = ca.basic_constraints().map_err(|_| PeerError::Encoding)?;
            let longest = constraints.and_then(|constraints| constraints.value.path_len_constraint);
            if longest.is_some_and(|longest| below > longest as usize) {
                return Err(CaError::Unusable("a CA's path length leaves no room for those below it".into()));
            }
            let usage = ca.key_usage().map_err(|_| PeerError::Encoding)?;
            if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
                return Err(CaError::Unusable("a CA's key usage does not allow it to sign certificates".into()));
            }
        }
        let id = SpiffeId::new(&self.trust_domain, "weft-system", "check").expect("constant parts are valid");
        let chain = self.sign(&PrivateKey::generate()?.csr()?, &id, &[], Duration::from_secs(60), now)?;
        verify::chain(&chain, &self.bundle(), now).map_err(|fault| CaError::Unusable(fault.to_string()))
    }
}

/// A signing request whose own signature was found to be by the key in it. Nothing else of it is kept.
#[derive(Debug, Clone)]
pub struct Request {
    key: SubjectPublicKeyInfo,
}

impl Request {
    /// Reads a PKCS#10 request, DER.
    ///
    /// # Errors
    /// [`CaError::Request`] when it is damaged or larger than 16 KiB, its signature is not by the key in it, or the key is
    /// not ECDSA P-256, P-384 or Ed25519.
    pub fn parse(csr: &[u8]) -> Result<Self, CaError> {
        if csr.len() > LARGEST_REQUEST {
            return Err(CaError::Request("it is too large"));
        }
        let parsed = X509CertificationRequest::from_der(csr);
        let (rest, request) = parsed.map_err(|_| CaError::Request("it cannot be read"))?;
        if !rest.is_empty() {
            return Err(CaError::Request("something follows it"));
        }
        request.verify_signature().map_err(|_| CaError::Request("its signature is not by its own key"))?;
        let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw);
        let key = key.map_err(|_| CaError::Request("its key is of an unknown kind"))?;
        let accepted = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
        if accepted.contains(&key.algorithm()) {
            Ok(Self { key })
        } else {
            Err(CaError::Request("its key is not ECDSA P-256, P-384 or Ed25519"))
        }
    }

    /// SHA-256 of the public key (SubjectPublicKeyInfo): two requests for one key have the same.
    pub fn key_sha256(&self) -> [u8; 32] {
        cert::sha256(&self.key.subject_public_key_info())
    }
}

fn new_issuer(
    trust_domain: &TrustDomain,
    root: &CertificateDer<'static>,
    root_key: &PrivateKey,
    now: SystemTime,
) -> Result<(CertificateDer<'static>, PrivateKey), CaError> {
    let root_end = cert::validity(root)?.1;
    if root_end <= now {
        return Err(CaError::RootExpired);
    }
    let key = PrivateKey::generate()?;
    let mut params = ca_params(
        trust_domain,
        "intermediate",
        now,
        ISSUER_LIFE.min(root_end.duration_since(now).unwrap_or_default()),
    )?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    let root = Issuer::from_ca_cert_der(root, root_key.pair())?;
    Ok((params.signed_by(key.pair(), &root)?.into(), key))
}

/// What root and intermediate share. The name carries a random part: two CAs of one name confuse some clients.
fn ca_params(
    trust_domain: &TrustDomain,
    kind: &str,
    now: SystemTime,
    life: Duration,
) -> Result<CertificateParams, CaError> {
    let serial = new_serial()?;
    let mark: String = serial.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
    params.distinguished_name.push(DnType::CommonName, format!("Weft {kind} CA {mark}"));
    params.serial_number = Some(serial);
    params.not_before = (now - BACK_DATED).into();
    params.not_after = (now + life).into();
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// 128 random bits, the first two fixed so that the number is positive and its length is always the same.
fn new_serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Generate("the system's random source failed".into()))?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn remove(path: &Path) -> Result<(), CaError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(CaError::file(path, &error)),
    }
}

fn self_signed(der: &CertificateDer<'_>) -> Result<bool, CaError> {
    let parsed = cert::parse(der)?;
    Ok(parsed.subject() == parsed.issuer() && parsed.verify_signature(None).is_ok())
}

/// Why the authority cannot be made, loaded or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// The signing request is refused.
    #[error("the signing request is refused: {0}")]
    Request(&'static str),
    /// The identity belongs to another trust domain.
    #[error("the identity belongs to another trust domain than this authority")]
    OtherTrustDomain,
    /// The issuing certificate has expired.
    #[error("the issuing CA certificate has expired: import a new one")]
    IssuerExpired,
    /// The root certificate has expired.
    #[error("the root CA certificate has expired: create or import a new one")]
    RootExpired,
    /// The imported chain is not of the right form.
    #[error("the CA chain {0}; it must begin with the CA that signs and end in its root")]
    Chain(&'static str),
    /// Peers would refuse what this authority signs.
    #[error("peers would refuse certificates of this CA: {0}")]
    Unusable(String),
    /// A certificate cannot be read.
    #[error(transparent)]
    Certificate(#[from] PeerError),
    /// A key cannot be made, read or used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A root cannot be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The new certificate and its key do not fit.
    #[error(transparent)]
    Svid(#[from] SvidError),
    /// Writing or signing a certificate failed.
    #[error("could not make the certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// A file cannot be read or written.
    #[error("{path}: {kind}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        kind: std::io::ErrorKind,
    },
}

impl CaError {
    fn file(path: &Path, error: &std::io::Error) -> Self {
        Self::File { path: path.display().to_string(), kind: error.kind() }
    }
}

/// How far NotBefore lies in the past, for clocks that run slow. Source: DEFAULTS 1.2.
const BACK_DATED: Duration = Duration::from_secs(5 * 60);
const ROOT_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
const ISSUER_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
const LARGEST_REQUEST: usize = 16 * 1024;
const ORGANIZATION: &str = "Weft";
const ROOT_CERT: &str = "root.pem";
const ROOT_KEY: &str = "root.key";
const ISSUER_CERT: &str = "issuer.pem";
const ISSUER_KEY: &str = "issuer.key";

#[cfg(test)]
mod tests;
