//! The commit path: the lock, what it guards, and the order of its steps.

use std::sync::Arc;

use super::Inner;
use super::format::corrupt;
use super::format::frame::{self, Change, Content, Frame, StoreKey};
use super::memtable::Entry;
use super::read_sets::ReadSet;
use super::versions::ReadVersion;
use crate::store::runs::flush::Deleted;
use crate::sync::group_commit::Priority;
use crate::types::clock::{NEVER, StoreClock};
use crate::types::error::Result;
use crate::types::record::{Lifetime, Status};

/// A group that something is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(super) u64);

/// A commit that was accepted.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) ticket: Ticket,
    /// What was written, with its numbers.
    pub(crate) changes: Vec<Change>,
}

/// Who commits, and since when the times of what it commits count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommitOptions<'a> {
    pub(crate) priority: Priority,
    /// Store time when the change was decided. Times that count from then are moved to the commit, which may have had to wait.
    pub(crate) decided: Option<u64>,
    /// The records whose expiry does not: it is what it was before.
    pub(crate) kept: &'a [StoreKey],
    /// Store time from which something that was read is absent: then this is refused as if that had changed.
    pub(crate) until: u64,
    /// What a transaction has read.
    pub(crate) read_set: Option<&'a ReadSet>,
}

impl CommitOptions<'_> {
    fn hold(&self, now: u64) -> bool {
        self.read_set.is_none_or(ReadSet::is_current) && (self.until == NEVER || now < self.until)
    }

    /// The time, if it makes a difference.
    fn now(&self, clock: &StoreClock) -> u64 {
        if self.until == NEVER && self.decided.is_none() { 0 } else { clock.now() }
    }
}

impl From<Priority> for CommitOptions<'_> {
    fn from(priority: Priority) -> Self {
        Self { priority, decided: None, kept: &[], until: NEVER, read_set: None }
    }
}

impl Inner {
    pub(super) fn commit(
        &self,
        changes: Vec<Change>,
        reads: &[ReadVersion],
        options: CommitOptions<'_>,
    ) -> Result<Option<Committed>> {
        let frame = Frame::Changes(changes);
        let (mut bytes, records) = frame::encode_with_records(&frame)?;
        self.look_for_room();
        // Without the commit lock: the clock may be the caller's own.
        let mut now = options.now(&self.clock);
        let admission =
            self.commit_queue.admit_after(bytes.len(), options.priority, || now = options.now(&self.clock))?;
        if !self.versions.are_current(reads) || !options.hold(now) {
            drop(admission);
            self.conflicts.add(1);
            return Ok(None);
        }
        let (number, ticket) = (admission.number(), admission.ticket());
        let waited = options.decided.map_or(0, |decided| now.saturating_sub(decided));
        // The frame is only encoded from them.
        let Frame::Changes(mut changes) = frame else { return Err(corrupt("a commit without changes")) };
        {
            let images = changes.iter_mut().filter_map(|change| match &mut change.content {
                Some(Content::Record(stored)) => Some((&change.key, Arc::make_mut(stored))),
                Some(Content::Row(_)) | None => None,
            });
            for ((key, stored), at) in images.zip(records) {
                frame::number(stored, number);
                if waited > 0 {
                    stored.delay(waited, options.kept.contains(key));
                    frame::set_times(&mut bytes, at, stored);
                }
            }
        }
        let entries = changes.iter().map(|change| {
            let entry = Entry { number, ticket, content: change.content.clone() };
            (change.key.clone(), entry)
        });
        // With them: who sees one key as it is now must find out that another one, read before, is not current.
        self.shared.memtable.put_all(entries, || self.changed(changes.iter().map(|change| &change.key)));
        admission.commit(&bytes, true);
        self.commits.add(1);
        Ok(Some(Committed { ticket: Ticket(ticket), changes }))
    }

    /// These keys change: what was read of them is not current any more.
    fn changed<'a>(&self, keys: impl Iterator<Item = &'a StoreKey>) {
        for key in keys {
            self.versions.advance(key);
            self.read_sets.mark(key);
        }
    }

    /// A frame of the store's own, durable when this returns.
    pub(super) fn mark(&self, frame: &Frame) -> Result<()> {
        let bytes = frame::encode(frame)?;
        let ticket = self.commit_queue.admit(bytes.len(), Priority::Store)?.commit(&bytes, false);
        self.commit_queue.wait(ticket)
    }

    /// Removes expired unfinished records, except those that were begun again.
    pub(super) fn remove_expired(&self, expired: &[(StoreKey, Lifetime)]) -> Deleted {
        let shared = &self.shared;
        let mut deleted = Deleted::default();
        // Contents in the memtable are newer. A caller that has read the record cannot commit after this, because its
        // version counter moves. The memtable is checked first: a flush updates the index of the runs before it removes
        // entries from the memtable.
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
