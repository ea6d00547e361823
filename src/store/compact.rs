//! Forgets what has expired.
//!
//! Finished records fall out when a run is written or rewritten. A run is rewritten when half of it has expired, a small one as soon
//! as anything has. What is unfinished is counted somewhere, and so is removed at a moment of its own: the memtable says that
//! it is gone, and no frame does: a removal that a crash undoes is done again.

use std::sync::Arc;
use std::time::Duration;

use super::apply::{Compaction, Message};
use super::memtable::Entry;
use super::{Inner, Store, StoreKey};
use crate::store::format::corrupt;
use crate::store::runs::Run;
use crate::store::runs::flush::Deleted;
use crate::store::runs::merge;
use crate::types::clock::NEVER;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::record::{Lifetime, Status};

/// Records removed under one lock when a store is opened.
const REMOVED_AT_ONCE: usize = 1024;

/// How far one pass has come.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    /// Store time of its first step.
    began: Option<u64>,
    /// Runs are rewritten for the first record that has expired.
    is_exact: bool,
    /// All runs that are due were rewritten.
    are_runs_done: bool,
    /// Something was removed that is to be flushed.
    has_removed: bool,
    /// Why a run was left as it is. The pass goes on, and fails at its end.
    damage: Option<Error>,
}

impl Pass {
    /// Over all that has expired; else large runs are left until half of them has.
    pub(crate) fn exact() -> Self {
        Self { is_exact: true, ..Self::default() }
    }
}

impl Store {
    /// When something is to be deleted, in store time; [`NEVER`] if nothing is known of.
    pub(crate) fn next_due(&self) -> u64 {
        let (shared, now) = (&self.inner.shared, self.now());
        // In this order: what is flushed meanwhile is seen twice.
        let in_memory = shared.memtable.earliest_expiry(&now);
        let in_runs = shared.runs.now().iter().map(|run| merge::due(run, false)).min().unwrap_or(NEVER);
        in_memory.min(shared.unfinished.earliest_expiry()).min(in_runs)
    }

    /// The earliest time at which something unfinished in a run expires; [`NEVER`] if nothing does.
    pub(crate) fn dead_due(&self) -> u64 {
        self.inner.shared.unfinished.earliest_expiry()
    }

    /// How long until then; `None` if nobody can tell, because time is moved by hand.
    pub(crate) fn time_until(&self, due: u64) -> Option<Duration> {
        let clock = &self.inner.clock;
        (due != NEVER && !clock.is_manual()).then(|| Duration::from_millis(due.saturating_sub(clock.now())))
    }

    /// Deletes some of what is due: what a run holds of it, or about `limit` unfinished records; `None` when there is no more.
    pub(crate) fn compact(&self, pass: &mut Pass, limit: usize) -> Result<Option<Deleted>> {
        self.inner.check()?;
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
        self.look_for_room();
        let (reply, deleted) = crossbeam_channel::bounded(1);
        self.send(Message::Compact(Compaction { group: self.commit_queue.durable(), exact, began, reply }))?;
        crossbeam_channel::select! {
            recv(deleted) -> deleted => deleted.unwrap_or_else(|_| {
                // It failed or was closed, and says why before it has ended.
                let Err(crossbeam_channel::RecvError) = self.apply.ended.recv();
                Err(self.ended())
            }),
            recv(self.apply.ended) -> _ => Err(self.ended()),
        }
    }

    /// Why a pass over all that has expired leaves some of it: a run that cannot be read.
    fn left_by_damage(&self, exact: bool, began: u64) -> Option<Error> {
        let runs = self.shared.runs.now();
        let is_left = |run: &&Arc<Run>| run.is_damaged() && run.info.earliest <= began;
        let run = runs.iter().find(is_left).filter(|_| exact)?;
        Some(corrupt(format!(
            "run {} of the record store cannot be read, and what has expired in it stays",
            run.info.id
        )))
    }

    /// Gives the apply thread something to do.
    pub(super) fn send(&self, message: Message) -> Result<()> {
        self.apply.messages.send(message).map_err(|_| self.ended())
    }

    /// Removes the unfinished records that have expired before this open, which counts none of them as interrupted.
    pub(super) fn remove_expired_at_open(&self) {
        while let Some(deleted) = self.remove_unfinished(REMOVED_AT_ONCE) {
            *self.shared.left_out.lock() += Deleted { interrupted: 0, ..deleted };
        }
    }

    fn remove_unfinished(&self, limit: usize) -> Option<Deleted> {
        let expired = self.shared.unfinished.expired(&self.now(), limit);
        (!expired.is_empty()).then(|| self.remove_expired(&expired))
    }

    /// Removes unfinished records that have expired, unless somebody has begun them again.
    pub(super) fn remove_expired(&self, expired: &[(StoreKey, Lifetime)]) -> Deleted {
        let shared = &self.shared;
        let mut deleted = Deleted::default();
        // What is in the memtable then is newer, and who has read the record before commits nothing on it. In this order: a flush
        // says what the runs have before it removes that from the memtable.
        let is_there = |key, lifetime| !shared.memtable.contains(key) && shared.unfinished.is_current(key, lifetime);
        self.commit_queue.exclusive(|| {
            for (key, lifetime) in expired.iter().filter(|(key, lifetime)| is_there(key, lifetime)) {
                let removed = (key.clone(), Entry { number: 0, ticket: 0, content: None });
                shared.memtable.put_all(std::iter::once(removed), || self.changed(std::iter::once(key)));
                deleted.records += 1;
                deleted.interrupted += u64::from(matches!(lifetime.state, Status::InProgress | Status::Interrupted));
            }
        });
        shared.unfinished.remove(expired);
        deleted
    }
}
