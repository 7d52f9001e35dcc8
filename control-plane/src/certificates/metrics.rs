//! What the certificates manager counts.

use std::time::SystemTime;

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

/// Counters and gauges, registered once.
#[derive(Debug, Clone)]
pub struct Metrics {
    issued: IntCounterVec,
    expiry: IntGaugeVec,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry already has metrics of these names.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let issued = Opts::new("weft_cp_certificates_issued_total", "Answers to signing requests, by result.");
        let issued = IntCounterVec::new(issued, &["result"])?;
        for result in Outcome::ALL {
            issued.with_label_values(&[result.as_str()]);
        }
        let expiry =
            Opts::new("weft_certificate_expiry_timestamp_seconds", "When a certificate expires, in Unix time.");
        let expiry = IntGaugeVec::new(expiry, &["kind"])?;
        registry.register(Box::new(issued.clone()))?;
        registry.register(Box::new(expiry.clone()))?;
        Ok(Self { issued, expiry })
    }

    pub fn count(&self, outcome: Outcome) {
        self.issued.with_label_values(&[outcome.as_str()]).inc();
    }

    /// `kind`: leaf (the control plane's own), issuer or root.
    pub fn expiry(&self, kind: &str, at: SystemTime) {
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.expiry.with_label_values(&[kind]).set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }
}

/// What came of a signing request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Issued for a join token.
    Joined,
    /// Issued for a certificate.
    Renewed,
    /// The request itself was bad.
    BadRequest,
    /// No proof, or one that proves nothing.
    Unproved,
    /// Proved, but not to be given.
    Forbidden,
    /// Over the rate limit.
    Shed,
    /// Our own failure.
    Failed,
}

impl Outcome {
    const ALL: [Self; 7] =
        [Self::Joined, Self::Renewed, Self::BadRequest, Self::Unproved, Self::Forbidden, Self::Shed, Self::Failed];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Renewed => "renewed",
            Self::BadRequest => "bad_request",
            Self::Unproved => "unproved",
            Self::Forbidden => "forbidden",
            Self::Shed => "shed",
            Self::Failed => "failed",
        }
    }
}
