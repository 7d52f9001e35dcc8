//! The operator's credential: made at first start, checked on each call of the configuration API.

use std::{io, path::Path};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tonic::Code;
use weft_identity::{TrustBundle, files};

use crate::config::{ApiError, Author};

/// `operator.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Credential {
    grpc: String,
    http: String,
    trust_domain: String,
    /// Root certificates, PEM.
    ca: String,
    token: String,
}

/// The credential is not usable.
#[derive(Debug, Error)]
pub enum OperatorError {
    /// The file system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not what this program wrote.
    #[error("{path} is damaged ({source}); remove it, and a new credential is made at the next start")]
    Damaged {
        /// The file.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// The credential of a data directory, as it is on disk.
///
/// # Errors
/// There is none that can be read, or it is not what this program wrote.
pub fn read(path: &Path) -> anyhow::Result<String> {
    let text = files::read_private(path).with_context(|| {
        format!("{}: no control plane has begun to serve here; is --data-dir its data directory?", path.display())
    })?;
    parse(path, &text)?;
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<Credential, OperatorError> {
    serde_json::from_str(text).map_err(|source| OperatorError::Damaged { path: path.display().to_string(), source })
}

/// Checks credentials.
#[derive(Debug, Clone)]
pub struct Operator {
    token_sha256: [u8; 32],
}

impl Operator {
    /// Reads the credential of the data directory, or makes one (0600), and writes down where the control plane is to be
    /// found now. Returns whether it is new.
    /// # Errors
    /// The file cannot be read, understood or written.
    pub fn open(path: &Path, grpc: &str, http: &str, bundle: &TrustBundle) -> Result<(Self, bool), OperatorError> {
        let known = match files::read_private(path) {
            Ok(text) => Some(parse(path, &text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        let new = known.is_none();
        let token = match known {
            Some(credential) => credential.token,
            None => token()?,
        };
        let credential = Credential {
            grpc: grpc.to_owned(),
            http: http.to_owned(),
            trust_domain: bundle.trust_domain().to_string(),
            ca: bundle.to_pem(),
            token,
        };
        let mut text = serde_json::to_vec_pretty(&credential).expect("strings are JSON");
        text.push(b'\n');
        files::write_private(path, &text)?;
        Ok((Self { token_sha256: Sha256::digest(credential.token.as_bytes()).into() }, new))
    }

    /// Who calls, if the call carries the credential.
    /// # Errors
    /// UNAUTHENTICATED.
    pub fn check(&self, headers: &HeaderMap) -> Result<Author, ApiError> {
        let refuse = |message: &str| Err(ApiError::new(Code::Unauthenticated, message));
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return refuse(
                "this call needs the operator's credential: `authorization: Bearer TOKEN`, with the token of \
                           operator.json in the control plane's data directory",
            );
        };
        let token = value.to_str().ok().and_then(|value| value.split_once(' '));
        let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
        let Some(token) = token else {
            return refuse("the authorization header is not `Bearer TOKEN`");
        };
        // Hashes are compared, and every byte of them: time tells nothing about the token.
        let given: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let differs = given.iter().zip(&self.token_sha256).fold(0, |differs, (a, b)| differs | (a ^ b));
        if differs != 0 {
            return refuse("the operator's token is not the one of this control plane");
        }
        Ok(author(headers))
    }
}

/// Who the operator acts for, as a label in the history: it proves nothing.
fn author(headers: &HeaderMap) -> Author {
    let named = headers.get(AUTHOR).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let named: String = named.chars().filter(|c| !c.is_control()).take(128).collect();
    Author(if named.trim().is_empty() { DEFAULT_AUTHOR.to_owned() } else { named.trim().to_owned() })
}

fn token() -> Result<String, io::Error> {
    let mut bytes = [0; 32];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(format!("weftop_{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// Header in which a client says for whom it acts.
const AUTHOR: &str = "weft-author";
/// Name of the credential.
const DEFAULT_AUTHOR: &str = "operator";

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::SystemTime};

    use weft_identity::{TrustDomain, ca::Authority};

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_token_survives_and_the_address_is_renewed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.json");
        let authority = Authority::create(TrustDomain::parse("weft.local").unwrap(), SystemTime::now()).unwrap();
        let (_, new) = Operator::open(&path, "127.0.0.1:1", "127.0.0.1:2", &authority.bundle()).unwrap();
        assert!(new);
        let first: Credential = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let (operator, new) = Operator::open(&path, "127.0.0.1:3", "127.0.0.1:4", &authority.bundle()).unwrap();
        assert!(!new);
        assert_eq!(read(&path).unwrap(), std::fs::read_to_string(&path).unwrap());
        let second: Credential = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(first.token, second.token);
        assert_eq!(second.grpc, "127.0.0.1:3");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let bearer = format!("Bearer {}", first.token);
        assert_eq!(operator.check(&headers(&[("authorization", &bearer)])).unwrap(), Author("operator".into()));
        let named = headers(&[("authorization", &bearer), ("weft-author", "jo@example.org")]);
        assert_eq!(operator.check(&named).unwrap(), Author("jo@example.org".into()));
        for wrong in ["", "Bearer", "Bearer x", "Basic abc", &format!("{bearer}x")] {
            let error = operator.check(&headers(&[("authorization", wrong)])).unwrap_err();
            assert_eq!(error.code, Code::Unauthenticated, "{wrong}");
        }
        assert!(operator.check(&HeaderMap::new()).is_err());

        let error = read(&directory.path().join("none.json")).unwrap_err();
        assert!(format!("{error:#}").contains("is --data-dir its data directory?"), "{error:#}");
        std::fs::write(&path, "{}").unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("is damaged"));
    }
}
