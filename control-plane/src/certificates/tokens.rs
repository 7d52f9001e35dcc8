//! Join tokens: who may get which identity, how often and until when.
//!
//! The record holds the secret's SHA-256 only. Whether a use is allowed is decided and written in one transaction, so two
//! sidecars that come at once never share a last use.

use std::time::{Duration, SystemTime};

use redb::{ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use weft_identity::{JoinToken, SpiffeId};

use crate::store::{Store, StoreError, decode, encode};

/// What a new token is to allow.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The identity that it proves.
    pub identity: SpiffeId,
    /// How often it may be used; at least once.
    pub uses: u32,
    /// How long it may be used.
    pub ttl: Duration,
    /// Who asked for it.
    pub created_by: String,
}

/// A token as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Names the record; part of the token's text and no secret.
    pub id: String,
    /// SHA-256 of the secret.
    pub secret_sha256: [u8; 32],
    /// The identity that the token proves.
    pub identity: SpiffeId,
    /// How often it may still be used.
    pub uses_left: u32,
    /// When it was made.
    pub created: SystemTime,
    /// Who asked for it.
    pub created_by: String,
    /// No use after this.
    pub expires: SystemTime,
    /// The latest uses: SHA-256 of the public key that was certified, and when.
    pub used: Vec<([u8; 32], SystemTime)>,
}

impl TokenRecord {
    /// Makes a token and its record.
    ///
    /// # Errors
    /// [`GrantError`] when the grant is not to be given.
    pub fn new(grant: Grant, ca_sha256: [u8; 32], now: SystemTime) -> Result<(JoinToken, Self), GrantError> {
        if grant.identity.is_control_plane() {
            return Err(GrantError::ControlPlane);
        }
        if !(1..=MOST_USES).contains(&grant.uses) {
            return Err(GrantError::Uses);
        }
        if grant.ttl.is_zero() || grant.ttl > LONGEST_LIFE {
            return Err(GrantError::Ttl);
        }
        let token = JoinToken::new(ca_sha256).map_err(|error| GrantError::Random(error.to_string()))?;
        let record = Self {
            id: token.id().to_owned(),
            secret_sha256: token.hash(),
            identity: grant.identity,
            uses_left: grant.uses,
            created: now,
            created_by: grant.created_by,
            expires: now + grant.ttl,
            used: Vec::new(),
        };
        Ok((token, record))
    }

    /// Decides on one use and counts it. `key_sha256` is that of the public key to be certified.
    ///
    /// The same key again within five minutes is the same use: whoever lost the answer may ask once more, and what a
    /// thief would get is a certificate for a key that is not his.
    ///
    /// # Errors
    /// [`TokenError`]. A wrong secret learns nothing of expiry or uses.
    pub fn check_and_use(
        &mut self,
        token: &JoinToken,
        key_sha256: [u8; 32],
        now: SystemTime,
    ) -> Result<SpiffeId, TokenError> {
        if !token.matches(&self.secret_sha256) {
            return Err(TokenError::Unknown);
        }
        if now >= self.expires {
            return Err(TokenError::Expired);
        }
        let recent = |at: &SystemTime| now.duration_since(*at).map_or(true, |age| age < SAME_USE);
        self.used.retain(|(_, at)| recent(at));
        if self.used.iter().any(|(key, _)| *key == key_sha256) {
            return Ok(self.identity.clone());
        }
        self.uses_left = self.uses_left.checked_sub(1).ok_or(TokenError::UsedUp)?;
        self.used.push((key_sha256, now));
        Ok(self.identity.clone())
    }
}

/// The tokens in the store.
#[derive(Debug, Clone)]
pub struct Tokens {
    store: Store,
}

impl Tokens {
    /// Keeps tokens in `store`.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Makes a token and stores its record. Records that expired more than a week ago are dropped.
    ///
    /// # Errors
    /// [`GrantError`] when the grant is not to be given, or the store does not answer.
    pub async fn create(
        &self,
        grant: Grant,
        ca_sha256: [u8; 32],
        now: SystemTime,
    ) -> Result<(JoinToken, TokenRecord), GrantError> {
        let (token, record) = TokenRecord::new(grant, ca_sha256, now)?;
        let stored = record.clone();
        let insert = move |transaction: &redb::WriteTransaction| {
            let mut table = transaction.open_table(TABLE)?;
            let mut stale = Vec::new();
            for row in table.iter()? {
                let (id, value) = row?;
                let old: TokenRecord = decode(TABLE_NAME, value.value())?;
                if now.duration_since(old.expires).is_ok_and(|age| age > KEPT_AFTER_EXPIRY) {
                    stale.push(id.value().to_owned());
                }
            }
            for id in stale {
                table.remove(&*id)?;
            }
            table.insert(&*stored.id, encode(&stored).as_slice())?;
            Ok(())
        };
        self.store.transact(insert).await?;
        Ok((token, record))
    }

    /// Decides on one use of a token and writes it before it answers. See [`TokenRecord::check_and_use`].
    ///
    /// # Errors
    /// [`TokenError`]; the store's own failure is [`TokenError::Store`].
    pub async fn redeem(
        &self,
        token: JoinToken,
        key_sha256: [u8; 32],
        now: SystemTime,
    ) -> Result<SpiffeId, TokenError> {
        let redeem = move |transaction: &redb::WriteTransaction| {
            let mut table = transaction.open_table(TABLE)?;
            let found = match table.get(token.id())? {
                Some(value) => decode::<TokenRecord>(TABLE_NAME, value.value())?,
                None => return Ok(Err(TokenError::Unknown)),
            };
            let mut record = found.clone();
            let answer = record.check_and_use(&token, key_sha256, now);
            if record != found {
                table.insert(&*record.id, encode(&record).as_slice())?;
            }
            Ok(answer)
        };
        self.store.transact(redeem).await?
    }

    /// Every record, by ID.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn list(&self) -> Result<Vec<TokenRecord>, StoreError> {
        let read = |transaction: &redb::WriteTransaction| {
            let table = transaction.open_table(TABLE)?;
            let mut records = Vec::new();
            for row in table.iter()? {
                records.push(decode(TABLE_NAME, row?.1.value())?);
            }
            Ok(records)
        };
        self.store.transact(read).await
    }
}

/// Why a token is not made.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// The control plane's own identity.
    #[error("nobody is given the control plane's own identity")]
    ControlPlane,
    /// Another trust domain.
    #[error("the identity belongs to another trust domain than this control plane's")]
    OtherTrustDomain,
    /// Uses out of bounds.
    #[error("a token is good for 1 to {MOST_USES} uses")]
    Uses,
    /// Life out of bounds.
    #[error("a token lives at least a second and at most a year")]
    Ttl,
    /// The random source failed.
    #[error("{0}")]
    Random(String),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not the text of a token.
    #[error(transparent)]
    Text(#[from] weft_identity::token::TokenTextError),
    /// No such token, or another secret.
    #[error("this control plane does not know the join token: make one with `weft token create`")]
    Unknown,
    /// Too late.
    #[error("the join token has expired: make a new one with `weft token create`")]
    Expired,
    /// Used as often as it may be.
    #[error("the join token has been used as often as it may be: make a new one with `weft token create`")]
    UsedUp,
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

const TABLE_NAME: &str = "tokens";
/// Token ID → [`TokenRecord`] as JSON.
const TABLE: TableDefinition<&str, &[u8]> = TableDefinition::new(TABLE_NAME);
const MOST_USES: u32 = 10_000;
const LONGEST_LIFE: Duration = Duration::from_secs(366 * 24 * 3600);
const SAME_USE: Duration = Duration::from_secs(5 * 60);
const KEPT_AFTER_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn grant(uses: u32) -> Grant {
        let identity = SpiffeId::parse("spiffe://weft.local/ns/default/sa/orders").unwrap();
        Grant { identity, uses, ttl: Duration::from_secs(3600), created_by: "operator".into() }
    }

    fn refusal(answer: Result<SpiffeId, TokenError>) -> String {
        answer.unwrap_err().to_string()
    }

    #[test]
    fn a_token_is_good_for_its_uses_and_no_more() {
        let (token, mut record) = TokenRecord::new(grant(2), [1; 32], now()).unwrap();
        assert_eq!(record.check_and_use(&token, [1; 32], now()).unwrap(), record.identity);
        assert_eq!(record.check_and_use(&token, [2; 32], now()).unwrap(), record.identity);
        assert!(refusal(record.check_and_use(&token, [3; 32], now())).contains("as often as it may be"));
        let soon = now() + SAME_USE / 2;
        assert!(record.check_and_use(&token, [1; 32], soon).is_ok(), "the same key is the same use");
        let later = now() + SAME_USE;
        assert!(record.check_and_use(&token, [1; 32], later).is_err(), "but not for ever");
        assert_eq!(record.uses_left, 0);
    }

    #[test]
    fn a_token_expires() {
        let (token, mut record) = TokenRecord::new(grant(5), [1; 32], now()).unwrap();
        let end = now() + Duration::from_secs(3600);
        assert!(record.check_and_use(&token, [1; 32], end - Duration::from_secs(1)).is_ok());
        assert!(refusal(record.check_and_use(&token, [1; 32], end)).contains("expired"));
        assert_eq!(record.uses_left, 4);
    }

    #[test]
    fn a_wrong_secret_learns_nothing_and_uses_nothing() {
        let (token, mut record) = TokenRecord::new(grant(1), [1; 32], now()).unwrap();
        let (other, _) = TokenRecord::new(grant(1), [1; 32], now()).unwrap();
        let text = other.to_string().replacen(other.id(), token.id(), 1);
        let forged = JoinToken::parse(&text).unwrap();
        let late = now() + Duration::from_secs(7200);
        let before = refusal(record.check_and_use(&forged, [1; 32], now()));
        let after = refusal(record.check_and_use(&forged, [1; 32], late));
        assert!(before == after && before.contains("does not know"), "{before}");
        assert_eq!(record.uses_left, 1);
    }

    #[test]
    fn the_record_holds_no_secret() {
        let (token, record) = TokenRecord::new(grant(1), [1; 32], now()).unwrap();
        let text = token.to_string();
        let secret = text.split('.').nth(2).unwrap();
        assert!(!String::from_utf8(encode(&record)).unwrap().contains(secret));
        assert!(!format!("{record:?}").contains(secret));
    }

    #[test]
    fn grants_have_bounds() {
        let of = |grant| TokenRecord::new(grant, [1; 32], now()).map(|_| ());
        assert!(matches!(of(grant(0)), Err(GrantError::Uses)));
        assert!(matches!(of(grant(MOST_USES + 1)), Err(GrantError::Uses)));
        assert!(matches!(of(Grant { ttl: Duration::ZERO, ..grant(1) }), Err(GrantError::Ttl)));
        assert!(matches!(of(Grant { ttl: LONGEST_LIFE * 2, ..grant(1) }), Err(GrantError::Ttl)));
        let identity = SpiffeId::control_plane(&weft_identity::TrustDomain::default());
        assert!(matches!(of(Grant { identity, ..grant(1) }), Err(GrantError::ControlPlane)));
    }

    #[tokio::test]
    async fn of_many_who_come_at_once_one_gets_the_last_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let tokens = Tokens::new(Store::open(&path).unwrap());
        let (token, record) = tokens.create(grant(1), [1; 32], now()).await.unwrap();
        let tries = (0..20u8).map(|key| tokens.redeem(token.clone(), [key; 32], now()));
        let answers = futures_util::future::join_all(tries).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
        assert!(answers.iter().flat_map(|answer| answer.as_ref().err()).all(|e| matches!(e, TokenError::UsedUp)));

        drop(tokens);
        let tokens = Tokens::new(Store::open(&path).unwrap());
        let kept = tokens.list().await.unwrap();
        assert_eq!((kept.len(), kept[0].uses_left, &kept[0].id), (1, 0, &record.id));
        assert!(matches!(tokens.redeem(token, [99; 32], now()).await, Err(TokenError::UsedUp)), "after a restart too");
        let (stranger, _) = TokenRecord::new(grant(1), [1; 32], now()).unwrap();
        assert!(matches!(tokens.redeem(stranger, [1; 32], now()).await, Err(TokenError::Unknown)));
    }

    #[tokio::test]
    async fn records_long_expired_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(Store::open(&dir.path().join("store.redb")).unwrap());
        tokens.create(grant(1), [1; 32], now()).await.unwrap();
        let later = now() + KEPT_AFTER_EXPIRY + Duration::from_secs(3700);
        let (_, new) = tokens.create(grant(1), [1; 32], later).await.unwrap();
        assert_eq!(tokens.list().await.unwrap(), [new]);
    }
}
