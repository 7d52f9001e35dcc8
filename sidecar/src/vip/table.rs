//! Hosts and their numbers. No I/O, no clock.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The most hosts that have addresses at one time.
pub const LIMIT: usize = 16_384;
/// An address is not given to another host before nobody has asked for it or used it for this long, in seconds: a day,
/// since applications remember addresses far longer than DNS lets them.
pub const RECENT: u64 = 24 * 3600;
/// So many are forgotten at once when the table is full.
const BATCH: usize = 256;
/// The first and one past the last number that is given: neither 240.0.0.x nor 255.x.x.x, where a broadcast address is.
const FIRST: u32 = 1 << 8;
const END: u32 = 0x0f00_0000;

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    slots: HashMap<u32, Entry>,
    by_host: HashMap<Arc<str>, u32>,
}

#[derive(Debug)]
struct Entry {
    host: Arc<str>,
    /// When it was last asked for or used, in seconds of Unix time.
    used: AtomicU64,
}

impl Table {
    /// The number of a host that has one.
    pub fn of(&self, host: &str, now: u64) -> Option<u32> {
        let slot = *self.by_host.get(host)?;
        self.slots.get(&slot).inspect(|entry| entry.touch(now))?;
        Some(slot)
    }

    /// The host that has a number.
    pub fn host(&self, slot: u32, now: u64) -> Option<Arc<str>> {
        let entry = self.slots.get(&slot)?;
        entry.touch(now);
        Some(entry.host.clone())
    }

    /// The number of a host, given when it has none. `None`: the table is full of what was used a short while ago.
    pub fn give(&mut self, host: &str, now: u64) -> Option<u32> {
        if let Some(slot) = self.of(host, now) {
            return Some(slot);
        }
        if self.slots.len() >= LIMIT {
            self.forget(now);
        }
        if self.slots.len() >= LIMIT {
            return None;
        }
        let slot = candidates(host).find(|slot| !self.slots.contains_key(slot))?;
        self.put(slot, host, now);
        Some(slot)
    }

    /// Puts back what was kept. `false`: it does not fit what is there, and nothing was changed.
    pub fn restore(&mut self, slot: u32, host: &str, used: u64) -> bool {
        let fits = (FIRST..END).contains(&slot)
            && self.slots.len() < LIMIT
            && !self.slots.contains_key(&slot)
            && !self.by_host.contains_key(host);
        if fits {
            self.put(slot, host, used);
        }
        fits
    }

    /// Number, host and last use, in order of number.
    pub fn entries(&self) -> Vec<(u32, Arc<str>, u64)> {
        let entries = self.slots.iter();
        let mut all: Vec<_> =
            entries.map(|(slot, entry)| (*slot, entry.host.clone(), entry.used.load(Ordering::Relaxed))).collect();
        all.sort_unstable_by_key(|(slot, ..)| *slot);
        all
    }

    /// How many hosts have a number.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    fn put(&mut self, slot: u32, host: &str, used: u64) {
        let host = Arc::<str>::from(host);
        self.by_host.insert(host.clone(), slot);
        self.slots.insert(slot, Entry { host, used: AtomicU64::new(used) });
    }

    /// Makes room: those unused for longest, if for long enough.
    fn forget(&mut self, now: u64) {
        let mut old: Vec<(u64, u32)> = self
            .slots
            .iter()
            .map(|(slot, entry)| (entry.used.load(Ordering::Relaxed), *slot))
            .filter(|(used, _)| now.saturating_sub(*used) > RECENT)
            .collect();
        old.sort_unstable();
        for (_, slot) in old.into_iter().take(BATCH) {
            if let Some(entry) = self.slots.remove(&slot) {
                self.by_host.remove(&entry.host);
            }
        }
    }
}

impl Entry {
    /// Written once a second at most, and never backwards.
    fn touch(&self, now: u64) {
        if self.used.load(Ordering::Relaxed) < now {
            self.used.store(now, Ordering::Relaxed);
        }
    }
}

/// Numbers for a host, the best first: the same on every machine. More than the table can hold, so that one is free.
fn candidates(host: &str) -> impl Iterator<Item = u32> + '_ {
    (0..=LIMIT as u64).map(|attempt| {
        let hash = xxh3_64_with_seed(host.as_bytes(), attempt);
        FIRST + (hash % u64::from(END - FIRST)) as u32
    })
}
