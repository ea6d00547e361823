//! Values that sled writes into files of their own, and never syncs. There should be none: what is given to sled is small. But a
//! page of its index may become one, if many long keys begin alike.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::store::files;
use crate::types::error::{Error, Result};

/// The directory that they are in. It is open: looking into it needs neither a path nor another descriptor.
#[derive(Debug)]
pub(crate) struct Blobs {
    path: PathBuf,
    dir: Option<Mutex<rustix::fs::Dir>>,
    /// The file system syncs every file that is made there.
    is_synced: bool,
}

impl Blobs {
    /// Of sled's directory, which sled has made. `sync_flag`: everything in that is to be synced at once; whether this directory
    /// is says the second answer.
    pub(crate) fn open(sled: &Path, sync_flag: bool) -> Result<(Self, bool)> {
        let path = sled.join("blobs");
        let flagged = sync_flag && (!files::is_dir(&path) || files::set_sync_flag(&path));
        let open = || -> io::Result<_> { Ok(rustix::fs::Dir::new(File::open(&path)?)?) };
        let dir = match open() {
            Ok(dir) => Some(Mutex::new(dir)),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(Error::io("open directory", &path, &cause)),
        };
        let is_synced = flagged && files::inherits_sync_flag(sled);
        Ok((Self { path, dir, is_synced }, flagged))
    }

    /// How many there are.
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

    /// How many there are that nobody syncs.
    pub(crate) fn unsynced(&self) -> Result<usize> {
        if self.is_synced { Ok(0) } else { self.count() }
    }

    /// Makes them durable: for an open, when sled has read them all.
    pub(crate) fn sync(&self) -> Result<()> {
        if self.unsynced()? > 0 { files::sync_tree(&self.path) } else { Ok(()) }
    }
}
