//! Small values that several kinds share.

use std::fmt;

use serde::{Deserialize, Serialize};
use weft_identity::SpiffeId;

use crate::rules::{dns_label, http_path};

/// A port by number or by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortOrName {
    /// Its number.
    Number(u16),
    /// Its name.
    Name(String),
}

impl Default for PortOrName {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl fmt::Display for PortOrName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Who an access rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IdentityPattern {
    /// `*`: whoever proved an identity.
    Any,
    /// `NAMESPACE/*`: every account of a namespace.
    Namespace(String),
    /// `NAMESPACE/ACCOUNT`, in the mesh's trust domain.
    Account {
        /// Namespace.
        namespace: String,
        /// Service account.
        account: String,
    },
    /// A SPIFFE ID in full.
    Spiffe {
        /// Trust domain.
        trust_domain: String,
        /// Namespace.
        namespace: String,
        /// Service account.
        account: String,
    },
}

impl IdentityPattern {
    /// Reads one of the four forms.
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if text.starts_with("spiffe:") {
            let id = SpiffeId::parse(text).map_err(|error| error.to_string())?;
            return Ok(Self::Spiffe {
                trust_domain: id.trust_domain().to_owned(),
                namespace: id.namespace().to_owned(),
                account: id.account().to_owned(),
            });
        }
        let Some((namespace, account)) = text.split_once('/') else {
            return Err("an identity reads `NAMESPACE/ACCOUNT`, `NAMESPACE/*`, `*` or `spiffe://…`".into());
        };
        dns_label(namespace)?;
        if account == "*" {
            return Ok(Self::Namespace(namespace.to_owned()));
        }
        dns_label(account)?;
        Ok(Self::Account { namespace: namespace.to_owned(), account: account.to_owned() })
    }
}

/// Paths that an access rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// The path itself, normalised, without query.
    Exact(String),
    /// `/a/*`: every path that begins with `/a/`; `/*` is every path.
    Prefix(String),
}

impl PathPattern {
    /// Reads `/a/b` or `/a/*`.
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (path, prefix) = match text.strip_suffix('*') {
            Some(path) => (path, true),
            None => (text, false),
        };
        if path.contains('*') || (prefix && !path.ends_with('/')) {
            return Err("a `*` may only stand at the end, after a `/`".into());
        }
        http_path(path)?;
        Ok(if prefix { Self::Prefix(path.to_owned()) } else { Self::Exact(path.to_owned()) })
    }
}
