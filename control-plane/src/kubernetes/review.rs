//! Service-account tokens: the API server says whose they are. Answers are kept for a short time, and never longer than
//! the token is good for.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use parking_lot::Mutex;
use prometheus::{IntCounterVec, Opts, Registry};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::{sync::Semaphore, time::timeout};
use weft_identity::{SpiffeId, TrustDomain};

use super::Cluster;

/// Why a service-account token proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// Not of the form of a token that a pod gets.
    #[error("the service-account token cannot be read: {0}")]
    Form(&'static str),
    /// Its time is over.
    #[error(
        "the service-account token has expired; the kubelet replaces the file, which the sidecar must read anew \
         (--join-token-file)"
    )]
    Expired,
    /// It was made for somebody else.
    #[error(
        "the service-account token is for the audience {found}, not `{wanted}`: set it in the pod's projected volume"
    )]
    Audience {
        /// Of the token.
        found: String,
        /// Ours.
        wanted: String,
    },
    /// The API server does not know it.
    #[error("the API server does not accept the service-account token{0}")]
    Refused(String),
    /// Not a service account's.
    #[error("the token belongs to `{0}`, which is not a service account")]
    NotAnAccount(String),
    /// A namespace that this control plane does not serve.
    #[error("namespace {0} is not one of --kubernetes-namespaces")]
    Namespace(String),
    /// An account whose name cannot be in an identity.
    #[error("service account {0} cannot be an identity")]
    Identity(String),
    /// The API server gave no answer; the token may be good.
    #[error("the API server cannot be asked about the service-account token: {0}")]
    Unavailable(String),
}

/// Asks the API server about tokens.
pub struct Reviewer {
    client: Client,
    audience: String,
    trust_domain: TrustDomain,
    cluster: Cluster,
    kept: Mutex<Kept>,
    room: Semaphore,
    reviews: IntCounterVec,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Reviewer").field("audience", &self.audience).finish_non_exhaustive()
    }
}

impl Reviewer {
    /// Of one cluster.
    /// # Errors
    /// The metrics are registered already.
    pub fn new(
        cluster: &Cluster,
        audience: &str,
        trust_domain: &TrustDomain,
        registry: &Registry,
    ) -> Result<Arc<Self>, prometheus::Error> {
        let opts = Opts::new(
            "weft_cp_kubernetes_token_reviews_total",
            "Service-account tokens presented, by result: accepted, kept (known from before), refused, unavailable.",
        );
        let reviews = IntCounterVec::new(opts, &["result"])?;
        for result in ["accepted", "kept", "refused", "unavailable"] {
            reviews.with_label_values(&[result]);
        }
        registry.register(Box::new(reviews.clone()))?;
        Ok(Arc::new(Self {
            client: cluster.client.clone(),
            audience: audience.to_owned(),
            trust_domain: trust_domain.clone(),
            cluster: cluster.clone(),
            kept: Mutex::default(),
            room: Semaphore::new(MAX_IN_FLIGHT),
            reviews,
        }))
    }

    /// Whose token it is.
    /// # Errors
    /// Why it proves nothing.
    pub async fn identity(&self, token: &str, now: SystemTime) -> Result<SpiffeId, ReviewError> {
        let (result, answer) = match self.look(token, now).await {
            Ok((identity, true)) => ("kept", Ok(identity)),
            Ok((identity, false)) => ("accepted", Ok(identity)),
            Err(error @ ReviewError::Unavailable(_)) => ("unavailable", Err(error)),
            Err(error) => ("refused", Err(error)),
        };
        self.reviews.with_label_values(&[result]).inc();
        answer
    }

    /// The identity, and whether it was known from before.
    async fn look(&self, token: &str, now: SystemTime) -> Result<(SpiffeId, bool), ReviewError> {
        // What the token says of itself proves nothing, but what cannot pass need not be asked about.
        let claims = Claims::read(token)?;
        let expires = claims.check(&self.audience, now)?;
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(identity) = self.kept.lock().get(&key, now) {
            return Ok((identity, true));
        }
        let status = self.ask(token).await?;
        let identity = self.account(status)?;
        self.kept.lock().keep(key, identity.clone(), expires.min(now + KEEP), now);
        Ok((identity, false))
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, ReviewError> {
        let unavailable = |error: String| ReviewError::Unavailable(error);
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![self.audience.clone()]) },
            ..TokenReview::default()
        };
        let asking = async {
            let _room = self.room.acquire().await.map_err(|error| unavailable(error.to_string()))?;
            let reviews: Api<TokenReview> = Api::all(self.client.clone());
            reviews.create(&PostParams::default(), &review).await.map_err(|error| unavailable(super::explain(&error)))
        };
        let answer = timeout(ASK_TIMEOUT, asking)
            .await
            .map_err(|_| unavailable(format!("no answer within {} s", ASK_TIMEOUT.as_secs())))??;
        answer.status.ok_or_else(|| unavailable("its answer has no status".to_owned()))
    }

    fn account(&self, status: TokenReviewStatus) -> Result<SpiffeId, ReviewError> {
        if status.authenticated != Some(true) {
            let why = status.error.filter(|error| !error.is_empty());
            return Err(ReviewError::Refused(why.map_or_else(String::new, |why| format!(": {why}"))));
        }
        // An API server that knows nothing of audiences answers without them: it has not checked ours.
        let audiences = status.audiences.unwrap_or_default();
        if !audiences.contains(&self.audience) {
            return Err(ReviewError::Audience { found: list(&audiences), wanted: self.audience.clone() });
        }
        let user = status.user.and_then(|user| user.username).unwrap_or_default();
        let parts = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
        let Some((namespace, account)) = parts else { return Err(ReviewError::NotAnAccount(user)) };
        if !self.cluster.covers(namespace) {
            return Err(ReviewError::Namespace(namespace.to_owned()));
        }
        SpiffeId::new(&self.trust_domain, namespace, account)
            .map_err(|error| ReviewError::Identity(format!("{namespace}/{account}: {error}")))
    }
}

/// Whether a text is a JSON Web Token rather than a join token.
pub fn is_service_account_token(text: &str) -> bool {
    text.starts_with("eyJ") && text.split('.').count() == 3
}

/// What a token says of itself.
#[derive(Debug, Default, Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audience,
    #[serde(default)]
    exp: f64,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl Claims {
    fn read(token: &str) -> Result<Self, ReviewError> {
        if token.len() > MAX_TOKEN {
            return Err(ReviewError::Form("it is longer than 16 KiB"));
        }
        let payload = token.split('.').nth(1).unwrap_or_default();
        let payload =
            URL_SAFE_NO_PAD.decode(payload).map_err(|_| ReviewError::Form("its middle part is not base64"))?;
        serde_json::from_slice(&payload).map_err(|_| ReviewError::Form("its middle part is not a set of claims"))
    }

    /// When it expires.
    fn check(&self, audience: &str, now: SystemTime) -> Result<SystemTime, ReviewError> {
        let audiences = match &self.aud {
            Audience::One(one) => std::slice::from_ref(one),
            Audience::Several(several) => several,
        };
        if !audiences.iter().any(|one| one == audience) {
            return Err(ReviewError::Audience { found: list(audiences), wanted: audience.to_owned() });
        }
        let expires = Duration::try_from_secs_f64(self.exp).ok().and_then(|since| UNIX_EPOCH.checked_add(since));
        match expires {
            Some(expires) if expires > now && self.exp > 0.0 => Ok(expires),
            Some(_) if self.exp > 0.0 => Err(ReviewError::Expired),
            _ => Err(ReviewError::Form("it never expires: give the pod a projected token instead of a secret")),
        }
    }
}

fn list(audiences: &[String]) -> String {
    match audiences {
        [] => "of nobody".to_owned(),
        all => all.iter().map(|one| format!("`{one}`")).collect::<Vec<_>>().join(", "),
    }
}

/// Answers of a short while ago, by the hash of the token.
#[derive(Debug, Default)]
struct Kept {
    answers: HashMap<[u8; 32], (SpiffeId, SystemTime)>,
}

impl Kept {
    fn get(&self, key: &[u8; 32], now: SystemTime) -> Option<SpiffeId> {
        self.answers.get(key).filter(|(_, until)| *until > now).map(|(identity, _)| identity.clone())
    }

    fn keep(&mut self, key: [u8; 32], identity: SpiffeId, until: SystemTime, now: SystemTime) {
        if self.answers.len() >= MAX_KEPT {
            self.answers.retain(|_, (_, until)| *until > now);
        }
        if self.answers.len() < MAX_KEPT {
            self.answers.insert(key, (identity, until));
        }
    }
}

/// Kubernetes' own tokens have about 1 KiB.
const MAX_TOKEN: usize = 16 * 1024;
/// A pod that was deleted loses its token within this time; a pod whose first answer was lost asks again within it.
const KEEP: Duration = Duration::from_secs(60);
const MAX_KEPT: usize = 4096;
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_IN_FLIGHT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("eyJhbGciOiJSUzI1NiJ9.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn what_cannot_pass_is_not_asked_about() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let check = |claims: &str| Claims::read(&token(claims)).and_then(|claims| claims.check("weft", now));
        assert_eq!(check(r#"{"aud":["weft"],"exp":1000060}"#), Ok(now + Duration::from_secs(60)));
        assert_eq!(check(r#"{"aud":"weft","exp":1000060}"#), Ok(now + Duration::from_secs(60)));
        assert_eq!(check(r#"{"aud":["weft"],"exp":1000000}"#), Err(ReviewError::Expired));
        let other = check(r#"{"aud":["https://kubernetes.default.svc"],"exp":1000060}"#).unwrap_err().to_string();
        assert!(other.contains("https://kubernetes.default.svc") && other.contains("`weft`"), "{other}");
        for bad in [r#"{"aud":["weft"]}"#, r#"{"aud":["weft"],"exp":-1}"#, r#"{"aud":["weft"],"exp":1e300}"#, "3"] {
            assert!(matches!(check(bad), Err(ReviewError::Form(_))), "{bad}");
        }
        assert!(matches!(Claims::read("eyJ.%.x"), Err(ReviewError::Form(_))));
        assert!(matches!(Claims::read(&"e".repeat(MAX_TOKEN + 1)), Err(ReviewError::Form(_))));
    }

    #[test]
    fn an_answer_is_kept_until_its_time_and_in_a_bounded_number() {
        let identity = SpiffeId::parse("spiffe://weft.local/ns/shop/sa/orders").unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let mut kept = Kept::default();
        for number in 0..MAX_KEPT + 10 {
            let key = Sha256::digest(number.to_le_bytes()).into();
            kept.keep(key, identity.clone(), now + Duration::from_secs(1), now);
        }
        assert_eq!(kept.answers.len(), MAX_KEPT);
        let first = Sha256::digest(0usize.to_le_bytes()).into();
        assert_eq!(kept.get(&first, now), Some(identity.clone()));
        assert_eq!(kept.get(&first, now + Duration::from_secs(1)), None);
        kept.keep([9; 32], identity, now + Duration::from_secs(5), now + Duration::from_secs(2));
        assert_eq!(kept.answers.len(), 1, "what is over makes room");
    }
}
