//! Opens sled on a copy of its files and then replaces the originals: for file systems that do not sync every write by
//! themselves.
//!
//! When sled opens, it renames its new snapshot and at once fills with zeros the segments of its file that are free
//! according to the snapshot. These two steps are not ordered: after a power cut there may be the zeros and the old
//! snapshot, which refers to those segments. The open would refuse such a store. With a copy, the original files stay
//! unchanged until the copy is complete and durable.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ::sled::Db;

use crate::store::files;
use crate::types::error::{Error, Result};

/// Free space to leave for what sled writes during its open, in bytes.
const SLACK: u64 = 16 << 20;

fn beside(dir: &Path, extension: &str) -> PathBuf {
    dir.with_extension(extension)
}

/// Removes what a crash has left of an exchange. Called before the directory is read.
pub(crate) fn settle(dir: &Path) -> Result<()> {
    let (new, old) = (beside(dir, "new"), beside(dir, "old"));
    if !old.exists() && !new.exists() {
        return Ok(());
    }
    if old.exists() && !dir.exists() {
        rename(&old, dir)?;
    }
    // Sync the new files in place before the old ones are removed.
    files::sync_parent(dir)?;
    remove(&new)?;
    remove(&old)
}

/// sled, until everything in it is open. Its drop syncs, and panics if that fails.
pub(in crate::store) struct Opened(pub(in crate::store) Option<Db>);

impl Drop for Opened {
    fn drop(&mut self) {
        // An earlier error is returned instead of this one.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(self.0.take())));
    }
}

/// Opens sled on a copy and puts the copy in place. Returns `None`, with nothing changed, if there is no space for a
/// copy.
pub(crate) fn open(dir: &Path, open: impl FnOnce(&Path) -> Result<Opened>) -> Result<Option<Opened>> {
    let db = dir.join("db");
    let len = db.metadata().map_err(|cause| Error::io("look at", &db, &cause))?.len();
    if files::free_bytes(dir)? < len.saturating_add(SLACK) {
        return Ok(None);
    }
    let (new, old) = (beside(dir, "new"), beside(dir, "old"));
    let opened = copy(dir, &new).and_then(|()| open(&new)).and_then(|db| files::sync_tree(&new).map(|()| db));
    let db = match opened {
        Ok(db) => db,
        Err(error) => {
            // Return the first error. The next open removes what is left.
            let _ = remove(&new);
            return Err(error);
        }
    };
    rename(dir, &old)?;
    rename(&new, dir)?;
    files::sync_parent(dir)?;
    remove(&old)?;
    Ok(Some(db))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    files::create_dir(to)?;
    for (path, kind) in files::entries(from)? {
        let Some(name) = path.file_name() else { continue };
        let copied = to.join(name);
        if kind.is_dir() {
            copy(&path, &copied)?;
        } else {
            std::fs::copy(&path, &copied).map_err(|cause| Error::io("copy", &path, &cause))?;
        }
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|cause| Error::io("rename", from, &cause))
}

fn remove(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    std::fs::remove_dir_all(dir).map_err(|cause| Error::io("remove", dir, &cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<PathBuf> {
        files::entries(dir).unwrap().into_iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn an_exchange_stopped_at_any_step_leaves_the_original_or_its_copy() {
        for step in 0..5 {
            let store = tempfile::tempdir().unwrap();
            let dir = store.path().join("sled");
            let make = |dir: &Path| {
                std::fs::create_dir(dir).unwrap();
                std::fs::write(dir.join("db"), b"log").unwrap();
            };
            make(&dir);
            if step > 0 {
                make(&beside(&dir, "new"));
            }
            if step > 1 {
                rename(&dir, &beside(&dir, "old")).unwrap();
            }
            if step > 2 {
                rename(&beside(&dir, "new"), &dir).unwrap();
            }
            if step > 3 {
                std::fs::remove_file(beside(&dir, "old").join("db")).unwrap();
            }
            settle(&dir).unwrap();
            assert_eq!(names(store.path()), std::slice::from_ref(&dir), "step {step}");
            assert_eq!(std::fs::read(dir.join("db")).unwrap(), b"log");
        }
    }

    #[test]
    fn a_copy_that_cannot_be_opened_changes_nothing() {
        let store = tempfile::tempdir().unwrap();
        let dir = store.path().join("sled");
        drop(::sled::open(&dir).unwrap());
        let before = std::fs::read(dir.join("db")).unwrap();
        let refused = open(&dir, |copy| {
            std::fs::write(copy.join("db"), b"other").unwrap();
            Err(Error::closed())
        });
        assert!(refused.is_err());
        assert_eq!(names(store.path()), std::slice::from_ref(&dir));
        assert_eq!(std::fs::read(dir.join("db")).unwrap(), before);
    }
}
