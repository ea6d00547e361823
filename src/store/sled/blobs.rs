//! Values that sled writes into files of their own and never syncs. Values given to sled are too small for that. But a
//! page of its index may become such a file, if many long keys have a common prefix.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::store::files;
use crate::types::error::{Error, Result};

/// The directory of these files, kept open, so that reading it needs neither a path nor a new descriptor.
#[derive(Debug)]
pub(crate) struct Blobs {
    path: PathBuf,
    dir: Option<Mutex<rustix::fs::Dir>>,
    /// True if the file system syncs every file that is created in the directory.
    is_synced: bool,
}

impl Blobs {
    /// Opens `blobs` in sled's directory, which sled has created. Sets the sync flag on it if `sync_flag` is true. Also
    /// returns whether the flag is set.
    pub(crate) fn open(sled: &Path, sync_flag: bool) -> Result<(Self, bool)> {
        let path = sled.join("blobs");
        let flagged = sync_flag && (!files::is_dir(&path)? || files::set_sync_flag(&path));
        let open = || -> io::Result<_> { Ok(rustix::fs::Dir::new(File::open(&path)?)?) };
        let dir = match open() {
            Ok(dir) => Some(Mutex::new(dir)),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(Error::io("open directory", &path, &cause)),
        };
        let is_synced = flagged && files::inherits_sync_flag(sled);
        Ok((Self { path, dir, is_synced }, flagged))
    }

    /// Returns the blobs of a store that is only read, which are not counted.
    pub(super) fn none(sled: &Path) -> Self {
        Self { path: sled.join("blobs"), dir: None, is_synced: true }
    }

    /// Returns the number of files.
    pub(crate) fn count(&self) -> Result<usize> {
        let Some(dir) = &self.dir else { return Ok(0) };
        let mut dir = dir.lock();
        dir.rewind();
        let mut count = 0;
        for entry in &mut *dir {
            let entry = entry.map_err(|cause| Error::io("read directory", &self.path, &cause.into()))?;
            count += usize::from(!matches!(entry.file_name().to_bytes(), b"." | b".."));
        }
        Ok(count)
    }

    /// Returns the number of files that are never synced.
    pub(crate) fn unsynced(&self) -> Result<usize> {
        if self.is_synced { Ok(0) } else { self.count() }
    }

    /// Syncs the files. Called by an open, after sled has read them.
    pub(crate) fn sync(&self) -> Result<()> {
        if self.unsynced()? > 0 { files::sync_tree(&self.path) } else { Ok(()) }
    }
}
