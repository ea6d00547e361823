//! The files behind the journal: which are free, which wait for a store checkpoint, and how large the next one is.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::segment::SegmentFile;
use crate::store::files::Dir;
use crate::store::format::segment::SECTOR;
use crate::types::clock;
use crate::types::error::{Error, ErrorKind, Result};

/// A file that may be written over.
pub(crate) type Spare = SegmentFile;

/// Segments double up to this many times the first.
const MAX_GROWTH: u64 = 64;
/// A segment that was filled faster than this was too small.
const BUSY: Duration = Duration::from_secs(10);
/// Free files that are kept for the next segments; others are deleted.
const MAX_FREE: usize = 2;

#[derive(Debug)]
pub(crate) struct Pool {
    dir: Dir,
    min_size: u64,
    max_size: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: Vec<Spare>,
    /// Last frame of each full segment, and the file.
    retired: Vec<(u64, SegmentFile)>,
    next_name: u64,
    next_size: u64,
    retired_at: Option<Instant>,
    files: u64,
    /// What holds nothing behind this frame is free.
    released: u64,
    /// How many keep everything that is not free as it is, and up to which frame it is to be free behind them.
    pins: usize,
    release_later: u64,
}

/// As long as it lives, no file becomes free.
#[derive(Debug)]
pub(crate) struct Pin<'a> {
    pool: &'a Pool,
    /// All that holds frames behind this one stays where it is.
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
    /// `first_size` is rounded up to whole sectors; names continue behind those of the files that are there.
    pub(crate) fn new(dir: Dir, first_size: u64, next_name: u64, files: u64) -> Self {
        // A header, a group and the seal at least.
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
        Self { dir, min_size: first_size, max_size: first_size.saturating_mul(MAX_GROWTH), state: Mutex::new(state) }
    }

    /// How large a file is made now where so many bytes are needed, if there is room for it.
    pub(crate) fn wanted(&self, need: u64) -> u64 {
        self.state.lock().next_size.max(need.next_multiple_of(SECTOR as u64)).max(self.min_size)
    }

    /// A file in which `need` bytes fit: a free one or a new one of `wanted` bytes, or of fewer if these do not fit into `room`.
    pub(crate) fn prepare(&self, need: u64, wanted: u64, room: u64) -> Result<Spare> {
        let least = need.next_multiple_of(SECTOR as u64).max(self.min_size);
        let wanted = wanted.next_multiple_of(SECTOR as u64).max(least);
        if let Some(spare) = self.take_free(wanted) {
            return Ok(spare);
        }
        match self.create(wanted, room) {
            Ok(spare) => {
                // What is free is too small for the pace.
                self.discard_free();
                Ok(spare)
            }
            // Rather a small one than none.
            Err(error) if error.kind() == ErrorKind::Full => {
                if let Some(spare) = self.take_free(least) {
                    return Ok(spare);
                }
                self.discard_free();
                self.create(least, room)
            }
            Err(error) => Err(error),
        }
    }

    fn take_free(&self, size: u64) -> Option<Spare> {
        let free = &mut self.state.lock().free;
        let fitting = free.iter().position(|spare| spare.size >= size)?;
        Some(free.swap_remove(fitting))
    }

    fn create(&self, size: u64, room: u64) -> Result<Spare> {
        let name = {
            let mut state = self.state.lock();
            let name = PathBuf::from(format!("{:08}.journal", state.next_name));
            state.next_name += 1;
            name
        };
        if size > room {
            let path = self.dir.path().join(name);
            let message = format!("create journal segment {}: {size} bytes, and {room} are left", path.display());
            return Err(Error::new(ErrorKind::Full, message));
        }
        let spare = SegmentFile::create(&self.dir, &name, size)?;
        if let Err(error) = self.dir.sync() {
            // It would stay behind, once for each try.
            let _ = spare.delete(&self.dir);
            return Err(error);
        }
        self.state.lock().files += 1;
        Ok(spare)
    }

    /// The directory that all of them are in.
    pub(crate) fn dir(&self) -> &Dir {
        &self.dir
    }

    fn discard_free(&self) {
        let free = std::mem::take(&mut self.state.lock().free);
        for spare in free {
            self.discard(spare);
        }
    }

    /// A segment that is full; its last frame is `last_frame`.
    pub(crate) fn retire(&self, last_frame: u64, file: SegmentFile) {
        let mut state = self.state.lock();
        let now = clock::monotonic();
        if state.retired_at.is_some_and(|before| now.saturating_duration_since(before) < BUSY) {
            state.next_size = (state.next_size * 2).min(self.max_size);
        }
        state.retired_at = Some(now);
        state.retired.push((last_frame, file));
    }

    /// A file found at open that holds frames up to `last_frame`, or 0 if it holds none that count.
    pub(crate) fn adopt(&self, last_frame: u64, file: SegmentFile) {
        self.state.lock().retired.push((last_frame, file));
    }

    /// sled has everything up to `frame`, durably, and the journal says so durably: what holds nothing later is free.
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
            // The largest are the most use.
            state.free.sort_by_key(|spare| std::cmp::Reverse(spare.size));
            if state.free.len() > MAX_FREE {
                excess = state.free.split_off(MAX_FREE);
            }
        }
        for spare in excess {
            self.discard(spare);
        }
    }

    /// For whoever looks at what there is.
    pub(crate) fn pin(&self) -> Pin<'_> {
        let mut state = self.state.lock();
        state.pins += 1;
        Pin { pool: self, released: state.released }
    }

    /// Gives back a file that was prepared and not used.
    pub(crate) fn give_back(&self, spare: Spare) {
        self.state.lock().free.push(spare);
    }

    pub(crate) fn files(&self) -> u64 {
        self.state.lock().files
    }

    fn discard(&self, spare: Spare) {
        // One that stays, or comes back after a crash, is older than the last checkpoint and does not count.
        let _ = spare.delete(&self.dir);
        let mut state = self.state.lock();
        state.files = state.files.saturating_sub(1);
    }
}
