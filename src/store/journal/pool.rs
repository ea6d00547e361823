//! The files behind the journal: which are free, which wait for a store checkpoint, and how large the next one is.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::segment::SegmentFile;
use crate::clock;
use crate::error::Result;
use crate::store::files;
use crate::store::format::segment::SECTOR;

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
    dir: PathBuf,
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
    prepared_at: Option<Instant>,
    files: u64,
}

impl Pool {
    /// `first_size` is rounded up to whole sectors; names continue behind those in use.
    pub(crate) fn new(dir: &Path, first_size: u64, next_name: u64) -> Self {
        // A header, a group and the seal at least.
        let first_size = first_size.max(8 * SECTOR as u64).next_multiple_of(SECTOR as u64);
        let state = State {
            free: Vec::new(),
            retired: Vec::new(),
            next_name,
            next_size: first_size,
            prepared_at: None,
            files: 0,
        };
        Self { dir: dir.to_owned(), max_size: first_size.saturating_mul(MAX_GROWTH), state: Mutex::new(state) }
    }

    /// A file in which so many bytes fit: a free one, or a new one.
    pub(crate) fn prepare(&self, need: u64) -> Result<Spare> {
        let (spare, path, size) = {
            let mut state = self.state.lock();
            let now = clock::monotonic();
            if state.prepared_at.is_some_and(|before| now.saturating_duration_since(before) < BUSY) {
                state.next_size = (state.next_size * 2).min(self.max_size);
            }
            state.prepared_at = Some(now);
            let size = state.next_size.max(need.next_multiple_of(SECTOR as u64));
            let fitting = state.free.iter().position(|spare| spare.size >= size);
            let spare = fitting.map(|index| state.free.swap_remove(index));
            let path = self.dir.join(format!("{:08}.journal", state.next_name));
            if spare.is_none() {
                state.next_name += 1;
            }
            (spare, path, size)
        };
        if let Some(spare) = spare {
            return Ok(spare);
        }
        // What is free is too small for the pace: its room is better in one file.
        let small = std::mem::take(&mut self.state.lock().free);
        for spare in small {
            self.discard(spare);
        }
        let spare = SegmentFile::create(&path, size)?;
        files::sync_dir(&self.dir)?;
        self.state.lock().files += 1;
        Ok(spare)
    }

    /// A segment that is full; its last frame is `last_frame`.
    pub(crate) fn retire(&self, last_frame: u64, file: SegmentFile) {
        self.state.lock().retired.push((last_frame, file));
    }

    /// A file found at open that is in use.
    pub(crate) fn adopt(&self, last_frame: u64, file: SegmentFile) {
        let mut state = self.state.lock();
        state.files += 1;
        state.retired.push((last_frame, file));
    }

    /// sled has everything up to `frame`, durably, and the journal says so durably: what holds nothing later is free.
    pub(crate) fn release(&self, frame: u64) {
        let mut excess = Vec::new();
        {
            let mut state = self.state.lock();
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

    /// Gives back a file that was prepared and not used.
    pub(crate) fn give_back(&self, spare: Spare) {
        self.state.lock().free.push(spare);
    }

    pub(crate) fn files(&self) -> u64 {
        self.state.lock().files
    }

    fn discard(&self, spare: Spare) {
        // One that stays, or comes back after a crash, is older than the last checkpoint and does not count.
        let _ = spare.delete();
        let mut state = self.state.lock();
        state.files = state.files.saturating_sub(1);
    }
}
