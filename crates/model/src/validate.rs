//! What resources must obey together.

use std::collections::{BTreeMap, BTreeSet};

use crate::{finding::Finding, key::ServiceKey, set::ResourceSet};

/// Services that no resource declares but workloads registered for, with their ports.
pub type KnownServices = BTreeMap<ServiceKey, BTreeSet<u16>>;

/// Everything that is wrong with the set as a whole, errors and warnings, in the order of the keys: the order in which
/// the resources were applied makes no difference.
pub fn validate(_set: &ResourceSet, _known: &KnownServices) -> Vec<Finding> {
    Vec::new()
}
