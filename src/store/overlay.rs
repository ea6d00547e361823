//! What was committed and sled does not have yet: the newest content of each key.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::format::frame::{Content, StoreKey};
use crate::sync::RwLock;

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The frame that wrote it.
    pub(crate) number: u64,
    /// The group that the frame is in.
    pub(crate) ticket: u64,
    /// `None` is absent.
    pub(crate) content: Option<Content>,
}

#[derive(Debug, Default)]
pub(crate) struct Overlay(RwLock<BTreeMap<StoreKey, Entry>>);

impl Overlay {
    pub(crate) fn get(&self, key: &StoreKey) -> Option<Entry> {
        self.0.read().get(key).cloned()
    }

    pub(crate) fn contains(&self, key: &StoreKey) -> bool {
        self.0.read().contains_key(key)
    }

    /// Puts all of a commit at once. `moved` is run before anyone can see a part of it.
    pub(crate) fn put_all(&self, entries: impl Iterator<Item = (StoreKey, Entry)>, moved: impl FnOnce()) {
        let mut map = self.0.write();
        map.extend(entries);
        moved();
    }

    /// sled has what that frame wrote; something newer stays.
    pub(crate) fn drop_applied(&self, key: &StoreKey, number: u64) {
        let mut map = self.0.write();
        if map.get(key).is_some_and(|entry| entry.number == number) {
            map.remove(key);
        }
    }

    /// The first keys at or behind `from`, and before `end`.
    pub(crate) fn keys(&self, from: &StoreKey, end: Option<&StoreKey>, limit: usize) -> Vec<StoreKey> {
        if end.is_some_and(|end| end <= from) {
            return Vec::new();
        }
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        let map = self.0.read();
        map.range((Bound::Included(from), end)).take(limit).map(|(key, _)| key.clone()).collect()
    }

    pub(crate) fn clear(&self) {
        self.0.write().clear();
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.read().len()
    }
}
