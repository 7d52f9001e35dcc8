//! Where services meet, and which addresses stand for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::Chosen;
use crate::compose::file::{DEFAULT_NETWORK, Project};

/// Where control plane and services meet.
pub struct Networks {
    /// Of the control plane.
    pub control_plane: BTreeSet<String>,
    /// The services have none in common, so there is one more.
    pub own: bool,
}

impl Networks {
    /// All must reach each other by the address that a sidecar has towards the control plane: one network in common.
    pub fn of(project: &Project, chosen: &[Chosen<'_>]) -> Self {
        let mut all = chosen.iter().map(|chosen| chosen.service.joined());
        let first = all.next().unwrap_or_default();
        let common = all.fold(first, |common, joined| common.intersection(&joined).cloned().collect());
        let internal = |name: &String| project.networks.get(name).is_some_and(|network| network.internal);
        let Some(meet) = common.iter().min_by_key(|name| (internal(name), *name != DEFAULT_NETWORK)) else {
            return Self { control_plane: BTreeSet::from([OWN_NETWORK.to_owned()]), own: true };
        };
        let mut control_plane = BTreeSet::from([meet.clone()]);
        if internal(meet) {
            // Ports are published from a network with a way out only.
            control_plane.insert(DEFAULT_NETWORK.to_owned());
        }
        Self { control_plane, own: false }
    }
}

/// A loopback address for each service: by its name, so that it stays when others come and go.
pub fn addresses<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, Ipv4Addr> {
    let mut taken = BTreeSet::new();
    let mut addresses = BTreeMap::new();
    for name in names.collect::<BTreeSet<_>>() {
        // FNV-1a, folded into 127.88.1.1 to 127.88.254.254.
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let mut slot = hash % SLOTS;
        while !taken.insert(slot) {
            slot = (slot + 1) % SLOTS;
        }
        let part = |number: u32| u8::try_from(number % 254 + 1).unwrap_or(1);
        addresses.insert(name, Ipv4Addr::new(127, 88, part(slot / 254), part(slot)));
    }
    addresses
}

/// The network that the overlay adds where the services have none in common.
pub const OWN_NETWORK: &str = "weft-mesh";
const SLOTS: u32 = 254 * 254;
