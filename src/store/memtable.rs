//! The memtable: the newest content of each key that was committed and is not in a run yet.
//!
//! Keys are spread over shards, each with its own lock. A commit of several keys locks their shards in order and
//! unlocks them together, so a reader sees all of its changes or none. A shard is ordered, and so is the set of its
//! unfinished records, so a listing visits about as many keys as it returns.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::hash::BuildHasher;
use std::ops::Bound;

use super::format::frame::{Content, StoreKey};
use crate::sync::{Mutex, MutexGuard, RandomState, RwLock};
use crate::types::clock::NEVER;
use crate::types::record::Now;

/// The number of shards. The models check every shard, so they have few.
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

/// The hash of a key, which selects the shard of the key and its version counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyHash(u64);

impl KeyHash {
    /// Returns a number that spreads keys evenly over `slots` slots.
    pub(crate) fn slot(self, slots: usize) -> usize {
        self.number() % slots
    }

    pub(crate) fn number(self) -> usize {
        usize::try_from(self.0 >> 1).unwrap_or_default()
    }
}

/// The keys to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    All,
    Unfinished,
}

#[derive(Debug, Default)]
struct Shard {
    entries: BTreeMap<StoreKey, Entry>,
    /// The keys of records in progress, released or interrupted.
    unfinished: BTreeSet<StoreKey>,
    /// The contents at the start of a snapshot of those keys that have changed since. `None` unless a snapshot has
    /// still to read this shard.
    saved: Option<BTreeMap<StoreKey, Option<Entry>>>,
}

impl Shard {
    /// Saves the content that the snapshot must find. Called before each change of a key.
    fn save(&mut self, key: &StoreKey) {
        if let Some(saved) = &mut self.saved {
            if !saved.contains_key(key) {
                saved.insert(key.clone(), self.entries.get(key).cloned());
            }
        }
    }

    fn insert(&mut self, key: StoreKey, entry: Entry) -> Option<Entry> {
        self.save(&key);
        if key.is_record() {
            let record = entry.content.as_ref().and_then(Content::record);
            if record.is_some_and(|stored| stored.lifetime().is_unfinished()) {
                self.unfinished.insert(key.clone());
            } else {
                self.unfinished.remove(&key);
            }
        }
        self.entries.insert(key, entry)
    }

    fn remove(&mut self, key: &StoreKey) -> Option<(StoreKey, Entry)> {
        self.save(key);
        self.unfinished.remove(key);
        self.entries.remove_entry(key)
    }

    fn keys(&self, listed: Listed, range: (Bound<&StoreKey>, Bound<&StoreKey>), limit: usize) -> Vec<StoreKey> {
        match listed {
            Listed::All => some(self.entries.range(range).map(|(key, _)| key), limit),
            Listed::Unfinished => some(self.unfinished.range(range), limit),
        }
    }
}

fn some<'a>(keys: impl Iterator<Item = &'a StoreKey>, limit: usize) -> Vec<StoreKey> {
    #[cfg(test)]
    let keys = keys.inspect(|_| VISITED.set(VISITED.get() + 1));
    keys.take(limit).cloned().collect()
}

#[cfg(test)]
thread_local! {
    /// The number of keys that listings of this thread have visited.
    static VISITED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[derive(Debug)]
pub(crate) struct Memtable {
    /// Seeded at each open. Clients choose keys, and must not be able to choose their shards.
    hasher: RandomState,
    shards: Vec<RwLock<Shard>>,
    /// Held by a snapshot, of which there is one at a time.
    snapshot: Mutex<()>,
}

/// All contents as they were when the snapshot was started, while commits and flushes go on. Its drop ends it.
#[derive(Debug)]
pub(crate) struct Snapshot<'a> {
    memtable: &'a Memtable,
    _alone: MutexGuard<'a, ()>,
}

impl Default for Memtable {
    fn default() -> Self {
        let shards = std::iter::repeat_with(RwLock::default).take(SHARDS).collect();
        Self { hasher: RandomState::default(), shards, snapshot: Mutex::default() }
    }
}

impl Snapshot<'_> {
    /// Starts the snapshot. Called under the commit lock, so that it shows the contents after one frame. Takes a time
    /// that does not depend on the number of contents.
    pub(crate) fn start(&self) {
        for shard in &self.memtable.shards {
            shard.write().saved = Some(BTreeMap::new());
        }
    }

    /// Returns the contents at the start, in no particular order. Locks one shard at a time, so a commit waits at most
    /// for the copy of one.
    pub(crate) fn read(self) -> Vec<(StoreKey, Entry)> {
        let mut found = Vec::with_capacity(self.memtable.len());
        for shard in &self.memtable.shards {
            let mut shard = shard.write();
            let saved = shard.saved.take().unwrap_or_default();
            let unchanged = shard.entries.iter().filter(|(key, _)| !saved.contains_key(key));
            found.extend(unchanged.map(|(key, entry)| (key.clone(), entry.clone())));
            drop(shard);
            found.extend(saved.into_iter().filter_map(|(key, entry)| Some((key, entry?))));
        }
        found
    }
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        for shard in &self.memtable.shards {
            shard.write().saved = None;
        }
    }
}

impl Memtable {
    pub(crate) fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash(self.hasher.hash_one(key))
    }

    fn shard(&self, key: &StoreKey) -> Option<&RwLock<Shard>> {
        self.shards.get(self.hash(key.bytes()).slot(SHARDS))
    }

    pub(crate) fn get(&self, hash: KeyHash, key: &StoreKey) -> Option<Entry> {
        self.shards.get(hash.slot(SHARDS))?.read().entries.get(key).cloned()
    }

    pub(crate) fn contains(&self, key: &StoreKey) -> bool {
        self.shard(key).is_some_and(|shard| shard.read().entries.contains_key(key))
    }

    /// Inserts one change. Calls `mark_stale` before a reader can see the change.
    pub(crate) fn put(&self, hash: KeyHash, key: StoreKey, entry: Entry, mark_stale: impl FnOnce()) {
        if let Some(shard) = self.shards.get(hash.slot(SHARDS)) {
            let mut shard = shard.write();
            let replaced = shard.insert(key, entry);
            mark_stale();
            // Unlock first: dropping the replaced content takes time.
            drop(shard);
            drop(replaced);
        }
    }

    /// Inserts the changes of a commit together. Calls `mark_stale` before a reader can see any of them.
    pub(crate) fn put_all(&self, entries: impl Iterator<Item = (StoreKey, Entry)>, mark_stale: impl FnOnce()) {
        let mut entries: Vec<_> =
            entries.map(|(key, entry)| (self.hash(key.bytes()).slot(SHARDS), key, entry)).collect();
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
        mark_stale();
        // Unlock first: dropping the replaced contents takes time.
        drop(locked);
        drop(replaced);
    }

    /// Returns the contents written by frames up to this one, in key order.
    pub(crate) fn up_to(&self, number: u64) -> Vec<(StoreKey, Entry)> {
        self.sorted(|_, entry| entry.number <= number, |key, entry| (key.clone(), entry.clone()), |(key, _)| key)
    }

    /// Returns a snapshot that is not started yet. Waits for another one to end.
    pub(crate) fn snapshot(&self) -> Snapshot<'_> {
        Snapshot { memtable: self, _alone: self.snapshot.lock() }
    }

    /// Removes a content that is in a run now. A newer content stays.
    pub(crate) fn remove_flushed(&self, key: &StoreKey, number: u64) {
        let Some(shard) = self.shard(key) else { return };
        let mut shard = shard.write();
        let is_same = shard.entries.get(key).is_some_and(|entry| entry.number == number);
        let removed = if is_same { shard.remove(key) } else { None };
        drop(shard);
        drop(removed);
    }

    /// Returns the first keys at or after `from` and before `end`.
    pub(crate) fn keys(&self, from: &StoreKey, end: Option<&StoreKey>, limit: usize) -> Vec<StoreKey> {
        self.first(Listed::All, from, end, limit)
    }

    /// Returns keys as [`keys`](Self::keys) does, but only of records in progress, released or interrupted.
    pub(crate) fn unfinished(&self, from: &StoreKey, end: Option<&StoreKey>, limit: usize) -> Vec<StoreKey> {
        self.first(Listed::Unfinished, from, end, limit)
    }

    fn first(&self, listed: Listed, from: &StoreKey, end: Option<&StoreKey>, limit: usize) -> Vec<StoreKey> {
        if limit == 0 || end.is_some_and(|end| end <= from) {
            return Vec::new();
        }
        // Keys are spread evenly, so most shards are read once.
        let (at_once, end) = (limit / SHARDS + 1, end.map_or(Bound::Unbounded, Bound::Excluded));
        let source = |shard| Source {
            shard,
            from: Bound::Included(from.clone()),
            is_over: false,
            ahead: Vec::new().into_iter(),
        };
        let mut sources: Vec<Source<'_>> = self.shards.iter().map(source).collect();
        let mut next = |nth: usize| Some(Reverse((sources.get_mut(nth)?.next(listed, end, at_once)?, nth)));
        let mut heads: BinaryHeap<_> = (0..SHARDS).filter_map(&mut next).collect();
        let mut found = Vec::new();
        while let Some(Reverse((key, nth))) = heads.pop() {
            found.push(key);
            if found.len() == limit {
                break;
            }
            heads.extend(next(nth));
        }
        found
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
            let entries = shard.entries.iter().filter(|(key, entry)| wanted(key, entry));
            found.extend(entries.map(|(key, entry)| take(key, entry)));
        }
        // The parts of the shards are sorted already. A stable sort only merges them.
        found.sort_by(|a, b| key_of(a).cmp(key_of(b)));
        found
    }

    /// Returns the earliest store time at which a record in the memtable expires, or [`NEVER`] if none does.
    pub(crate) fn earliest_expiry(&self, now: &Now) -> u64 {
        let of_entry = |entry: &Entry| {
            let record = entry.content.as_ref().and_then(Content::record);
            record.map_or(NEVER, |stored| stored.expires_at(now))
        };
        let of_shard = |shard: &RwLock<Shard>| shard.read().entries.values().map(of_entry).min().unwrap_or(NEVER);
        self.shards.iter().map(of_shard).min().unwrap_or(NEVER)
    }

    pub(crate) fn clear(&self) {
        self.shards.iter().for_each(|shard| *shard.write() = Shard::default());
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().entries.len()).sum()
    }
}

/// The keys of one shard, read some at a time.
struct Source<'a> {
    shard: &'a RwLock<Shard>,
    /// The start of the next read.
    from: Bound<StoreKey>,
    is_over: bool,
    ahead: std::vec::IntoIter<StoreKey>,
}

impl Source<'_> {
    fn next(&mut self, listed: Listed, end: Bound<&StoreKey>, at_once: usize) -> Option<StoreKey> {
        if self.ahead.len() == 0 && !self.is_over {
            let keys = self.shard.read().keys(listed, (self.from.as_ref(), end), at_once);
            self.is_over = keys.len() < at_once;
            if let Some(last) = keys.last() {
                self.from = Bound::Excluded(last.clone());
            }
            self.ahead = keys.into_iter();
        }
        self.ahead.next()
    }
}

#[cfg(all(test, not(oncekey_shuttle)))]
mod tests {
    use super::*;
    use crate::store::format::record::tests::sample;
    use crate::types::record::{Status, StoredRecord};
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

    fn sorted(snapshot: Snapshot<'_>) -> Vec<(StoreKey, u64)> {
        let mut found: Vec<_> = snapshot.read().into_iter().map(|(key, entry)| (key, entry.number)).collect();
        found.sort();
        found
    }

    #[test]
    fn a_snapshot_has_the_contents_of_its_start_despite_later_commits_and_flushes() {
        let memtable = Memtable::default();
        let put = |name, number| memtable.put_all(std::iter::once((key(name), entry(number))), || ());
        (0..200).for_each(|name| put(name, 1));
        let expected: Vec<_> = (0..200).map(|name| (key(name), 1)).collect();
        let snapshot = memtable.snapshot();
        snapshot.start();
        // Changed twice, new, flushed, flushed and then written again.
        (0..50).for_each(|name| put(name, 2));
        (0..50).for_each(|name| put(name, 3));
        (200..300).for_each(|name| put(name, 2));
        let flushed: Vec<_> = (100..150).map(key).collect();
        for key in &flushed {
            memtable.remove_flushed(key, 1);
        }
        (120..130).for_each(|name| put(name, 4));
        assert_eq!(sorted(snapshot), expected);
        // The next one shows all of that, and one that is dropped leaves nothing.
        let second = memtable.snapshot();
        second.start();
        drop(second);
        let third = memtable.snapshot();
        third.start();
        assert_eq!(sorted(third).len(), memtable.len());
        assert!(memtable.shards.iter().all(|shard| shard.read().saved.is_none()));
        put(7, 9);
        assert!(memtable.shards.iter().all(|shard| shard.read().saved.is_none()));
    }

    #[test]
    fn an_entry_written_again_during_a_flush_stays() {
        let memtable = Memtable::default();
        memtable.put_all([(key(1), entry(1)), (key(2), entry(1))].into_iter(), || ());
        let taken = memtable.up_to(1);
        memtable.put_all(std::iter::once((key(1), entry(2))), || ());
        for (key, entry) in &taken {
            memtable.remove_flushed(key, entry.number);
        }
        assert_eq!(memtable.all(), [(key(1), true)]);
    }

    fn record(name: u32, state: Status) -> (StoreKey, Entry) {
        let content = Some(Content::Record(StoredRecord { state, ..sample() }.into()));
        (StoreKey::record("m", &name.to_be_bytes()), Entry { number: 1, ticket: 1, content })
    }

    #[test]
    fn a_listing_visits_as_many_keys_as_it_returns_and_one_more_for_each_shard() {
        let memtable = Memtable::default();
        memtable.put_all((0..20_000).map(|name| (key(name), entry(1))), || ());
        for limit in [1, 2, 100, 1_000] {
            let keys = memtable.keys(&key(9_000), None, limit);
            assert_eq!(keys, (9_000..).take(limit).map(key).collect::<Vec<_>>());
            // A shard that has more than its share of the keys is read several times.
            let visited = VISITED.take();
            assert!(visited <= 2 * limit + 2 * SHARDS, "{visited} keys for {limit}");
        }
        assert_eq!(memtable.keys(&key(9), Some(&key(10)), 1_000), [key(9)]);
        assert!(VISITED.take() <= SHARDS);
        assert!(memtable.keys(&key(9), Some(&key(8)), 9).is_empty() && memtable.keys(&key(9), None, 0).is_empty());
    }

    #[test]
    fn a_listing_of_unfinished_records_visits_no_finished_ones() {
        let memtable = Memtable::default();
        memtable.put_all((0..10_000).map(|name| record(name, Status::InProgress)), || ());
        memtable.put_all((0..10_000).filter(|name| name % 100 > 0).map(|name| record(name, Status::Succeeded)), || ());
        let from = StoreKey::first_record();
        let keys = memtable.unfinished(&from, None, 1_000);
        assert_eq!(keys, (0..10_000).step_by(100).map(|name| record(name, Status::InProgress).0).collect::<Vec<_>>());
        assert_eq!(VISITED.take(), 100);
        for key in &keys {
            memtable.remove_flushed(key, 1);
        }
        assert!(memtable.unfinished(&from, None, 1_000).is_empty());
        assert_eq!(memtable.len(), 9_900);
    }

    // With a plain checksum, clients could choose keys that share the version counter of a row, and starve its writers.
    #[test]
    fn each_memtable_hashes_keys_differently() {
        let (one, other) = (Memtable::default(), Memtable::default());
        let of = |memtable: &Memtable| (0..64).map(|name| memtable.hash(key(name).bytes())).collect::<Vec<_>>();
        assert_eq!(of(&one), of(&one));
        assert_ne!(of(&one), of(&other), "each open has its own seed");
    }
}
