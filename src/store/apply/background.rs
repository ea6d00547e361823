//! The background steps of the apply thread: deletions, merges, and passes over expired records.

use super::{Applier, Compaction, KEEPS_UP, Next, Purpose, refuse};
use crate::store::runs::flush::Deleted;
use crate::store::runs::merge::{self, Merge, Step};
use crate::store::sled::disk_space::SpaceStatus;
use crate::types::error::Result;

/// The number of background steps after a flush. A step reads and writes up to 1 MiB. If keys are overwritten or the store
/// has a few GB, merges write each byte about four times, so a flush of 4 MiB needs 16 steps. A flush of 16 MiB or more
/// gets more.
const STEPS: usize = 16;
/// One step is added for this many runs.
const RUNS_A_STEP: usize = 2;
/// The number of steps is multiplied by this while too many blocks are stale. Commits that wait for the next flush wait
/// for these steps, so they have a bound, even if a merge of gigabytes is in progress.
const TIMES_IF_BEHIND: usize = 2;
/// The number of blocks that may wait for their deletion or belong to runs that are due, if half of all other blocks are
/// not more. Above that, commits are slowed down by more background steps.
const MOST_STALE: u64 = if cfg!(test) { 64 } else { 2 << 10 };

impl Applier {
    pub(super) fn has_work(&self) -> bool {
        let is_work = self.merge.is_some() || self.may_merge || self.can_compact() || self.flusher.has_deletable();
        !self.rests && (is_work || self.is_behind && self.due(false, self.inner.clock.now()).is_some())
    }

    /// Returns the position of the oldest run that is due at this time.
    fn due(&self, exact: bool, now: u64) -> Option<usize> {
        self.flusher.shared.runs.current().iter().position(|run| merge::due(run, exact) <= now)
    }

    /// Checks whether blocks that nobody needs take too much space.
    fn look_behind(&mut self) {
        let (now, mut stale, mut other) = (self.inner.clock.now(), self.flusher.undeleted(), 0);
        for run in self.flusher.shared.runs.current().iter() {
            *if merge::due(run, false) <= now { &mut stale } else { &mut other } += run.info.live_blocks();
        }
        self.is_behind = stale > MOST_STALE.max(other / 2);
    }

    pub(super) fn can_compact(&self) -> bool {
        self.compactions.front().is_some_and(|compaction| compaction.group <= self.pending.group)
    }

    /// Returns the number of background steps to run before the next messages are taken.
    fn steps(&self) -> usize {
        let Some(bytes) = self.flushed else { return 1 };
        let flushes = usize::try_from(bytes / KEEPS_UP).unwrap_or(usize::MAX).max(1);
        let steps = STEPS.saturating_mul(flushes).saturating_add(self.flusher.shared.runs.len() / RUNS_A_STEP);
        if self.is_behind && !self.closes() { steps.saturating_mul(TIMES_IF_BEHIND) } else { steps }
    }

    /// Runs background steps. After a flush, it runs enough of them for merges and deletions to keep up with commits.
    pub(super) fn work_on(&mut self) -> Result<Next> {
        let mut done = 0;
        self.look_behind();
        while done < self.steps() && self.has_work() {
            done += 1;
            if self.next_step()? == Next::End {
                return Ok(Next::End);
            }
            // Groups that come during a step are taken now, and flushed by the next flush.
            while !self.pending.due {
                let Some(group) = self.next_group() else { break };
                self.take(group)?;
            }
            self.look_behind();
            if !self.pending.due && !self.backlog.is_empty() && !self.is_behind {
                // A caller waits for the next message.
                return Ok(Next::GoOn);
            }
        }
        Ok(Next::GoOn)
    }

    /// Runs one background step. A test can hold it back.
    fn next_step(&mut self) -> Result<Next> {
        #[cfg(test)]
        let shared = std::sync::Arc::clone(&self.flusher.shared);
        #[cfg(test)]
        let mut steps = shared.waiting_at_steps.lock();
        #[cfg(test)]
        steps.push(self.inbox.messages.len());
        self.work()
    }

    /// Runs one background step. Without space, rests until the next message.
    pub(super) fn work(&mut self) -> Result<Next> {
        self.look_at_backlog();
        if self.flusher.has_deletable() {
            // Delete first, because this leaves space for the other steps.
            self.rests = matches!(self.inner.disk_space.claim_in_background(0), SpaceStatus::Short(_));
            if !self.rests {
                self.flusher.delete_some()?;
            }
        } else if let Some((mut merge, compaction)) = self.merge.take() {
            match self.inner.disk_space.claim_in_background(merge.next_bytes()) {
                SpaceStatus::Short(full) => {
                    // The merge continues when there is space.
                    refuse(compaction.into_iter(), &full);
                    (self.merge, self.rests) = (Some((merge, None)), true);
                }
                status => {
                    merge.is_scarce = matches!(status, SpaceStatus::Low(_));
                    self.step(merge, compaction)?;
                }
            }
        } else if self.can_compact() {
            if let Some(compaction) = self.compactions.pop_front() {
                return self.compact(compaction);
            }
        } else {
            self.begin_merge();
        }
        Ok(Next::GoOn)
    }

    /// Begins to rewrite a run that is due, if there is too much of that, or else to merge runs.
    fn begin_merge(&mut self) {
        let now = self.inner.now();
        let due = if self.is_behind { self.due(false, now.store) } else { None };
        let range = match due {
            Some(at) => Some(at..at + 1),
            None if std::mem::take(&mut self.may_merge) => {
                let is_scarce = !matches!(self.inner.disk_space.claim_in_background(0), SpaceStatus::Enough);
                merge::plan(&self.flusher.shared.runs.current(), is_scarce, now.store)
            }
            None => None,
        };
        if let Some(range) = range {
            let merge = Merge::begin(&mut self.flusher, range, now);
            self.merge = Some((Box::new(merge), None));
        }
    }

    fn step(&mut self, mut merge: Box<Merge>, compaction: Option<Compaction>) -> Result<()> {
        match merge.step(&mut self.flusher, self.inner.now())? {
            Step::More => self.merge = Some((merge, compaction)),
            Step::Done(deleted) => {
                self.may_merge = true;
                match compaction {
                    Some(compaction) => self.answer(&compaction, deleted),
                    None => *self.flusher.shared.left_out.lock() += deleted,
                }
            }
            Step::Unreadable(error) => {
                self.may_merge = true;
                let deleted = merge.give_up(&mut self.flusher);
                *self.flusher.shared.left_out.lock() += deleted;
                refuse(compaction.into_iter(), &error);
            }
        }
        Ok(())
    }

    fn compact(&mut self, compaction: Compaction) -> Result<Next> {
        let now = self.inner.now();
        // Only durable contents can be flushed.
        if self.pending.changes && self.flusher.shared.memtable.earliest_expiry(&now) <= compaction.began {
            // Put the pass back into the queue first: if there is no space, the flush answers the passes in the queue.
            self.compactions.push_front(compaction);
            return self.flush(&Purpose::Space);
        }
        let due = self.due(compaction.exact, compaction.began);
        if let SpaceStatus::Short(full) = self.inner.disk_space.claim(0) {
            refuse(std::iter::once(compaction), &full);
        } else if let Some(at) = due {
            let mut merge = Merge::begin(&mut self.flusher, at..at + 1, now);
            merge.is_exact = compaction.exact;
            self.merge = Some((Box::new(merge), Some(compaction)));
        } else {
            self.answer_left_out(&compaction);
        }
        Ok(Next::GoOn)
    }

    fn answer(&mut self, compaction: &Compaction, mut deleted: Deleted) {
        deleted += std::mem::take(&mut *self.flusher.shared.left_out.lock());
        // The caller may have gone.
        let _ = compaction.reply.send(Ok(Some(deleted)));
    }

    fn answer_left_out(&mut self, compaction: &Compaction) {
        let deleted = std::mem::take(&mut *self.flusher.shared.left_out.lock());
        let _ = compaction.reply.send(Ok((!deleted.is_empty()).then_some(deleted)));
    }
}
