//! The list of runs: the runs in sled, and the frames whose changes they hold.

use std::ops::Range;

use super::block::{self, Kind, Place};
use super::record::Head;
use super::{Fields, corrupt, length};
use crate::types::clock::NEVER;
use crate::types::error::Result;

/// The key of the list in sled.
pub(crate) const KEY: &[u8] = b"runs";

/// The number of the first block of a run's first index. Blocks with entries have lower numbers.
pub(crate) const FIRST_INDEX: u32 = 1 << 31;

/// A run in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunInfo {
    pub(crate) id: u64,
    /// The number of blocks with entries, with those that do not count. They are numbered from 0.
    pub(crate) blocks: u32,
    /// The number of the first block with the index. When a merge adds to a run, the run gets a new index.
    pub(crate) index_at: u32,
    /// The number of blocks with the index.
    pub(crate) index_blocks: u32,
    /// The first entry that counts. A merge has copied those before it into another run.
    pub(crate) start: Start,
    /// About how many of its blocks have entries whose keys older runs have too: a merge with those drops as much.
    pub(crate) replacing: u32,
    /// The number of entries that count.
    pub(crate) entries: u64,
    /// The store time when its first finished record expires.
    pub(crate) earliest: u64,
    /// The store time when it is rewritten without its expired records, or dropped.
    pub(crate) due: u64,
    /// Includes the entries before the start.
    pub(crate) contents: Contents,
}

/// The finished records of a run: how many, and when all have expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// The store time when all finished records have expired, and their keys are not remembered any more. [`NEVER`] if
    /// there is a row, 0 if there is neither.
    pub(crate) all_expired: u64,
    /// The number of finished records, without keys that are only remembered.
    pub(crate) finished: u64,
    /// The size of their encoded outcomes.
    pub(crate) outcome_bytes: u64,
}

impl Contents {
    /// Adds a row, or a record with these fields.
    pub(crate) fn add(&mut self, record: Option<&Head>) {
        let Some(head) = record else {
            self.all_expired = NEVER;
            return;
        };
        if !head.lifetime.is_unfinished() {
            self.all_expired = self.all_expired.max(head.until());
            if !head.is_forgotten {
                self.finished += 1;
                self.outcome_bytes += u64::from(head.outcome_len);
            }
        }
    }
}

/// The place of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Start {
    /// The number of its block.
    pub(crate) block: u32,
    /// Its offset in the content of that block.
    pub(crate) at: u32,
}

impl RunInfo {
    /// True if all of its entries count.
    pub(crate) fn is_whole(&self) -> bool {
        self.start == Start::default()
    }

    /// Returns the blocks with entries that count.
    pub(crate) fn entry_blocks(&self) -> Range<u32> {
        self.start.block..self.blocks
    }

    /// Returns the number of blocks with entries that count.
    pub(crate) fn live_blocks(&self) -> u64 {
        u64::from(self.blocks.saturating_sub(self.start.block))
    }

    /// Returns the blocks with the index.
    pub(crate) fn index(&self) -> Range<u32> {
        self.index_at..self.index_end()
    }

    /// Returns the ranges of blocks that the run may have in sled and does not list.
    pub(crate) fn unlisted(&self) -> [Range<u32>; 3] {
        [0..self.start.block, self.blocks..self.index_at, self.index_end()..u32::MAX]
    }

    /// Returns the number of the block after the index.
    pub(crate) fn index_end(&self) -> u32 {
        self.index_at.saturating_add(self.index_blocks)
    }
}

/// The list of runs, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunList {
    pub(crate) store_id: [u8; 16],
    /// One more than in the list that this one replaces. Of several lists in sled's file, the highest counts.
    pub(crate) serial: u64,
    /// The last frame whose changes are in the runs. Changes that a later frame had replaced in the memtable are
    /// missing.
    pub(crate) frame: u64,
    /// Every change up to this frame is in the runs, so a replay starts after it.
    pub(crate) complete: u64,
    /// The number of the next run. Larger than the number of every run so far.
    pub(crate) next_id: u64,
    pub(crate) runs: Vec<RunInfo>,
}

impl RunList {
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let mut out = self.store_id.to_vec();
        for field in [self.serial, self.frame, self.complete, self.next_id] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&length("the list of the runs", self.runs.len())?.to_le_bytes());
        for run in &self.runs {
            out.extend_from_slice(&run.id.to_le_bytes());
            for field in [run.blocks, run.index_at, run.index_blocks, run.start.block, run.start.at, run.replacing] {
                out.extend_from_slice(&field.to_le_bytes());
            }
            let Contents { all_expired, finished, outcome_bytes } = run.contents;
            for field in [run.entries, run.earliest, run.due, all_expired, finished, outcome_bytes] {
                out.extend_from_slice(&field.to_le_bytes());
            }
        }
        block::seal(&self.store_id, Place::LIST, Kind::List, &out)
    }

    /// Decodes a list of this store.
    pub(crate) fn decode(store: &[u8; 16], bytes: &[u8]) -> Result<Self> {
        Self::decode_content(block::open(store, Place::LIST, Kind::List, bytes)?)
            .filter(|list| list.store_id == *store)
            .ok_or_else(|| corrupt("the list of the runs is malformed"))
    }

    /// Decodes the content of a block.
    pub(crate) fn decode_content(content: &[u8]) -> Option<Self> {
        let mut fields = Fields(content);
        let (store_id, serial, frame) = (fields.array()?, fields.u64()?, fields.u64()?);
        let (complete, next_id, count) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let mut runs = Vec::new();
        for _ in 0..count {
            runs.push(RunInfo {
                id: fields.u64()?,
                blocks: fields.u32()?,
                index_at: fields.u32()?,
                index_blocks: fields.u32()?,
                start: Start { block: fields.u32()?, at: fields.u32()? },
                replacing: fields.u32()?,
                entries: fields.u64()?,
                earliest: fields.u64()?,
                due: fields.u64()?,
                contents: Contents {
                    all_expired: fields.u64()?,
                    finished: fields.u64()?,
                    outcome_bytes: fields.u64()?,
                },
            });
        }
        fields.0.is_empty().then_some(Self { store_id, serial, frame, complete, next_id, runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let run = RunInfo {
            id: 1,
            blocks: 2,
            index_at: 3,
            index_blocks: 4,
            start: Start { block: 5, at: 6 },
            replacing: 14,
            entries: 7,
            earliest: 12,
            due: 13,
            contents: Contents { all_expired: 15, finished: 16, outcome_bytes: 17 },
        };
        let list = RunList { store_id: [7; 16], serial: 11, frame: 8, complete: 9, next_id: 10, runs: vec![run] };
        let bytes = list.encode().unwrap();
        assert_eq!(bytes[8..24], *b"\x02\x04\x84\0\0\0\0\0\0\0\0\0\0\0\0\0");
        let content = &bytes[24..];
        assert_eq!(content[..16], [7; 16]);
        assert_eq!(content[16..32], *b"\x0b\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0");
        assert_eq!(content[32..52], *b"\x09\0\0\0\0\0\0\0\x0a\0\0\0\0\0\0\0\x01\0\0\0");
        assert_eq!(content[52..68], *b"\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\0\0\0");
        assert_eq!(content[68..84], *b"\x04\0\0\0\x05\0\0\0\x06\0\0\0\x0e\0\0\0");
        assert_eq!(content[84..108], *b"\x07\0\0\0\0\0\0\0\x0c\0\0\0\0\0\0\0\x0d\0\0\0\0\0\0\0");
        assert_eq!(content[108..], *b"\x0f\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x11\0\0\0\0\0\0\0");
        assert_eq!(RunList::decode(&[7; 16], &bytes).unwrap(), list);
        assert!(RunList::decode(&[8; 16], &bytes).is_err(), "of another store");
        for cut in 0..bytes.len() {
            assert!(RunList::decode(&[7; 16], &bytes[..cut]).is_err(), "cut {cut}");
        }
    }
}
