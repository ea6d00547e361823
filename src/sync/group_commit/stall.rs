//! Write stalls: commits of users are rejected for a reason outside the queue.

use super::CommitQueue;
use crate::sync::atomic::Ordering;
use crate::types::error::Error;

impl<C, S> CommitQueue<C, S> {
    /// Rejects commits of users with this error until [`resume`](Self::resume). With `stops_applying`, waits for the
    /// apply thread fail too, because it does not apply during the stall.
    pub(crate) fn stall(&self, why: Error, stops_applying: bool) {
        let mut state = self.state.lock();
        state.stall = Some((why, stops_applying));
        self.is_stalled.store(true, Ordering::Release);
        state.wake_queue();
        self.applied_changed.notify_all();
    }

    /// Admits commits of users again.
    pub(crate) fn resume(&self) {
        let mut state = self.state.lock();
        state.stall = None;
        self.is_stalled.store(false, Ordering::Release);
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.is_stalled.load(Ordering::Acquire)
    }
}
