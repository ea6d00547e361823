//! Records that were read from the runs a short time ago, so that replays of hot keys need not read a block.
//!
//! An entry holds the version of its key at the time of the read. A commit moves the version, so an entry never hides
//! newer content, and a change of a key removes no entry.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::format::frame::StoreKey;
use super::format::record;
use super::versions::ReadVersion;
use crate::types::record::StoredRecord;

/// The estimated bytes of an entry beside its key and the largest form of its record.
const OVERHEAD: u64 = 512;
/// The expected size of an entry. The cache allocates its tables by it.
const USUAL: u64 = 1024;

#[derive(Clone, Debug)]
struct Entry {
    seen: ReadVersion,
    record: Arc<StoredRecord>,
}

#[derive(Clone, Debug)]
struct Bytes;

impl Weighter<StoreKey, Entry> for Bytes {
    fn weight(&self, key: &StoreKey, entry: &Entry) -> u64 {
        OVERHEAD + (key.bytes().len() + record::max_encoded_len(&entry.record)) as u64
    }
}

#[derive(Debug)]
pub(super) struct RecordCache(Cache<StoreKey, Entry, Bytes>);

impl RecordCache {
    /// Creates a cache of about `capacity` bytes.
    pub(super) fn new(capacity: u64) -> Self {
        let entries = usize::try_from(capacity / USUAL).unwrap_or(usize::MAX);
        Self(Cache::with_weighter(entries, capacity, Bytes))
    }

    /// Returns the record of a key whose version is `seen`, if it is cached.
    pub(super) fn get(&self, key: &StoreKey, seen: ReadVersion) -> Option<Arc<StoredRecord>> {
        self.0.get(key).filter(|entry| entry.seen == seen).map(|entry| entry.record)
    }

    /// Adds a whole record that was read from the runs after its version was `seen`.
    pub(super) fn insert(&self, key: &StoreKey, seen: ReadVersion, record: &Arc<StoredRecord>) {
        self.0.insert(key.clone(), Entry { seen, record: Arc::clone(record) });
    }
}
