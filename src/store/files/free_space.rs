//! The free space of a file system.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Dir;
use crate::types::error::{Error, Result};

/// Measures the free space of the file system of a directory.
///
/// btrfs counts space as used only at the end of its current transaction, up to 30 seconds after the space was
/// allocated. So the bytes that the store has allocated since the last sync are subtracted here. If too little is left
/// then, a sync of the file system makes the measurement exact.
#[derive(Debug)]
pub(crate) struct FreeSpace {
    /// The open directory, so that measuring needs neither a path nor permissions.
    dir: Option<Dir>,
    counts_late: bool,
    /// Bytes that were allocated, in all.
    allocated: AtomicU64,
    /// The bytes of `allocated` that the file system had counted at the last sync.
    counted: AtomicU64,
}

impl FreeSpace {
    /// Measures the file system of `dir`. `allocated` is the number of bytes that may have been allocated just before.
    pub(crate) fn new(dir: Option<Dir>, allocated: u64) -> Self {
        let counts_late = dir.as_ref().is_some_and(|dir| counts_late(&dir.file));
        Self { dir, counts_late, allocated: AtomicU64::new(allocated), counted: AtomicU64::new(0) }
    }

    /// Returns the directory, if it could be opened.
    pub(crate) fn dir(&self) -> Option<&Dir> {
        self.dir.as_ref()
    }

    /// Adds bytes that were allocated.
    pub(crate) fn add_allocated(&self, bytes: u64) {
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the number of bytes that are certainly free, or `u64::MAX` if they cannot be measured: a failed
    /// measurement is no reason to refuse a commit.
    pub(crate) fn get(&self) -> u64 {
        let free = self.dir.as_ref().and_then(|dir| free_bytes_of(&dir.file).ok()).unwrap_or(u64::MAX);
        if free == u64::MAX { free } else { free.saturating_sub(self.uncounted()) }
    }

    fn uncounted(&self) -> u64 {
        let counted = self.counted.load(Ordering::Relaxed);
        if self.counts_late { self.allocated.load(Ordering::Relaxed).saturating_sub(counted) } else { 0 }
    }

    /// Makes the next measurement exact, unless at least this much is free anyway. May sync the file system, so the
    /// caller holds no lock.
    pub(crate) fn make_exact(&self, enough: u64) {
        if self.uncounted() == 0 || self.get() >= enough {
            return;
        }
        // Load this before the sync, which may not count what is allocated meanwhile.
        let allocated = self.allocated.load(Ordering::Relaxed);
        if self.dir.as_ref().is_some_and(|dir| sync_file_system(&dir.file).is_ok()) {
            self.counted.fetch_max(allocated, Ordering::Relaxed);
        }
    }
}

#[cfg(target_os = "linux")]
fn sync_file_system(dir: &File) -> io::Result<()> {
    Ok(rustix::fs::syncfs(dir)?)
}

#[cfg(not(target_os = "linux"))]
fn sync_file_system(_dir: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn counts_late(dir: &File) -> bool {
    // From linux/magic.h.
    const BTRFS: u32 = 0x9123_683E;
    rustix::fs::fstatfs(dir).is_ok_and(|found| super::magic(&found) == BTRFS)
}

#[cfg(not(target_os = "linux"))]
fn counts_late(_dir: &File) -> bool {
    false
}

/// Returns the free bytes of the file system of a directory, or `u64::MAX` if it does not report them.
pub(crate) fn free_bytes(dir: &Path) -> Result<u64> {
    let free = File::open(dir).and_then(|dir| free_bytes_of(&dir));
    free.map_err(|cause| Error::io("look at file system of", dir, &cause))
}

fn free_bytes_of(dir: &File) -> io::Result<u64> {
    let found = rustix::fs::fstatvfs(dir)?;
    let is_known = found.f_blocks > 0;
    Ok(if is_known { found.f_bavail.saturating_mul(found.f_frsize) } else { u64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_a_file_system_counts_late_is_subtracted_until_a_sync() {
        let dir = tempfile::tempdir().unwrap();
        let reported = || free_bytes(dir.path()).unwrap();
        let mut space = FreeSpace::new(Dir::open(dir.path()).ok(), 0);
        space.counts_late = true;
        let some = reported() / 2;
        space.add_allocated(some);
        assert!(space.get() < reported() - some / 2);
        space.make_exact(some / 2);
        assert_eq!(space.uncounted(), some, "there is enough, so nothing is synced");
        space.make_exact(u64::MAX);
        assert_eq!(space.uncounted(), 0);
        space.counts_late = false;
        space.add_allocated(u64::MAX / 2);
        assert!(space.get() > some / 2);
    }
}
