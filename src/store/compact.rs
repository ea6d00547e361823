//! Deletes expired records.
//!
//! Expired finished records are left out when a run is written or merged. A large run is rewritten when half of its
//! entries have expired, or dropped when all have. A small run is rewritten when one has. The engine counts interrupted
//! records, so an unfinished record is not just left out: it is removed by a tombstone in the memtable, without a
//! frame, and the count changes at that moment. If a crash undoes the removal, a later pass or open removes the record
//! again.

use std::sync::Arc;
use std::time::Duration;

use super::apply::{Compaction, Message};
use super::{Inner, Store};
use crate::store::format::corrupt;
use crate::store::runs::Run;
use crate::store::runs::flush::Deleted;
use crate::store::runs::merge;
use crate::types::clock::NEVER;
use crate::types::error::{Error, ErrorKind, Result};

/// The number of records that an open removes under one lock.
const REMOVED_AT_ONCE: usize = 1024;

/// The progress of a pass.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    /// The store time of its first step.
    began: Option<u64>,
    /// True if runs are rewritten for the first expired record.
    is_exact: bool,
    /// True if all runs that are due were rewritten.
    are_runs_done: bool,
    /// True if a record was removed, and the removal is not flushed yet.
    has_removed: bool,
    /// The reason why a run was left as it is. The pass continues, and fails at its end.
    damage: Option<Error>,
}

impl Pass {
    /// Creates a pass that deletes all expired records. Other passes leave large runs until half of their entries have
    /// expired.
    pub(crate) fn exact() -> Self {
        Self { is_exact: true, ..Self::default() }
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn is_exact(&self) -> bool {
        self.is_exact
    }
}

impl Store {
    /// Returns the store time of the next deletion, or [`NEVER`] if none is known.
    pub(crate) fn next_due(&self) -> u64 {
        let (shared, now) = (&self.inner.shared, self.now());
        // The memtable first: entries that are flushed in between are then counted twice, not missed.
        let in_memory = shared.memtable.earliest_expiry(&now);
        let in_runs = shared.runs.current().iter().map(|run| merge::due(run, false)).min().unwrap_or(NEVER);
        in_memory.min(shared.unfinished.earliest_expiry()).min(in_runs)
    }

    /// Returns the earliest store time at which an unfinished record in a run expires, or [`NEVER`] if none does.
    pub(crate) fn unfinished_due(&self) -> u64 {
        self.inner.shared.unfinished.earliest_expiry()
    }

    /// Returns the time until `due`, or `None` for [`NEVER`] or with a manual clock.
    pub(crate) fn time_until(&self, due: u64) -> Option<Duration> {
        let clock = &self.inner.clock;
        (due != NEVER && !clock.is_manual()).then(|| Duration::from_millis(due.saturating_sub(clock.now())))
    }

    /// Runs one step of a pass: rewrites or drops a run, or removes about `limit` unfinished records. Returns `None` at
    /// the end.
    pub(crate) fn compact(&self, pass: &mut Pass, limit: usize) -> Result<Option<Deleted>> {
        self.inner.check()?;
        self.check_writable()?;
        let began = *pass.began.get_or_insert_with(|| self.inner.clock.now());
        if !pass.are_runs_done {
            match self.inner.compact_a_run(pass.is_exact, began) {
                Ok(Some(deleted)) => return Ok(Some(deleted)),
                Ok(None) => pass.are_runs_done = true,
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    pass.damage.get_or_insert(error);
                    return Ok(Some(Deleted::default()));
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(deleted) = self.inner.remove_unfinished(limit) {
            pass.has_removed = true;
            return Ok(Some(deleted));
        }
        if std::mem::take(&mut pass.has_removed) {
            self.inner.send(Message::Flush { group: 0 })?;
        }
        pass.damage.take().or_else(|| self.inner.left_by_damage(pass.is_exact, began)).map_or(Ok(None), Err)
    }
}

impl Inner {
    fn compact_a_run(&self, exact: bool, began: u64) -> Result<Option<Deleted>> {
        self.look_for_space();
        let (reply, deleted) = crossbeam_channel::bounded(1);
        self.send(Message::Compact(Compaction { group: self.commit_queue.durable(), exact, began, reply }))?;
        crossbeam_channel::select! {
            recv(deleted) -> deleted => deleted.unwrap_or_else(|_| {
                // The apply thread failed or was closed. Its error is stored before it disconnects this channel.
                let Err(crossbeam_channel::RecvError) = self.apply.ended.recv();
                Err(self.ended())
            }),
            recv(self.apply.ended) -> _ => Err(self.ended()),
        }
    }

    /// Returns the error of a pass over all expired records that must leave some, because a run cannot be read.
    fn left_by_damage(&self, exact: bool, began: u64) -> Option<Error> {
        let runs = self.shared.runs.current();
        let is_left = |run: &&Arc<Run>| run.is_damaged() && run.info.earliest <= began;
        let run = runs.iter().find(is_left).filter(|_| exact)?;
        Some(corrupt(format!("run {} of the record store cannot be read, so its expired records stay", run.info.id)))
    }

    /// Sends a message to the apply thread.
    pub(super) fn send(&self, message: Message) -> Result<()> {
        self.apply.messages.send(message).map_err(|_| self.ended())
    }

    /// Removes the unfinished records that expired before this open. They do not count as interrupted.
    pub(super) fn remove_expired_at_open(&self) {
        while let Some(deleted) = self.remove_unfinished(REMOVED_AT_ONCE) {
            *self.shared.left_out.lock() += Deleted { interrupted: 0, ..deleted };
        }
    }

    fn remove_unfinished(&self, limit: usize) -> Option<Deleted> {
        let expired = self.shared.unfinished.expired(&self.now(), limit);
        (!expired.is_empty()).then(|| self.remove_expired(&expired))
    }
}
