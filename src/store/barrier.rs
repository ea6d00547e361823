//! When sled has to be synced, where the file system does not do it by itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

/// What sled is given between two barriers, in bytes. It writes much more than that, now and then whole leaves and segments that
/// it moves; and it writes over a segment of 512 KiB once what was in it has been written elsewhere, synced or not. With so
/// much behind a barrier's back, a power cut can take what an older barrier had made safe.
const GIVEN: usize = 4 << 10;
/// What a change costs besides its key and value.
const CHANGE: usize = 64;

#[derive(Debug)]
pub(crate) struct Barriers {
    /// Every write is synced by the file system: there is nothing to do.
    pub(crate) sync_flag: bool,
    /// Given to sled since the last barrier.
    given: AtomicUsize,
    /// Held by a barrier, and by a change: what sled has pushed to the disk it takes for safe, and another change, before the
    /// sync, could write over what that has replaced.
    turn: Mutex<()>,
}

impl Barriers {
    pub(crate) fn new(sync_flag: bool) -> Self {
        Self { sync_flag, given: AtomicUsize::new(0), turn: Mutex::new(()) }
    }

    /// To be held during a change of so many bytes.
    pub(crate) fn change(&self, bytes: usize) -> Option<MutexGuard<'_, ()>> {
        let turn = self.alone();
        // Only now: the barrier that was waited for does not cover it.
        self.given.fetch_add(CHANGE + bytes, Ordering::Relaxed);
        turn
    }

    /// To be held from a flush to the end of its sync.
    pub(crate) fn alone(&self) -> Option<MutexGuard<'_, ()>> {
        (!self.sync_flag).then(|| self.turn.lock())
    }

    pub(crate) fn is_due(&self) -> bool {
        !self.sync_flag && self.given.load(Ordering::Relaxed) >= GIVEN
    }

    pub(crate) fn done(&self) {
        self.given.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_is_due_by_what_was_given() {
        let barriers = Barriers::new(false);
        for _ in 0..2 {
            drop(barriers.change(GIVEN - 2 * CHANGE - 1));
            assert!(!barriers.is_due());
            drop(barriers.change(1));
            assert!(barriers.is_due());
            barriers.done();
        }
    }

    #[test]
    fn with_the_sync_flag_there_is_none_and_nobody_waits() {
        let barriers = Barriers::new(true);
        let held = (barriers.alone(), barriers.change(1 << 20));
        assert!(held.0.is_none() && held.1.is_none() && !barriers.is_due());
    }
}
