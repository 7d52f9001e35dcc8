//! SPIFFE IDs in the one form that Weft issues and accepts: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
//!
//! Comparison is by bytes. Nothing is normalised: what is spelled otherwise is another identity, or none.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A SPIFFE ID, `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`. Cheap to clone.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain_end: u16,
    namespace_end: u16,
}

impl SpiffeId {
    /// Reads an ID exactly as it is spelled.
    ///
    /// # Errors
    /// [`SpiffeIdError`], naming the part that is wrong. Percent-encoding, upper case in the trust domain, a port, user
    /// information, a query, empty or dot segments, more or fewer segments: all are errors.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_ID {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let mut parts = rest.split('/');
        let trust_domain = parts.next().unwrap_or_default();
        check_trust_domain(trust_domain)?;
        let (Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(SpiffeIdError::Path);
        };
        check_segment(namespace).map_err(|()| SpiffeIdError::Namespace)?;
        check_segment(account).map_err(|()| SpiffeIdError::Account)?;
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        let namespace_end = trust_domain_end + "/ns/".len() + namespace.len();
        Ok(Self { text: text.into(), trust_domain_end: trust_domain_end as u16, namespace_end: namespace_end as u16 })
    }

    /// Builds an ID of its parts.
    ///
    /// # Errors
    /// As for [`SpiffeId::parse`].
    pub fn new(trust_domain: &TrustDomain, namespace: &str, account: &str) -> Result<Self, SpiffeIdError> {
        Self::parse(&format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{account}"))
    }

    /// The identity of the control plane of a trust domain, `spiffe://TRUST-DOMAIN/ns/weft-system/sa/control-plane`.
    pub fn control_plane(trust_domain: &TrustDomain) -> Self {
        Self::new(trust_domain, CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_ACCOUNT).expect("constant parts are valid")
    }

    /// Whether this is the identity of its trust domain's control plane.
    pub fn is_control_plane(&self) -> bool {
        self.namespace() == CONTROL_PLANE_NAMESPACE && self.account() == CONTROL_PLANE_ACCOUNT
    }

    /// The trust domain, without the scheme.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.trust_domain_end)]
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.text[usize::from(self.trust_domain_end) + "/ns/".len()..usize::from(self.namespace_end)]
    }

    /// The service account.
    pub fn account(&self) -> &str {
        &self.text[usize::from(self.namespace_end) + "/sa/".len()..]
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl Hash for SpiffeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl Borrow<str> for SpiffeId {
    fn borrow(&self) -> &str {
        &self.text
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.text)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// A trust domain: lower-case letters, digits, `.`, `-` and `_`; at most 255 bytes. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Reads a trust domain, without `spiffe://`.
    ///
    /// # Errors
    /// [`SpiffeIdError::TrustDomain`] when it is empty, too long or holds another character.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        check_trust_domain(text)?;
        Ok(Self(text.into()))
    }

    /// The trust domain's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    /// `weft.local`.
    fn default() -> Self {
        Self(DEFAULT_TRUST_DOMAIN.into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl AsRef<str> for TrustDomain {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Why a text is not a SPIFFE ID of Weft's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Longer than 2048 bytes.
    #[error("a SPIFFE ID has at most {MAX_ID} bytes")]
    TooLong,
    /// Does not begin with `spiffe://`.
    #[error("a SPIFFE ID begins with {SCHEME}")]
    Scheme,
    /// The trust domain is empty, too long or holds a character that is not allowed.
    #[error("a trust domain has 1 to {MAX_TRUST_DOMAIN} characters of a-z 0-9 . - _ (no upper case, no port)")]
    TrustDomain,
    /// Not `/ns/NAMESPACE/sa/ACCOUNT`.
    #[error("the path is not /ns/NAMESPACE/sa/ACCOUNT")]
    Path,
    /// The namespace is empty, a dot segment, or holds a character that is not allowed.
    #[error(
        "the namespace needs 1 to {MAX_SEGMENT} characters of a-z A-Z 0-9 . - _ (no percent-encoding, not . or ..)"
    )]
    Namespace,
    /// The account is empty, a dot segment, or holds a character that is not allowed.
    #[error("the account needs 1 to {MAX_SEGMENT} characters of a-z A-Z 0-9 . - _ (no percent-encoding, not . or ..)")]
    Account,
}

fn check_trust_domain(text: &str) -> Result<(), SpiffeIdError> {
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    let fits = (1..=MAX_TRUST_DOMAIN).contains(&text.len());
    if fits && text.bytes().all(allowed) { Ok(()) } else { Err(SpiffeIdError::TrustDomain) }
}

fn check_segment(text: &str) -> Result<(), ()> {
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    let fits = (1..=MAX_SEGMENT).contains(&text.len()) && text != "." && text != "..";
    if fits && text.bytes().all(allowed) { Ok(()) } else { Err(()) }
}

/// The trust domain of a mesh that names none.
pub const DEFAULT_TRUST_DOMAIN: &str = "weft.local";
/// Namespace of the control plane's identity.
pub const CONTROL_PLANE_NAMESPACE: &str = "weft-system";
/// Account of the control plane's identity.
pub const CONTROL_PLANE_ACCOUNT: &str = "control-plane";

const SCHEME: &str = "spiffe://";
/// Bounds of the SPIFFE ID standard (section 2.3); a segment's is Kubernetes' bound for names.
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;
const MAX_SEGMENT: usize = 253;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_parts() {
        let id = SpiffeId::parse("spiffe://weft.local/ns/default/sa/orders").unwrap();
        assert_eq!((id.trust_domain(), id.namespace(), id.account()), ("weft.local", "default", "orders"));
        assert_eq!(id.to_string(), "spiffe://weft.local/ns/default/sa/orders");
        assert_eq!(SpiffeId::new(&TrustDomain::default(), "default", "orders"), Ok(id));
        let control_plane = SpiffeId::control_plane(&TrustDomain::default());
        assert!(control_plane.is_control_plane());
        assert_eq!(control_plane.as_str(), "spiffe://weft.local/ns/weft-system/sa/control-plane");
    }

    #[test]
    fn refuses_every_other_spelling() {
        use SpiffeIdError::*;
        let long = format!("spiffe://{}/ns/a/sa/b", "a".repeat(256));
        let longer = format!("spiffe://a/ns/a/sa/{}", "b".repeat(2048));
        let table: &[(&str, SpiffeIdError)] = &[
            ("", Scheme),
            ("weft.local/ns/a/sa/b", Scheme),
            ("SPIFFE://weft.local/ns/a/sa/b", Scheme),
            ("https://weft.local/ns/a/sa/b", Scheme),
            ("spiffe:/weft.local/ns/a/sa/b", Scheme),
            (" spiffe://weft.local/ns/a/sa/b", Scheme),
            ("spiffe:///ns/a/sa/b", TrustDomain),
            ("spiffe://Weft.local/ns/a/sa/b", TrustDomain),
            ("spiffe://weft.local:443/ns/a/sa/b", TrustDomain),
            ("spiffe://me@weft.local/ns/a/sa/b", TrustDomain),
            ("spiffe://weft%2elocal/ns/a/sa/b", TrustDomain),
            ("spiffe://weft.lócal/ns/a/sa/b", TrustDomain),
            ("spiffe://*.local/ns/a/sa/b", TrustDomain),
            (&long, TrustDomain),
            (&longer, TooLong),
            ("spiffe://weft.local", Path),
            ("spiffe://weft.local/", Path),
            ("spiffe://weft.local/ns/a/sa", Path),
            ("spiffe://weft.local/ns/a/sa/b/", Path),
            ("spiffe://weft.local/ns/a/sa/b/c", Path),
            ("spiffe://weft.local//ns/a/sa/b", Path),
            ("spiffe://weft.local/NS/a/sa/b", Path),
            ("spiffe://weft.local/sa/b/ns/a", Path),
            ("spiffe://weft.local/ns//sa/b", Namespace),
            ("spiffe://weft.local/ns/../sa/b", Namespace),
            ("spiffe://weft.local/ns/a%20/sa/b", Namespace),
            ("spiffe://weft.local/ns/a/sa/", Account),
            ("spiffe://weft.local/ns/a/sa/.", Account),
            ("spiffe://weft.local/ns/a/sa/b?x=1", Account),
            ("spiffe://weft.local/ns/a/sa/b#x", Account),
            ("spiffe://weft.local/ns/a/sa/b%62", Account),
            ("spiffe://weft.local/ns/a/sa/b\0", Account),
            ("spiffe://weft.local/ns/a/sa/b ", Account),
            ("spiffe://weft.local/ns/a/sa/*", Account),
        ];
        for (text, error) in table {
            assert_eq!(SpiffeId::parse(text).as_ref(), Err(error), "{text}");
        }
    }

    #[test]
    fn documents_hold_them_as_text() {
        let text = "\"spiffe://weft.local/ns/default/sa/orders\"";
        let id: SpiffeId = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), text);
        let error = serde_json::from_str::<SpiffeId>("\"spiffe://weft.local\"").unwrap_err().to_string();
        assert!(error.contains("/ns/NAMESPACE/sa/ACCOUNT"), "{error}");
        let domain: TrustDomain = serde_json::from_str("\"weft.local\"").unwrap();
        assert_eq!(domain, TrustDomain::default());
        assert!(serde_json::from_str::<TrustDomain>("\"Weft\"").is_err());
    }

    proptest! {
        #[test]
        fn parts_survive(td in "[a-z0-9._-]{1,60}", ns in "[a-zA-Z0-9_-]{1,60}", sa in "[a-zA-Z0-9_-]{1,60}") {
            let id = SpiffeId::new(&TrustDomain::parse(&td).unwrap(), &ns, &sa).unwrap();
            prop_assert_eq!((id.trust_domain(), id.namespace(), id.account()), (&*td, &*ns, &*sa));
            prop_assert_eq!(SpiffeId::parse(id.as_str()).unwrap(), id);
        }

        #[test]
        fn any_text_is_refused_or_kept_as_it_is(text in "(spiffe://)?[a-zA-Z0-9./%_:@ -]{0,20}(/ns/)?\\PC{0,10}(/sa/)?\\PC{0,10}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.as_str(), &*text);
                let again = format!("spiffe://{}/ns/{}/sa/{}", id.trust_domain(), id.namespace(), id.account());
                prop_assert_eq!(again, text);
            }
        }
    }
}
