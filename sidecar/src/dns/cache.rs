//! Answers of other resolvers, for as long as they may be remembered. No I/O, no clock.
//!
//! Bounded by entries and by bytes. What is full drops what was not asked for since it was last passed over (CLOCK). An
//! answer whose time is up is kept a while longer, for when nobody answers.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
    time::{Duration, Instant},
};

use super::wire::Query;

/// The most answers.
pub const MOST_ENTRIES: usize = 8192;
/// The most bytes of all answers and their keys.
pub const MOST_BYTES: usize = 8 * 1024 * 1024;
/// An answer is asked for anew after this time, whatever its TTL: what changed is known then.
const LONGEST: Duration = Duration::from_secs(300);
/// For this long after its time an answer is better than none.
const STALE: Duration = Duration::from_secs(3600);
/// What an entry costs besides its answer.
const OVERHEAD: usize = 256;

/// All on which an answer depends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// In lower case.
    name: Box<[u8]>,
    kind: u16,
    class: u16,
    variant: u16,
}

impl Key {
    /// Of a query. `None`: the answer is for this client alone.
    pub fn of(query: &Query) -> Option<Self> {
        if query.edns.is_some_and(|edns| edns.options) {
            return None;
        }
        let question = &query.question;
        Some(Self {
            name: question.name.to_ascii_lowercase().into(),
            kind: question.kind,
            class: question.class,
            variant: query.variant(),
        })
    }
}

/// A remembered answer.
#[derive(Debug, Clone)]
pub struct Kept {
    /// As it came.
    pub bytes: Rc<[u8]>,
    /// Where its TTLs stand.
    pub ttls: Rc<[u16]>,
    /// Since when it is here.
    pub since: Instant,
    /// Its time is not up.
    pub fresh: bool,
}

#[derive(Debug)]
struct Entry {
    bytes: Rc<[u8]>,
    ttls: Rc<[u16]>,
    since: Instant,
    until: Instant,
    asked: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Rc<Key>, Entry>,
    /// Each key once.
    order: VecDeque<Rc<Key>>,
    bytes: usize,
}

impl Cache {
    /// What is remembered.
    pub fn get(&mut self, key: &Key, now: Instant) -> Option<Kept> {
        let entry = self.entries.get_mut(key)?;
        if now >= entry.until + STALE {
            return None;
        }
        entry.asked = true;
        Some(Kept {
            bytes: entry.bytes.clone(),
            ttls: entry.ttls.clone(),
            since: entry.since,
            fresh: now < entry.until,
        })
    }

    /// Remembers an answer for so many seconds.
    pub fn put(&mut self, key: Key, bytes: &[u8], ttls: &[u16], lifetime: u32, now: Instant) {
        let until = now + Duration::from_secs(lifetime.into()).min(LONGEST);
        let entry = Entry { bytes: bytes.into(), ttls: ttls.into(), since: now, until, asked: false };
        let key = Rc::new(key);
        self.bytes += cost(&key, &entry);
        match self.entries.insert(key.clone(), entry) {
            Some(before) => self.bytes -= cost(&key, &before),
            None => self.order.push_back(key),
        }
        while self.entries.len() > MOST_ENTRIES || self.bytes > MOST_BYTES {
            self.drop_one(now);
        }
    }

    /// How many answers are remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    fn drop_one(&mut self, now: Instant) {
        while let Some(key) = self.order.pop_front() {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            if std::mem::take(&mut entry.asked) && now < entry.until {
                self.order.push_back(key);
                continue;
            }
            if let Some(entry) = self.entries.remove(&key) {
                self.bytes -= cost(&key, &entry);
            }
            return;
        }
    }
}

fn cost(key: &Key, entry: &Entry) -> usize {
    OVERHEAD + key.name.len() + entry.bytes.len() + 2 * entry.ttls.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: usize) -> Key {
        Key { name: format!("n{index}").into_bytes().into(), kind: 1, class: 1, variant: 0 }
    }

    #[test]
    fn an_answer_is_fresh_then_stale_then_gone() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.put(key(1), b"one", &[], 10, now);
        let at = |cache: &mut Cache, seconds| cache.get(&key(1), now + Duration::from_secs(seconds)).map(|it| it.fresh);
        assert_eq!(at(&mut cache, 9), Some(true));
        assert_eq!(at(&mut cache, 10), Some(false));
        assert_eq!(at(&mut cache, 3609), Some(false));
        assert_eq!(at(&mut cache, 3610), None);
        cache.put(key(1), b"one", &[], 1_000_000, now);
        assert_eq!(at(&mut cache, 301), Some(false), "asked for anew, whatever its TTL");
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn entries_and_bytes_are_bounded_and_what_is_asked_for_stays() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for index in 0..2 * MOST_ENTRIES {
            cache.put(key(index), b"x", &[], 60, now);
            assert!(cache.get(&key(0), now).is_some(), "{index}");
        }
        assert_eq!((cache.len(), cache.order.len()), (MOST_ENTRIES, MOST_ENTRIES));
        let large = vec![0; 60_000];
        for index in 0..500 {
            cache.put(key(index), &large, &[], 60, now);
            cache.put(key(index), &large, &[], 60, now);
            assert!(cache.bytes <= MOST_BYTES);
        }
        let counted: usize = cache.entries.iter().map(|(key, entry)| cost(key, entry)).sum();
        assert_eq!(cache.bytes, counted);
        assert!(cache.get(&key(499), now).is_some());
    }
}
