//! A segment file of the journal.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
#[cfg(feature = "fuzzing")]
use std::sync::atomic::{AtomicU64, Ordering};

use crate::store::files::Dir;
use crate::store::format::corrupt;
use crate::types::error::{Error, ErrorKind, Result};

/// For tests: the number of syncs that succeed before all syncs fail. Shared by all stores of the process.
#[cfg(feature = "fuzzing")]
pub static SYNCS_LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

/// The size in bytes of one write of zeros.
const FILL: usize = 256 << 10;
/// The number of bytes that one read takes, if the segment has them.
const READ_AHEAD: u64 = 64 << 10;

/// An open segment file.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
}

impl SegmentFile {
    /// Creates a file full of zeros, so that a later sync of its data changes no metadata. If the disk is full, deletes
    /// the file again and returns `Full`.
    pub(crate) fn create(dir: &Dir, name: &Path, size: u64) -> Result<Self> {
        let (path, filled) = (dir.path().join(name), fill(dir, name, size));
        match filled {
            Ok(file) => Ok(Self { file, path, size }),
            Err(cause) => {
                // Best effort: a file that remains is full of zeros, and the next open deletes it.
                let _ = dir.remove_file(name);
                let kind = match cause.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                        ErrorKind::Full
                    }
                    _ => ErrorKind::Io,
                };
                Err(Error::io_as(kind, "create journal segment", &path, &cause))
            }
        }
    }

    pub(crate) fn open(dir: &Dir, name: &Path) -> Result<Self> {
        Self::open_if_there(dir, name)?
            .ok_or_else(|| Error::io("open journal segment", &dir.path().join(name), &io::ErrorKind::NotFound.into()))
    }

    /// Opens a file of the journal. Returns `None` if it has been deleted.
    pub(crate) fn open_if_there(dir: &Dir, name: &Path) -> Result<Option<Self>> {
        let path = dir.path().join(name);
        let open = || -> io::Result<(File, u64)> {
            let file = dir.open_file(name)?;
            let size = file.metadata()?.len();
            Ok((file, size))
        };
        match open() {
            Ok((file, size)) => Ok(Some(Self { file, path, size })),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(Error::io("open journal segment", &path, &cause)),
        }
    }

    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(|cause| self.error("read", &cause))
    }

    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|cause| self.error("write", &cause))
    }

    pub(crate) fn sync(&self) -> Result<()> {
        #[cfg(feature = "fuzzing")]
        if SYNCS_LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return Err(self.error("sync", &io::ErrorKind::Other.into()));
        }
        self.file.sync_data().map_err(|cause| self.error("sync", &cause))
    }

    /// Deletes the file from its directory.
    pub(crate) fn delete(self, dir: &Dir) -> Result<()> {
        let name = self.path.file_name().map_or(self.path.as_path(), Path::new);
        dir.remove_file(name).map_err(|cause| self.error("delete", &cause))
    }

    /// Returns a `Corrupt` error that names the file.
    pub(crate) fn corrupt(&self, what: impl fmt::Display) -> Error {
        corrupt(format!("{}: {what}", self.path.display()))
    }

    fn error(&self, verb: &str, cause: &io::Error) -> Error {
        Error::io(&format!("{verb} journal segment"), &self.path, cause)
    }
}

/// Reads a segment through a small buffer. Allocating memory for the whole segment would cost more than reading it.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) file: &'a SegmentFile,
    start: u64,
    buffer: Vec<u8>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(file: &'a SegmentFile) -> Self {
        Self { file, start: 0, buffer: Vec::new() }
    }

    /// Returns `len` bytes from `offset`, or fewer at the end of the file.
    pub(crate) fn bytes(&mut self, offset: u64, len: u64) -> Result<&[u8]> {
        let end = offset.saturating_add(len).min(self.file.size).max(offset);
        if offset < self.start {
            // A reader that goes back usually continues backwards, so fill the buffer with the bytes before.
            self.fill(end.saturating_sub(READ_AHEAD).min(offset), end)?;
        } else if end > self.start + self.buffer.len() as u64 {
            self.fill(offset, offset.saturating_add(READ_AHEAD).min(self.file.size).max(end))?;
        }
        let [from, len] = [offset - self.start, end - offset].map(|part| usize::try_from(part).unwrap_or(usize::MAX));
        Ok(self.buffer.get(from..).and_then(|rest| rest.get(..len)).unwrap_or_default())
    }

    fn fill(&mut self, start: u64, end: u64) -> Result<()> {
        let too_large = |_| self.file.error("read", &io::ErrorKind::FileTooLarge.into());
        let len = usize::try_from(end - start).map_err(too_large)?;
        // After an error the buffer is empty.
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(len, 0);
        self.file.read_at(&mut buffer, start)?;
        (self.start, self.buffer) = (start, buffer);
        Ok(())
    }
}

fn fill(dir: &Dir, name: &Path, size: u64) -> io::Result<File> {
    let file = dir.create_file(name)?;
    let zeros = vec![0; FILL];
    let mut offset = 0;
    while offset < size {
        let len = usize::try_from(size - offset).map_or(FILL, |left| left.min(FILL));
        file.write_all_at(zeros.get(..len).unwrap_or_default(), offset)?;
        offset += len as u64;
    }
    file.sync_all()?;
    Ok(file)
}
