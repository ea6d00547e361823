//! An index of the unfinished records in runs: those in progress, released or interrupted, by key and by expiry. In
//! memory only, rebuilt at each open.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use parking_lot::Mutex;

use crate::store::format::frame::StoreKey;
use crate::types::clock::NEVER;
use crate::types::record::{Lifetime, Now, Status};

#[derive(Debug, Default)]
pub(crate) struct Unfinished(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The records, with the store time at which each expires.
    records: BTreeMap<StoreKey, (Lifetime, u64)>,
    /// The records that have an expiry, the earliest first.
    by_expiry: BTreeSet<(u64, StoreKey)>,
}

impl State {
    fn is_current(&self, key: &StoreKey, lifetime: &Lifetime) -> bool {
        self.records.get(key).is_some_and(|(found, _)| found == lifetime)
    }

    fn remove(&mut self, key: &StoreKey) {
        if let Some((key, (_, expires))) = self.records.remove_entry(key) {
            if expires != NEVER {
                self.by_expiry.remove(&(expires, key));
            }
        }
    }
}

impl Unfinished {
    /// Updates the index after a run was written. `None` means that the run has the key as finished or removed.
    pub(crate) fn update<'a>(&self, found: impl Iterator<Item = (&'a StoreKey, Option<Lifetime>)>, now: &Now) {
        let mut state = self.0.lock();
        for (key, lifetime) in found {
            state.remove(key);
            if let Some(lifetime) = lifetime.filter(Lifetime::is_unfinished) {
                let expires = lifetime.expires_at(now);
                state.records.insert(key.clone(), (lifetime, expires));
                if expires != NEVER {
                    state.by_expiry.insert((expires, key.clone()));
                }
            }
        }
    }

    /// True if the runs still have the record of this key as it was found.
    pub(crate) fn is_current(&self, key: &StoreKey, lifetime: &Lifetime) -> bool {
        self.0.lock().is_current(key, lifetime)
    }

    /// Removes those of these records that are unchanged: a flush may have written newer contents meanwhile.
    pub(crate) fn remove(&self, found: &[(StoreKey, Lifetime)]) {
        let mut state = self.0.lock();
        for (key, lifetime) in found {
            if state.is_current(key, lifetime) {
                state.remove(key);
            }
        }
    }

    /// Returns the first keys at or after `from` and before `end`.
    pub(crate) fn keys(&self, from: &StoreKey, end: Option<&StoreKey>, limit: usize) -> Vec<StoreKey> {
        if end.is_some_and(|end| end <= from) {
            return Vec::new();
        }
        let range = (Bound::Included(from), end.map_or(Bound::Unbounded, Bound::Excluded));
        self.0.lock().records.range(range).take(limit).map(|(key, _)| key.clone()).collect()
    }

    /// Returns the earliest store time at which a record expires, or [`NEVER`] if none does.
    pub(crate) fn earliest_expiry(&self) -> u64 {
        self.0.lock().by_expiry.first().map_or(NEVER, |(expires, _)| *expires)
    }

    /// Returns at most `limit` expired records.
    pub(crate) fn expired(&self, now: &Now, limit: usize) -> Vec<(StoreKey, Lifetime)> {
        let state = self.0.lock();
        let expired = state.by_expiry.iter().take_while(|(expires, _)| *expires <= now.store).take(limit);
        expired.filter_map(|(_, key)| Some((key.clone(), state.records.get(key)?.0))).collect()
    }

    /// Returns the number of interrupted records that have not expired.
    pub(crate) fn count_interrupted(&self, now: &Now) -> u64 {
        let state = self.0.lock();
        let is_interrupted = |(lifetime, expires): &&(Lifetime, u64)| {
            lifetime.status(now) == Status::Interrupted && *expires > now.store
        };
        state.records.values().filter(is_interrupted).count() as u64
    }
}
