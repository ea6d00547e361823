//! Merges runs that follow each other into one, in steps: what was replaced, removed or has expired falls out.

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

/// Runs of about the same size that are merged into one.
const FAN_IN: usize = 8;
/// At most this many at once.
const MAX_INPUTS: usize = 16;
/// Blocks that are too few to be merged for the space that they take.
const MIN_FOR_SPACE: u64 = 1 << 10;
/// A run of fewer blocks is rewritten for the first of its records that expires, another one when half have.
const SMALL: u32 = 64;
/// Blocks that are written at once.
const BATCH: usize = 256;

/// Returns the runs to be merged next, if any, the smallest first. A run that cannot be read stays as it is.
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

/// Returns what sled is given at most when these runs are merged, in bytes.
pub(crate) fn bytes(runs: &[Arc<Run>]) -> u64 {
    runs.iter().map(|run| u64::from(run.info.all_blocks()) * BLOCK as u64).sum()
}

/// Returns the oldest run and those after it, once they have as many blocks as the oldest: where keys are overwritten, up to half of
/// all blocks may hold what was replaced, and no merge of the newer runs alone would drop it from the oldest.
fn choose_for_space(blocks: &[Option<u64>]) -> Option<Range<usize>> {
    let end = blocks.iter().position(Option::is_none).unwrap_or(blocks.len()).min(MAX_INPUTS);
    let (oldest, newer) = blocks.get(..end)?.split_first()?;
    let newer: u64 = newer.iter().flatten().sum();
    (newer >= MIN_FOR_SPACE && Some(newer) >= *oldest).then_some(0..end)
}

/// Returns `FAN_IN` to `MAX_INPUTS` neighbours, `FAN_IN` of them of one tier and none of a higher one, for the lowest tier that
/// has so many. A run of a lower tier only comes along: were it counted, a few small runs would rewrite a large one again and
/// again.
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

/// Store time at which a run is rewritten for what has expired in it; `exact` asks for the first of its records. A run that
/// cannot be read never is.
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

/// On its way.
#[derive(Debug)]
pub(crate) struct Merge {
    inputs: Vec<Arc<Run>>,
    /// What is older than the inputs.
    older: Vec<Arc<Run>>,
    /// `None` until it has begun to read, and when it has read all.
    merged: Option<Merged>,
    builder: Builder,
    id: u64,
    now: Now,
    entries: u64,
    deleted: Deleted,
    /// To be written next.
    ready: Vec<Keyed>,
    /// All was read, and this is what comes in the place of the inputs, if anything does.
    #[expect(clippy::option_option, reason = "not read to the end, nothing, or a run")]
    output: Option<Option<Run>>,
}

/// What a step came to.
#[derive(Debug)]
pub(crate) enum Step {
    More,
    /// The runs were replaced, and so much was deleted.
    Done(Deleted),
    /// One of the runs cannot be read. They stay as they are: each call that needs what is damaged says so.
    Unreadable(Error),
}

impl Merge {
    pub(crate) fn begin(flusher: &mut Flusher, range: Range<usize>, now: Now) -> Self {
        let runs = flusher.shared.runs.now();
        let inputs = runs.get(range.clone()).unwrap_or_default().to_vec();
        let older = runs.get(..range.start).unwrap_or_default().to_vec();
        let id = flusher.new_id();
        let builder = Builder::new(id, inputs.iter().map(|run| run.info.entries).sum());
        let (deleted, ready) = (Deleted::default(), Vec::new());
        Self { inputs, older, merged: None, builder, id, now, entries: 0, deleted, ready, output: None }
    }

    /// What sled is given by the next step.
    pub(crate) fn bytes(&self) -> u64 {
        self.ready.len() as u64 * BLOCK as u64
    }

    /// Writes what is ready, and reads on until there is more, or until much was read: of a run that has expired nothing may be left.
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
        let builder = std::mem::replace(&mut self.builder, Builder::new(self.id, 0));
        self.output = Some(None);
        if self.entries > 0 {
            let (run, blocks) = builder.finish()?;
            self.ready = blocks;
            self.output = Some(Some(run));
        }
        Ok(())
    }

    /// Returns what the new run keeps of a record. Of an expired one that is its key, if it is remembered, or nothing.
    fn kept<'a>(&mut self, flusher: &Flusher, key: &StoreKey, value: Cow<'a, [u8]>) -> Result<Option<Cow<'a, [u8]>>> {
        // What is unfinished is removed by a pass, which counts it.
        let is_kept = |head: record::Head| head.is_unfinished() || head.expires > self.now.store;
        if record::decode_head(&value).is_none_or(is_kept) {
            return Ok(Some(value));
        }
        let stored = record::decode(&value, None)?;
        // A remembered key was counted when its outcome was deleted.
        if !stored.is_forgotten && !self.is_replaced(flusher, key)? {
            self.deleted.add(stored.outcome_len);
        }
        let Some(remembered) = stored.remembered(&self.now) else { return Ok(None) };
        let mut bytes = Vec::new();
        record::encode(&remembered, &mut bytes)?;
        Ok(Some(Cow::Owned(bytes)))
    }

    /// Leaves the runs that it reads alone from now on: one of them cannot be read.
    pub(crate) fn give_up(&self, flusher: &mut Flusher) {
        self.inputs.iter().for_each(|run| run.set_damaged());
        flusher.give_up(self.id);
    }

    /// The number of the run that it has begun to write.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether something newer than the inputs says something of the key.
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

    /// What a simulation came to: the blocks written by merges, and the most runs and blocks that there were.
    struct Written {
        merged: u64,
        most_runs: usize,
        most_blocks: u64,
    }

    /// Flushes runs of these sizes in blocks one after the other, and merges whenever there is something to merge. Of a merge `live`
    /// blocks are left at most; the others held contents that were replaced.
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
            // And twice because the oldest run doubles each time that it is merged for space.
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
    fn what_was_replaced_takes_no_more_room_than_what_lives() {
        // The same 8,000 blocks are written again and again, 1,000 in a flush; a merge drops what was replaced.
        let Written { merged, most_blocks: most, .. } = written((0..400).map(|_| 1_000), 8_000);
        assert!(most <= 3 * 8_000, "{most} blocks");
        assert!(merged <= 5 * 400_000, "{merged} blocks written");
    }

    #[test]
    fn neighbours_of_one_tier_are_merged_and_those_that_stay_are_a_border() {
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
