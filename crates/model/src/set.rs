//! A set of resources.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    key::ResourceKey,
    parse::{Document, Origin},
    resource::Resource,
};

/// A set of resources, each under its key.
#[derive(Debug, Clone, Default)]
pub struct ResourceSet {
    entries: BTreeMap<ResourceKey, Member>,
}

/// A resource of a set.
#[derive(Debug, Clone)]
pub struct Member {
    /// The resource.
    pub resource: Resource,
    /// Where it came from. `None`: the store.
    pub origin: Option<Arc<Origin>>,
}

impl ResourceSet {
    /// Adds or replaces a resource that comes from the store.
    pub fn insert(&mut self, resource: Resource) -> Option<Member> {
        self.entries.insert(resource.key(), Member { resource, origin: None })
    }

    /// Adds or replaces a resource that was just read.
    pub fn insert_document(&mut self, document: Document) -> Option<Member> {
        let Document { resource, origin } = document;
        self.entries.insert(resource.key(), Member { resource, origin: Some(origin) })
    }

    /// Takes a resource out.
    pub fn remove(&mut self, key: &ResourceKey) -> Option<Member> {
        self.entries.remove(key)
    }

    /// One resource.
    pub fn get(&self, key: &ResourceKey) -> Option<&Member> {
        self.entries.get(key)
    }

    /// Every resource, in order of key.
    pub fn iter(&self) -> impl Iterator<Item = (&ResourceKey, &Member)> {
        self.entries.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl FromIterator<Resource> for ResourceSet {
    fn from_iter<I: IntoIterator<Item = Resource>>(resources: I) -> Self {
        let mut set = Self::default();
        for resource in resources {
            set.insert(resource);
        }
        set
    }
}
