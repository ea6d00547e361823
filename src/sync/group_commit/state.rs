//! What the commit lock guards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::sync::Condvar;
use crate::sync::group_commit::priority::Class;
use crate::types::error::Error;

/// Orders those that wait to be admitted: by class, and in each first come, first served.
pub(super) type QueuePosition = (Class, u64);

#[derive(Debug)]
pub(super) struct State<C, S> {
    /// The number of the group that is being filled.
    pub(super) filling: u64,
    pub(super) next_frame: u64,
    pub(super) payload: Vec<u8>,
    pub(super) frames: Vec<C>,
    /// When the group that is being filled got its first frame; only kept where an interval counts from it.
    pub(super) since: Option<Instant>,
    /// Somebody waits for the group that is being filled.
    pub(super) urgent: bool,
    pub(super) phase: Phase,
    /// Room in the current region behind the last group taken.
    pub(super) segment_space: u64,
    pub(super) next_segment: Option<(u64, S)>,
    /// The size of the spare region that is wanted, 0 if none is.
    pub(super) wanted: u64,
    /// Those that wait to be admitted. Only the first may be.
    pub(super) queue: BTreeMap<QueuePosition, Arc<Condvar>>,
    pub(super) last_place: u64,
    pub(super) refusals: u64,
    pub(super) refused: Option<Error>,
    /// Why users' commits are refused for now, and whether nothing is applied meanwhile.
    pub(super) stall: Option<(Error, bool)>,
    pub(super) unapplied: u64,
    /// The last group that was applied.
    pub(super) applied: u64,
    /// Payload bytes ever committed, and those up to the last checkpoint.
    pub(super) committed: u64,
    pub(super) checked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Only exempt commits are let in.
    Closing,
    /// The writer was told that no user's commit will come.
    Draining,
    /// Nothing is let in.
    Closed,
}

impl<C, S> State<C, S> {
    /// `durable` is the last group there is, `region` the room behind it.
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

    /// Room for the group that is being filled: it goes behind the last one, or into the spare region.
    pub(super) fn room(&self) -> u64 {
        self.segment_space.max(self.next_segment.as_ref().map_or(0, |(size, _)| *size))
    }

    /// Takes the last place of a class.
    pub(super) fn enqueue(&mut self, class: Class) -> (QueuePosition, Arc<Condvar>) {
        self.last_place += 1;
        let (position, turn) = ((class, self.last_place), Arc::new(Condvar::new()));
        self.queue.insert(position, Arc::clone(&turn));
        (position, turn)
    }

    pub(super) fn leave(&mut self, position: QueuePosition) {
        self.queue.remove(&position);
        // The one that is first now may fit, and only this one was in its way.
        self.wake_first();
    }

    /// Whether nobody is to be admitted before this one, which waits at that place or has just come.
    pub(super) fn is_first(&self, class: Class, position: Option<QueuePosition>) -> bool {
        let first = self.queue.first_key_value().map(|(first, _)| *first);
        first.is_none_or(|first| Some(first) == position || (position.is_none() && first.0 > class))
    }

    /// There is more room or credit than before.
    pub(super) fn wake_first(&self) {
        if let Some((_, turn)) = self.queue.first_key_value() {
            turn.notify_one();
        }
    }

    /// Something concerns all that wait.
    pub(super) fn wake_queue(&self) {
        for turn in self.queue.values() {
            turn.notify_one();
        }
    }
}

#[cfg(test)]
impl<C, S> super::CommitQueue<C, S> {
    /// A spare region is there: whoever prepares them rests until it is used.
    pub(crate) fn has_next_segment(&self) -> bool {
        self.state.lock().next_segment.is_some()
    }
}
