//! Replaces sled's files durably, by a copy or by a new sled with the same blocks.
//!
//! On file systems that do not sync every write by themselves, sled is opened on a copy first. When sled opens, it
//! renames its new snapshot and at once fills with zeros the segments of its file that are free according to the
//! snapshot. These two steps are not ordered: after a power cut there may be the zeros and the old snapshot, which
//! refers to those segments. With a copy, the original files stay unchanged until the copy is complete and durable.
//! sled is closed before the exchange, and then opened under its final name.

use std::path::{Path, PathBuf};

use crate::store::files;
use crate::types::error::{Error, Result};

fn beside(dir: &Path, extension: &str) -> PathBuf {
    dir.with_extension(extension)
}

/// Returns the directory of sled's files. A crash during an exchange may have left them under another name.
pub(super) fn current(dir: &Path) -> Result<PathBuf> {
    let old = beside(dir, "old");
    Ok(if !files::exists(dir)? && files::exists(&old)? { old } else { dir.to_owned() })
}

/// Finishes or undoes an exchange that a crash has interrupted.
pub(super) fn finish_or_undo(dir: &Path) -> Result<()> {
    let (new, old) = (beside(dir, "new"), beside(dir, "old"));
    let has_old = files::exists(&old)?;
    if !has_old && !files::exists(&new)? {
        return Ok(());
    }
    if has_old && !files::exists(dir)? {
        rename(&old, dir)?;
    }
    // Sync the new files in place before the old ones are removed.
    files::sync_parent(dir)?;
    remove(&new)?;
    remove(&old)
}

/// Replaces a directory by the one that `make` creates. If `make` fails, the directory is unchanged. If a rename fails,
/// the next open calls [`finish_or_undo`].
pub(super) fn replace(dir: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (new, old) = (beside(dir, "new"), beside(dir, "old"));
    if let Err(error) = make(&new).and_then(|()| files::sync_tree(&new)) {
        // Return the first error. The next open removes what is left.
        let _ = remove(&new);
        return Err(error);
    }
    rename(dir, &old)?;
    rename(&new, dir)?;
    files::sync_parent(dir)?;
    remove(&old)
}

pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
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
    if !files::exists(dir)? {
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
            assert_eq!(std::fs::read(current(&dir).unwrap().join("db")).unwrap(), b"log", "step {step}");
            finish_or_undo(&dir).unwrap();
            assert_eq!(names(store.path()), std::slice::from_ref(&dir), "step {step}");
            assert_eq!(std::fs::read(dir.join("db")).unwrap(), b"log");
        }
    }

    #[test]
    fn a_failed_replacement_changes_nothing() {
        let store = tempfile::tempdir().unwrap();
        let dir = store.path().join("sled");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("db"), b"log").unwrap();
        let refused = replace(&dir, |new| {
            copy(&dir, new)?;
            std::fs::write(new.join("db"), b"other").unwrap();
            Err(Error::closed())
        });
        assert!(refused.is_err());
        assert_eq!(names(store.path()), std::slice::from_ref(&dir));
        assert_eq!(std::fs::read(dir.join("db")).unwrap(), b"log");
    }
}
