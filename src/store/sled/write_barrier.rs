//! Decides when sled must be flushed: before too many bytes are under way in its threads, and, where the file system
//! does not sync writes by itself, at a barrier. A barrier is a flush that is followed by a sync.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::sync::atomic::AtomicU64;

/// The bytes that sled is given between two barriers. sled writes much more than that, sometimes whole leaves and
/// segments of its file that it moves. And sled reuses a segment of 512 KiB once its data was written elsewhere,
/// synced or not. So if sled were given much more before the next barrier, a power cut could destroy data that an
/// earlier barrier had made durable.
const GIVEN: usize = 4 << 10;
/// The cost of a change in bytes, in addition to its key and value.
const CHANGE: usize = 64;

/// The bytes that all engines of this process together may give to sled between two flushes.
///
/// sled writes its log by a pool of 7 threads, one pool for the process, in buffers of 512 KiB. Each of these writes
/// ends by taking a lock. The owner of that lock may wait for a truncation of the file, which is a task of the same
/// pool: with 7 buffers under way that task never runs. A flush waits for all of them. sled writes about 4 bytes of log
/// for each byte that it is given, so this limit is 3 to 4 buffers. A flush every 256 KiB cost 9 %.
pub(crate) const UNDER_WAY: usize = 384 << 10;
/// The least that a change counts for. Every tenth change of a leaf writes the whole leaf, up to 75 KiB. With this
/// minimum, small changes in leaves of the largest values also stay below 7 buffers.
const SMALLEST: usize = 1 << 10;

/// The number of engines in this process that have sled open.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// One engine's share of sled's threads.
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
    /// True if the file system syncs every write. Then no barrier is needed.
    pub(crate) sync_flag: bool,
    /// Bytes given to sled since the last barrier.
    given: AtomicUsize,
    /// Bytes given to sled since the last flush, by the cost for its threads.
    under_way: AtomicUsize,
    #[cfg(test)]
    pub(crate) most_under_way: AtomicUsize,
    /// Counts changes and flushes. While it grows, sled does not hang.
    pub(crate) progress: Arc<AtomicU64>,
    /// Locked during a barrier and during each change. sled reuses the old location of data that it has written
    /// elsewhere but not synced, so no change may run between a flush and its sync.
    exclusive: Mutex<()>,
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
            exclusive: Mutex::new(()),
        }
    }

    /// Returns a guard to hold during a change of this many bytes.
    pub(crate) fn change(&self, bytes: usize) -> Option<MutexGuard<'_, ()>> {
        let guard = self.alone();
        // Count after taking the lock: the barrier that held it does not cover this change.
        self.given.fetch_add(CHANGE + bytes, Ordering::Relaxed);
        self.under_way.fetch_add(SMALLEST.max(CHANGE + bytes), Ordering::Relaxed);
        guard
    }

    /// Counts the bytes that a change replaced. The leaf holds other values too, and is written as a whole.
    pub(crate) fn changed(&self, replaced: usize) {
        self.under_way.fetch_add(replaced, Ordering::Relaxed);
        #[cfg(test)]
        self.most_under_way.fetch_max(self.under_way(), Ordering::Relaxed);
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns a guard to hold from a flush to the end of its sync.
    pub(crate) fn alone(&self) -> Option<MutexGuard<'_, ()>> {
        (!self.sync_flag).then(|| self.exclusive.lock())
    }

    pub(crate) fn is_due(&self) -> bool {
        !self.sync_flag && self.given.load(Ordering::Relaxed) >= GIVEN
    }

    /// Called after a barrier.
    pub(crate) fn done(&self) {
        self.given.store(0, Ordering::Relaxed);
    }

    /// True if sled must be flushed before it is given more.
    pub(crate) fn is_flush_due(&self) -> bool {
        self.is_flush_due_of(OPEN.load(Ordering::Relaxed))
    }

    fn is_flush_due_of(&self, engines: usize) -> bool {
        self.under_way() >= UNDER_WAY / engines.max(1)
    }

    /// Returns the bytes under way. Call it before a flush, and pass the result to [`flushed`](Self::flushed).
    pub(crate) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Subtracts the bytes that a flush has written.
    pub(crate) fn flushed(&self, under_way: usize) {
        // Two flushes at the same time cover the same bytes, so the result must not go below 0.
        let less = |now: usize| Some(now.saturating_sub(under_way));
        let _ = self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_is_due_after_the_limit_of_bytes() {
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
    fn with_the_sync_flag_no_barrier_is_due_and_no_change_waits() {
        let barriers = WriteBarrier::new(true);
        let held = (barriers.alone(), barriers.change(1 << 20));
        assert!(held.0.is_none() && held.1.is_none() && !barriers.is_due());
    }

    #[test]
    fn a_flush_is_due_after_the_limit_of_bytes_under_way() {
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
        assert_eq!(barriers.under_way(), (10 << 10) + CHANGE, "changes during the flush are still under way");
        // A removed value lay in a leaf that is written.
        barriers.changed(UNDER_WAY);
        assert!(barriers.is_flush_due_of(1));
        barriers.flushed(usize::MAX);
        assert_eq!(barriers.under_way(), 0);
    }

    #[test]
    fn the_limit_of_bytes_under_way_is_shared_by_all_open_engines() {
        // Other tests open and close engines meanwhile: at least three are open.
        let shares = [Share::take(), Share::take(), Share::take()];
        assert!(OPEN.load(Ordering::Relaxed) >= 3);
        drop(shares);
    }
}
