//! The size of a store's files on disk.

use super::Store;
use super::files::Dir;
use crate::types::error::{Error, Result};

impl Store {
    /// Returns the bytes on disk of the journal and of the record store.
    pub(crate) fn disk_bytes(&self) -> Result<(u64, u64)> {
        let bytes = |dir: &Dir| dir.disk_bytes().map_err(|cause| Error::io("look at", dir.path(), &cause));
        let sled = self.inner.disk_space.dir().map_or(Ok(0), bytes)?;
        Ok((bytes(self.inner.pool.dir())?, sled))
    }
}
