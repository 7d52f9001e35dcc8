//! What the demo claims, and what was measured.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

/// One claim.
#[derive(Clone, Debug, Serialize)]
pub struct Claim {
    /// The scene that it belongs to.
    pub scene: &'static str,
    /// What is claimed.
    pub claim: &'static str,
    /// What was measured; its unit is in the text of the claim.
    pub measured: f64,
    /// What it must be.
    pub required: String,
    /// It was.
    pub observed: bool,
}

/// Every claim made so far, and how many there must be.
#[derive(Clone, Default)]
pub struct Claims {
    made: Arc<Mutex<Vec<Claim>>>,
}

/// Every claim that the scenes make. A demo that ends early has not observed the rest.
pub const EXPECTED: usize = 16;

impl Claims {
    /// `measured` must be at least `bound`.
    pub fn at_least(&self, scene: &'static str, claim: &'static str, measured: f64, bound: f64) -> Claim {
        self.add(scene, claim, measured, format!(">= {bound}"), measured >= bound)
    }

    /// `measured` must be at most `bound`.
    pub fn at_most(&self, scene: &'static str, claim: &'static str, measured: f64, bound: f64) -> Claim {
        self.add(scene, claim, measured, format!("<= {bound}"), measured <= bound)
    }

    /// `measured` must lie in `low..=high`.
    pub fn between(&self, scene: &'static str, claim: &'static str, measured: f64, low: f64, high: f64) -> Claim {
        self.add(scene, claim, measured, format!("{low} to {high}"), (low..=high).contains(&measured))
    }

    fn add(&self, scene: &'static str, claim: &'static str, measured: f64, required: String, holds: bool) -> Claim {
        let claim = Claim { scene, claim, measured: (measured * 1000.0).round() / 1000.0, required, observed: holds };
        self.made.lock().push(claim.clone());
        claim
    }

    /// All of them.
    pub fn list(&self) -> Vec<Claim> {
        self.made.lock().clone()
    }

    /// Every claim was made, and every one observed.
    pub fn all_observed(&self) -> bool {
        let made = self.made.lock();
        made.len() == EXPECTED && made.iter().all(|claim| claim.observed)
    }
}
