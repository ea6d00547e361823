//! Users' commits refused for a while, for a reason outside the group.

use super::Group;
use crate::sync::atomic::Ordering;
use crate::types::error::Error;

impl<C, S> Group<C, S> {
    /// Refuses users' commits with this error until it is lifted. If nothing is applied meanwhile either, nobody waits for
    /// that.
    pub(crate) fn hold(&self, why: Error, stops_applying: bool) {
        let mut state = self.state.lock();
        state.hold = Some((why, stops_applying));
        self.is_held.store(true, Ordering::Release);
        state.wake_queue();
        self.applied_changed.notify_all();
    }

    /// Lets users' commits in again.
    pub(crate) fn lift(&self) {
        let mut state = self.state.lock();
        state.hold = None;
        self.is_held.store(false, Ordering::Release);
    }

    pub(crate) fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Acquire)
    }
}
