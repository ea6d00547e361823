//! Modes and owners of the files of a store.

use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

/// Sets a mode from which the umask has removed bits. Does nothing if the mode is as wanted.
pub(super) fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    if file.metadata()?.mode() & 0o7777 == mode {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(mode))
}

/// Gives a file that root has made to the owner of the directory that it is in. Only root makes files with another owner.
pub(super) fn give_to(owner: &Metadata, file: &File) -> io::Result<()> {
    if file.metadata()?.uid() == owner.uid() {
        return Ok(());
    }
    match fchown(file, Some(owner.uid()), Some(owner.gid())) {
        // A directory of another user in which this one may write.
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        given => given,
    }
}

/// As [`give_to`], by its path.
pub(super) fn give_to_owner_of_parent(path: &Path) -> io::Result<()> {
    give_to(&fs::metadata(parent(path))?, &File::open(path)?)
}

/// Returns the parent directory. The parent of the root is the root.
pub(super) fn parent(dir: &Path) -> &Path {
    match dir.parent() {
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
        None => dir,
    }
}
