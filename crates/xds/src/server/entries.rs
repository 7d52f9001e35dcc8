//! What a client has of each name of a type, and the sums over it: a change of one name costs the same in a mesh of ten
//! services and in one of ten thousand.

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
};

use super::digest;

/// What a client has of one name.
#[derive(Debug, Default, Clone)]
pub(super) struct Entry {
    /// Subscribed to by name, not only by the wildcard.
    pub subscribed: bool,
    /// To be answered although unchanged.
    pub force: bool,
    /// Version accepted; 0: none.
    pub held: u64,
}

/// Entries by name. Changed through it alone, so that the sums are those of the entries.
#[derive(Debug, Default)]
pub(super) struct Entries {
    by_name: HashMap<Arc<str>, Entry>,
    sums: Sums,
}

/// Sums over the entries.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sums {
    /// Names subscribed to.
    pub subscribed: usize,
    /// Resources accepted.
    pub held: usize,
    /// [`digest`] of what is accepted.
    pub version: u64,
}

impl Sums {
    fn add(&mut self, name: &str, entry: &Entry) {
        self.subscribed += usize::from(entry.subscribed);
        if entry.held != 0 {
            self.held += 1;
            self.version = self.version.wrapping_add(digest([(name, entry.held)]));
        }
    }

    fn take(&mut self, name: &str, entry: &Entry) {
        self.subscribed -= usize::from(entry.subscribed);
        if entry.held != 0 {
            self.held -= 1;
            self.version = self.version.wrapping_sub(digest([(name, entry.held)]));
        }
    }
}

impl Entries {
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name)
    }

    /// The name as it is kept, and its entry.
    pub fn get_key_value(&self, name: &str) -> Option<(&Arc<str>, &Entry)> {
        self.by_name.get_key_value(name)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub fn iter(&self) -> hash_map::Iter<'_, Arc<str>, Entry> {
        self.by_name.iter()
    }

    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_name.keys()
    }

    pub fn sums(&self) -> Sums {
        self.sums
    }

    /// Changes an entry that is there; whether it is. Returns what it has become.
    pub fn change(&mut self, name: &str, change: impl FnOnce(&mut Entry)) -> Option<&Entry> {
        let entry = self.by_name.get_mut(name)?;
        self.sums.take(name, entry);
        change(entry);
        self.sums.add(name, entry);
        Some(entry)
    }

    /// Changes an entry, which is made if it is not there.
    pub fn ensure(&mut self, name: &Arc<str>, change: impl FnOnce(&mut Entry)) {
        let entry = self.by_name.entry(name.clone()).or_default();
        self.sums.take(name, entry);
        change(entry);
        self.sums.add(name, entry);
    }

    pub fn remove(&mut self, name: &str) {
        if let Some(entry) = self.by_name.remove(name) {
            self.sums.take(name, &entry);
        }
    }

    /// Removes what is only there because of the wildcard.
    pub fn drop_unsubscribed(&mut self) {
        let sums = &mut self.sums;
        self.by_name.retain(|name, entry| {
            if !entry.subscribed {
                sums.take(name, entry);
            }
            entry.subscribed
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_sums_are_those_of_the_entries(ops in prop::collection::vec((0u8..6, 0u8..8, any::<bool>(), 0u64..4), 0..200)) {
            let mut entries = Entries::default();
            for (op, name, subscribed, held) in ops {
                let name: Arc<str> = format!("name-{name}").into();
                let set = |entry: &mut Entry| *entry = Entry { subscribed, force: false, held };
                match op {
                    0..2 => entries.ensure(&name, set),
                    2..4 => drop(entries.change(&name, set).cloned()),
                    4 => entries.remove(&name),
                    _ => entries.drop_unsubscribed(),
                }
                let held: Vec<_> = entries.iter().filter(|(_, it)| it.held != 0).map(|(name, it)| (&**name, it.held)).collect();
                let expected = Sums {
                    subscribed: entries.iter().filter(|(_, it)| it.subscribed).count(),
                    held: held.len(),
                    version: digest(held),
                };
                prop_assert_eq!(entries.sums(), expected);
            }
        }
    }
}
