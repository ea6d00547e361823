//! When sled has to be flushed: before it has too much under way, and where the file system does not sync its writes by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::sync::atomic::AtomicU64;

/// What sled is given between two barriers, in bytes. It writes much more than that, now and then whole leaves and segments that
/// it moves; and it writes over a segment of 512 KiB once what was in it has been written elsewhere, synced or not. With so
/// much behind a barrier's back, a power cut can take what an older barrier had made safe.
const GIVEN: usize = 4 << 10;
/// What a change costs besides its key and value.
const CHANGE: usize = 64;

/// What sled may be given between two flushes, in bytes, by all engines of this process together.
///
/// sled writes its log by a pool of 7 threads, one for the process, in buffers of 512 KiB. Each of these writes ends with a
/// lock that a thread may hold while it waits for a truncation of the file, which is a task of the same pool: with 7 buffers
/// under way that task never runs. A flush waits for all of them. sled writes about 4 bytes of log for each byte that it is
/// given, so this is 3 to 4 buffers; a flush every 256 KiB cost 9 %.
pub(crate) const UNDER_WAY: usize = 384 << 10;
/// What the smallest change counts for: every tenth change of a leaf writes all of it, up to 75 KiB. So even leaves of the
/// largest values, of which one small one changes, stay below 7 buffers.
const SMALLEST: usize = 1 << 10;

/// How many engines of this process have sled open.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// An engine's share of sled's threads.
#[derive(Debug)]
pub(crate) struct Share;

impl Share {
    pub(crate) fn take() -> Self {
        OPEN.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(crate) struct WriteBarrier {
    /// Every write is synced by the file system: there is nothing to do.
    pub(crate) sync_flag: bool,
    /// Given to sled since the last barrier.
    given: AtomicUsize,
    /// Given to sled since the last flush, as it counts for its threads.
    under_way: AtomicUsize,
    #[cfg(test)]
    pub(crate) most_under_way: AtomicUsize,
    /// Counts changes and flushes: while it moves, sled does not hang.
    pub(crate) progress: Arc<AtomicU64>,
    /// Held by a barrier, and by a change: what sled has pushed to the disk it takes for safe, and another change, before the
    /// sync, could write over what that has replaced.
    turn: Mutex<()>,
}

impl WriteBarrier {
    pub(crate) fn new(sync_flag: bool) -> Self {
        Self {
            sync_flag,
            given: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            #[cfg(test)]
            most_under_way: AtomicUsize::new(0),
            progress: Arc::new(AtomicU64::new(0)),
            turn: Mutex::new(()),
        }
    }

    /// To be held during a change of so many bytes.
    pub(crate) fn change(&self, bytes: usize) -> Option<MutexGuard<'_, ()>> {
        let turn = self.alone();
        // Only now: the barrier that was waited for does not cover it.
        self.given.fetch_add(CHANGE + bytes, Ordering::Relaxed);
        self.under_way.fetch_add(SMALLEST.max(CHANGE + bytes), Ordering::Relaxed);
        turn
    }

    /// The change is made, and has replaced so many bytes, beside which others may lie in their leaf.
    pub(crate) fn changed(&self, replaced: usize) {
        self.under_way.fetch_add(replaced, Ordering::Relaxed);
        #[cfg(test)]
        self.most_under_way.fetch_max(self.under_way(), Ordering::Relaxed);
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// To be held from a flush to the end of its sync.
    pub(crate) fn alone(&self) -> Option<MutexGuard<'_, ()>> {
        (!self.sync_flag).then(|| self.turn.lock())
    }

    pub(crate) fn is_due(&self) -> bool {
        !self.sync_flag && self.given.load(Ordering::Relaxed) >= GIVEN
    }

    /// A barrier was made.
    pub(crate) fn done(&self) {
        self.given.store(0, Ordering::Relaxed);
    }

    /// Whether sled is to be flushed before it is given more.
    pub(crate) fn is_flush_due(&self) -> bool {
        self.is_flush_due_of(OPEN.load(Ordering::Relaxed))
    }

    fn is_flush_due_of(&self, engines: usize) -> bool {
        self.under_way() >= UNDER_WAY / engines.max(1)
    }

    /// To be asked before a flush, and given to [`flushed`](Self::flushed) after it.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// What was under way then is written.
    pub(crate) fn flushed(&self, under_way: usize) {
        // Two flushes at once cover the same.
        let less = |now: usize| Some(now.saturating_sub(under_way));
        let _ = self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_is_due_by_what_was_given() {
        let barriers = WriteBarrier::new(false);
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
        let barriers = WriteBarrier::new(true);
        let held = (barriers.alone(), barriers.change(1 << 20));
        assert!(held.0.is_none() && held.1.is_none() && !barriers.is_due());
    }

    #[test]
    fn a_flush_is_due_by_what_counts_for_the_threads_of_sled() {
        let barriers = WriteBarrier::new(true);
        let changes = UNDER_WAY / SMALLEST;
        for nth in 1..=changes {
            assert!(!barriers.is_flush_due_of(1), "{nth}");
            drop(barriers.change(1));
            assert_eq!(barriers.is_flush_due_of(2), nth >= changes / 2, "two engines have half each");
        }
        assert!(barriers.is_flush_due_of(1));
        let before = barriers.under_way();
        drop(barriers.change(10 << 10));
        barriers.flushed(before);
        assert_eq!(barriers.under_way(), (10 << 10) + CHANGE, "what came during the flush is still under way");
        // What is deleted lay in a leaf that is written.
        barriers.changed(UNDER_WAY);
        assert!(barriers.is_flush_due_of(1));
        barriers.flushed(usize::MAX);
        assert_eq!(barriers.under_way(), 0);
    }

    #[test]
    fn the_threads_of_sled_are_shared_by_those_that_are_open() {
        // Others open and close meanwhile: three are there at least.
        let shares = [Share::take(), Share::take(), Share::take()];
        assert!(OPEN.load(Ordering::Relaxed) >= 3);
        drop(shares);
    }
}
