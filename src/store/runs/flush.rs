//! Writes durable commits from the memtable into runs, and keeps the list of runs.
//!
//! The order of writes makes a crash harmless at any point. First the blocks are written and synced, then the list that
//! names their run. Only then are the replaced runs deleted. Blocks of a run that is not listed are leftovers, and the
//! next open deletes them.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::store::format::block::BLOCK;
use crate::store::format::frame::{Content, StoreKey};
use crate::store::format::list::RunList;
use crate::store::format::record;
use crate::store::memtable::{Entry, Memtable};
use crate::store::runs::build::Builder;
use crate::store::runs::unfinished::Unfinished;
use crate::store::runs::{Run, Runs};
use crate::store::sled::disk_space::CLAIMED_AT_ONCE;
use crate::store::sled::tables::{Keyed, Tables};
use crate::types::error::Result;
use crate::types::record::{Lifetime, Now, StoredRecord};

/// The number of keys that are updated under one lock.
const AT_ONCE: usize = 256;
/// The number of blocks that one step deletes.
const DELETED_IN_A_STEP: usize = 256;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deleted {
    pub(crate) records: u64,
    /// The number of these records that were interrupted.
    pub(crate) interrupted: u64,
    /// The size of their encoded outcomes, in bytes.
    pub(crate) bytes: u64,
    /// The number of runs that a crash had left unlisted.
    pub(crate) leftovers: u64,
}

impl Deleted {
    /// Counts another finished record.
    pub(crate) fn add(&mut self, outcome_len: u32) {
        self.records += 1;
        self.bytes += u64::from(outcome_len);
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::ops::AddAssign for Deleted {
    fn add_assign(&mut self, other: Self) {
        self.records += other.records;
        self.interrupted += other.interrupted;
        self.bytes += other.bytes;
        self.leftovers += other.leftovers;
    }
}

/// State that readers share with the apply thread.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) tables: Tables,
    pub(crate) memtable: Memtable,
    pub(crate) runs: Runs,
    pub(crate) unfinished: Unfinished,
    /// Expired records that were left out of a run, and not reported by a pass yet.
    pub(crate) left_out: Mutex<Deleted>,
    /// For tests: the number of messages that wait at each background step. A step holds this lock. Steps that free
    /// space for a waiting flush do not take it.
    #[cfg(test)]
    pub(crate) waiting_at_steps: Mutex<Vec<usize>>,
}

/// Writes runs. The apply thread owns it and is the only writer of sled.
#[derive(Debug)]
pub(crate) struct Flusher {
    pub(crate) shared: Arc<Shared>,
    store_id: [u8; 16],
    /// The serial number of the list that sled has.
    serial: u64,
    /// The last frame whose changes are in runs.
    frame: u64,
    /// Every change up to this frame is in runs.
    complete: u64,
    next_id: u64,
    to_delete: Vec<ToDelete>,
}

/// A range that has every block of a run.
const ALL_BLOCKS: Range<u32> = 0..u32::MAX;

/// Blocks that are no longer listed, or never were.
#[derive(Debug)]
struct ToDelete {
    id: u64,
    blocks: Range<u32>,
    /// The run as it was listed with these blocks: readers that hold an earlier list may still read it.
    run: Option<Arc<Run>>,
    /// About how many of the blocks are left.
    left: u64,
}

impl ToDelete {
    /// Blocks that are not listed. How many of them were written is not known.
    fn unlisted(id: u64, blocks: Range<u32>) -> Self {
        Self { id, blocks, run: None, left: 0 }
    }

    /// Blocks of a run that was listed with them.
    fn listed(run: Arc<Run>, blocks: Range<u32>) -> Self {
        Self { id: run.info.id, left: blocks.len() as u64, blocks, run: Some(run) }
    }

    /// All blocks of a run that was listed.
    fn whole(run: Arc<Run>) -> Self {
        let left = run.info.live_blocks() + run.info.index().len() as u64;
        Self { left, ..Self::listed(run, ALL_BLOCKS) }
    }

    fn has_reader(&self) -> bool {
        self.run.as_ref().is_some_and(|run| Arc::strong_count(run) > 1)
    }
}

/// A run that is built, but not written yet.
#[derive(Debug)]
pub(crate) struct Prepared {
    frame: u64,
    taken: Vec<(StoreKey, Entry)>,
    run: Option<Run>,
    blocks: Vec<Keyed>,
    /// The number of blocks that are written.
    written: usize,
    left_out: Deleted,
}

impl Prepared {
    /// Returns the number of bytes that sled will still be given.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks.len().saturating_sub(self.written) as u64 * BLOCK as u64
    }
}

impl Flusher {
    /// Opens the flusher. Also returns the number of runs with blocks in sled that are not listed. They are deleted
    /// later, one by one.
    pub(crate) fn open(shared: Arc<Shared>, list: &RunList) -> Result<(Self, u64)> {
        let found = shared.tables.run_ids()?;
        let ids = list.runs.iter().map(|run| run.id);
        // If the process ended between beginning a run and listing it, the number of that run is higher than the list
        // says.
        let next_id = list.next_id.max(found.iter().copied().max().unwrap_or(0).saturating_add(1));
        let mut to_delete: Vec<_> = found
            .into_iter()
            .filter(|id| ids.clone().all(|listed| listed != *id))
            .map(|id| ToDelete::unlisted(id, ALL_BLOCKS))
            .collect();
        // A merge that ended early may have written more of the run that it had begun.
        for run in shared.runs.current().iter() {
            let id = run.info.id;
            for blocks in run.info.unlisted() {
                if !shared.tables.blocks_of(id, &blocks, 1)?.is_empty() {
                    to_delete.push(ToDelete::unlisted(id, blocks));
                }
            }
        }
        let leftovers = to_delete.len() as u64;
        let RunList { store_id, serial, frame, complete, .. } = *list;
        Ok((Self { shared, store_id, serial, frame, complete, next_id, to_delete }, leftovers))
    }

    pub(crate) fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id = id.saturating_add(1);
        id
    }

    /// Returns true if no other run was begun after this one was prepared.
    pub(crate) fn has_highest_id(&self, prepared: &Prepared) -> bool {
        prepared.run.as_ref().is_none_or(|run| run.info.id.saturating_add(1) == self.next_id)
    }

    /// Makes the next list say that every change up to this frame is in runs. Only for a replay, where everything in
    /// memory is durable. If the replay ends early, the next one continues here and does not write the same runs again.
    pub(crate) fn mark_complete(&mut self, frame: u64) {
        self.complete = frame;
    }

    /// Builds a run from the changes of frames up to this one. Leaves out removed and expired keys, unless an older run
    /// may have them.
    pub(crate) fn prepare(&mut self, frame: u64, now: &Now) -> Result<Prepared> {
        let taken = self.shared.memtable.up_to(frame);
        let older = self.shared.runs.current();
        let id = self.new_id();
        let mut builder = Builder::new(self.shared.tables.store_id(), id, taken.len() as u64, &older, now.store);
        let (mut left_out, mut bytes) = (Deleted::default(), Vec::new());
        for (key, entry) in &taken {
            self.shared.tables.give_way.between_steps();
            let value = match &entry.content {
                None => None,
                Some(Content::Row(value)) => Some(&**value),
                Some(Content::Record(stored)) => {
                    let mut kept = Some(Cow::Borrowed(&**stored));
                    if has_expired(stored, now) {
                        left_out.add(stored.outcome_len);
                        kept = stored.remembered(now).map(Cow::Owned);
                    }
                    bytes.clear();
                    kept.map(|kept| record::encode(&kept, &mut bytes)).transpose()?.map(|()| bytes.as_slice())
                }
            };
            builder.add(key, value)?;
        }
        let (run, blocks) = builder.finish()?.unzip();
        Ok(Prepared { frame, taken, run, blocks: blocks.unwrap_or_default(), written: 0, left_out })
    }

    /// Writes the next part of the blocks, for which the caller has claimed space. Returns true if that was the last.
    pub(crate) fn write_part(&self, prepared: &mut Prepared) -> Result<bool> {
        let rest = prepared.blocks.get(prepared.written..).unwrap_or_default();
        let part = rest.get(..CLAIMED_AT_ONCE).unwrap_or(rest);
        self.shared.tables.write(part)?;
        prepared.written += part.len();
        Ok(prepared.written >= prepared.blocks.len())
    }

    /// Gives up a run of which parts may be written. They are deleted later.
    pub(crate) fn discard(&mut self, prepared: Prepared) {
        if let Some(run) = prepared.run.filter(|_| prepared.written > 0) {
            self.give_up(run.info.id, None);
        }
    }

    /// Lists the run, whose blocks are all written, and then removes its contents from the memtable.
    pub(crate) fn finish(&mut self, prepared: Prepared, now: &Now) -> Result<()> {
        let Prepared { frame, taken, run, left_out, .. } = prepared;
        let mut runs = self.shared.runs.current().to_vec();
        runs.extend(run.map(Arc::new));
        self.list(frame, &runs)?;
        self.shared.tables.check_blobs()?;
        // Publish the run before removing from the memtable: a reader looks into the memtable first and then into the
        // runs, so it misses nothing. Update the index in small batches, because a pass reads it under the commit lock.
        for some in taken.chunks(AT_ONCE) {
            self.shared.tables.give_way.between_steps();
            self.shared.unfinished.update(some.iter().map(|(key, entry)| (key, lifetime(entry))), now);
        }
        self.shared.runs.publish(runs);
        for (key, entry) in taken {
            self.shared.tables.give_way.between_steps();
            self.shared.memtable.remove_flushed(&key, entry.number);
        }
        *self.shared.left_out.lock() += left_out;
        Ok(())
    }

    fn list(&mut self, frame: u64, runs: &[Arc<Run>]) -> Result<()> {
        let runs = runs.iter().map(|run| run.info).collect();
        let Self { store_id, complete, next_id, .. } = *self;
        // Raise the serial before the write: the list of a failed write must not share its serial with a later list.
        self.serial = self.serial.saturating_add(1);
        self.shared.tables.set_list(&RunList { store_id, serial: self.serial, frame, complete, next_id, runs })?;
        self.frame = frame;
        Ok(())
    }

    /// Replaces neighbouring runs by others, which may be later versions of the same runs. Blocks that are not listed
    /// any more are deleted later.
    pub(crate) fn replace(&mut self, replaced: Vec<Arc<Run>>, by: &[Arc<Run>]) -> Result<()> {
        let runs = self.shared.runs.current();
        let is_replaced = |run: &Arc<Run>| replaced.iter().any(|other| Arc::ptr_eq(other, run));
        let before = runs.iter().take_while(|run| !is_replaced(run));
        let after = runs.iter().skip_while(|run| !is_replaced(run)).filter(|run| !is_replaced(run));
        let listed: Vec<_> = before.chain(by).chain(after).map(Arc::clone).collect();
        drop(runs);
        self.list(self.frame, &listed)?;
        self.shared.runs.publish(listed);
        for run in replaced {
            let id = run.info.id;
            let Some(new) = by.iter().find(|new| new.info.id == id) else {
                self.to_delete.push(ToDelete::whole(run));
                continue;
            };
            let is_output = new.info.index_at != run.info.index_at;
            let (start, index) = (run.info.start.block..new.info.start.block, run.info.index_at..run.info.index_end());
            // Add the version even if it has no such block: a later deletion of this run then waits for its readers.
            self.to_delete.push(ToDelete::listed(run, if is_output { index } else { start }));
        }
        Ok(())
    }

    /// Queues the blocks of a run that will not be listed for deletion. `listed` is the part of the run that is listed
    /// already, and stays.
    pub(crate) fn give_up(&mut self, id: u64, listed: Option<&Arc<Run>>) {
        let Some(run) = listed else { return self.to_delete.push(ToDelete::unlisted(id, ALL_BLOCKS)) };
        self.to_delete.extend(run.info.unlisted().map(|blocks| ToDelete::unlisted(id, blocks)));
    }

    /// Returns about how many blocks wait for their deletion.
    pub(crate) fn undeleted(&self) -> u64 {
        self.to_delete.iter().map(|to_delete| to_delete.left).sum()
    }

    /// True if there is a run that can be deleted now.
    pub(crate) fn has_deletable(&self) -> bool {
        self.first_deletable().is_some()
    }

    fn first_deletable(&self) -> Option<usize> {
        let has_reader = |id| self.to_delete.iter().any(|other| other.id == id && other.has_reader());
        self.to_delete.iter().position(|to_delete| !has_reader(to_delete.id))
    }

    /// Deletes some blocks of a run that is not listed and has no reader.
    pub(crate) fn delete_some(&mut self) -> Result<()> {
        let Some(at) = self.first_deletable() else { return Ok(()) };
        let Some(ToDelete { id, blocks, left, .. }) = self.to_delete.get_mut(at) else { return Ok(()) };
        let keys = self.shared.tables.blocks_of(*id, blocks, DELETED_IN_A_STEP)?;
        *left = left.saturating_sub(keys.len() as u64);
        if keys.is_empty() {
            self.to_delete.swap_remove(at);
            return Ok(());
        }
        for key in keys {
            self.shared.tables.remove(&key)?;
        }
        self.shared.tables.flush()
    }
}

fn has_expired(stored: &StoredRecord, now: &Now) -> bool {
    !stored.lifetime().is_unfinished() && stored.expires <= now.store
}

fn lifetime(entry: &Entry) -> Option<Lifetime> {
    entry.content.as_ref().and_then(Content::record).map(|stored| stored.lifetime())
}
