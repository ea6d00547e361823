//! Users' commits refused for a while, for a reason outside the group.

use super::CommitQueue;
use crate::sync::atomic::Ordering;
use crate::types::error::Error;

impl<C, S> CommitQueue<C, S> {
    /// Refuses users' commits with this error until it is lifted. If nothing is applied meanwhile either, nobody waits for
    /// that.
    pub(crate) fn stall(&self, why: Error, stops_applying: bool) {
        let mut state = self.state.lock();
        state.stall = Some((why, stops_applying));
        self.is_stalled.store(true, Ordering::Release);
        state.wake_queue();
        self.applied_changed.notify_all();
    }

    /// Lets users' commits in again.
    pub(crate) fn resume(&self) {
        let mut state = self.state.lock();
        state.stall = None;
        self.is_stalled.store(false, Ordering::Release);
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.is_stalled.load(Ordering::Acquire)
    }
}
