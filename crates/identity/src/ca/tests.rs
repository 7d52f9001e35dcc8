//! What the authority signs, refuses, keeps on disk and renews.

use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use rcgen::{
    CertificateParams, CertifiedIssuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P521_SHA512, PKCS_ED25519,
};
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::*;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn authority() -> Authority {
    Authority::create(TrustDomain::default(), now()).unwrap()
}

fn orders() -> SpiffeId {
    SpiffeId::parse("spiffe://weft.local/ns/default/sa/orders").unwrap()
}

fn csr() -> Vec<u8> {
    PrivateKey::generate().unwrap().csr().unwrap()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn ski(cert: &x509_parser::certificate::X509Certificate<'_>) -> Vec<u8> {
    let found = cert.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    found.unwrap()
}

fn aki(cert: &x509_parser::certificate::X509Certificate<'_>) -> Vec<u8> {
    let found = cert.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    });
    found.unwrap()
}

#[test]
fn a_leaf_is_all_that_peers_expect_and_no_more() {
    let authority = authority();
    let day = Duration::from_secs(86_400);
    let key = PrivateKey::generate().unwrap();
    let chain =
        authority.sign(&key.csr().unwrap(), &orders(), &["weft-control-plane", "10.0.0.1"], day, now()).unwrap();
    assert_eq!(chain.len(), 2);
    let (leaf, issuer) = (cert::parse(&chain[0]).unwrap(), cert::parse(&chain[1]).unwrap());
    let root = authority.bundle().roots()[0].clone();
    let root = cert::parse(&root).unwrap();

    assert_eq!(leaf.public_key().raw, key.public_key());
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    let address = [10, 0, 0, 1];
    let expected = [
        GeneralName::URI(orders().as_str()).to_string(),
        GeneralName::DNSName("weft-control-plane").to_string(),
        GeneralName::IPAddress(&address).to_string(),
    ];
    assert_eq!(names.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    assert_eq!(cert::validity(&chain[0]).unwrap(), (now() - Duration::from_secs(300), now() + day));
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign() && !usage.value.key_encipherment());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any && extended.other.is_empty());
    assert_eq!((aki(&leaf), aki(&issuer)), (ski(&issuer), ski(&root)));
    assert!(!ski(&leaf).is_empty());

    for (ca, length) in [(&issuer, 0), (&root, 1)] {
        let constraints = ca.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(length));
        let usage = ca.key_usage().unwrap().unwrap().value;
        assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    }
    assert_ne!(issuer.subject(), root.subject());
    assert_eq!(seconds(authority.root_not_after()) - seconds(now()), 3650 * 86_400);
    assert_eq!(seconds(authority.issuer_not_after()) - seconds(now()), 365 * 86_400);
}

#[test]
fn serials_are_positive_long_and_never_the_same() {
    let authority = authority();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let chain = authority.sign(&csr(), &orders(), &[], Duration::from_secs(60), now()).unwrap();
        let serial = cert::serial(&chain[0]).unwrap();
        assert_eq!(serial.len(), 32, "{serial}");
        assert!(u8::from_str_radix(&serial[..2], 16).unwrap() < 0x80, "{serial}");
        assert!(seen.insert(serial));
    }
}

#[test]
fn nothing_of_a_request_counts_but_its_key() {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut wish = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    wish.subject_alt_names.push(SanType::URI("spiffe://weft.local/ns/default/sa/admin".try_into().unwrap()));
    wish.distinguished_name.push(DnType::CommonName, "admin");
    wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wish.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let csr = wish.serialize_request(&pair).unwrap();
    let chain = authority().sign(csr.der(), &orders(), &[], Duration::from_secs(3600), now()).unwrap();
    assert_eq!(cert::spiffe_id(&chain[0]), Ok(orders()));
    let leaf = cert::parse(&chain[0]).unwrap();
    assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
    assert!(!cert::is_ca(&leaf) && !leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert!(!leaf.subject().to_string().contains("admin"));
}

#[test]
fn bad_requests_are_refused() {
    let authority = authority();
    let sign = |csr: &[u8]| authority.sign(csr, &orders(), &[], Duration::from_secs(60), now()).map(|_| ());
    let good = csr();
    assert_eq!(sign(&good), Ok(()));
    let params = CertificateParams::default();
    let with = |algorithm| params.serialize_request(&KeyPair::generate_for(algorithm).unwrap()).unwrap().der().to_vec();
    assert_eq!(sign(&with(&PKCS_ED25519)), Ok(()));
    assert!(sign(&with(&PKCS_ECDSA_P521_SHA512)).is_err(), "too slow to be given to every peer");

    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let longer = [good.as_slice(), b"x"].concat();
    for bad in [&b""[..], b"csr", &good[..good.len() - 1], &forged, &longer, &vec![0x30; 20_000]] {
        assert!(matches!(sign(bad), Err(CaError::Request(_))), "{:?}", sign(bad));
    }
    let swapped = {
        // The key of another: the signature no longer fits.
        let other = PrivateKey::generate().unwrap().public_key();
        let at = good.windows(other.len()).position(|window| window[..27] == other[..27]).unwrap();
        let mut bytes = good.clone();
        bytes[at..at + other.len()].copy_from_slice(&other);
        bytes
    };
    assert_eq!(sign(&swapped), Err(CaError::Request("its signature is not by its own key")));
}

#[test]
fn other_trust_domains_are_not_served() {
    let id = SpiffeId::parse("spiffe://other.local/ns/default/sa/orders").unwrap();
    let answer = authority().sign(&csr(), &id, &[], Duration::from_secs(60), now());
    assert_eq!(answer, Err(CaError::OtherTrustDomain));
}

#[test]
fn short_lives_are_back_dated_less_and_none_outlives_the_issuer() {
    let authority = authority();
    let chain = authority.sign(&csr(), &orders(), &[], Duration::from_secs(30), now()).unwrap();
    let (from, to) = cert::validity(&chain[0]).unwrap();
    assert_eq!((seconds(now()) - seconds(from), seconds(to) - seconds(now())), (3, 30));
    let late = authority.issuer_not_after() - Duration::from_secs(100);
    let chain = authority.sign(&csr(), &orders(), &[], Duration::MAX, late).unwrap();
    assert_eq!(cert::validity(&chain[0]).unwrap().1, authority.issuer_not_after());
    let after = authority.issuer_not_after();
    assert_eq!(authority.sign(&csr(), &orders(), &[], Duration::from_secs(60), after), Err(CaError::IssuerExpired));
}

#[test]
fn files_are_private_and_an_authority_survives_them() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("ca");
    assert!(Authority::load(TrustDomain::default(), &dir, now()).unwrap().is_none());
    let authority = authority();
    authority.save(&dir).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for name in ["root.pem", "root.key", "issuer.pem", "issuer.key"] {
        assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
    }
    let again = Authority::load(TrustDomain::default(), &dir, now()).unwrap().unwrap();
    assert_eq!(again.bundle(), authority.bundle());
    assert!(again.same_source(&authority));
    let chain = again.sign(&csr(), &orders(), &[], Duration::from_secs(60), now()).unwrap();
    assert_eq!(verify::chain(&chain, &authority.bundle(), now()), Ok(()));
    assert!(!format!("{again:?}").contains("PRIVATE"));

    std::fs::remove_file(dir.join("root.key")).unwrap();
    let rootless = Authority::load(TrustDomain::default(), &dir, now()).unwrap().unwrap();
    assert!(
        rootless.sign(&csr(), &orders(), &[], Duration::from_secs(60), now()).is_ok(),
        "the root's key may be away"
    );
    std::fs::write(dir.join("issuer.key"), PrivateKey::generate().unwrap().to_pem()).unwrap();
    assert!(matches!(Authority::load(TrustDomain::default(), &dir, now()), Err(CaError::Chain(_))));
    let other = TrustDomain::parse("other.local").unwrap();
    authority.save(&dir).unwrap();
    assert!(Authority::load(other, &dir, now()).is_ok(), "the files name no trust domain that is checked");
}

#[test]
fn a_crash_while_saving_leaves_a_pair_that_loads() {
    let root = tempfile::tempdir().unwrap();
    let authority = authority();
    authority.save(root.path()).unwrap();
    let late = now() + Duration::from_secs(200 * 86_400);
    let renewed = authority.renewed(late).unwrap().unwrap();
    let both = format!("{}{}", renewed.issuer_key.to_pem(), authority.issuer_key.to_pem());
    std::fs::write(root.path().join("issuer.key"), both).unwrap();
    assert!(Authority::load(TrustDomain::default(), root.path(), now()).unwrap().unwrap().same_source(&authority));
    std::fs::write(root.path().join("issuer.pem"), cert::to_pem(&renewed.issuer)).unwrap();
    let loaded = Authority::load(TrustDomain::default(), root.path(), late).unwrap().unwrap();
    assert_eq!(loaded.issuer, renewed.issuer);
}

#[test]
fn the_intermediate_renews_itself_and_old_leaves_stay_good() {
    let authority = authority();
    let ttl = Duration::from_secs(86_400);
    let half = now() - BACK_DATED + (ISSUER_LIFE + BACK_DATED) / 2;
    assert!(authority.renewed(half - Duration::from_secs(1)).unwrap().is_none());
    let leaf = authority.sign(&csr(), &orders(), &[], ttl, half).unwrap();
    let renewed = authority.renewed(half).unwrap().unwrap();
    assert_eq!(renewed.bundle(), authority.bundle());
    assert_ne!(renewed.issuer, authority.issuer);
    assert_eq!(verify::chain(&leaf, &renewed.bundle(), half + ttl / 2), Ok(()));
    let fresh = renewed.sign(&csr(), &orders(), &[], ttl, half).unwrap();
    assert_eq!(verify::chain(&fresh, &authority.bundle(), half), Ok(()));

    let root = tempfile::tempdir().unwrap();
    authority.save(root.path()).unwrap();
    let later = authority.issuer_not_after() + Duration::from_secs(1);
    let woken = Authority::load(TrustDomain::default(), root.path(), later).unwrap().unwrap();
    assert!(woken.issuer_not_after() > later, "an intermediate that expired while nothing ran is replaced");
    assert_eq!(woken.bundle(), authority.bundle());
}

#[test]
fn the_control_plane_shows_its_root() {
    let authority = authority();
    let svid = authority.control_plane_svid(&["weft-control-plane"], Duration::from_secs(3600), now()).unwrap();
    assert_eq!(svid.id, SpiffeId::control_plane(authority.trust_domain()));
    assert_eq!(cert::sha256(svid.chain.last().unwrap()), authority.root_sha256());
}

/// A root made elsewhere, and an intermediate below it.
struct Foreign {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

impl Foreign {
    fn new(change: impl Fn(&mut CertificateParams, bool)) -> Self {
        let params = |name: &str, root: bool| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.not_before = (now() - Duration::from_secs(3600)).into();
            params.not_after = (now() + Duration::from_secs(3600)).into();
            change(&mut params, root);
            params
        };
        let root = CertifiedIssuer::self_signed(params("root", true), KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let intermediate = CertifiedIssuer::signed_by(params("intermediate", false), key, &root).unwrap();
        Self { root, intermediate }
    }

    fn import(&self) -> Result<Authority, CaError> {
        let chain = format!("{}{}", self.intermediate.pem(), self.root.pem());
        Authority::import(TrustDomain::default(), &chain, &self.intermediate.key().serialize_pem(), now())
    }

    fn import_root(&self) -> Result<Authority, CaError> {
        Authority::import(TrustDomain::default(), &self.root.pem(), &self.root.key().serialize_pem(), now())
    }
}

#[test]
fn an_imported_intermediate_signs_without_its_root() {
    let foreign = Foreign::new(|_, _| {});
    let imported = foreign.import().unwrap();
    let chain = imported.sign(&csr(), &orders(), &[], Duration::from_secs(600), now()).unwrap();
    assert_eq!(chain[1], *foreign.intermediate.der());
    assert_eq!(imported.bundle().roots(), [foreign.root.der().clone()]);
    assert_eq!(verify::chain(&chain, &imported.bundle(), now()), Ok(()));
    let late = now() + Duration::from_secs(3000);
    assert!(imported.renewed(late).unwrap().is_none(), "only who has the root's key can renew it");

    let dir = tempfile::tempdir().unwrap();
    authority().save(dir.path()).unwrap();
    imported.save(dir.path()).unwrap();
    assert!(!dir.path().join("root.key").exists(), "the former root's key does not stay behind");
    let again = Authority::load(TrustDomain::default(), dir.path(), now()).unwrap().unwrap();
    assert!(again.same_source(&imported));
}

#[test]
fn an_imported_root_gets_an_intermediate_of_its_own() {
    let foreign = Foreign::new(|_, _| {});
    let imported = foreign.import_root().unwrap();
    assert!(imported.same_source(&foreign.import_root().unwrap()));
    assert!(!imported.same_source(&foreign.import().unwrap()));
    let chain = imported.sign(&csr(), &orders(), &[], Duration::from_secs(600), now()).unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(verify::chain(&chain, &imported.bundle(), now()), Ok(()));
    assert_eq!(imported.issuer_not_after(), imported.root_not_after(), "it does not outlive the root");
}

#[test]
fn useless_authorities_are_not_imported() {
    let good = Foreign::new(|_, _| {});
    let key = good.intermediate.key().serialize_pem();
    let import = |chain: &str, key: &str| Authority::import(TrustDomain::default(), chain, key, now());
    let (root, intermediate) = (good.root.pem(), good.intermediate.pem());
    let stranger = KeyPair::generate().unwrap().serialize_pem();
    for (chain, key) in [
        (String::new(), &key),
        (intermediate.clone(), &key),
        (format!("{root}{intermediate}"), &key),
        (format!("{intermediate}{root}"), &stranger),
    ] {
        assert!(matches!(import(&chain, key), Err(CaError::Chain(_))), "{:?}", import(&chain, key));
    }
    let unrelated = Foreign::new(|_, _| {}).root.pem();
    assert!(matches!(import(&format!("{intermediate}{unrelated}"), &key), Err(CaError::Unusable(_))));

    let unusable: [(&str, Foreign); 5] = [
        (
            "expired",
            Foreign::new(|params, root| {
                if !root {
                    params.not_after = (now() - Duration::from_secs(60)).into();
                }
            }),
        ),
        (
            "path too short",
            Foreign::new(|params, root| {
                if root {
                    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                }
            }),
        ),
        (
            "may not sign",
            Foreign::new(|params, root| {
                if !root {
                    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
                }
            }),
        ),
        (
            "not a CA",
            Foreign::new(|params, root| {
                if !root {
                    params.is_ca = IsCa::ExplicitNoCa;
                }
            }),
        ),
        (
            "only for something else",
            Foreign::new(|params, root| {
                if !root {
                    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
                }
            }),
        ),
    ];
    for (what, foreign) in unusable {
        let error = foreign.import().unwrap_err();
        assert!(matches!(error, CaError::Unusable(_) | CaError::IssuerExpired), "{what}: {error}");
    }
    let flat = Foreign::new(|params, _| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    assert!(matches!(flat.import_root(), Err(CaError::Unusable(_))), "no room for an intermediate");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn whatever_is_signed_verifies_for_all_of_its_life(ttl in 10u64..10_000_000, at in 0u64..20_000_000, share in 0.0..1.0f64) {
        let authority = authority();
        let start = now() + Duration::from_secs(at);
        let chain = authority.sign(&csr(), &orders(), &[], Duration::from_secs(ttl), start).unwrap();
        let (from, to) = cert::validity(&chain[0]).unwrap();
        prop_assert!(from < start && start < to && to <= authority.issuer_not_after());
        let during = from + (to.duration_since(from).unwrap()).mul_f64(share * 0.999);
        prop_assert_eq!(verify::chain(&chain, &authority.bundle(), during.max(now())), Ok(()));
        prop_assert!(verify::chain(&chain, &authority.bundle(), to + Duration::from_secs(1)).is_err());
    }
}
