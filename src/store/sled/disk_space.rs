//! Room on the disk for what sled has still to write.
//!
//! The journal writes into files that are full of zeros, so a full disk cannot fail it. sled's file grows as it is written, and
//! a write of sled that fails is the end: the store is poisoned. So nothing is given to sled before its file has the blocks
//! for it, behind its end, where nobody else can take them: what is committed stays in the journal and in memory until there
//! is room again, and before it comes to that, users' commits are refused. Where the file system gives no blocks ahead, one
//! can only look at what is free, and hope that nobody takes it in the moment before sled does.

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::store::files;
use crate::store::sled::snapshots;
use crate::types::error::{Error, ErrorKind, Result};

/// sled writes its file in segments of this size.
const SLED_SEGMENT: u64 = 512 << 10;
/// What sled may write at any moment without having been given anything: the buffers that it fills, 512 KiB each and a few
/// at once, and its own snapshot of where its pages are.
const FLOOR: u64 = 4 << 20;
/// Bytes that sled writes for each byte it is given: a block, the leaf that it is in when that is split, and what is moved to free a segment.
/// It was seen to write less than twice as much.
const AMPLIFICATION: u64 = 3;
/// What opening needs besides, for the snapshot that sled writes then.
const SNAPSHOT: u64 = 1 << 20;
/// Blocks are claimed in pieces of this size: so much is taken at most by a claim that then finds the disk full, and it counts
/// for the next one.
const PIECE: u64 = 1 << 20;
/// With less than this above the floor users' commits are refused, so that what was committed before can still be applied.
const RESERVED: u64 = 4 << 20;

/// Knows how much there is, on the disk that sled is on, and keeps room behind the end of sled's file for what comes next.
#[derive(Debug)]
pub(crate) struct DiskSpace {
    dir: PathBuf,
    /// The directory, open: neither a path nor a right is needed to ask what is free.
    opened: Option<File>,
    ahead: Mutex<Preallocation>,
    /// Tells the apply thread, if it waits, that there may be room.
    nudge: Sender<()>,
    /// For how many bytes it waits.
    waited_for: AtomicU64,
    /// Bytes that are not for sled.
    set_apart: AtomicU64,
    #[cfg(test)]
    pub(crate) pretended: AtomicU64,
}

/// Blocks that belong to sled's file already, behind its end: whoever else fills the disk cannot have them.
#[derive(Debug, Default)]
struct Preallocation {
    file: Option<File>,
    /// Bytes of blocks that the file had when it was last looked at: they get fewer only when sled cuts it, and what lay behind
    /// is lost with that, however long it has become again since.
    allocated: u64,
    end: u64,
}

/// What the apply thread is told.
pub(crate) type Wakeups = Receiver<()>;

impl DiskSpace {
    pub(crate) fn new(dir: &Path) -> (Self, Wakeups) {
        let (nudge, wakeups) = crossbeam_channel::bounded(1);
        let room = Self {
            dir: dir.to_owned(),
            opened: File::open(dir).ok(),
            // There may be none yet.
            ahead: Mutex::new(Preallocation {
                file: File::options().write(true).open(dir.join("db")).ok(),
                ..Preallocation::default()
            }),
            nudge,
            waited_for: AtomicU64::new(0),
            set_apart: AtomicU64::new(0),
            #[cfg(test)]
            pretended: AtomicU64::new(u64::MAX),
        };
        (room, wakeups)
    }

    /// Bytes that are free; `u64::MAX` if that cannot be found out, which is no reason to refuse anything.
    pub(crate) fn free(&self) -> u64 {
        let known = || self.opened.as_ref().and_then(|dir| files::free_bytes_of(dir).ok());
        self.pretended().or_else(known).unwrap_or(u64::MAX)
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

    /// What is short for applying so many bytes, if anything is. What is not short is sled's from now on,
    /// where the file system gives blocks before they are written.
    pub(crate) fn claim(&self, bytes: u64) -> SpaceStatus {
        if self.pretended().is_some() {
            return self.look(bytes);
        }
        let needed = needed(bytes);
        // A large claim leaves some of it to others, and to the next open.
        let left = (needed - FLOOR).min(RESERVED / 2);
        let mut ahead = self.ahead.lock();
        let left = left.saturating_add(self.set_apart.load(Ordering::Relaxed));
        let claimed = ahead.claim(needed, self.free().saturating_sub(left));
        drop(ahead);
        let free = self.free();
        match claimed {
            Claimed::Unsupported => self.judge(free, needed),
            Claimed::Full => SpaceStatus::Short(self.full(free, needed)),
            Claimed::Yes if free < RESERVED => SpaceStatus::Low(self.full(free, RESERVED)),
            Claimed::Yes => SpaceStatus::Enough,
        }
    }

    /// Whether so many bytes can be written once more, before what they replace is deleted: with a quarter more for sled's own, and
    /// what commits need meanwhile.
    pub(crate) fn can_merge(&self, bytes: u64) -> bool {
        self.free() >= bytes.saturating_add(bytes / 4).saturating_add(FLOOR + RESERVED)
    }

    /// What is short for applying so many bytes, as far as one can see.
    pub(crate) fn look(&self, bytes: u64) -> SpaceStatus {
        self.judge(self.free(), needed(bytes))
    }

    /// Gives back what lies behind the end of sled's file beyond what the next open needs. Only while sled has the file closed:
    /// it would cut off what is just being written.
    pub(crate) fn give_back(&self) {
        self.ahead.lock().give_back(needed(0));
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

    /// `Full` unless sled can be opened; it is not yet. What it keeps behind the end of its file counts.
    pub(crate) fn check(&self) -> Result<()> {
        self.give_back();
        if let SpaceStatus::Short(error) = self.claim(0) {
            return Err(error);
        }
        let (free, needed) = (self.free(), SNAPSHOT.saturating_add(2 * snapshots::len(&self.dir)?));
        if free < needed { Err(self.full(free, needed)) } else { Ok(()) }
    }

    /// Sets bytes apart for something else, such as a segment of the journal, so that a claim does not count on them meanwhile. One
    /// at a time.
    pub(crate) fn set_apart(&self, most: u64) -> SetApart<'_> {
        // Between two claims: each sees what the other takes.
        let _claims = self.ahead.lock();
        let bytes = self.free().saturating_sub(FLOOR + RESERVED).min(most);
        self.set_apart.store(bytes, Ordering::Relaxed);
        SetApart { space: self, bytes }
    }

    /// The apply thread waits for room for so many bytes; 0 if it does not.
    pub(crate) fn wait_for(&self, bytes: u64) {
        self.waited_for.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn waited_for(&self) -> u64 {
        self.waited_for.load(Ordering::Relaxed)
    }

    /// The apply thread, if it waits for room, looks again.
    pub(crate) fn wake(&self) {
        // If one lies there already, it is enough.
        let _ = self.nudge.try_send(());
    }

    fn full(&self, free: u64, needed: u64) -> Error {
        let dir = self.dir.display();
        let message = format!("the disk of {dir} has {free} bytes free and the record store needs {needed}");
        Error::new(ErrorKind::Full, message)
    }
}

/// Bytes that are for something else than sled, until this is dropped.
#[derive(Debug)]
pub(crate) struct SetApart<'a> {
    space: &'a DiskSpace,
    pub(crate) bytes: u64,
}

impl Drop for SetApart<'_> {
    fn drop(&mut self) {
        self.space.set_apart.store(0, Ordering::Relaxed);
        self.space.wake();
    }
}

fn needed(bytes: u64) -> u64 {
    FLOOR.saturating_add(bytes.saturating_mul(AMPLIFICATION))
}

/// Whether the file has the blocks.
enum Claimed {
    Yes,
    Full,
    /// The file system gives none before they are written.
    Unsupported,
}

impl Preallocation {
    /// Sees to blocks for so many bytes behind the end. With less than that free nothing is taken.
    fn claim(&mut self, needed: u64, free: u64) -> Claimed {
        let Some(file) = &self.file else { return Claimed::Unsupported };
        let Ok(found) = file.metadata() else { return Claimed::Unsupported };
        let (len, blocks) = (found.len(), allocated(&found));
        if blocks < self.allocated {
            self.end = 0;
        }
        self.allocated = blocks;
        if len.saturating_add(needed) <= self.end {
            return Claimed::Yes;
        }
        // The buffer that sled writes last may not be full yet, and begins before the end.
        let start = len.saturating_sub(SLED_SEGMENT);
        let end = len.saturating_add(needed).saturating_add(SLED_SEGMENT);
        // An earlier owner may have left some, too.
        let behind = blocks.saturating_sub(start);
        if free < (end - start).saturating_sub(behind) {
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
            self.allocated = file.metadata().map_or(self.allocated, |found| allocated(&found));
        }
        Claimed::Yes
    }

    fn give_back(&mut self, needed: u64) {
        let Some(file) = &self.file else { return };
        if !matches!(files::try_lock(file), Ok(true)) {
            // sled, of an engine that has just ended, has not let go of it.
            return;
        }
        self.cut(needed);
        self.file.as_ref().map(files::unlock);
    }

    fn cut(&mut self, needed: u64) {
        let Some(file) = &self.file else { return };
        let Ok(found) = file.metadata() else { return };
        let kept = needed.saturating_add(2 * SLED_SEGMENT);
        // A cut at its own length frees what lies behind. If it fails, what is behind is used by and by.
        if allocated(&found).saturating_sub(found.len()) > kept && file.set_len(found.len()).is_ok() {
            (self.allocated, self.end) = (0, 0);
            self.claim(needed, u64::MAX);
        }
    }
}

/// Bytes of blocks that a file has.
fn allocated(metadata: &Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    metadata.blocks().saturating_mul(512)
}

#[derive(Debug)]
pub(crate) enum SpaceStatus {
    Enough,
    /// It can be applied, but users are to commit nothing more.
    Low(Error),
    /// It cannot be applied.
    Short(Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_were_lost_with_a_cut_are_claimed_again_however_long_the_file_is_by_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let file = File::create(&path).unwrap();
        let len = 4 * SLED_SEGMENT;
        std::fs::write(&path, vec![7; usize::try_from(len).unwrap()]).unwrap();
        let mut ahead =
            Preallocation { file: Some(File::options().write(true).open(&path).unwrap()), ..Preallocation::default() };
        let mut claim = || match ahead.claim(FLOOR, u64::MAX) {
            Claimed::Yes => allocated(&file.metadata().unwrap()) >= len + FLOOR,
            Claimed::Full => panic!("the disk is full"),
            Claimed::Unsupported => true,
        };
        assert!(claim() && claim());
        // As long again at the next look, but without what lay behind.
        file.set_len(len / 2).unwrap();
        std::fs::write(&path, vec![7; usize::try_from(len).unwrap()]).unwrap();
        assert!(claim());
    }

    /// A file of `len` bytes, and a claim on blocks behind it.
    fn ahead(dir: &Path, len: u64) -> (File, Preallocation) {
        let path = dir.join("db");
        std::fs::write(&path, vec![7; usize::try_from(len).unwrap()]).unwrap();
        let open = || File::options().write(true).open(&path).unwrap();
        (open(), Preallocation { file: Some(open()), ..Preallocation::default() })
    }

    #[test]
    fn a_claim_that_the_disk_has_no_room_for_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (file, mut ahead) = ahead(dir.path(), SLED_SEGMENT);
        let before = allocated(&file.metadata().unwrap());
        for needed in [FLOOR, 1 << 40, u64::MAX] {
            assert!(matches!(ahead.claim(needed, FLOOR - 1), Claimed::Full));
        }
        assert_eq!(allocated(&file.metadata().unwrap()), before);
    }

    #[test]
    fn claims_do_not_add_up_and_are_given_back_while_nobody_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (file, mut ahead) = ahead(dir.path(), SLED_SEGMENT);
        let behind = || allocated(&file.metadata().unwrap()).saturating_sub(SLED_SEGMENT);
        if matches!(ahead.claim(4 * FLOOR, u64::MAX), Claimed::Unsupported) {
            println!("skipped: this file system gives no blocks ahead");
            return;
        }
        let most = 4 * FLOOR + 2 * SLED_SEGMENT;
        for needed in [FLOOR, 4 * FLOOR, 2 * FLOOR] {
            assert!(matches!(ahead.claim(needed, u64::MAX), Claimed::Yes));
            assert!((4 * FLOOR..=most).contains(&behind()));
        }
        ahead.give_back(FLOOR);
        assert!((FLOOR..=FLOOR + 2 * SLED_SEGMENT).contains(&behind()), "{} bytes are left", behind());
        assert_eq!(std::fs::read(dir.path().join("db")).unwrap(), vec![7; usize::try_from(SLED_SEGMENT).unwrap()]);
    }

    #[test]
    fn what_cannot_be_measured_is_not_full() {
        let dir = tempfile::tempdir().unwrap();
        let (room, _nudges) = DiskSpace::new(&dir.path().join("missing"));
        assert!(matches!(room.claim(1 << 20), SpaceStatus::Enough));
        assert_eq!(room.free(), u64::MAX);
    }
}
