//! Merges runs that follow each other into one, in steps: what was replaced, removed or has expired falls out.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::store::format::block::BLOCK;
use crate::store::format::frame::StoreKey;
use crate::store::format::list::RunInfo;
use crate::store::format::{hash, record};
use crate::store::runs::build::Builder;
use crate::store::runs::flush::{Deleted, Flusher, hides};
use crate::store::runs::{Merged, Run};
use crate::store::sled::tables::Keyed;
use crate::types::error::{Error, Result};
use crate::types::record::Now;

/// Runs of about the same size that are merged into one.
const FAN_IN: usize = 8;
/// At most this many at once.
const MAX_INPUTS: usize = 16;
/// A run of fewer blocks is rewritten for the first of its records that expires, another one when half have.
const SMALL: u32 = 64;
/// Blocks that are written in one step.
const BATCH: usize = 64;
/// Bytes that are read in one step at most, about: what is read may all fall out.
const READ: usize = 512 << 10;
/// What an entry counts for besides its key and value.
const ENTRY: usize = 64;

/// Which runs are to be merged next, if any are: the smallest that are many. Those of these numbers stay as they are.
pub(crate) fn plan(runs: &[Arc<Run>], left: &[u64]) -> Option<Range<usize>> {
    // Runs of one tier differ in size by less than eight times.
    let tier = |run: &Arc<Run>| run.info.blocks.max(1).ilog2() / 3;
    let is_low = |run: &Arc<Run>, wanted| tier(run) <= wanted && !left.contains(&run.info.id);
    let highest = runs.iter().map(tier).max()?;
    for wanted in 0..=highest {
        // Smaller ones that lie between them come along. A few of them alone must not make a large one be written again.
        let (mut start, mut found) = (0, 0);
        for (at, run) in runs.iter().enumerate() {
            if !is_low(run, wanted) {
                (start, found) = (at + 1, 0);
                continue;
            }
            found += usize::from(tier(run) == wanted);
            if found >= FAN_IN {
                let more = runs.iter().skip(at + 1).take(MAX_INPUTS - FAN_IN).take_while(|run| is_low(run, wanted));
                return Some(start..at + 1 + more.count());
            }
        }
    }
    None
}

/// Store time at which a run is rewritten for what has expired in it; `exact` asks for the first of its records.
pub(crate) fn due(info: &RunInfo, exact: bool) -> u64 {
    if exact || info.blocks < SMALL { info.earliest } else { info.half }
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

    /// Writes what is ready, and reads on until there is more.
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
        shared.tables.barriers.progress.fetch_add(1, Ordering::Relaxed);
        let mut read = 0;
        while let Some(item) = merged.next(&shared.tables)? {
            read += ENTRY + item.key.bytes().len();
            let value = item.value.as_ref().map(|value| value.load_all(&shared.tables)).transpose()?;
            read += value.as_ref().map_or(0, |value| value.len());
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
            if read >= READ {
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

    /// The numbers of the runs that it reads.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = u64> {
        self.inputs.iter().map(|run| run.info.id)
    }

    /// What sled is given for runs in this range at most.
    pub(crate) fn bytes_of(runs: &[Arc<Run>], range: Range<usize>) -> u64 {
        let blocks = runs.get(range).unwrap_or_default().iter().map(|run| u64::from(run.info.all_blocks()));
        blocks.sum::<u64>().saturating_mul(BLOCK as u64)
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
