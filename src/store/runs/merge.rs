//! Merges neighbouring runs into one, in steps. Drops replaced, removed and expired entries.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::store::format::block::BLOCK;
use crate::store::format::frame::{Content, StoreKey};
use crate::store::format::list::{Contents, RunInfo};
use crate::store::format::record;
use crate::store::runs::build::Builder;
use crate::store::runs::flush::{Deleted, Flusher};
use crate::store::runs::{Load, Merged, Run, Stored, have};
use crate::store::sled::tables::Keyed;
use crate::types::clock::NEVER;
use crate::types::error::{Error, Result};
use crate::types::record::{Lifetime, Now};

/// The number of runs of about the same size that are merged.
const FAN_IN: usize = 8;
/// The largest number of runs in one merge.
const MAX_INPUTS: usize = 16;
/// With fewer blocks than this, runs are not merged to save space.
const MIN_FOR_SPACE: u64 = 1 << 10;
/// The same where space is short.
const MIN_IF_SCARCE: u64 = 1 << 8;
/// A run with fewer blocks than this is rewritten when its first record expires. A larger one is rewritten when half of
/// its entries have expired, or dropped when all have.
const SMALL: u64 = 64;
/// A run that is due within this time, in milliseconds, is not merged with others of its size: it will be dropped soon.
const SOON: u64 = 60_000;
/// The largest number of runs that are left for that reason. Each run costs every lookup a look into its filter, and
/// every page of a listing a block.
const MOST_LEFT: usize = 64;
/// The number of blocks that one step writes.
const BATCH: usize = if cfg!(test) { 8 } else { 256 };
/// The least number of bytes that a merge reads before it lists its output so far, and trims its inputs.
const LEAST_PART: u64 = if cfg!(test) { 16 << 10 } else { 4 << 20 };
/// The same where space is short.
const SCARCE_PART: u64 = 1 << 20;
/// A merge lists its output at most about this many times. Each time it writes the whole index.
const PARTS: u64 = 8;

/// Returns the neighbouring runs to merge next, if any. If space is scarce, merges also runs that it would leave
/// otherwise. A run that cannot be read stays as it is.
pub(crate) fn plan(runs: &[Arc<Run>], is_scarce: bool, now: u64) -> Option<Range<usize>> {
    let mut sizes: Vec<_> = runs.iter().map(|run| (!run.is_damaged()).then(|| Size::of(&run.info))).collect();
    let due: Vec<_> = runs.iter().map(|run| due(run, false)).collect();
    for at in first_due(&due, now.saturating_add(SOON)) {
        sizes.get_mut(at).into_iter().flatten().for_each(|size| size.is_due_soon = true);
    }
    choose(&sizes).or_else(|| if is_scarce { choose_if_scarce(&sizes) } else { None })
}

/// Returns the positions of the runs that are due first, among those that are due by `until`.
fn first_due(due: &[u64], until: u64) -> impl Iterator<Item = usize> {
    let mut soon: Vec<_> =
        due.iter().enumerate().filter(|(_, due)| **due <= until).map(|(at, due)| (*due, at)).collect();
    soon.sort_unstable();
    soon.into_iter().take(MOST_LEFT).map(|(_, at)| at)
}

/// The size of a run in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    blocks: u64,
    /// The part of them that replaces entries of older runs.
    replacing: u64,
    /// True if a merge with runs of its size is in vain.
    is_due_soon: bool,
}

impl Size {
    fn of(info: &RunInfo) -> Self {
        let blocks = info.live_blocks();
        Self { blocks, replacing: u64::from(info.replacing).min(blocks), is_due_soon: false }
    }
}

/// Returns the neighbours to be merged, by the size of each run. `None` in the list is a run that stays as it is.
fn choose(sizes: &[Option<Size>]) -> Option<Range<usize>> {
    // Runs of one tier differ in size by less than eight times.
    let tier = |size: Size| (!size.is_due_soon).then(|| size.blocks.max(1).ilog2() / 3);
    let tiers = sizes.iter().map(|size| size.and_then(tier));
    // For space first: runs that a tier would merge now would be merged again at once.
    choose_for_space(sizes).or_else(|| choose_by_tier(&tiers.collect::<Vec<_>>()))
}

/// Returns the oldest run and the newer ones, once half of all their blocks hold replaced contents. A merge of only
/// the newer runs would not drop those from the oldest.
fn choose_for_space(sizes: &[Option<Size>]) -> Option<Range<usize>> {
    let (oldest, newer) = oldest_and_newer(sizes)?;
    let replaced: u64 = newer.iter().map(|size| size.replacing).sum();
    let all: u64 = oldest.blocks + newer.iter().map(|size| size.blocks).sum::<u64>();
    (replaced >= MIN_FOR_SPACE && 2 * replaced >= all).then_some(0..1 + newer.len())
}

/// Returns the oldest run and the newer ones, if the newer ones have at least an eighth of the blocks of the oldest.
fn choose_if_scarce(sizes: &[Option<Size>]) -> Option<Range<usize>> {
    let (oldest, newer) = oldest_and_newer(sizes)?;
    let blocks: u64 = newer.iter().map(|size| size.blocks).sum();
    (blocks >= MIN_IF_SCARCE && blocks >= oldest.blocks / FAN_IN as u64).then_some(0..1 + newer.len())
}

/// Returns the oldest run and the next ones: at most as many as one merge takes, and none after the first that stays as
/// it is.
fn oldest_and_newer(sizes: &[Option<Size>]) -> Option<(Size, Vec<Size>)> {
    let mut mergeable = sizes.iter().map_while(|size| *size).take(MAX_INPUTS);
    Some((mergeable.next()?, mergeable.collect()))
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
    let RunInfo { earliest, due, .. } = run.info;
    if run.is_damaged() {
        NEVER
    } else if exact || is_small(&run.info) {
        earliest
    } else {
        due
    }
}

/// True if the run is rewritten as soon as a record has expired.
pub(crate) fn is_small(info: &RunInfo) -> bool {
    info.live_blocks() < SMALL
}

/// A merge that is in progress. After each part it lists its output so far, and its inputs without that part. So it
/// needs little space, and a listed part is done even if the merge ends early.
#[derive(Debug)]
pub(crate) struct Merge {
    /// The inputs as they are listed.
    inputs: Vec<Arc<Run>>,
    /// The output as it is listed.
    output: Option<Arc<Run>>,
    /// The numbers of the inputs and of the output.
    ids: Vec<u64>,
    /// `None` before the first read and after the last.
    merged: Option<Merged>,
    builder: Builder,
    id: u64,
    now: Now,
    /// Bytes of the inputs.
    bytes: u64,
    /// The bytes that were read since the last listing.
    read: u64,
    /// True if space is low: parts are small then.
    pub(crate) is_scarce: bool,
    /// True if only deleted records are counted. Otherwise the count may include records that were replaced or removed
    /// before.
    pub(crate) is_exact: bool,
    /// The records that were deleted, since the last listing and in all.
    deleted: Deleted,
    all_deleted: Deleted,
    /// The blocks to write next.
    ready: VecDeque<Keyed>,
    /// The part to list when the blocks of `ready` are written.
    part: Option<Part>,
}

#[derive(Debug)]
struct Part {
    output: Option<Run>,
    /// The inputs without the entries that were read.
    inputs: Vec<Arc<Run>>,
}

/// The result of a step.
#[derive(Debug)]
pub(crate) enum Step {
    More,
    /// The inputs were replaced, and these records were deleted in all.
    Done(Deleted),
    /// An input cannot be read. The inputs stay, and each call that needs the damaged block returns the error.
    Unreadable(Error),
}

impl Merge {
    pub(crate) fn begin(flusher: &mut Flusher, range: Range<usize>, now: Now) -> Self {
        let runs = flusher.shared.runs.current();
        let inputs = runs.get(range.clone()).unwrap_or_default().to_vec();
        let older = runs.get(..range.start).unwrap_or_default();
        let id = flusher.new_id();
        let entries = inputs.iter().map(|run| run.info.entries).sum();
        Self {
            output: None,
            ids: inputs.iter().map(|run| run.info.id).chain([id]).collect(),
            merged: None,
            builder: Builder::new(flusher.shared.tables.store_id(), id, entries, older, now.store),
            id,
            now,
            bytes: inputs.iter().map(|run| run.info.live_blocks() * BLOCK as u64).sum(),
            read: 0,
            is_scarce: false,
            is_exact: false,
            deleted: Deleted::default(),
            all_deleted: Deleted::default(),
            ready: VecDeque::new(),
            part: None,
            inputs,
        }
    }

    /// Returns the number of bytes that the next step gives to sled.
    pub(crate) fn next_bytes(&self) -> u64 {
        self.ready.len().min(BATCH) as u64 * BLOCK as u64
    }

    /// Writes the blocks that are ready. Then reads until there are more, or until a batch of bytes was read: an
    /// expired run may yield no block at all. Leaves out what has expired until now.
    pub(crate) fn step(&mut self, flusher: &mut Flusher, now: Now) -> Result<Step> {
        self.now = now;
        let blocks: Vec<_> = self.ready.drain(..self.ready.len().min(BATCH)).collect();
        flusher.shared.tables.write(&blocks)?;
        if !self.ready.is_empty() {
            return Ok(Step::More);
        }
        if let Some(part) = self.part.take() {
            self.list(flusher, part)?;
            if self.merged.is_none() {
                return Ok(Step::Done(self.all_deleted));
            }
        }
        // Before the first read.
        if self.merged.is_none() && self.is_needless(flusher) {
            return self.drop_unread(flusher).map(Step::Done);
        }
        Ok(self.read_on(flusher).map_or_else(Step::Unreadable, |()| Step::More))
    }

    /// True if the only input has nothing that is needed: its finished records have expired, its unfinished records are
    /// replaced or removed, and no older run has a content that it hides.
    fn is_needless(&self, flusher: &Flusher) -> bool {
        let ([run], shared) = (&self.inputs[..], &flusher.shared) else { return false };
        let is_gone = |(key, lifetime): &(StoreKey, Lifetime)| !shared.unfinished.is_current(key, lifetime);
        // An unreadable block may have the key.
        let is_absent =
            |(key, _): &(StoreKey, Lifetime)| have(&shared.tables, std::iter::once(run), key).is_ok_and(|has| !has);
        // Without rows and finished records, an older run has only unfinished records, whose keys are in its index, and
        // removed keys.
        let is_apart =
            |older: &Arc<Run>| older.info.contents.all_expired == 0 && older.index.unfinished.iter().all(is_absent);
        // Of a run that is not whole, it is not known how many records would be deleted.
        run.info.is_whole()
            && !self.is_exact
            && !is_small(&run.info)
            && run.info.contents.all_expired <= self.now.store
            && run.index.unfinished.iter().all(is_gone)
            && shared.runs.current().iter().take_while(|older| !Arc::ptr_eq(older, run)).all(is_apart)
    }

    /// Drops the inputs without reading them.
    fn drop_unread(&mut self, flusher: &mut Flusher) -> Result<Deleted> {
        let mut deleted = Deleted::default();
        for run in &self.inputs {
            let Contents { finished, outcome_bytes, .. } = run.info.contents;
            deleted += Deleted { records: finished, bytes: outcome_bytes, ..Deleted::default() };
        }
        flusher.replace(std::mem::take(&mut self.inputs), &[])?;
        Ok(deleted)
    }

    fn list(&mut self, flusher: &mut Flusher, part: Part) -> Result<()> {
        let output = part.output.map(Arc::new);
        let by: Vec<_> = output.iter().chain(&part.inputs).map(Arc::clone).collect();
        let replaced = std::mem::replace(&mut self.inputs, part.inputs);
        flusher.replace(self.output.take().into_iter().chain(replaced).collect(), &by)?;
        (self.output, self.read) = (output, 0);
        self.all_deleted += std::mem::take(&mut self.deleted);
        Ok(())
    }

    /// True if enough was read to list the output so far.
    fn is_part(&self) -> bool {
        let index = self.builder.index_len() as u64;
        let least = if self.is_scarce { SCARCE_PART } else { LEAST_PART.max(self.bytes / PARTS) };
        self.read >= least.max(PARTS / 2 * index)
    }

    fn read_on(&mut self, flusher: &Flusher) -> Result<()> {
        let shared = &flusher.shared;
        let mut merged = match self.merged.take() {
            Some(merged) => merged,
            None => Merged::new(&shared.tables, &self.inputs, &[])?,
        };
        let mut read = 0;
        while let Some(item) = merged.next(&shared.tables)? {
            shared.tables.give_way.between_steps();
            let value = match &item.value {
                Some(stored) => self.kept(flusher, &item.key, stored)?,
                None => None,
            };
            let here = item.value.as_ref().map_or(0, |stored| stored.here().len());
            read += (item.key.bytes().len() + value.as_ref().map_or(here, |value| value.len())) as u64;
            self.builder.add(&item.key, value.as_deref())?;
            let blocks = self.builder.take_full(BATCH);
            if blocks.is_none() && read < (BATCH * BLOCK) as u64 {
                continue;
            }
            self.ready.extend(blocks.into_iter().flatten());
            self.read += read;
            if self.is_part() {
                let inputs = merged.trim();
                let output = self.builder.so_far()?;
                self.set_part(output, inputs);
            }
            self.merged = Some(merged);
            return Ok(());
        }
        let builder = std::mem::replace(&mut self.builder, Builder::new(shared.tables.store_id(), self.id, 0, &[], 0));
        self.set_part(builder.finish()?, Vec::new());
        Ok(())
    }

    fn set_part(&mut self, output: Option<(Run, Vec<Keyed>)>, inputs: Vec<Arc<Run>>) {
        let (output, blocks) = output.unzip();
        self.ready.extend(blocks.into_iter().flatten());
        self.part = Some(Part { output, inputs });
    }

    /// Returns the part of a value that the new run keeps. An expired record keeps only its key if it is remembered, and
    /// otherwise nothing. Its outcome is not read.
    fn kept<'a>(&mut self, flusher: &Flusher, key: &StoreKey, value: &'a Stored) -> Result<Option<Cow<'a, [u8]>>> {
        let tables = &flusher.shared.tables;
        // Expired unfinished records stay in the run. A compaction or the next open removes them one by one, because
        // the engine counts interrupted records.
        let is_kept = |head: record::Head| head.lifetime.is_unfinished() || head.lifetime.expires > self.now.store;
        if !key.is_record() || record::decode_head(value.here()).is_none_or(is_kept) {
            return value.load_all(tables).map(Some);
        }
        let Content::Record(stored) = value.content(tables, key, Load::WithoutOutcome)? else { return Ok(None) };
        // A remembered key was counted when its outcome was deleted. Only an exact pass looks into newer runs, because the
        // looks slow a merge down.
        if !(stored.is_forgotten || self.is_exact && self.is_replaced(flusher, key)?) {
            self.deleted.add(stored.outcome_len);
        }
        let Some(remembered) = stored.remembered(&self.now) else { return Ok(None) };
        let mut bytes = Vec::new();
        record::encode(&remembered, &mut bytes)?;
        Ok(Some(Cow::Owned(bytes)))
    }

    /// Marks the inputs as damaged, because one of them cannot be read, and deletes the blocks that are not listed.
    /// Returns the deleted records.
    pub(crate) fn give_up(&self, flusher: &mut Flusher) -> Deleted {
        self.inputs.iter().for_each(|run| run.set_damaged());
        flusher.give_up(self.id, self.output.as_ref());
        self.all_deleted
    }

    /// True if a run newer than the inputs, or the memtable, has the key.
    fn is_replaced(&self, flusher: &Flusher, key: &StoreKey) -> Result<bool> {
        let shared = &flusher.shared;
        if shared.memtable.contains(key) {
            return Ok(true);
        }
        let runs = shared.runs.current();
        let newer = runs.iter().rev().take_while(|run| !self.ids.contains(&run.info.id));
        have(&shared.tables, newer, key)
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

    /// Simulates flushes of these sizes in blocks, with merges whenever one is due. If there are more than `live`
    /// blocks, the others hold replaced contents, which a merge drops. Each flush replaces the contents of an earlier
    /// one.
    fn written(flushes: impl Iterator<Item = u64>, live: u64) -> Written {
        let (mut runs, mut total) = (Vec::new(), 0);
        let mut written = Written { merged: 0, most_runs: 0, most_blocks: 0 };
        for blocks in flushes {
            let replacing = (total + blocks).saturating_sub(live).min(blocks);
            total += blocks;
            runs.push(Some(Size { blocks, replacing, is_due_soon: false }));
            written.most_runs = written.most_runs.max(runs.len());
            written.most_blocks = written.most_blocks.max(runs.iter().flatten().map(|size| size.blocks).sum());
            while let Some(range) = choose(&runs) {
                let inputs = || runs[range.clone()].iter().flatten();
                let left = inputs().map(|size| size.blocks).sum::<u64>().min(live);
                let replacing =
                    if range.start == 0 { 0 } else { inputs().map(|size| size.replacing).sum::<u64>().min(left) };
                written.merged += left;
                runs.splice(range, [Some(Size { blocks: left, replacing, is_due_soon: false })]);
            }
        }
        written
    }

    const SIZES: [fn(u64) -> u64; 3] = [|_| 1, |_| 1_000, |nth| 1 + nth * 7_919 % 1_000];

    #[test]
    fn each_block_is_rewritten_once_for_each_tier_if_nothing_is_replaced() {
        for size in SIZES {
            let flushed: u64 = (0..4_096).map(size).sum();
            let Written { merged, most_runs: most, .. } = written((0..4_096).map(size), u64::MAX);
            let tiers = u64::from(flushed.ilog2() / 3);
            assert!(merged <= tiers * flushed, "{merged} blocks written for {flushed}");
            assert!(most <= FAN_IN * 8, "{most} runs");
        }
    }

    #[test]
    fn small_flushes_do_not_rewrite_a_large_run() {
        for live in [u64::MAX, 180_000] {
            let flushes = std::iter::once(180_000).chain((0..512).map(|_| 1));
            let Written { merged, most_runs: most, .. } = written(flushes, live);
            assert!(merged <= 4 * 512, "{merged} blocks written");
            assert!(most <= FAN_IN * 5, "{most} runs");
        }
    }

    #[test]
    fn replaced_contents_take_no_more_space_than_live_ones() {
        // The same 8,000 blocks are written again and again, 1,000 in each flush. A merge drops the replaced ones.
        let Written { merged, most_blocks: most, .. } = written((0..400).map(|_| 1_000), 8_000);
        assert!(most <= 3 * 8_000, "{most} blocks");
        assert!(merged <= 5 * 400_000, "{merged} blocks written");
    }

    #[test]
    fn the_runs_that_are_due_first_are_not_merged_for_their_tier() {
        let due = [90, 50, NEVER, 70, 50];
        assert_eq!(first_due(&due, 80).collect::<Vec<_>>(), [1, 4, 3]);
        assert_eq!(first_due(&[7; 2 * MOST_LEFT], 7).count(), MOST_LEFT);
        let sizes = |left| vec![Some(Size { blocks: 1_000, replacing: 0, is_due_soon: left }); FAN_IN];
        assert_eq!((choose(&sizes(false)), choose(&sizes(true))), (Some(0..FAN_IN), None));
        let replacing = vec![Some(Size { blocks: 2_000, replacing: 2_000, is_due_soon: true }); 2];
        assert_eq!(choose(&replacing), Some(0..2), "they hold more replaced contents than live ones");
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
