//! The files of the journal: free files, full segments that wait for a checkpoint, and the size of the next file.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::segment::SegmentFile;
use crate::store::files::Dir;
use crate::store::format::segment::SECTOR;
use crate::types::clock;
use crate::types::error::{Error, ErrorKind, Result};

/// A free file, which may be overwritten.
pub(crate) type Spare = SegmentFile;

/// New segments are at most this many times as large as the first one. Their size grows by doubling.
const MAX_GROWTH: u64 = 64;
/// A segment that was full after less than this time was too small: the next one is larger.
const BUSY: Duration = Duration::from_secs(10);
/// The number of free files that are kept for the next segments. Further ones are deleted.
const MAX_FREE: usize = 2;

#[derive(Debug)]
pub(crate) struct Pool {
    dir: Dir,
    min_size: u64,
    max_size: u64,
    state: Mutex<State>,
    /// Notified when `released` has changed.
    released: Condvar,
}

#[derive(Debug)]
struct State {
    free: Vec<Spare>,
    /// The last frame of each full segment, and its file.
    retired: Vec<(u64, SegmentFile)>,
    next_name: u64,
    next_size: u64,
    retired_at: Option<Instant>,
    files: u64,
    /// Files without frames after this one are free.
    released: u64,
    /// The number of pins. While there is one, no further file becomes free. When the last pin is dropped, files
    /// without frames after `release_later` become free.
    pins: usize,
    release_later: u64,
}

/// A guard: until it is dropped, no further file becomes free.
#[derive(Debug)]
pub(crate) struct Pin<'a> {
    pool: &'a Pool,
    /// Files with frames after this one are still in place.
    pub(crate) released: u64,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let later = {
            let mut state = self.pool.state.lock();
            state.pins -= 1;
            state.release_later
        };
        self.pool.release(later);
    }
}

impl Pool {
    /// Creates a pool. `first_size` is rounded up to whole sectors. Names of new files start at `next_name`.
    pub(crate) fn new(dir: Dir, first_size: u64, next_name: u64, files: u64) -> Self {
        // At least a header, a group and the seal must fit.
        let first_size = first_size.max(8 * SECTOR as u64).next_multiple_of(SECTOR as u64);
        let state = State {
            free: Vec::new(),
            retired: Vec::new(),
            next_name,
            next_size: first_size,
            retired_at: None,
            files,
            released: 0,
            pins: 0,
            release_later: 0,
        };
        Self {
            dir,
            min_size: first_size,
            max_size: first_size.saturating_mul(MAX_GROWTH),
            state: Mutex::new(state),
            released: Condvar::new(),
        }
    }

    /// Returns the size of the next file, which must hold `need` bytes, if the disk has space for it.
    pub(crate) fn wanted(&self, need: u64) -> u64 {
        self.state.lock().next_size.max(need.next_multiple_of(SECTOR as u64)).max(self.min_size)
    }

    /// Returns a file for `need` bytes: a free file or a new one of `wanted` bytes. Creates a smaller one if `wanted`
    /// does not fit into `free`.
    pub(crate) fn prepare(&self, need: u64, wanted: u64, free: u64) -> Result<Spare> {
        let least = need.next_multiple_of(SECTOR as u64).max(self.min_size);
        let wanted = wanted.next_multiple_of(SECTOR as u64).max(least);
        if let Some(spare) = self.take_free(wanted) {
            return Ok(spare);
        }
        match self.create(wanted, free) {
            Ok(spare) => {
                // The free files are smaller than the commit rate needs.
                self.discard_free();
                Ok(spare)
            }
            // A small file is better than none, also without permission to create one, or without a descriptor.
            Err(error) => match self.take_free(least) {
                Some(spare) => Ok(spare),
                None if error.kind() == ErrorKind::Full => {
                    self.discard_free();
                    self.create(least, free)
                }
                None => Err(error),
            },
        }
    }

    fn take_free(&self, size: u64) -> Option<Spare> {
        let free = &mut self.state.lock().free;
        let fitting = free.iter().position(|spare| spare.size >= size)?;
        Some(free.swap_remove(fitting))
    }

    fn create(&self, size: u64, free: u64) -> Result<Spare> {
        let name = {
            let mut state = self.state.lock();
            let name = PathBuf::from(format!("{:08}.journal", state.next_name));
            state.next_name += 1;
            name
        };
        if size > free {
            let path = self.dir.path().join(name);
            let message = format!("create journal segment {}: {size} bytes, and {free} are left", path.display());
            return Err(Error::new(ErrorKind::Full, message));
        }
        let spare = SegmentFile::create(&self.dir, &name, size)?;
        if let Err(error) = self.dir.sync() {
            // Otherwise each attempt would leave a file.
            let _ = spare.delete(&self.dir);
            return Err(error);
        }
        self.state.lock().files += 1;
        Ok(spare)
    }

    pub(crate) fn dir(&self) -> &Dir {
        &self.dir
    }

    fn discard_free(&self) {
        let free = std::mem::take(&mut self.state.lock().free);
        for spare in free {
            self.discard(spare);
        }
    }

    /// Adds a full segment, whose last frame is `last_frame`.
    pub(crate) fn retire(&self, last_frame: u64, file: SegmentFile) {
        let mut state = self.state.lock();
        let now = clock::monotonic();
        if state.retired_at.is_some_and(|before| now.saturating_duration_since(before) < BUSY) {
            state.next_size = (state.next_size * 2).min(self.max_size);
        }
        state.retired_at = Some(now);
        state.retired.push((last_frame, file));
    }

    /// Adds a file found at open, whose last frame is `last_frame`, or 0 if none of its frames counts.
    pub(crate) fn adopt(&self, last_frame: u64, file: SegmentFile) {
        self.state.lock().retired.push((last_frame, file));
    }

    /// Frees the files without frames after `frame`. The changes up to `frame` must be in runs, and the checkpoint that
    /// says so must be durable.
    pub(crate) fn release(&self, frame: u64) {
        let mut excess = Vec::new();
        {
            let mut state = self.state.lock();
            if state.pins > 0 {
                state.release_later = state.release_later.max(frame);
                return;
            }
            state.released = state.released.max(frame);
            let (done, kept): (Vec<_>, Vec<_>) =
                std::mem::take(&mut state.retired).into_iter().partition(|(last, _)| *last <= frame);
            state.retired = kept;
            state.free.extend(done.into_iter().map(|(_, file)| file));
            // Keep the largest files.
            state.free.sort_by_key(|spare| std::cmp::Reverse(spare.size));
            if state.free.len() > MAX_FREE {
                excess = state.free.split_off(MAX_FREE);
            }
        }
        self.released.notify_all();
        for spare in excess {
            self.discard(spare);
        }
    }

    /// Returns the frame up to which segments were freed.
    pub(crate) fn released(&self) -> u64 {
        self.state.lock().released
    }

    /// Waits until segments with frames after this one were freed, at most until the deadline.
    pub(crate) fn wait_for_release(&self, before: u64, until: Option<Instant>) {
        let mut state = self.state.lock();
        while state.released <= before {
            let Some(until) = until.filter(|until| clock::monotonic() < *until) else { return };
            self.released.wait_until(&mut state, until);
        }
    }

    /// Pins the files, for a reader of the journal.
    pub(crate) fn pin(&self) -> Pin<'_> {
        let mut state = self.state.lock();
        state.pins += 1;
        Pin { pool: self, released: state.released }
    }

    /// Returns an unused file to the pool.
    pub(crate) fn give_back(&self, spare: Spare) {
        self.state.lock().free.push(spare);
    }

    pub(crate) fn files(&self) -> u64 {
        self.state.lock().files
    }

    fn discard(&self, spare: Spare) {
        // A file that cannot be deleted, or reappears after a crash, is older than the last checkpoint, so recovery
        // ignores it.
        let _ = spare.delete(&self.dir);
        let mut state = self.state.lock();
        state.files = state.files.saturating_sub(1);
    }
}
