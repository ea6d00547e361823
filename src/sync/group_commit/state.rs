//! The state that the commit lock protects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::sync::Condvar;
use crate::sync::group_commit::priority::Class;
use crate::types::error::Error;

/// The position of a waiting commit. Sorts by class, and within a class by arrival.
pub(super) type QueuePosition = (Class, u64);

#[derive(Debug)]
pub(super) struct State<C, S> {
    /// The number of the group that is being filled.
    pub(super) filling: u64,
    pub(super) next_frame: u64,
    pub(super) payload: Vec<u8>,
    pub(super) frames: Vec<C>,
    /// The time of the first frame in the current group. Set only if there is an interval.
    pub(super) since: Option<Instant>,
    /// True if a caller waits for the current group.
    pub(super) urgent: bool,
    pub(super) phase: Phase,
    /// The space in the current segment after the last taken group, in bytes.
    pub(super) segment_space: u64,
    pub(super) next_segment: Option<(u64, S)>,
    /// The requested size of the next segment, in bytes. 0 if none is requested.
    pub(super) wanted: u64,
    /// The commits that wait to be admitted, each with the length of its frame.
    pub(super) queue: BTreeMap<QueuePosition, (Arc<Condvar>, u64)>,
    /// The sum of these lengths.
    pub(super) queued: u64,
    pub(super) last_place: u64,
    pub(super) refusals: u64,
    pub(super) refused: Option<Error>,
    /// The error for commits of users during a stall, and true if the apply thread stops too.
    pub(super) stall: Option<(Error, bool)>,
    pub(super) unapplied: u64,
    /// The number of the last applied group.
    pub(super) applied: u64,
    /// Payload bytes committed so far, and the part of them up to the last checkpoint.
    pub(super) committed: u64,
    pub(super) checked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Only the store's own commits are admitted.
    Closing,
    /// The writer has learned that no more users commit.
    Draining,
    /// No commit is admitted.
    Closed,
}

impl<C, S> State<C, S> {
    /// Creates the state. `durable` is the number of the last group in the journal. `segment_space` is the space after
    /// that group, in bytes.
    pub(super) fn new(durable: u64, next_frame: u64, segment_space: u64) -> Self {
        Self {
            filling: durable + 1,
            next_frame,
            payload: Vec::new(),
            frames: Vec::new(),
            since: None,
            urgent: false,
            phase: Phase::Open,
            segment_space,
            next_segment: None,
            wanted: 1,
            queue: BTreeMap::new(),
            queued: 0,
            last_place: 0,
            refusals: 0,
            refused: None,
            stall: None,
            unapplied: 0,
            applied: durable,
            committed: 0,
            checked: 0,
        }
    }

    /// Returns the space for the current group, in bytes. The group goes into the current segment or into the next one.
    pub(super) fn space(&self) -> u64 {
        self.segment_space.max(self.next_segment.as_ref().map_or(0, |(size, _)| *size))
    }

    /// Takes the last position in a class, for a frame of `len` bytes.
    pub(super) fn enqueue(&mut self, class: Class, len: u64) -> (QueuePosition, Arc<Condvar>) {
        self.last_place += 1;
        let (position, wakeup) = ((class, self.last_place), Arc::new(Condvar::new()));
        self.queue.insert(position, (Arc::clone(&wakeup), len));
        self.queued += len;
        (position, wakeup)
    }

    pub(super) fn leave(&mut self, position: QueuePosition) {
        if let Some((_, len)) = self.queue.remove(&position) {
            self.queued -= len;
        }
        // The commit that is first now may fit: perhaps only the removed one was in its way.
        self.wake_first();
    }

    /// Returns true if no other commit goes first. `position` is that of a waiting commit, or `None` for a new one.
    pub(super) fn is_first(&self, class: Class, position: Option<QueuePosition>) -> bool {
        let first = self.queue.first_key_value().map(|(first, _)| *first);
        first.is_none_or(|first| Some(first) == position || (position.is_none() && first.0 > class))
    }

    /// Wakes the first of the queue, because there is more space or credit than before.
    pub(super) fn wake_first(&self) {
        if let Some((_, (wakeup, _))) = self.queue.first_key_value() {
            wakeup.notify_one();
        }
    }

    /// Wakes all that wait to be admitted.
    pub(super) fn wake_queue(&self) {
        for (wakeup, _) in self.queue.values() {
            wakeup.notify_one();
        }
    }
}

#[cfg(test)]
impl<C, S> super::CommitQueue<C, S> {
    /// Returns true if the next segment is there. The thread that prepares segments then waits until it is used.
    pub(crate) fn has_next_segment(&self) -> bool {
        self.state.lock().next_segment.is_some()
    }
}
