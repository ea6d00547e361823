//! Prepares sled's snapshots for an open of sled.
//!
//! When sled opens, it writes a snapshot under the name `snap.*.generating`, syncs it, renames it and removes the
//! previous one. Then it fills with zeros the segments of its file that are free according to the new snapshot. sled
//! never syncs the directory. So a crash can leave a torn snapshot, which sled would take for the newest and refuse to
//! open. Or a crash leaves a complete snapshot under the first of these names, and sled cannot read the log without it.

use std::path::{Path, PathBuf};

use crate::store::files;
use crate::store::format::checksum;
use crate::types::error::{Error, Result};

pub(super) const PREFIX: &str = "snap.";
/// The suffix of the name of a snapshot that is still being written.
pub(super) const UNFINISHED: &str = ".generating";

/// Returns every snapshot with its file name, including torn ones.
fn all(dir: &Path) -> Result<impl Iterator<Item = (PathBuf, String)>> {
    Ok(files::entries(dir)?.into_iter().filter_map(|(path, _)| {
        let name = path.file_name()?.to_str()?.to_owned();
        name.starts_with(PREFIX).then_some((path, name))
    }))
}

/// Returns the total size in bytes, or 0 if the directory is missing.
pub(crate) fn len(dir: &Path) -> Result<u64> {
    if !files::is_dir(dir)? {
        return Ok(0);
    }
    Ok(all(dir)?.filter_map(|(path, _)| path.metadata().ok()).map(|found| found.len()).sum())
}

/// Renames a complete snapshot to its final name, and removes torn ones. Called before sled is opened.
pub(crate) fn rename_whole_and_remove_torn(dir: &Path) -> Result<()> {
    for (path, name) in all(dir)? {
        let Some(finished) = name.strip_suffix(UNFINISHED) else { continue };
        let bytes = std::fs::read(&path).map_err(|cause| Error::io("read snapshot", &path, &cause))?;
        if is_whole(&bytes) {
            // Its writer may have been killed before the sync.
            files::sync_file(&path)?;
            let to = dir.join(finished);
            std::fs::rename(&path, to).map_err(|cause| Error::io("rename snapshot", &path, &cause))?;
        } else {
            std::fs::remove_file(&path).map_err(|cause| Error::io("remove torn snapshot", &path, &cause))?;
        }
    }
    Ok(())
}

fn is_whole(bytes: &[u8]) -> bool {
    content(bytes).is_some()
}

/// Returns the content of a snapshot if the length (8 bytes) and the checksum (4 bytes) at the end match.
pub(super) fn content(bytes: &[u8]) -> Option<&[u8]> {
    let (content, end) = bytes.split_at(bytes.len().checked_sub(12)?);
    let (len, crc) = end.split_at(8);
    let is_whole = len == (content.len() as u64).to_le_bytes() && crc == checksum(&[content]).to_le_bytes();
    (is_whole && !content.is_empty()).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_snapshot_is_renamed_and_a_torn_one_is_removed() {
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
        rename_whole_and_remove_torn(dir.path()).unwrap();
        let mut left: Vec<_> = files::entries(dir.path()).unwrap().into_iter().map(|(path, _)| path).collect();
        left.sort();
        assert_eq!(left, [path("snap.0001"), path("snap.0002")]);
    }
}
