//! Join tokens: how a workload proves its identity the first time.
//!
//! `weft1.ID.SECRET.HASH`: the ID names the record, the secret proves, the hash is that of the CA, so that the first
//! contact trusts no stranger. The control plane stores only the secret's SHA-256.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// A join token. `Display` writes it in full, for the person who asked for it; `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: String,
    secret: String,
    ca_sha256: [u8; 32],
}

impl JoinToken {
    /// Makes a token with a random ID (64 bits) and secret (256 bits).
    ///
    /// # Errors
    /// [`TokenTextError::Random`] when the system's random source fails.
    pub fn new(ca_sha256: [u8; 32]) -> Result<Self, TokenTextError> {
        let (mut id, mut secret) = ([0; 8], [0; 32]);
        aws_lc_rs::rand::fill(&mut id).map_err(|_| TokenTextError::Random)?;
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| TokenTextError::Random)?;
        let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { id, secret: URL_SAFE_NO_PAD.encode(secret), ca_sha256 })
    }

    /// Reads a token. Space around it is dropped, since it often comes from a file.
    ///
    /// # Errors
    /// [`TokenTextError`]; it never repeats the text.
    pub fn parse(text: &str) -> Result<Self, TokenTextError> {
        let mut parts = text.trim().split('.');
        let (Some(PREFIX), Some(id), Some(secret), Some(hash), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenTextError::Form);
        };
        let id_fits = id.len() == 16 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let secret_fits = URL_SAFE_NO_PAD.decode(secret).is_ok_and(|bytes| bytes.len() == 32);
        if !id_fits || !secret_fits {
            return Err(TokenTextError::Form);
        }
        let ca_sha256 = URL_SAFE_NO_PAD.decode(hash).ok().and_then(|bytes| bytes.try_into().ok());
        let ca_sha256 = ca_sha256.ok_or(TokenTextError::CaHash)?;
        Ok(Self { id: id.to_owned(), secret: secret.to_owned(), ca_sha256 })
    }

    /// The ID of the token's record. Not a secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// SHA-256 of the secret: what the control plane stores.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_bytes()).into()
    }

    /// Whether the secret is the one with this hash. Takes the same time for every wrong secret.
    pub fn matches(&self, hash: &[u8; 32]) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.hash(), hash).is_ok()
    }

    /// SHA-256 of the root certificate that the control plane must show.
    pub fn ca_sha256(&self) -> [u8; 32] {
        self.ca_sha256
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}.{}", self.id, self.secret, URL_SAFE_NO_PAD.encode(self.ca_sha256))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, redacted)", self.id)
    }
}

impl FromStr for JoinToken {
    type Err = TokenTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// Why a text is no join token. Never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenTextError {
    /// Not four parts, or a part of the wrong form.
    #[error("not a join token: it has the form {PREFIX}.ID.SECRET.HASH, as `weft token create` prints it")]
    Form,
    /// The last part is not a SHA-256.
    #[error("the join token's last part is not the hash of a CA: was it cut off?")]
    CaHash,
    /// The system's random source failed.
    #[error("the system's random source failed")]
    Random,
}

const PREFIX: &str = "weft1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_hides_in_debug() {
        let token = JoinToken::new([7; 32]).unwrap();
        let again = JoinToken::parse(&format!(" {token}\n")).unwrap();
        assert_eq!(again, token);
        assert_eq!(again.ca_sha256(), [7; 32]);
        assert!(again.matches(&token.hash()));
        assert!(!JoinToken::new([7; 32]).unwrap().matches(&token.hash()));
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn other_texts_are_refused() {
        let good = JoinToken::new([7; 32]).unwrap().to_string();
        let parts: Vec<&str> = good.split('.').collect();
        let (id, secret, hash) = (parts[1], parts[2], parts[3]);
        let form = [
            String::new(),
            "weft1".into(),
            format!("weft2.{id}.{secret}.{hash}"),
            format!("weft1.{id}.{secret}"),
            format!("weft1.{id}.{secret}.{hash}.x"),
            format!("weft1.{}.{secret}.{hash}", id.to_uppercase() + "A"),
            format!("weft1..{secret}.{hash}"),
            format!("weft1.{id}..{hash}"),
            format!("weft1.{id}.{secret}=.{hash}"),
            format!("weft1.{id}.{}.{hash}", &secret[1..]),
        ];
        for text in &form {
            assert_eq!(JoinToken::parse(text), Err(TokenTextError::Form), "{text}");
        }
        for hash in ["", "AAAA", &hash[1..], &format!("{hash}=")] {
            assert_eq!(JoinToken::parse(&format!("weft1.{id}.{secret}.{hash}")), Err(TokenTextError::CaHash));
        }
    }
}
