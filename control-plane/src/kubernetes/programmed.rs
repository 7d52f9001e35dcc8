//! How long a refusal shows: what statuses say of refusals, so that a client which refuses now and then, or comes and
//! goes, costs a bounded number of writes. Pure: no clock.
//!
//! A refusal shows at once. It goes when nobody has refused the object for a while ([`HOLD`]); each time that it comes
//! back, that takes twice as long. A new version of the object ends it as soon as nobody refuses what is made of that.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::{Duration, Instant},
};

use weft_model::ResourceKey;

use super::blame::{Part, Refused};

/// What shows, of every object.
#[derive(Debug, Default)]
pub struct Refusals {
    parts: BTreeMap<Part, Shown>,
}

#[derive(Debug)]
struct Shown {
    /// What the status says; `None`: nothing any more, but that it did is remembered.
    text: Option<String>,
    /// When that became so.
    since: Instant,
    /// Since when nobody refuses it.
    free: Option<Instant>,
    /// How long nobody must have refused it.
    hold: Duration,
    /// It should say something else by now.
    stale: bool,
    /// Version of the object's spec.
    generation: i64,
}

impl Refusals {
    /// What the status of an object says of refusals; of a route, for one of its parents.
    pub fn of(&self, part: &Part) -> Option<&str> {
        self.parts.get(part)?.text.as_deref()
    }

    /// A status from before this process says so: it stays until the clients have had time to come back.
    pub fn found(&mut self, part: Part, text: &str, generation: i64, now: Instant) {
        let shown =
            Shown { text: Some(text.to_owned()), since: now, free: Some(now), hold: RETURN, stale: false, generation };
        self.parts.entry(part).or_insert(shown);
    }

    /// What is refused now. `generation`: of an object that is there.
    pub fn on(&mut self, mut refused: Refused, generation: impl Fn(&ResourceKey) -> Option<i64>, now: Instant) {
        self.parts.retain(|part, shown| {
            let Some(current) = generation(&part.object) else { return false };
            shown.on(refused.remove(part), current, now)
        });
        for (part, text) in refused {
            let Some(generation) = generation(&part.object) else { continue };
            if let Entry::Vacant(slot) = self.parts.entry(part) {
                slot.insert(Shown { text: Some(text), since: now, free: None, hold: HOLD, stale: false, generation });
            }
        }
    }

    /// When something is to be looked at although nothing came.
    pub fn due(&self) -> Option<Instant> {
        self.parts.values().filter_map(Shown::due).min()
    }
}

impl Shown {
    /// Whether it is still to be remembered.
    fn on(&mut self, refused: Option<String>, generation: i64, now: Instant) -> bool {
        if std::mem::replace(&mut self.generation, generation) != generation {
            // What was said was said of another version.
            self.hold = Duration::ZERO;
        }
        let waited = |since: Instant, hold: Duration| now.saturating_duration_since(since) >= hold;
        match (refused, &self.text) {
            (Some(text), None) => {
                let hold = (self.hold * 2).clamp(HOLD, LONGEST_HOLD);
                *self = Self { text: Some(text), since: now, free: None, hold, stale: false, generation };
            }
            (Some(text), Some(shown)) => {
                self.free = None;
                // Who refuses it, and how many, may change often.
                self.stale = text != *shown && !waited(self.since, self.hold);
                if text != *shown && !self.stale {
                    (self.text, self.since) = (Some(text), now);
                }
            }
            (None, Some(_)) => {
                self.stale = false;
                let free = *self.free.get_or_insert(now);
                if waited(free, self.hold) {
                    (self.text, self.since) = (None, now);
                }
            }
            (None, None) => return !waited(self.since, REMEMBERED.max(self.hold * 2)),
        }
        true
    }

    fn due(&self) -> Option<Instant> {
        match (&self.text, self.free) {
            (Some(_), Some(free)) => Some(free + self.hold),
            (Some(_), None) => self.stale.then(|| self.since + self.hold),
            (None, _) => None,
        }
    }
}

/// How long nobody must have refused an object until that is said. A client that lost its stream is back within it.
pub const HOLD: Duration = Duration::from_secs(10);
const LONGEST_HOLD: Duration = Duration::from_secs(600);
/// After a start of this process. Longer than the longest pause of a client between two tries.
const RETURN: Duration = Duration::from_secs(60);
/// How long it is remembered that an object was refused.
const REMEMBERED: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use weft_model::Kind;

    use super::*;

    fn part() -> Part {
        Part { object: ResourceKey::new(Kind::TrafficPolicy, "shop", "orders"), parent: None }
    }

    /// What shows, second by second, where `refused` says what is refused then.
    fn shown(seconds: u64, refused: impl Fn(u64) -> Option<&'static str>) -> Vec<(u64, Option<String>)> {
        let start = Instant::now();
        let mut refusals = Refusals::default();
        let mut turns: Vec<(u64, Option<String>)> = vec![(0, None)];
        for second in 0..seconds {
            let now = refused(second).map(|text| (part(), text.to_owned())).into_iter().collect();
            refusals.on(now, |_| Some(1), start + Duration::from_secs(second));
            let shows = refusals.of(&part()).map(str::to_owned);
            if turns.last().is_some_and(|(_, before)| *before != shows) {
                turns.push((second, shows));
            }
        }
        turns
    }

    #[test]
    fn a_refusal_shows_at_once_and_goes_when_it_was_gone_for_a_while() {
        let turns = shown(60, |second| (5..20).contains(&second).then_some("no"));
        assert_eq!(turns, [(0, None), (5, Some("no".to_owned())), (30, None)]);
        // A client that comes and goes is one that refuses.
        let turns = shown(600, |second| (second % 9 < 2).then_some("no"));
        assert_eq!(turns.len(), 1 + 1, "{turns:?}");
    }

    #[test]
    fn one_that_comes_back_again_and_again_costs_ever_less() {
        let turns = shown(24 * 3600, |second| (second % 30 < 5).then_some("no"));
        // Gone after ten seconds, then it has to be gone for twenty, and for forty it never is.
        assert_eq!(turns.len(), 1 + 5, "{turns:?}");
        // However long the period is.
        for period in [60, 300, 1200, 2000] {
            let turns = shown(24 * 3600, |second| (second % period < 5).then_some("no"));
            assert!(turns.len() < 150, "{period}: {}", turns.len());
        }
        // What it says changes no more often than that either.
        let texts = ["a", "b", "c", "d", "e"];
        let turns = shown(1000, |second| Some(texts[(second % 5) as usize]));
        assert!(turns.len() <= 102, "{}", turns.len());
    }

    #[test]
    fn a_new_version_is_judged_by_itself() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let refused = || Refused::from([(part(), "no".to_owned())]);
        let mut refusals = Refusals::default();
        refusals.on(refused(), |_| Some(1), at(0));
        assert_eq!((refusals.of(&part()), refusals.due()), (Some("no"), None));
        // It is still the old one that is refused.
        refusals.on(refused(), |_| Some(2), at(1));
        assert_eq!(refusals.of(&part()), Some("no"));
        refusals.on(Refused::new(), |_| Some(2), at(2));
        assert_eq!(refusals.of(&part()), None);
        // An object that is gone is forgotten.
        refusals.on(refused(), |_| Some(2), at(3));
        refusals.on(refused(), |_| None, at(4));
        assert!(refusals.parts.is_empty() && refusals.of(&part()).is_none());
    }

    #[test]
    fn it_says_when_to_look_again() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let refused = |text: &str| Refused::from([(part(), text.to_owned())]);
        let mut refusals = Refusals::default();
        refusals.on(refused("one"), |_| Some(1), at(0));
        refusals.on(refused("two"), |_| Some(1), at(3));
        assert_eq!((refusals.of(&part()), refusals.due()), (Some("one"), Some(at(10))));
        refusals.on(refused("two"), |_| Some(1), at(10));
        assert_eq!((refusals.of(&part()), refusals.due()), (Some("two"), None));
        refusals.on(Refused::new(), |_| Some(1), at(12));
        assert_eq!(refusals.due(), Some(at(22)));
        refusals.on(Refused::new(), |_| Some(1), at(22));
        assert_eq!((refusals.of(&part()), refusals.due()), (None, None));
        refusals.on(Refused::new(), |_| Some(1), at(700));
        assert!(refusals.parts.is_empty(), "after a while nothing is remembered");
    }

    #[test]
    fn what_an_earlier_process_said_stays_until_clients_can_be_back() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut refusals = Refusals::default();
        refusals.found(part(), "no", 1, at(0));
        refusals.on(Refused::new(), |_| Some(1), at(5));
        assert_eq!(refusals.of(&part()), Some("no"));
        refusals.on(Refused::new(), |_| Some(1), at(60));
        assert_eq!(refusals.of(&part()), None);
    }
}
