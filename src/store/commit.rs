//! The commit path: the lock, what it guards, and the order of its steps.
//!
//! The commit lock is the lock inside [`CommitQueue`](crate::sync::group_commit::CommitQueue). An admission holds it.
//! The lock guards
//!
//! - the number of the next frame, and the bytes of the current group,
//! - the memtable: only a holder puts contents into it,
//! - the version counters, and the marks of the read sets: only a holder moves and sets them.
//!
//! Readers do not take this lock. They lock a shard of the memtable, and read version counters and marks without a
//! lock. The steps of a commit under the lock are *check*, *number*, *encode*, *show*, *count*. Steps that can fail
//! come before those that readers see. Under the lock there is no I/O, no call to sled, no reading of the clock, and no
//! wait.
//!
//! The caller waits for its ticket after it has unlocked, so that many callers share one sync.

use std::sync::Arc;

use super::Inner;
use super::format::frame::{self, Change, Content, Frame, StoreKey};
use super::memtable::{Entry, KeyHash};
use super::read_sets::ReadSet;
use super::versions::ReadVersion;
use crate::store::runs::flush::Deleted;
use crate::sync::group_commit::Priority;
use crate::types::clock::{NEVER, StoreClock};
use crate::types::error::Result;
use crate::types::record::{Lifetime, Status};

/// The group of a frame, for which the caller of the commit waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(super) u64);

/// An accepted commit.
#[derive(Debug)]
pub(crate) struct Committed<C = Vec<Change>> {
    pub(crate) ticket: Ticket,
    /// The changes, with their frame numbers.
    pub(crate) changes: C,
}

/// The conditions of a commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommitOptions<'a> {
    pub(crate) priority: Priority,
    /// The store time of the decision. Times in the changes count from then. If the commit had to wait, they are moved
    /// by the time of the wait.
    pub(crate) decided: Option<u64>,
    /// The records whose expiry is not moved.
    pub(crate) kept: &'a [StoreKey],
    /// The store time at which the first record that was read expires. A later commit is refused like a conflict.
    pub(crate) until: u64,
    /// The read set of a transaction.
    pub(crate) read_set: Option<&'a ReadSet>,
}

impl CommitOptions<'_> {
    fn hold(&self, now: u64) -> bool {
        self.read_set.is_none_or(ReadSet::is_current) && (self.until == NEVER || now < self.until)
    }

    /// Returns the current store time, or 0 if the options do not use it.
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
    /// Commits all changes or none. Returns `None` if something that was read has changed. Sets the numbers of the
    /// records.
    pub(super) fn commit(
        &self,
        changes: &mut [Change],
        reads: &[ReadVersion],
        options: &CommitOptions<'_>,
    ) -> Result<Option<Ticket>> {
        self.check_writable()?;
        // Ask for the space that the frame needs at most, because its numbers and times are not known yet.
        let len = frame::max_encoded_len_of(changes)?;
        self.look_for_space();
        // Read the clock before taking the commit lock: it may be user code.
        let mut now = options.now(&self.clock);
        let mut has_space = self.check_large_commit(len, options.priority);
        has_space.clone()?;
        let read_again =
            || (now, has_space) = (options.now(&self.clock), self.check_large_commit(len, options.priority));
        // May wait for space, and looks again at both then. Returns with the commit lock held.
        let mut admission = self.commit_queue.admit_after(len, options.priority, read_again)?;
        has_space?;

        // Check. This needs the lock: without it, another commit could come between the check and the steps below.
        if !self.versions.are_current(reads) || !options.hold(now) {
            drop(admission);
            self.conflicts.add(1);
            return Ok(None);
        }

        // Number.
        let (number, ticket) = (admission.number(), admission.ticket());
        let waited = options.decided.map_or(0, |decided| now.saturating_sub(decided));
        for Change { key, content } in &mut *changes {
            if let Some(Content::Record(stored)) = content {
                let stored = Arc::make_mut(stored);
                stored.set_number(number);
                stored.delay(waited, options.kept.contains(key));
            }
        }

        // Encode, into the group itself. The last step that can fail, so it comes before anything that can be seen.
        admission.append(|payload| frame::encode_changes(changes, payload))?;

        // Show. Version counters and marks change while the shards of the memtable are locked: a reader of one new
        // content then finds that its earlier reads of the other keys are stale.
        let memtable = &self.shared.memtable;
        let entry = |change: &Change| Entry { number, ticket, content: change.content.clone() };
        if let [change] = &*changes {
            let hash = memtable.hash(change.key.bytes());
            memtable.put(hash, change.key.clone(), entry(change), || self.changed(hash, &change.key));
        } else {
            let entries = changes.iter().map(|change| (change.key.clone(), entry(change)));
            memtable.put_all(entries, || {
                for Change { key, .. } in &*changes {
                    self.changed(memtable.hash(key.bytes()), key);
                }
            });
        }

        // Count, and unlock. From here on the writer can take the group. The memtable must have the contents by then,
        // because a flush of this group takes them from the memtable.
        admission.commit(true);
        self.commits.add(1);
        Ok(Some(Ticket(ticket)))
    }

    /// Marks what was read of this key as stale. Called before a reader can see the new content.
    fn changed(&self, hash: KeyHash, key: &StoreKey) {
        self.versions.advance(hash);
        self.read_sets.mark(key);
    }

    /// Commits a frame of the store's own, and waits until it is durable.
    pub(super) fn commit_own_frame(&self, frame: &Frame) -> Result<()> {
        let mut admission = self.commit_queue.admit(frame::max_encoded_len(frame)?, Priority::Store)?;
        admission.append(|payload| frame::encode(frame, payload))?;
        let ticket = admission.commit(false);
        self.commit_queue.wait(ticket)
    }

    /// Removes expired unfinished records, except those that a caller has claimed again.
    pub(super) fn remove_expired(&self, expired: &[(StoreKey, Lifetime)]) -> Deleted {
        let shared = &self.shared;
        let mut deleted = Deleted::default();
        // Contents in the memtable are newer than those in the runs, so their keys are skipped. A caller that has read
        // a record cannot commit after its removal, because the version counter moves. Look into the memtable first: a
        // flush updates the index of the runs before it removes entries from the memtable.
        let is_there = |key, lifetime| !shared.memtable.contains(key) && shared.unfinished.is_current(key, lifetime);
        self.commit_queue.exclusive(|| {
            for (key, lifetime) in expired.iter().filter(|(key, lifetime)| is_there(key, lifetime)) {
                let hash = shared.memtable.hash(key.bytes());
                let removed = Entry { number: 0, ticket: 0, content: None };
                shared.memtable.put(hash, key.clone(), removed, || self.changed(hash, key));
                deleted.records += 1;
                deleted.interrupted += u64::from(matches!(lifetime.state, Status::InProgress | Status::Interrupted));
            }
        });
        shared.unfinished.remove(expired);
        deleted
    }
}
