//! Who is interested in one thing, and because of which names.
//!
//! A list and no map of maps: most things interest few sessions, each because of one name, and a list is what that costs
//! least. It is in order of session, so that the newest, which subscribe most, are added at its end.

use std::{ops::Range, sync::Arc};

use weft_xds::resource::ResourceType;

/// The sessions that one interest has. Empty is not kept.
#[derive(Debug, Default)]
pub(super) struct Interested(Vec<One>);

/// A name that a session subscribed to.
#[derive(Debug)]
pub(super) struct One {
    /// Id of the session.
    pub session: u64,
    /// Type of the resource.
    pub ty: ResourceType,
    /// Name of the resource.
    pub name: Arc<str>,
}

impl Interested {
    /// Adds a name of a session, which is kept once.
    pub fn add(&mut self, session: u64, ty: ResourceType, name: &Arc<str>) {
        let its = self.of(session);
        if self.0[its.clone()].iter().any(|it| it.ty == ty && it.name == *name) {
            return;
        }
        if self.0.is_empty() {
            // Else there would be room for four.
            self.0.reserve_exact(1);
        }
        self.0.insert(its.end, One { session, ty, name: name.clone() });
    }

    /// Drops a name of a session; whether the session has others here.
    pub fn drop_name(&mut self, session: u64, ty: ResourceType, name: &str) -> bool {
        let its = self.of(session);
        let found = self.0[its.clone()].iter().position(|it| it.ty == ty && *it.name == *name);
        if let Some(at) = found {
            self.0.remove(its.start + at);
        }
        its.len() > usize::from(found.is_some())
    }

    /// Drops all of a session.
    pub fn drop_session(&mut self, session: u64) {
        let its = self.of(session);
        self.0.drain(its);
    }

    /// Whether nobody is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in order of session.
    pub fn iter(&self) -> std::slice::Iter<'_, One> {
        self.0.iter()
    }

    /// Where a session's names are.
    fn of(&self, session: u64) -> Range<usize> {
        let start = self.0.partition_point(|it| it.session < session);
        let length = self.0[start..].iter().take_while(|it| it.session == session).count();
        start..start + length
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_of_sessions_and_names(ops in prop::collection::vec((0u8..4, 0u64..5, 0usize..2, 0u8..3), 0..100)) {
            let mut interested = Interested::default();
            let mut model = BTreeSet::new();
            for (op, session, ty, name) in ops {
                let (ty, name) = (ResourceType::ALL[ty], Arc::<str>::from(format!("name-{name}")));
                match op {
                    0..2 => {
                        interested.add(session, ty, &name);
                        model.insert((session, ty, name));
                    }
                    2 => {
                        let left = interested.drop_name(session, ty, &name);
                        model.remove(&(session, ty, name));
                        prop_assert_eq!(left, model.iter().any(|it| it.0 == session));
                    }
                    _ => {
                        interested.drop_session(session);
                        model.retain(|it| it.0 != session);
                    }
                }
                let kept: Vec<_> = interested.iter().map(|it| (it.session, it.ty, it.name.clone())).collect();
                prop_assert!(kept.is_sorted_by_key(|it| it.0));
                prop_assert_eq!(kept.len(), model.len());
                prop_assert_eq!(kept.into_iter().collect::<BTreeSet<_>>(), model.clone());
                prop_assert_eq!(interested.is_empty(), model.is_empty());
            }
        }
    }
}
