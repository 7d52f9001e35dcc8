//! Certificates from disk, bundles, and what they amount to.

use weft_identity::{TrustDomain, ca::Authority};

use super::*;
use crate::{
    demand::Demand,
    settings::{Cli, Settings},
    shared::Shared,
};

const DAY: Duration = Duration::from_secs(86_400);

fn certs(directory: &Path) -> Arc<Certs> {
    let directory = directory.to_str().unwrap();
    let args = ["weft-sidecar", "--service", "orders", "--control-plane", "127.0.0.1:1", "--data-dir", directory];
    let flags = <Cli as clap::Parser>::try_parse_from(args).unwrap().flags;
    let settings = Settings::new(flags, None, 1).unwrap();
    let (demand, _wanted) = Demand::new(settings.on_demand_wait);
    Certs::new(Shared::new(settings, demand), &Registry::new()).unwrap()
}

fn authority(trust_domain: &str) -> Authority {
    Authority::create(TrustDomain::parse(trust_domain).unwrap(), SystemTime::now()).unwrap()
}

/// An SVID of `orders` on disk, with the authority's bundle.
fn on_disk(directory: &Path, authority: &Authority, ttl: Duration, now: SystemTime) -> Svid {
    let id = SpiffeId::new(authority.trust_domain(), "default", "orders").unwrap();
    let key = PrivateKey::generate().unwrap();
    let chain = authority.sign(&key.csr().unwrap(), &id, &[], ttl, now).unwrap();
    let svid = Svid::new(chain, key).unwrap();
    svid.save(directory).unwrap();
    authority.bundle().save(&directory.join(BUNDLE_FILE)).unwrap();
    svid
}

fn roots(authority: &Authority) -> Vec<Vec<u8>> {
    authority.bundle().roots().iter().map(|root| root.to_vec()).collect()
}

#[test]
fn a_valid_certificate_is_taken_up() {
    let directory = tempfile::tempdir().unwrap();
    let svid = on_disk(directory.path(), &authority("weft.local"), DAY, SystemTime::now());
    let certs = certs(directory.path());
    assert!(certs.restore(SystemTime::now()));
    let material = certs.shared.tls.load_full().unwrap();
    assert_eq!(material.id, svid.id);
    assert_eq!(material.client(Alpn::H2).alpn_protocols, [b"h2".to_vec()]);
    assert!(material.client(Alpn::None).alpn_protocols.is_empty());
    assert_eq!(material.server.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert!(certs.channel_of_a_runtime().is_ok());
}

impl Certs {
    /// A channel is made within a runtime.
    fn channel_of_a_runtime(&self) -> Result<(), CertsError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { self.channel().map(drop) })
    }
}

#[test]
fn what_cannot_be_used_is_left() {
    let now = SystemTime::now();
    let damaged = |directory: &Path| std::fs::write(directory.join("svid.pem"), "damaged").unwrap();
    let no_bundle = |directory: &Path| std::fs::remove_file(directory.join(BUNDLE_FILE)).unwrap();
    type Spoil<'a> = &'a dyn Fn(&Path);
    let table: [(&str, &str, SystemTime, Spoil<'_>); 4] = [
        ("expired", "weft.local", now + 2 * DAY, &|_: &Path| {}),
        ("of another mesh", "other.mesh", now, &|_: &Path| {}),
        ("damaged", "weft.local", now, &damaged),
        ("without a bundle", "weft.local", now, &no_bundle),
    ];
    for (what, trust_domain, at, spoil) in table {
        let directory = tempfile::tempdir().unwrap();
        on_disk(directory.path(), &authority(trust_domain), DAY, now);
        spoil(directory.path());
        let certs = certs(directory.path());
        assert!(!certs.restore(at), "{what}");
        assert!(certs.shared.tls.load().is_none(), "{what}");
        assert!(matches!(certs.channel(), Err(CertsError::NoProof)), "{what}");
        assert!(certs.plan().due(SystemTime::now()), "{what}: one is to be obtained at once");
    }
}

#[test]
fn a_certificate_is_renewed_at_half_of_its_life() {
    let directory = tempfile::tempdir().unwrap();
    on_disk(directory.path(), &authority("weft.local"), DAY, SystemTime::now());
    let certs = certs(directory.path());
    certs.restore(SystemTime::now());
    let now = SystemTime::now();
    for _ in 0..100 {
        let renewal = certs.plan();
        assert!(!renewal.due(now + DAY.mul_f64(0.39)), "not before 40 %");
        assert!(renewal.due(now + DAY.mul_f64(0.61)), "by 60 %");
    }
    assert_eq!(certs.interval(), LEAST_INTERVAL);
}

#[test]
fn a_new_bundle_is_in_force_and_kept_and_the_same_one_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (authority("weft.local"), authority("weft.local"));
    on_disk(directory.path(), &old, DAY, SystemTime::now());
    let certs = certs(directory.path());
    certs.restore(SystemTime::now());
    let before = certs.shared.tls.load_full().unwrap();
    certs.set_roots(&roots(&old));
    assert!(Arc::ptr_eq(&before, &certs.shared.tls.load_full().unwrap()));
    let both = [roots(&old), roots(&new)].concat();
    certs.set_roots(&both);
    assert_eq!(certs.shared.tls.load_full().unwrap().epoch, before.epoch + 1);
    let kept = TrustBundle::load(TrustDomain::parse("weft.local").unwrap(), &directory.path().join(BUNDLE_FILE));
    assert_eq!(kept.unwrap().roots().len(), 2);
    certs.set_roots(&[b"no certificate".to_vec()]);
    assert_eq!(certs.shown().bundle.unwrap().roots().len(), 2, "the last good one stays");
}

#[tokio::test]
async fn without_proof_it_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let certs = certs(directory.path());
    let error = certs.obtain(&mut None).await.unwrap_err().to_string();
    assert!(error.contains("weft token create") && error.contains(crate::settings::JOIN_TOKEN), "{error}");
}
