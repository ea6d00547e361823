//! The owner of files that root creates.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::Path;

use super::out::{Done, Stop};

/// Gives the files that root has created at `new` to the owner of the store: otherwise the service could not open them.
pub(super) fn give_to_owner_of(store: &Path, new: &Path) -> Done {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let given = fs::metadata(store).and_then(|owner| if owner.uid() == 0 { Ok(()) } else { give(new, &owner) });
    given.map_err(|cause| Stop::Io(format!("give {} to the owner of {}", new.display(), store.display()), cause))
}

/// Gives away a directory last: until then its new owner cannot put other files into it.
fn give(path: &Path, owner: &fs::Metadata) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), owner)?;
        }
    }
    // Only files that this command has created: none of other users, and none that has another name elsewhere.
    let is_own = metadata.uid() == 0 && (metadata.is_dir() || metadata.nlink() == 1);
    if is_own { lchown(path, Some(owner.uid()), Some(owner.gid())) } else { Ok(()) }
}
