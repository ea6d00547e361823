//! Reserves disk space for the writes of sled.
//!
//! The journal writes into files full of zeros, so a full disk cannot make it fail. sled's file grows when it is
//! written, and a failed write of sled poisons the store. So before the store gives data to sled, it allocates the
//! blocks after the end of sled's file, where no other process can take them. Without space, commits stay in the
//! journal and in memory until there is space, and before that users' commits are refused. If the file system cannot
//! preallocate blocks, the free space is only measured: another process may take it before sled does.

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::store::files::{self, FreeSpace};
use crate::store::format::block::BLOCK;
use crate::store::sled::snapshots;
use crate::types::error::{Error, ErrorKind, Result};

/// sled writes its file in segments of this many bytes.
const SLED_SEGMENT: u64 = 512 << 10;
/// Bytes that sled may write at any moment without being given anything: the buffers that it fills, a few of 512 KiB
/// each, and its own snapshot.
const FLOOR: u64 = 4 << 20;
/// Bytes that sled writes for each byte that it is given: a block, the leaf that contains it when the leaf is split,
/// and data moved to free a segment. The largest value seen was below 2.
const AMPLIFICATION: u64 = 3;
/// The largest number of blocks for which space is claimed at once. More are written in parts.
pub(crate) const CLAIMED_AT_ONCE: usize = 1 << 10;
/// A commit of at least this many bytes is refused if there is no space to apply it. Smaller ones are accepted first, so
/// that they need no system call.
pub(crate) const LARGE_COMMIT: u64 = 4 << 20;
/// Bytes that an open needs in addition, for the snapshot that sled then writes.
const SNAPSHOT: u64 = 1 << 20;
/// Blocks are allocated in pieces of this many bytes. If the disk becomes full during a claim, the pieces allocated so
/// far count for the next claim.
const PIECE: u64 = 1 << 20;
/// Bytes above the floor. With less than this, users' commits are refused, so that earlier commits can still be
/// applied.
const RESERVED: u64 = 4 << 20;

/// Measures the free space on sled's disk, and preallocates blocks after the end of sled's file.
#[derive(Debug)]
pub(crate) struct DiskSpace {
    dir: PathBuf,
    free_space: FreeSpace,
    preallocation: Mutex<Preallocation>,
    /// Wakes the apply thread, if it waits for space.
    wake_apply: Sender<()>,
    /// The bytes for which the apply thread waits.
    waited_for: AtomicU64,
    /// Bytes that [`SetApart`] withholds from claims.
    set_apart: AtomicU64,
    #[cfg(test)]
    pub(crate) pretended: AtomicU64,
}

/// Blocks after the end of sled's file. They belong to the file, so no other process can use them.
#[derive(Debug, Default)]
struct Preallocation {
    file: Option<File>,
    /// The bytes of blocks that the file had at the last look. A smaller number means that sled has truncated the file.
    /// Then the blocks after its end are lost, even if the file has grown again since.
    allocated: u64,
    end: u64,
    /// Bytes that claims have allocated and [`FreeSpace`] does not know of yet.
    added: u64,
}

/// Wake-ups of the apply thread.
pub(crate) type Wakeups = Receiver<()>;

impl DiskSpace {
    pub(crate) fn new(dir: &Path) -> (Self, Wakeups) {
        let (wake_apply, wakeups) = crossbeam_channel::bounded(1);
        // An earlier owner may have written all of these bytes just now, and the file system may not count them yet.
        let bytes = |dir: &Path| files::Dir::open(dir).ok().and_then(|dir| dir.disk_bytes().ok()).unwrap_or(0);
        let allocated = bytes(dir) + bytes(&dir.with_file_name("journal"));
        let space = Self {
            dir: dir.to_owned(),
            free_space: FreeSpace::new(files::Dir::open(dir).ok(), allocated),
            // A new store has no file yet.
            preallocation: Mutex::new(Preallocation {
                file: File::options().write(true).open(dir.join("db")).ok(),
                ..Preallocation::default()
            }),
            wake_apply,
            waited_for: AtomicU64::new(0),
            set_apart: AtomicU64::new(0),
            #[cfg(test)]
            pretended: AtomicU64::new(u64::MAX),
        };
        (space, wakeups)
    }

    /// Returns sled's directory, if it could be opened.
    pub(crate) fn dir(&self) -> Option<&files::Dir> {
        self.free_space.dir()
    }

    /// Returns the number of bytes that are certainly free.
    fn free(&self) -> u64 {
        self.pretended().unwrap_or_else(|| self.free_space.get())
    }

    /// Returns the free bytes, measured exactly if they are fewer than `enough`. The caller holds no lock.
    pub(crate) fn free_up_to(&self, enough: u64) -> u64 {
        self.free_space.make_exact(enough);
        self.free()
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "for tests")]
    fn pretended(&self) -> Option<u64> {
        None
    }

    #[cfg(test)]
    fn pretended(&self) -> Option<u64> {
        Some(self.pretended.load(Ordering::SeqCst)).filter(|free| *free < u64::MAX)
    }

    /// Claims space for giving sled this many bytes, and returns whether space is short. If the file system can
    /// preallocate blocks, the claimed space belongs to sled from now on.
    pub(crate) fn claim(&self, bytes: u64) -> SpaceStatus {
        self.claim_leaving(bytes, 0)
    }

    /// Claims as [`claim`](Self::claim) does, for merges and deletions. Leaves the last space to endings and to the
    /// next open.
    pub(crate) fn claim_in_background(&self, bytes: u64) -> SpaceStatus {
        self.claim_leaving(bytes, RESERVED)
    }

    fn claim_leaving(&self, bytes: u64, least_left: u64) -> SpaceStatus {
        if self.pretended().is_some() {
            return self.look(bytes);
        }
        let Needed { now, later } = Needed::of(bytes);
        let needed = now.saturating_add(later);
        // A large claim leaves part of the reserve to other writers and to the next open.
        let left = (now - FLOOR).min(RESERVED / 2).max(least_left);
        self.free_space.make_exact(needed.saturating_add(left + RESERVED));
        let mut preallocation = self.preallocation.lock();
        let left = left.saturating_add(self.set_apart.load(Ordering::Relaxed));
        let claimed = preallocation.claim(now, later, self.free().saturating_sub(left));
        self.free_space.add_allocated(std::mem::take(&mut preallocation.added));
        drop(preallocation);
        let free = self.free_up_to(FLOOR + RESERVED);
        match claimed {
            Claimed::Unsupported => self.judge(free, needed),
            Claimed::Full => SpaceStatus::Short(self.full(free, needed)),
            Claimed::Yes if free < RESERVED => SpaceStatus::Low(self.full(free, RESERVED)),
            Claimed::Yes => SpaceStatus::Enough,
        }
    }

    /// Returns whether space is short for giving sled this many bytes, without claiming it.
    pub(crate) fn look(&self, bytes: u64) -> SpaceStatus {
        let needed = Needed::of(bytes).all();
        self.judge(self.free_up_to(needed.max(FLOOR + RESERVED)), needed)
    }

    /// Returns `Full` if there is no space for a commit that takes `journal` bytes there, and that makes the commits
    /// which are not applied yet `unapplied` bytes long. Otherwise it would be stored, and could not be applied.
    pub(crate) fn check_large_commit(&self, journal: u64, unapplied: u64) -> Result<()> {
        let needed = Needed::of(unapplied).all().saturating_add(journal).saturating_add(RESERVED);
        // The next segment of the journal may take a sixteenth of what is free.
        let needed = needed.saturating_add(needed / 15);
        let free = self.free_up_to(needed).saturating_add(self.preallocation.lock().after_end());
        if free < needed { Err(self.full(free, needed)) } else { Ok(()) }
    }

    /// Frees the blocks after the end of sled's file, except those that the next open needs. Only while sled has the
    /// file closed: the truncation would destroy data that is being written.
    pub(crate) fn give_back(&self) {
        self.preallocation.lock().give_back(FLOOR);
    }

    fn judge(&self, free: u64, needed: u64) -> SpaceStatus {
        if free < needed {
            SpaceStatus::Short(self.full(free, needed))
        } else if free < FLOOR + RESERVED {
            SpaceStatus::Low(self.full(free, FLOOR + RESERVED))
        } else {
            SpaceStatus::Enough
        }
    }

    /// Returns `Full` if there is no space to open sled. Called before sled is opened. Blocks after the end of its file
    /// count as free.
    pub(crate) fn check(&self) -> Result<()> {
        self.give_back();
        if let SpaceStatus::Short(error) = self.claim(0) {
            return Err(error);
        }
        let needed = SNAPSHOT.saturating_add(2 * snapshots::len(&self.dir)?);
        let free = self.free_up_to(needed);
        if free < needed { Err(self.full(free, needed)) } else { Ok(()) }
    }

    /// Sets up to `most` bytes apart for another purpose, such as a segment of the journal, so that a claim does not
    /// use them. Only one at a time.
    pub(crate) fn set_apart(&self, most: u64) -> SetApart<'_> {
        self.free_space.make_exact(most.saturating_add(FLOOR + RESERVED));
        // Under the lock of claims, so that the same space is not counted for a claim and for this.
        let _claims = self.preallocation.lock();
        let bytes = self.free().saturating_sub(FLOOR + RESERVED).min(most);
        self.set_apart.store(bytes, Ordering::Relaxed);
        SetApart { space: self, bytes }
    }

    /// Notes that the apply thread waits for space for this many bytes; 0 if it does not wait.
    pub(crate) fn wait_for(&self, bytes: u64) {
        self.waited_for.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn waited_for(&self) -> u64 {
        self.waited_for.load(Ordering::Relaxed)
    }

    /// Wakes the apply thread, if it waits for space.
    pub(crate) fn wake(&self) {
        // If a wake-up is already queued, one is enough.
        let _ = self.wake_apply.try_send(());
    }

    fn full(&self, free: u64, needed: u64) -> Error {
        let dir = self.dir.display();
        let message = format!("the disk of {dir} has {free} bytes free and the record store needs {needed}");
        Error::new(ErrorKind::Full, message)
    }
}

/// Bytes that sled must not use, until this is dropped.
#[derive(Debug)]
pub(crate) struct SetApart<'a> {
    space: &'a DiskSpace,
    pub(crate) bytes: u64,
}

impl Drop for SetApart<'_> {
    fn drop(&mut self) {
        self.space.free_space.add_allocated(self.bytes);
        self.space.set_apart.store(0, Ordering::Relaxed);
        self.space.wake();
    }
}

/// The bytes that sled needs in order to be given some bytes.
#[derive(Clone, Copy, Debug)]
struct Needed {
    /// For the next part. Claimed before it is written.
    now: u64,
    /// For the parts after that. They must be free, so that the first parts are not written in vain.
    later: u64,
}

impl Needed {
    fn of(bytes: u64) -> Self {
        let part = bytes.min(CLAIMED_AT_ONCE as u64 * BLOCK as u64);
        let later = (bytes - part).saturating_mul(3) / 2;
        Self { now: FLOOR.saturating_add(part.saturating_mul(AMPLIFICATION)), later }
    }

    fn all(self) -> u64 {
        self.now.saturating_add(self.later)
    }
}

/// The result of a claim of blocks.
enum Claimed {
    Yes,
    Full,
    /// The file system cannot preallocate blocks.
    Unsupported,
}

impl Preallocation {
    /// Returns the bytes of blocks after the end of the file.
    fn after_end(&self) -> u64 {
        let found = self.file.as_ref().and_then(|file| file.metadata().ok());
        found.map_or(0, |found| after_end(&found))
    }

    /// Allocates blocks for `needed` bytes after the end. Takes nothing if less than that and `later` is free.
    fn claim(&mut self, needed: u64, later: u64, free: u64) -> Claimed {
        let Some(file) = &self.file else { return Claimed::Unsupported };
        let Ok(found) = file.metadata() else { return Claimed::Unsupported };
        let (len, blocks) = (found.len(), allocated(&found));
        if blocks < self.allocated {
            self.end = 0;
        }
        self.allocated = blocks;
        if len.saturating_add(needed).saturating_add(later) <= self.end {
            return Claimed::Yes;
        }
        // The last buffer of sled may not be full yet, and starts before the end.
        let start = len.saturating_sub(SLED_SEGMENT);
        let end = len.saturating_add(needed).saturating_add(SLED_SEGMENT);
        // An earlier owner may have left blocks after the end of the file.
        let after_end = blocks.saturating_sub(start);
        if free < (end - start).saturating_add(later).saturating_sub(after_end) {
            return Claimed::Full;
        }
        let mut at = start.max(self.end.min(end));
        while at < end {
            let piece = PIECE.min(end - at);
            match files::allocate(file, at, piece) {
                Ok(()) => at += piece,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) if matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                    return Claimed::Full;
                }
                Err(_) => return Claimed::Unsupported,
            }
            self.end = at;
            let blocks = file.metadata().map_or(self.allocated, |found| allocated(&found));
            self.added += blocks.saturating_sub(self.allocated);
            self.allocated = blocks;
        }
        Claimed::Yes
    }

    fn give_back(&mut self, needed: u64) {
        let Some(file) = &self.file else { return };
        if !matches!(files::try_lock(file), Ok(true)) {
            // sled of an engine that has just ended still has the file open.
            return;
        }
        self.cut(needed);
        self.file.as_ref().map(files::unlock);
    }

    fn cut(&mut self, needed: u64) {
        let Some(file) = &self.file else { return };
        let Ok(found) = file.metadata() else { return };
        let kept = needed.saturating_add(2 * SLED_SEGMENT);
        // Truncating to the current length frees the blocks after it. If that fails, sled uses them over time.
        if after_end(&found) > kept && file.set_len(found.len()).is_ok() {
            (self.allocated, self.end) = (0, 0);
            self.claim(needed, 0, u64::MAX);
        }
    }
}

/// Returns the bytes of blocks that a file has after its end.
fn after_end(metadata: &Metadata) -> u64 {
    allocated(metadata).saturating_sub(metadata.len())
}

/// Returns the bytes of blocks that a file has.
fn allocated(metadata: &Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    metadata.blocks().saturating_mul(512)
}

#[derive(Debug)]
pub(crate) enum SpaceStatus {
    Enough,
    /// There is space to apply this, but users' commits are refused.
    Low(Error),
    /// There is no space to apply this.
    Short(Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_lost_with_a_truncation_are_claimed_again_after_the_file_has_grown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let file = File::create(&path).unwrap();
        let len = 4 * SLED_SEGMENT;
        std::fs::write(&path, vec![7; usize::try_from(len).unwrap()]).unwrap();
        let mut preallocation =
            Preallocation { file: Some(File::options().write(true).open(&path).unwrap()), ..Preallocation::default() };
        let mut claim = || match preallocation.claim(FLOOR, 0, u64::MAX) {
            Claimed::Yes => allocated(&file.metadata().unwrap()) >= len + FLOOR,
            Claimed::Full => panic!("the disk is full"),
            Claimed::Unsupported => true,
        };
        assert!(claim() && claim());
        // The file has the same length at the next look, but no blocks after its end.
        file.set_len(len / 2).unwrap();
        std::fs::write(&path, vec![7; usize::try_from(len).unwrap()]).unwrap();
        assert!(claim());
    }

    /// Creates a file of `len` bytes, and a preallocation after its end.
    fn preallocation(dir: &Path, len: u64) -> (File, Preallocation) {
        let path = dir.join("db");
        std::fs::write(&path, vec![7; usize::try_from(len).unwrap()]).unwrap();
        let open = || File::options().write(true).open(&path).unwrap();
        (open(), Preallocation { file: Some(open()), ..Preallocation::default() })
    }

    #[test]
    fn a_claim_larger_than_the_free_space_allocates_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (file, mut preallocation) = preallocation(dir.path(), SLED_SEGMENT);
        let before = allocated(&file.metadata().unwrap());
        for needed in [FLOOR, 1 << 40, u64::MAX] {
            assert!(matches!(preallocation.claim(needed, 0, FLOOR - 1), Claimed::Full));
        }
        assert_eq!(allocated(&file.metadata().unwrap()), before);
    }

    #[test]
    fn claims_do_not_add_up_and_are_freed_while_sled_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, mut preallocation) = preallocation(dir.path(), SLED_SEGMENT);
        let behind = || allocated(&file.metadata().unwrap()).saturating_sub(SLED_SEGMENT);
        if matches!(preallocation.claim(4 * FLOOR, 0, u64::MAX), Claimed::Unsupported) {
            println!("skipped: this file system cannot preallocate blocks");
            return;
        }
        let most = 4 * FLOOR + 2 * SLED_SEGMENT;
        for needed in [FLOOR, 4 * FLOOR, 2 * FLOOR] {
            assert!(matches!(preallocation.claim(needed, 0, u64::MAX), Claimed::Yes));
            assert!((4 * FLOOR..=most).contains(&behind()));
        }
        preallocation.give_back(FLOOR);
        assert!((FLOOR..=FLOOR + 2 * SLED_SEGMENT).contains(&behind()), "{} bytes are left", behind());
        assert_eq!(std::fs::read(dir.path().join("db")).unwrap(), vec![7; usize::try_from(SLED_SEGMENT).unwrap()]);
    }

    #[test]
    fn a_disk_that_cannot_be_measured_is_not_full() {
        let dir = tempfile::tempdir().unwrap();
        let (space, _wakeups) = DiskSpace::new(&dir.path().join("missing"));
        assert!(matches!(space.claim(1 << 20), SpaceStatus::Enough));
        assert_eq!(space.free(), u64::MAX);
    }
}
