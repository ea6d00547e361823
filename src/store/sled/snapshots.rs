//! sled's snapshots: which of them it may find when it opens.
//!
//! Opening, sled writes a snapshot under the name `snap.*.generating`, syncs it, renames it, removes the one before, and fills
//! the segments that are free by the new one with zeros. It never syncs the directory. So after a crash there may be a torn
//! snapshot, which sled would take for the newest and refuse to open; and one that is whole under its first name, without
//! which the log cannot be read any more.

use std::path::{Path, PathBuf};

use crate::store::files;
use crate::store::format::checksum;
use crate::types::error::{Error, Result};

const UNFINISHED: &str = ".generating";

/// Every snapshot, torn ones too, and its name.
fn all(dir: &Path) -> Result<impl Iterator<Item = (PathBuf, String)>> {
    Ok(files::entries(dir)?.into_iter().filter_map(|(path, _)| {
        let name = path.file_name()?.to_str()?.to_owned();
        name.starts_with("snap.").then_some((path, name))
    }))
}

/// How long they are together; 0 where there is no directory.
pub(crate) fn len(dir: &Path) -> Result<u64> {
    if !files::is_dir(dir) {
        return Ok(0);
    }
    Ok(all(dir)?.filter_map(|(path, _)| path.metadata().ok()).map(|found| found.len()).sum())
}

/// Removes a torn snapshot, and gives one that is whole its name. To be called before sled is opened.
pub(crate) fn settle(dir: &Path) -> Result<()> {
    for (path, name) in all(dir)? {
        let Some(finished) = name.strip_suffix(UNFINISHED) else { continue };
        let bytes = std::fs::read(&path).map_err(|cause| Error::io("read snapshot", &path, &cause))?;
        if is_whole(&bytes) {
            // Whoever wrote it may have been killed before its sync.
            files::sync_file(&path)?;
            let to = dir.join(finished);
            std::fs::rename(&path, to).map_err(|cause| Error::io("rename snapshot", &path, &cause))?;
        } else {
            std::fs::remove_file(&path).map_err(|cause| Error::io("remove torn snapshot", &path, &cause))?;
        }
    }
    Ok(())
}

/// Moves every snapshot out of `store/sled`, into a directory of its own beside it, and says how many. They are in the way of
/// a log that is whole: without them sled reads all of it, and comes to the same state. A crash in between does no harm.
pub(crate) fn move_aside(store: &Path) -> Result<u64> {
    let sled = store.join("sled");
    let snapshots: Vec<_> = all(&sled)?.collect();
    if snapshots.is_empty() {
        return Ok(0);
    }
    let free = (1..u32::MAX).map(|n| store.join(format!("snapshots.{n}"))).find(|dir| !dir.exists());
    let aside = free.unwrap_or_else(|| store.join("snapshots"));
    files::create_dir(&aside)?;
    files::sync_dir(store)?;
    for (path, name) in &snapshots {
        let moved = std::fs::rename(path, aside.join(name));
        moved.map_err(|cause| Error::io("move snapshot aside", path, &cause))?;
    }
    files::sync_dir(&aside)?;
    files::sync_dir(&sled)?;
    Ok(snapshots.len() as u64)
}

/// Its last bytes are its length (8) and its checksum (4).
fn is_whole(bytes: &[u8]) -> bool {
    let Some(at) = bytes.len().checked_sub(12) else { return false };
    let (content, end) = bytes.split_at(at);
    let (len, crc) = end.split_at(8);
    !content.is_empty() && len == (content.len() as u64).to_le_bytes() && crc == checksum(&[content]).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_snapshot_gets_its_name_and_a_torn_one_goes() {
        let dir = tempfile::tempdir().unwrap();
        let whole = |content: &[u8]| {
            [content, &(content.len() as u64).to_le_bytes(), &checksum(&[content]).to_le_bytes()].concat()
        };
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("snap.0001"), whole(b"old")).unwrap();
        std::fs::write(path("snap.0002.generating"), whole(b"new")).unwrap();
        let torn = whole(b"newest");
        std::fs::write(path("snap.0003.generating"), &torn[..torn.len() - 1]).unwrap();
        std::fs::write(path("snap.0004.generating"), b"").unwrap();
        std::fs::write(path("snap.0005.generating"), [0; 40]).unwrap();
        settle(dir.path()).unwrap();
        let mut left: Vec<_> = files::entries(dir.path()).unwrap().into_iter().map(|(path, _)| path).collect();
        left.sort();
        assert_eq!(left, [path("snap.0001"), path("snap.0002")]);
    }
}
