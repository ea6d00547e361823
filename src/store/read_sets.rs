//! The read sets of open transactions. A commit marks every read set that contains one of its keys.
//!
//! A transaction adds a key or range to its set before it reads it. A commit marks the sets before a reader can see its
//! changes. So everything in an unmarked set is still as it was read. The sets are exact: a commit of other keys marks
//! nothing, however many keys and commits there are.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;

use super::format::frame::StoreKey;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Mutex, RandomState};

/// The number of shards: enough that transactions rarely wait for the same lock. The models create a table for every
/// schedule, so theirs is small.
const SHARDS: usize = if cfg!(all(test, oncekey_shuttle)) { 2 } else { 64 };

/// The read sets of all open transactions.
#[derive(Debug)]
pub(crate) struct ReadSets {
    hasher: RandomState,
    shards: [Mutex<Readers>; SHARDS],
    ranges: Mutex<Vec<RangeRead>>,
    /// The number of keys and ranges in all sets. Raised before an entry is added and lowered after it is removed, so
    /// 0 means that no set has an entry.
    len: AtomicUsize,
}

type Readers = HashMap<StoreKey, Vec<Arc<Mark>>>;

/// A range that one transaction has read: the keys at or after `from` and before `end`.
#[derive(Debug)]
struct RangeRead {
    id: usize,
    from: StoreKey,
    end: Option<StoreKey>,
    mark: Arc<Mark>,
}

/// The mark of a read set, with the keys that have changed.
#[derive(Debug, Default)]
struct Mark {
    is_stale: AtomicBool,
    conflicts: Mutex<BTreeSet<StoreKey>>,
}

impl Mark {
    fn set(&self, conflict: StoreKey) {
        self.conflicts.lock().insert(conflict);
        self.is_stale.store(true, Ordering::Release);
    }
}

/// The keys and ranges that one run of a transaction has read. Its drop removes them.
#[derive(Debug)]
pub(crate) struct ReadSet {
    sets: Arc<ReadSets>,
    mark: Arc<Mark>,
    keys: HashSet<StoreKey>,
    /// The tables and managers of the ranges, by the ids of the ranges.
    ranges: Vec<StoreKey>,
}

impl Default for ReadSets {
    fn default() -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { hasher: RandomState::default(), shards, ranges: Mutex::default(), len: AtomicUsize::new(0) }
    }
}

impl ReadSets {
    fn shard(&self, key: &StoreKey) -> Option<&Mutex<Readers>> {
        let number = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64);
        self.shards.get(number.unwrap_or_default())
    }

    /// Marks every set that contains this key. Called before a reader can see its new content.
    pub(crate) fn mark(&self, key: &StoreKey) {
        // The caller holds the lock of the key's shard of the memtable. A transaction that adds the key after this
        // load reads that shard later, so it reads the new content.
        if self.len.load(Ordering::Acquire) == 0 {
            return;
        }
        if let Some(shard) = self.shard(key) {
            for reader in shard.lock().get(key).into_iter().flatten() {
                reader.set(key.clone());
            }
        }
        for range in self.ranges.lock().iter() {
            if range.from <= *key && range.end.as_ref().is_none_or(|end| key < end) {
                // The conflict is the whole container, because the next commit may change another key of the range.
                range.mark.set(key.container());
            }
        }
    }
}

impl ReadSet {
    pub(crate) fn new(sets: &Arc<ReadSets>) -> Self {
        Self { sets: Arc::clone(sets), mark: Arc::default(), keys: HashSet::new(), ranges: Vec::new() }
    }

    /// Adds a key. Called before the key is read.
    pub(crate) fn add(&mut self, key: &StoreKey) {
        if self.keys.insert(key.clone()) {
            self.sets.len.fetch_add(1, Ordering::AcqRel);
            if let Some(shard) = self.sets.shard(key) {
                shard.lock().entry(key.clone()).or_default().push(Arc::clone(&self.mark));
            }
        }
    }

    /// Adds a range and returns its id. Called before the range is read.
    pub(crate) fn add_range(&mut self, from: &StoreKey, end: Option<&StoreKey>) -> usize {
        let (id, mark) = (self.ranges.len(), Arc::clone(&self.mark));
        self.sets.len.fetch_add(1, Ordering::AcqRel);
        self.ranges.push(from.container());
        self.sets.ranges.lock().push(RangeRead { id, from: from.clone(), end: end.cloned(), mark });
        id
    }

    /// Moves the end of a range: outwards before more of it is read, and back to the part that was read.
    pub(crate) fn end_range_at(&self, id: usize, end: Option<&StoreKey>) {
        let mut ranges = self.sets.ranges.lock();
        let mine = |range: &&mut RangeRead| range.id == id && Arc::ptr_eq(&range.mark, &self.mark);
        if let Some(range) = ranges.iter_mut().find(mine) {
            range.end = end.cloned();
        }
    }

    /// True if everything that was read is unchanged.
    pub(crate) fn is_current(&self) -> bool {
        !self.mark.is_stale.load(Ordering::Acquire)
    }

    /// Returns the keys that have changed, and the tables and managers of ranges in which a key has changed.
    pub(crate) fn conflicts(&self) -> BTreeSet<StoreKey> {
        self.mark.conflicts.lock().clone()
    }

    /// Returns all keys that were read, and the tables and managers of the ranges.
    pub(crate) fn all(&self) -> impl Iterator<Item = &StoreKey> {
        self.keys.iter().chain(&self.ranges)
    }
}

impl Drop for ReadSet {
    fn drop(&mut self) {
        for key in &self.keys {
            let Some(shard) = self.sets.shard(key) else { continue };
            let mut readers = shard.lock();
            if let Some(marks) = readers.get_mut(key) {
                marks.retain(|mark| !Arc::ptr_eq(mark, &self.mark));
                if marks.is_empty() {
                    readers.remove(key);
                }
            }
        }
        if !self.ranges.is_empty() {
            self.sets.ranges.lock().retain(|range| !Arc::ptr_eq(&range.mark, &self.mark));
        }
        self.sets.len.fetch_sub(self.keys.len() + self.ranges.len(), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(table: &str, key: &str) -> StoreKey {
        StoreKey::row(table, key.as_bytes())
    }

    #[test]
    fn a_change_marks_only_the_sets_that_contain_its_key() {
        let sets = Arc::new(ReadSets::default());
        let (mut one, mut two, mut other) = (ReadSet::new(&sets), ReadSet::new(&sets), ReadSet::new(&sets));
        for set in [&mut one, &mut two] {
            set.add(&row("t", "a"));
            set.add(&row("t", "a"));
        }
        (0..1000).for_each(|number| other.add(&row("t", &format!("b-{number}"))));
        (0..100_000).for_each(|number| sets.mark(&row("t", &format!("c-{number}"))));
        assert!(one.is_current() && two.is_current() && other.is_current());
        sets.mark(&row("t", "a"));
        assert!(!one.is_current() && !two.is_current() && other.is_current());
        assert_eq!(one.conflicts(), BTreeSet::from([row("t", "a")]));
        assert_eq!(one.all().count(), 1);
        drop((one, two));
        assert!(other.is_current(), "the marks of dropped sets do not reach it");
        drop(other);
        assert!(sets.shards.iter().all(|shard| shard.lock().is_empty()), "forgotten");
        assert_eq!(sets.len.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_range_is_marked_from_its_start_to_its_end() {
        let sets = Arc::new(ReadSets::default());
        let mut set = ReadSet::new(&sets);
        let id = set.add_range(&row("t", "b"), Some(&row("t", "d")));
        for (outside, why) in [(row("t", "a"), "before"), (row("t", "d"), "its end"), (row("u", "c"), "another table")]
        {
            sets.mark(&outside);
            assert!(set.is_current(), "{why}");
        }
        set.end_range_at(id, Some(&row("t", "c")));
        sets.mark(&row("t", "c"));
        assert!(set.is_current(), "the change is after the end of the range");
        set.end_range_at(id, None);
        sets.mark(&row("t", "c"));
        assert!(!set.is_current());
        assert_eq!(set.conflicts(), BTreeSet::from([row("t", "")]));
        drop(set);
        assert!(sets.ranges.lock().is_empty(), "forgotten");
    }
}
