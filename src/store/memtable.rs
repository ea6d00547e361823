//! The memtable: the newest content of each key that was committed and is not in a run yet.
//!
//! Keys are spread over shards, each with its own lock. A commit of several keys locks their shards in order and
//! unlocks them together, so a reader sees all of its changes or none.

use std::collections::{BinaryHeap, HashMap};
use std::hash::BuildHasher;

use super::format::frame::{Content, StoreKey};
use crate::sync::{RandomState, RwLock};
use crate::types::clock::NEVER;
use crate::types::record::{Now, Status};

/// Models check every shard, so they have few.
const SHARDS: usize = if cfg!(all(test, oncekey_shuttle)) { 2 } else { 64 };

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The frame that wrote it, or 0 if it has no frame.
    pub(crate) number: u64,
    /// The group of the frame.
    pub(crate) ticket: u64,
    /// `None`: the key is absent.
    pub(crate) content: Option<Content>,
}

type Shard = HashMap<StoreKey, Entry>;

#[derive(Debug)]
pub(crate) struct Memtable {
    /// Seeded at each open. Clients choose keys, and must not be able to choose their shards.
    hasher: RandomState,
    shards: Vec<RwLock<Shard>>,
}

impl Default for Memtable {
    fn default() -> Self {
        let shards = std::iter::repeat_with(RwLock::default).take(SHARDS).collect();
        Self { hasher: RandomState::default(), shards }
    }
}

impl Memtable {
    fn shard_of(&self, key: &StoreKey) -> usize {
        usize::try_from(self.hasher.hash_one(key.bytes()) >> 1).unwrap_or_default() % SHARDS
    }

    pub(crate) fn get(&self, key: &StoreKey) -> Option<Entry> {
        self.shards.get(self.shard_of(key))?.read().get(key).cloned()
    }

    pub(crate) fn contains(&self, key: &StoreKey) -> bool {
        self.shards.get(self.shard_of(key)).is_some_and(|shard| shard.read().contains_key(key))
    }

    /// Inserts the changes of a commit together. Calls `moved` before a reader can see any of them.
    pub(crate) fn put_all(&self, entries: impl Iterator<Item = (StoreKey, Entry)>, moved: impl FnOnce()) {
        let mut entries: Vec<_> = entries.map(|(key, entry)| (self.shard_of(&key), key, entry)).collect();
        // Every commit locks the shards in this order, so two commits cannot deadlock.
        entries.sort_by_key(|(shard, ..)| *shard);
        let mut locked: Vec<(usize, _)> = Vec::with_capacity(entries.len().min(SHARDS));
        let mut replaced = Vec::with_capacity(entries.len());
        for (at, key, entry) in entries {
            if locked.last().is_none_or(|(last, _)| *last != at) {
                locked.extend(self.shards.get(at).map(|shard| (at, shard.write())));
            }
            if let Some((_, shard)) = locked.last_mut() {
                replaced.push(shard.insert(key, entry));
            }
        }
        moved();
        // Unlock first: dropping the replaced contents takes time.
        drop(locked);
        drop(replaced);
    }

    /// Returns the contents written by frames up to this one, in key order.
    pub(crate) fn up_to(&self, number: u64) -> Vec<(StoreKey, Entry)> {
        self.sorted(|_, entry| entry.number <= number, |key, entry| (key.clone(), entry.clone()), |(key, _)| key)
    }

    /// Returns all contents, in no particular order.
    pub(crate) fn unsorted(&self) -> Vec<(StoreKey, Entry)> {
        let mut found = Vec::with_capacity(self.len());
        for shard in &self.shards {
            found.extend(shard.read().iter().map(|(key, entry)| (key.clone(), entry.clone())));
        }
        found
    }

    /// Removes contents that are in a run now. Newer contents stay.
    pub(crate) fn remove_flushed<'a>(&self, flushed: impl Iterator<Item = (&'a StoreKey, u64)>) {
        for (key, number) in flushed {
            let Some(shard) = self.shards.get(self.shard_of(key)) else { continue };
            let mut shard = shard.write();
            let is_same = shard.get(key).is_some_and(|entry| entry.number == number);
            let removed = if is_same { shard.remove_entry(key) } else { None };
            drop(shard);
            drop(removed);
        }
    }

    /// Returns the first keys at or after `from` and before `end`.
    pub(crate) fn keys(&self, from: &StoreKey, end: Option<&StoreKey>, limit: usize) -> Vec<StoreKey> {
        self.keys_where(from, end, limit, |_| true)
    }

    /// Returns keys as [`keys`](Self::keys) does, but only of records in progress, released or interrupted.
    pub(crate) fn unfinished(&self, from: &StoreKey, end: Option<&StoreKey>, limit: usize) -> Vec<StoreKey> {
        self.keys_where(from, end, limit, |entry| {
            let record = entry.content.as_ref().and_then(Content::record);
            record.is_some_and(|stored| !matches!(stored.state, Status::Succeeded | Status::Failed))
        })
    }

    fn keys_where(
        &self,
        from: &StoreKey,
        end: Option<&StoreKey>,
        limit: usize,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Vec<StoreKey> {
        let is_wanted =
            |(key, entry): &(&StoreKey, &Entry)| *key >= from && end.is_none_or(|end| *key < end) && wanted(entry);
        // When there are too many, the greatest key is removed first.
        let mut found = BinaryHeap::new();
        for shard in &self.shards {
            for (key, _) in shard.read().iter().filter(is_wanted) {
                if found.len() < limit {
                    found.push(key.clone());
                } else if let Some(mut greatest) = found.peek_mut().filter(|greatest| key < &**greatest) {
                    *greatest = key.clone();
                }
            }
        }
        found.into_sorted_vec()
    }

    /// Returns all keys in order. The flag is false for a key that is absent.
    pub(crate) fn all(&self) -> Vec<(StoreKey, bool)> {
        self.sorted(|_, _| true, |key, entry| (key.clone(), entry.content.is_some()), |(key, _)| key)
    }

    fn sorted<R>(
        &self,
        wanted: impl Fn(&StoreKey, &Entry) -> bool,
        take: impl Fn(&StoreKey, &Entry) -> R,
        key_of: impl Fn(&R) -> &StoreKey,
    ) -> Vec<R> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.read();
            found.extend(shard.iter().filter(|(key, entry)| wanted(key, entry)).map(|(key, entry)| take(key, entry)));
        }
        found.sort_unstable_by(|a, b| key_of(a).cmp(key_of(b)));
        found
    }

    /// Returns the earliest store time at which one of its records expires, or [`NEVER`] if none does.
    pub(crate) fn earliest_expiry(&self, now: &Now) -> u64 {
        let of_entry = |entry: &Entry| {
            let record = entry.content.as_ref().and_then(Content::record);
            record.map_or(NEVER, |stored| stored.expires_at(now))
        };
        let of_shard = |shard: &RwLock<Shard>| shard.read().values().map(of_entry).min().unwrap_or(NEVER);
        self.shards.iter().map(of_shard).min().unwrap_or(NEVER)
    }

    pub(crate) fn clear(&self) {
        self.shards.iter().for_each(|shard| shard.write().clear());
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }
}

#[cfg(all(test, not(oncekey_shuttle)))]
mod tests {
    use super::*;
    use crate::types::value::Value;

    fn key(name: u32) -> StoreKey {
        StoreKey::row("t", &name.to_be_bytes())
    }

    fn entry(number: u64) -> Entry {
        Entry { number, ticket: 1, content: Some(Content::Row(Value::from("x"))) }
    }

    #[test]
    fn up_to_returns_entries_of_all_shards_in_key_order_up_to_a_frame() {
        let memtable = Memtable::default();
        for name in (0..300).rev() {
            memtable.put_all(std::iter::once((key(name), entry(u64::from(name)))), || ());
        }
        let taken: Vec<_> = memtable.up_to(99).into_iter().map(|(key, entry)| (key, entry.number)).collect();
        assert_eq!(taken, (0..100).map(|name| (key(name), u64::from(name))).collect::<Vec<_>>());
        assert_eq!(memtable.keys(&key(7), Some(&key(250)), 3), [key(7), key(8), key(9)]);
        assert_eq!(memtable.keys(&key(298), None, 10), [key(298), key(299)]);
    }

    #[test]
    fn an_entry_written_again_during_a_flush_stays() {
        let memtable = Memtable::default();
        memtable.put_all([(key(1), entry(1)), (key(2), entry(1))].into_iter(), || ());
        let taken = memtable.up_to(1);
        memtable.put_all(std::iter::once((key(1), entry(2))), || ());
        memtable.remove_flushed(taken.iter().map(|(key, entry)| (key, entry.number)));
        assert_eq!(memtable.all(), [(key(1), true)]);
    }
}
