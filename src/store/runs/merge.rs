//! Merges neighbouring runs into one, in steps. Drops replaced, removed and expired entries.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::store::format::block::BLOCK;
use crate::store::format::frame::StoreKey;
use crate::store::format::list::RunInfo;
use crate::store::format::{hash, record};
use crate::store::runs::build::Builder;
use crate::store::runs::flush::{Deleted, Flusher, hides};
use crate::store::runs::{Merged, Run};
use crate::store::sled::tables::Keyed;
use crate::types::clock::NEVER;
use crate::types::error::{Error, Result};
use crate::types::record::Now;

/// The number of runs of about the same size that are merged.
const FAN_IN: usize = 8;
/// The largest number of runs in one merge.
const MAX_INPUTS: usize = 16;
/// With fewer blocks than this, runs are not merged to save space.
const MIN_FOR_SPACE: u64 = 1 << 10;
/// A run with fewer blocks than this is rewritten when its first record expires. A larger one is rewritten when half of
/// its entries have expired.
const SMALL: u32 = 64;
/// The number of blocks that one step writes.
const BATCH: usize = 256;

/// Returns the neighbouring runs to merge next, if any: small ones before large ones. A run that cannot be read stays
/// as it is.
pub(crate) fn plan(runs: &[Arc<Run>]) -> Option<Range<usize>> {
    let blocks = runs.iter().map(|run| (!run.is_damaged()).then_some(u64::from(run.info.blocks)));
    choose(&blocks.collect::<Vec<_>>())
}

/// Returns the neighbours to be merged, by the blocks of each run. `None` in the list is a run that stays as it is.
fn choose(blocks: &[Option<u64>]) -> Option<Range<usize>> {
    // Runs of one tier differ in size by less than eight times.
    let tiers = blocks.iter().map(|blocks| blocks.map(|blocks| blocks.max(1).ilog2() / 3));
    choose_by_tier(&tiers.collect::<Vec<_>>()).or_else(|| choose_for_space(blocks))
}

/// Returns the most bytes that sled is given when these runs are merged.
pub(crate) fn bytes(runs: &[Arc<Run>]) -> u64 {
    runs.iter().map(|run| u64::from(run.info.all_blocks()) * BLOCK as u64).sum()
}

/// Returns the oldest run and the newer ones, once these have as many blocks as the oldest. If keys are overwritten, up
/// to half of all blocks may then hold replaced contents, and a merge of only the newer runs would not drop them from
/// the oldest.
fn choose_for_space(blocks: &[Option<u64>]) -> Option<Range<usize>> {
    let end = blocks.iter().position(Option::is_none).unwrap_or(blocks.len()).min(MAX_INPUTS);
    let (oldest, newer) = blocks.get(..end)?.split_first()?;
    let newer: u64 = newer.iter().flatten().sum();
    (newer >= MIN_FOR_SPACE && Some(newer) >= *oldest).then_some(0..end)
}

/// Returns `FAN_IN` to `MAX_INPUTS` neighbours for the lowest tier that has enough: `FAN_IN` runs of that tier, and
/// none of a higher one. Runs of lower tiers in between are merged too but not counted, otherwise a few small runs
/// would rewrite a large one again and again.
fn choose_by_tier(tiers: &[Option<u32>]) -> Option<Range<usize>> {
    let highest = tiers.iter().flatten().copied().max()?;
    for wanted in 0..=highest {
        let (mut start, mut many) = (0, 0);
        for (at, tier) in tiers.iter().enumerate() {
            match tier {
                Some(tier) if *tier == wanted => {
                    if many == 0 {
                        start = at;
                    }
                    many += 1;
                }
                Some(tier) if *tier < wanted => {}
                _ => many = 0,
            }
            if many == FAN_IN {
                let more = tiers.iter().skip(at + 1).take_while(|tier| tier.is_some_and(|tier| tier <= wanted)).count();
                return Some(start..(at + 1 + more).min(start + MAX_INPUTS).max(at + 1));
            }
        }
    }
    None
}

/// Returns the store time at which a run is rewritten to drop expired records. With `exact`, that is the first expiry
/// of its records. Returns [`NEVER`] for a run that cannot be read.
pub(crate) fn due(run: &Run, exact: bool) -> u64 {
    let RunInfo { blocks, earliest, half, .. } = run.info;
    if run.is_damaged() {
        NEVER
    } else if exact || blocks < SMALL {
        earliest
    } else {
        half
    }
}

/// A merge that is in progress.
#[derive(Debug)]
pub(crate) struct Merge {
    inputs: Vec<Arc<Run>>,
    /// The runs that are older than the inputs.
    older: Vec<Arc<Run>>,
    /// `None` before the first read and after the last.
    merged: Option<Merged>,
    builder: Builder,
    id: u64,
    now: Now,
    entries: u64,
    deleted: Deleted,
    /// The blocks to write next.
    ready: Vec<Keyed>,
    /// Set after the last read: the run that replaces the inputs, or `None` if nothing is left.
    #[expect(clippy::option_option, reason = "not read to the end, nothing, or a run")]
    output: Option<Option<Run>>,
}

/// The result of a step.
#[derive(Debug)]
pub(crate) enum Step {
    More,
    /// The inputs were replaced, and these records were deleted.
    Done(Deleted),
    /// An input cannot be read. The inputs stay, and each call that needs the damaged block returns the error.
    Unreadable(Error),
}

impl Merge {
    pub(crate) fn begin(flusher: &mut Flusher, range: Range<usize>, now: Now) -> Self {
        let runs = flusher.shared.runs.now();
        let inputs = runs.get(range.clone()).unwrap_or_default().to_vec();
        let older = runs.get(..range.start).unwrap_or_default().to_vec();
        let id = flusher.new_id();
        let store_id = flusher.shared.tables.store_id();
        let builder = Builder::new(store_id, id, inputs.iter().map(|run| run.info.entries).sum());
        let (deleted, ready) = (Deleted::default(), Vec::new());
        Self { inputs, older, merged: None, builder, id, now, entries: 0, deleted, ready, output: None }
    }

    /// Returns the number of bytes that the next step gives to sled.
    pub(crate) fn bytes(&self) -> u64 {
        self.ready.len() as u64 * BLOCK as u64
    }

    /// Writes the blocks that are ready. Then reads until there are more, or until a batch of bytes was read: an
    /// expired run may yield no block at all.
    pub(crate) fn step(&mut self, flusher: &mut Flusher) -> Result<Step> {
        flusher.shared.tables.write(&self.ready)?;
        self.ready.clear();
        if let Some(output) = self.output.take() {
            self.older.clear();
            flusher.replace(std::mem::take(&mut self.inputs), output)?;
            return Ok(Step::Done(self.deleted));
        }
        Ok(self.read_on(flusher).map_or_else(Step::Unreadable, |()| Step::More))
    }

    fn read_on(&mut self, flusher: &Flusher) -> Result<()> {
        let shared = &flusher.shared;
        let mut merged = match self.merged.take() {
            Some(merged) => merged,
            None => Merged::new(&shared.tables, &self.inputs, &[])?,
        };
        let mut read = 0;
        while let Some(item) = merged.next(&shared.tables)? {
            let value = item.value.as_ref().map(|value| value.load_all(&shared.tables)).transpose()?;
            read += item.key.bytes().len() + value.as_ref().map_or(0, |value| value.len());
            let value = match value {
                Some(value) if item.key.is_record() => self.kept(flusher, &item.key, value)?,
                value => value,
            };
            if value.is_some() || hides(&self.older, &item.key) {
                self.builder.add(&item.key, value.as_deref())?;
                self.entries += 1;
            }
            if let Some(blocks) = self.builder.take_full(BATCH) {
                (self.ready, self.merged) = (blocks, Some(merged));
                return Ok(());
            }
            if read >= BATCH * BLOCK {
                self.merged = Some(merged);
                return Ok(());
            }
        }
        let builder = std::mem::replace(&mut self.builder, Builder::new(shared.tables.store_id(), self.id, 0));
        self.output = Some(None);
        if self.entries > 0 {
            let (run, blocks) = builder.finish()?;
            self.ready = blocks;
            self.output = Some(Some(run));
        }
        Ok(())
    }

    /// Returns the part of a record that the new run keeps. An expired record keeps only its key if it is remembered,
    /// and otherwise nothing.
    fn kept<'a>(&mut self, flusher: &Flusher, key: &StoreKey, value: Cow<'a, [u8]>) -> Result<Option<Cow<'a, [u8]>>> {
        // Expired unfinished records stay in the run. A compaction or the next open removes them one by one, because
        // the engine counts interrupted records.
        let is_kept = |head: record::Head| head.is_unfinished() || head.expires > self.now.store;
        if record::decode_head(&value).is_none_or(is_kept) {
            return Ok(Some(value));
        }
        let stored = record::decode(&value)?;
        // A remembered key was counted when its outcome was deleted.
        if !stored.is_forgotten && !self.is_replaced(flusher, key)? {
            self.deleted.add(stored.outcome_len);
        }
        let Some(remembered) = stored.remembered(&self.now) else { return Ok(None) };
        let mut bytes = Vec::new();
        record::encode(&remembered, &mut bytes)?;
        Ok(Some(Cow::Owned(bytes)))
    }

    /// Marks the inputs as damaged, because one of them cannot be read, and deletes the blocks written so far.
    pub(crate) fn give_up(&self, flusher: &mut Flusher) {
        self.inputs.iter().for_each(|run| run.set_damaged());
        flusher.give_up(self.id);
    }

    /// Returns the number of the run that is being written.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// True if a run newer than the inputs, or the memtable, has the key.
    fn is_replaced(&self, flusher: &Flusher, key: &StoreKey) -> Result<bool> {
        let shared = &flusher.shared;
        if shared.memtable.contains(key) {
            return Ok(true);
        }
        let (runs, hash) = (shared.runs.now(), hash(key.bytes()));
        for run in runs.iter().rev() {
            if self.inputs.last().is_some_and(|last| Arc::ptr_eq(last, run)) {
                break;
            }
            if run.find(&shared.tables, key.bytes(), hash)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of a simulation: the blocks written by merges, and the largest numbers of runs and blocks.
    struct Written {
        merged: u64,
        most_runs: usize,
        most_blocks: u64,
    }

    /// Simulates flushes of these sizes in blocks, with merges whenever one is due. A merge leaves at most `live`
    /// blocks; the others held replaced contents.
    fn written(flushes: impl Iterator<Item = u64>, live: u64) -> Written {
        let mut runs = Vec::new();
        let mut written = Written { merged: 0, most_runs: 0, most_blocks: 0 };
        for blocks in flushes {
            runs.push(Some(blocks));
            written.most_runs = written.most_runs.max(runs.len());
            written.most_blocks = written.most_blocks.max(runs.iter().flatten().sum());
            while let Some(range) = choose(&runs) {
                let left = runs[range.clone()].iter().flatten().sum::<u64>().min(live);
                written.merged += left;
                runs.splice(range, [Some(left)]);
            }
        }
        written
    }

    #[test]
    fn each_block_is_rewritten_once_for_each_tier_and_twice_for_space() {
        let sizes: [fn(u64) -> u64; 3] = [|_| 1, |_| 1_000, |nth| 1 + nth * 7_919 % 1_000];
        for size in sizes {
            let flushed: u64 = (0..4_096).map(size).sum();
            let Written { merged, most_runs: most, .. } = written((0..4_096).map(size), u64::MAX);
            // Twice more, because the oldest run doubles before each merge for space.
            let tiers = u64::from(flushed.ilog2() / 3 + 1);
            assert!(merged <= (tiers + 2) * flushed, "{merged} blocks written for {flushed}");
            assert!(most <= FAN_IN * 8, "{most} runs");
        }
    }

    #[test]
    fn small_flushes_do_not_rewrite_a_large_run() {
        let flushes = std::iter::once(180_000).chain((0..512).map(|_| 1));
        let Written { merged, most_runs: most, .. } = written(flushes, u64::MAX);
        assert!(merged <= 4 * 512, "{merged} blocks written");
        assert!(most <= FAN_IN * 5, "{most} runs");
    }

    #[test]
    fn replaced_contents_take_no_more_space_than_live_ones() {
        // The same 8,000 blocks are written again and again, 1,000 in each flush. A merge drops the replaced ones.
        let Written { merged, most_blocks: most, .. } = written((0..400).map(|_| 1_000), 8_000);
        assert!(most <= 3 * 8_000, "{most} blocks");
        assert!(merged <= 5 * 400_000, "{merged} blocks written");
    }

    #[test]
    fn only_neighbours_of_one_tier_are_merged_and_damaged_runs_separate_them() {
        assert_eq!(choose_by_tier(&[Some(0); 7]), None);
        assert_eq!(choose_by_tier(&[Some(0); 8]), Some(0..8));
        assert_eq!(choose_by_tier(&[Some(0); 40]), Some(0..16));
        let mut tiers = vec![Some(5); 3];
        tiers.extend([Some(1); 9]);
        tiers[7] = Some(0);
        assert_eq!(choose_by_tier(&tiers), Some(3..12));
        tiers[8] = None;
        assert_eq!(choose_by_tier(&tiers), None);
    }
}
