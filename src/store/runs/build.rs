//! Builds a run: turns entries in key order into blocks.

use std::sync::Arc;

use crate::store::format::block::{self, CONTENT, FirstKeys, Index, Kind, Place, entry_len, push_entry};
use crate::store::format::filter::{Filter, Probe};
use crate::store::format::frame::StoreKey;
use crate::store::format::list::{Contents, FIRST_INDEX, RunInfo, Start};
use crate::store::format::{corrupt, record};
use crate::store::runs::Run;
use crate::store::sled::tables::Keyed;
use crate::types::clock::NEVER;
use crate::types::error::Result;

/// The number of expiry times that are sampled, to find when half of a run has expired.
const SAMPLES: usize = 1 << 10;

/// The bytes of the index for a block and for an unfinished record, without the key.
const INDEXED_BLOCK: usize = 6;
const INDEXED_RECORD: usize = 35;

#[derive(Debug)]
pub(crate) struct Builder {
    store_id: [u8; 16],
    /// The runs that are older than this one.
    older: Vec<Arc<Run>>,
    info: RunInfo,
    index: Index,
    /// The bytes of the entries whose keys older runs have too.
    replacing: u64,
    /// The bytes of the index without its filter.
    index_len: usize,
    /// The block that is being filled.
    content: Vec<u8>,
    /// Full blocks that were not taken yet.
    full: Vec<Keyed>,
    sample: Sample,
    /// The store time at which the run is built.
    built: u64,
}

impl Builder {
    /// Creates a builder for at most this many entries. `older` are the runs that are older than the new one, and
    /// `built` is the store time.
    pub(crate) fn new(store_id: &[u8; 16], id: u64, entries: u64, older: &[Arc<Run>], built: u64) -> Self {
        Self {
            store_id: *store_id,
            older: older.to_vec(),
            info: RunInfo {
                id,
                blocks: 0,
                index_at: FIRST_INDEX,
                index_blocks: 0,
                start: Start::default(),
                replacing: 0,
                entries: 0,
                earliest: NEVER,
                due: NEVER,
                contents: Contents::default(),
            },
            replacing: 0,
            index_len: 0,
            index: Index { first_keys: FirstKeys::default(), unfinished: Vec::new(), filter: Filter::new(entries) },
            content: Vec::with_capacity(CONTENT),
            full: Vec::new(),
            sample: Sample::default(),
            built,
        }
    }

    /// Adds the next entry. `None` means that the key was removed. This needs no entry if no older run has the key.
    pub(crate) fn add(&mut self, key: &StoreKey, value: Option<&[u8]>) -> Result<()> {
        let probe = Probe::of(key.bytes());
        let is_replacing = self.older.iter().any(|run| run.may_contain(&probe));
        if value.is_none() && !is_replacing {
            return Ok(());
        }
        let expires = value.map_or(Ok(None), |value| self.count(key, value))?;
        if is_replacing {
            self.replacing += entry_len(key.bytes(), value) as u64;
        }
        self.info.entries += 1;
        self.info.earliest = self.info.earliest.min(expires.unwrap_or(NEVER));
        self.sample.add(expires);
        self.index.filter.insert(&probe);
        if !self.content.is_empty() && self.content.len() + entry_len(key.bytes(), value) > CONTENT {
            self.end_block(Kind::Entries)?;
        }
        if self.content.is_empty() {
            self.index.first_keys.push(key.bytes(), self.info.blocks)?;
            self.index_len += key.bytes().len() + INDEXED_BLOCK;
        }
        let rest = push_entry(&mut self.content, key.bytes(), value)?;
        if !rest.is_empty() {
            self.end_block(Kind::Entries)?;
            self.push_chunks(rest, Kind::Continued)?;
        }
        Ok(())
    }

    /// Counts a value. Returns its expiry, which is [`NEVER`] for a row, and `None` for an unfinished record.
    fn count(&mut self, key: &StoreKey, value: &[u8]) -> Result<Option<u64>> {
        if !key.is_record() {
            self.info.contents.add(None);
            return Ok(Some(NEVER));
        }
        let malformed = || corrupt(format!("the record {} is malformed", key.bytes().escape_ascii()));
        let head = record::decode_head(value).ok_or_else(malformed)?;
        self.info.contents.add(Some(&head));
        if head.lifetime.is_unfinished() {
            self.index.unfinished.push((key.clone(), head.lifetime));
            self.index_len += key.bytes().len() + INDEXED_RECORD;
            return Ok(None);
        }
        Ok(Some(head.lifetime.expires))
    }

    fn push_chunks(&mut self, bytes: &[u8], kind: Kind) -> Result<()> {
        for chunk in bytes.chunks(CONTENT) {
            self.content.extend_from_slice(chunk);
            self.end_block(kind)?;
        }
        Ok(())
    }

    fn end_block(&mut self, kind: Kind) -> Result<()> {
        let number = if kind == Kind::Index { self.info.index_end() } else { self.info.blocks };
        let place = Place { run: self.info.id, number };
        self.full.push((block::key(place), block::seal(&self.store_id, place, kind, &self.content)?));
        self.content.clear();
        match kind {
            Kind::Index => self.info.index_blocks = self.info.index_blocks.saturating_add(1),
            _ => self.info.blocks = self.info.blocks.saturating_add(1),
        }
        Ok(())
    }

    /// Returns about how many bytes the index takes now.
    pub(crate) fn index_len(&self) -> usize {
        self.index_len + size_of_val(self.index.filter.words())
    }

    /// Takes the full blocks, if there are at least this many.
    pub(crate) fn take_full(&mut self, at_least: usize) -> Option<Vec<Keyed>> {
        (self.full.len() >= at_least).then(|| std::mem::take(&mut self.full))
    }

    /// Returns the run of the entries so far, with its own index, and the blocks that were not taken yet. Returns
    /// `None` if there is no entry. More entries can be added afterwards.
    pub(crate) fn so_far(&mut self) -> Result<Option<(Run, Vec<Keyed>)>> {
        let index = self.index.clone();
        self.end(index)
    }

    /// Returns the run, and the blocks that were not taken yet. Returns `None` if there is no entry.
    pub(crate) fn finish(mut self) -> Result<Option<(Run, Vec<Keyed>)>> {
        let index = std::mem::take(&mut self.index);
        self.end(index)
    }

    fn end(&mut self, mut index: Index) -> Result<Option<(Run, Vec<Keyed>)>> {
        if self.info.entries == 0 {
            return Ok(None);
        }
        index.filter.shrink(self.info.entries);
        if !self.content.is_empty() {
            self.end_block(Kind::Entries)?;
        }
        (self.info.index_at, self.info.index_blocks) = (self.info.index_end(), 0);
        self.push_chunks(&index.encode()?, Kind::Index)?;
        self.info.due = self.sample.due(self.built);
        self.info.replacing = u32::try_from(self.replacing / CONTENT as u64).unwrap_or(u32::MAX);
        Ok(Some((Run::new(self.info, index), std::mem::take(&mut self.full))))
    }
}

/// A sample of the times that were added: every n-th. n doubles whenever the sample is full.
#[derive(Debug)]
struct Sample {
    taken: Vec<u64>,
    stride: u64,
    seen: u64,
    /// The latest of all expiries.
    latest: u64,
}

impl Default for Sample {
    fn default() -> Self {
        Self { taken: Vec::new(), stride: 1, seen: 0, latest: 0 }
    }
}

impl Sample {
    /// Adds the expiry of an entry. `None` is an unfinished record or a removed key.
    fn add(&mut self, time: Option<u64>) {
        if self.seen % self.stride == 0 {
            self.taken.push(time.unwrap_or(NEVER));
            if self.taken.len() >= 2 * SAMPLES {
                let mut nth = 0_usize;
                self.taken.retain(|_| {
                    nth += 1;
                    nth % 2 == 1
                });
                self.stride *= 2;
            }
        }
        self.seen += 1;
        self.latest = self.latest.max(time.unwrap_or(0));
    }

    /// Returns the time at which a run with these expiry times is rewritten: when half of its entries have expired, or
    /// when all have, if that is not much later. A run without live entries is dropped, and nothing is written.
    fn due(&self, built: u64) -> u64 {
        let half = self.median();
        let later = self.latest.checked_sub(half);
        let is_soon = later.is_some_and(|later| later <= half.saturating_sub(built) / 2);
        if is_soon { self.latest } else { half }
    }

    fn median(&self) -> u64 {
        let mut taken = self.taken.clone();
        taken.sort_unstable();
        let middle = taken.len().saturating_sub(1) / 2;
        taken.get(middle).copied().unwrap_or(NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(built: u64, expiries: impl Iterator<Item = u64>) -> u64 {
        let mut sample = Sample::default();
        expiries.for_each(|time| sample.add(Some(time)));
        sample.due(built)
    }

    #[test]
    fn unfinished_records_and_removed_keys_do_not_make_a_run_due_earlier() {
        let mut sample = Sample::default();
        (3_000..3_200).map(Some).chain([None; 8]).for_each(|time| sample.add(time));
        assert_eq!(sample.due(1_000), 3_199);
        let mut sample = Sample::default();
        for time in [None, None, Some(2_000)] {
            sample.add(time);
        }
        assert_eq!(sample.due(1_000), NEVER);
    }

    #[test]
    fn a_run_is_due_when_half_has_expired_or_all_if_that_is_not_much_later() {
        assert_eq!(due(1_000, 3_000..3_200), 3_199, "equal TTLs");
        assert!((1_499..=1_501).contains(&due(1_000, 1_000..2_000)), "TTLs of any length");
        assert_eq!(due(1_000, (0..99).map(|_| 2_000).chain([60_000])), 2_000, "one that lives on");
        assert_eq!(due(1_000, (0..99).map(|_| 2_000).chain([NEVER])), 2_000, "one that never expires");
        assert_eq!(due(1_000, (0..99).map(|_| NEVER)), NEVER);
        // The latest is not in the sample.
        let many = || (0..5_000).map(|nth| if nth == 4_999 { 2_400 } else { 2_000 });
        assert_eq!(due(1_000, many()), 2_400);
        assert_eq!(due(2_200, many()), 2_000, "half have expired");
    }
}
