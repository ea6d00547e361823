//! One segment file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
#[cfg(feature = "fuzzing")]
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// How many syncs succeed from here on, for a disk that breaks. Of all stores of the process.
#[cfg(feature = "fuzzing")]
pub static SYNCS_LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Zeros are written in pieces of this size.
const FILL: usize = 256 << 10;

/// An open file of the journal.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
}

impl SegmentFile {
    /// Makes a file full of zeros, so that a sync of what is written into it later changes no metadata. If there is no room
    /// the file goes away again and the error is `Full`.
    pub(crate) fn create(path: &Path, size: u64) -> Result<Self> {
        let filled = fill(path, size);
        match filled {
            Ok(file) => Ok(Self { file, path: path.to_owned(), size }),
            Err(cause) => {
                // Best effort: what stays is zeros, which the next open deletes.
                let _ = std::fs::remove_file(path);
                let kind = match cause.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                        ErrorKind::Full
                    }
                    _ => ErrorKind::Io,
                };
                Err(Error::io_as(kind, "create journal segment", path, &cause))
            }
        }
    }

    pub(crate) fn open(path: &Path) -> Result<Self> {
        let open = || -> io::Result<(File, u64)> {
            let file = File::options().read(true).write(true).open(path)?;
            let size = file.metadata()?.len();
            Ok((file, size))
        };
        let (file, size) = open().map_err(|cause| Error::io("open journal segment", path, &cause))?;
        Ok(Self { file, path: path.to_owned(), size })
    }

    /// Into a buffer that the next one can use again: a segment may be large, and fresh memory costs more than the reading.
    pub(crate) fn read_all(&self, bytes: &mut Vec<u8>) -> Result<()> {
        let len = usize::try_from(self.size).map_err(|_| self.error("read", &io::ErrorKind::FileTooLarge.into()))?;
        bytes.resize(len, 0);
        self.file.read_exact_at(bytes, 0).map_err(|cause| self.error("read", &cause))
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

    pub(crate) fn delete(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|cause| self.error("delete", &cause))
    }

    fn error(&self, verb: &str, cause: &io::Error) -> Error {
        Error::io(&format!("{verb} journal segment"), &self.path, cause)
    }
}

fn fill(path: &Path, size: u64) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
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
