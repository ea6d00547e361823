//! Modes and owners of the files of a store.

use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Sets a mode from which the umask has removed bits. Does nothing if the mode is as wanted.
pub(super) fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    if file.metadata()?.mode() & 0o7777 == mode {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(mode))
}

/// Gives a file that root has created to the owner of its directory.
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

/// Does the same as [`give_to`], by the path of a file or directory that this process has created.
///
/// The owner of the directory may have put another file in its place. So this follows no link, waits for no other
/// process, and gives away only what this process owns and what has no other name.
pub(super) fn give_to_owner_of_parent(path: &Path) -> io::Result<()> {
    match open_own(path)? {
        Some((file, found)) if found.uid() == effective_user() => give_to(&fs::metadata(parent(path))?, &file),
        _ => Ok(()),
    }
}

/// Removes the permissions of other users. Does nothing to a file of a third user.
pub(super) fn make_private(path: &Path, mode: u32) -> io::Result<()> {
    let owners = [fs::metadata(parent(path))?.uid(), effective_user()];
    match open_own(path)? {
        Some((file, found)) if found.mode() & 0o077 != 0 && owners.contains(&found.uid()) => set_mode(&file, mode),
        _ => Ok(()),
    }
}

/// Opens a directory, or a file that has only this name.
fn open_own(path: &Path) -> io::Result<Option<(File, Metadata)>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let found = file.metadata()?;
    let is_own = found.is_dir() || (found.is_file() && found.nlink() == 1);
    Ok(is_own.then_some((file, found)))
}

fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Returns the parent directory. The parent of the root is the root.
pub(super) fn parent(dir: &Path) -> &Path {
    match dir.parent() {
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
        None => dir,
    }
}
