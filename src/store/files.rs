//! Files and directories: functions that std does not have, and errors that name the path.

mod free_space;
mod owner;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

#[cfg(target_os = "linux")]
use rustix::fs::IFlags;

use crate::types::error::{Error, ErrorKind, Result};
pub(crate) use free_space::{FreeSpace, free_bytes};
use owner::{give_to, give_to_owner_of_parent, parent, set_mode};

/// The files of a store are for their owner only.
pub(crate) const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// An open directory. Access through it continues when the directory is moved, when another one takes its path, or when
/// the working directory changes, and needs no further descriptor.
#[derive(Debug)]
pub(crate) struct Dir {
    file: File,
    path: PathBuf,
    /// True if its files are opened read-only.
    is_read_only: bool,
}

impl Dir {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|cause| Error::io("open directory", path, &cause))?;
        Ok(Self { file, path: path.to_owned(), is_read_only: false })
    }

    /// Does the same as [`open`](Self::open), but opens its files read-only.
    pub(crate) fn open_read_only(path: &Path) -> Result<Self> {
        Ok(Self { is_read_only: true, ..Self::open(path)? })
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Returns the path at which it was opened, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the names of its entries, in order.
    pub(crate) fn names(&self) -> Result<Vec<PathBuf>> {
        let read = || -> io::Result<Vec<_>> {
            let mut names = Vec::new();
            for entry in rustix::fs::Dir::read_from(&self.file)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    names.push(PathBuf::from(OsString::from_vec(name)));
                }
            }
            names.sort();
            Ok(names)
        };
        read().map_err(|cause| Error::io("read directory", &self.path, &cause))
    }

    /// Returns the bytes of blocks that its files have.
    pub(crate) fn disk_bytes(&self) -> io::Result<u64> {
        use rustix::fs::{AtFlags, FileType};
        let mut bytes = 0_u64;
        for entry in rustix::fs::Dir::read_from(&self.file)? {
            match rustix::fs::statat(&self.file, entry?.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) if FileType::from_raw_mode(found.st_mode).is_file() => {
                    bytes += 512 * u64::try_from(found.st_blocks).unwrap_or(0);
                }
                // A directory, or a file that was removed in between.
                Ok(_) | Err(rustix::io::Errno::NOENT) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(bytes)
    }

    /// Creates a new file that only its owner may read.
    pub(crate) fn create_file(&self, name: &Path) -> io::Result<File> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.file, name, flags, Mode::from_raw_mode(0o600))?);
        set_mode(&file, FILE_MODE)?;
        give_to(&self.file.metadata()?, &file)?;
        Ok(file)
    }

    pub(crate) fn open_file(&self, name: &Path) -> io::Result<File> {
        use rustix::fs::{Mode, OFlags};
        let access = if self.is_read_only { OFlags::RDONLY } else { OFlags::RDWR };
        Ok(File::from(rustix::fs::openat(&self.file, name, access | OFlags::CLOEXEC, Mode::empty())?))
    }

    pub(crate) fn remove_file(&self, name: &Path) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.file, name, rustix::fs::AtFlags::empty())?)
    }

    /// Makes the entries of the directory durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|cause| Error::io("sync directory", &self.path, &cause))
    }
}

/// Removes the permissions of other users from all files in a directory and below, and gives files that root has
/// created to the owner of the directory. Best effort: files of other users stay as they are.
pub(crate) fn make_private(dir: &Path) -> Result<()> {
    for (path, kind) in entries(dir)? {
        let mode = if kind.is_dir() { DIR_MODE } else { FILE_MODE };
        if kind.is_dir() {
            make_private(&path)?;
        }
        let _ = owner::make_private(&path, mode).and_then(|()| give_to_owner_of_parent(&path));
    }
    Ok(())
}

/// True if the mode gives the group or other users any permission.
pub(crate) fn is_open_to_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o077 != 0)
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|cause| Error::io("sync directory", dir, &cause))
}

/// Makes the directory entry of a file or directory durable.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    sync_dir(parent(path))
}

/// Makes the content of a file durable.
pub(crate) fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|cause| Error::io("sync file", path, &cause))
}

/// Syncs all files and directories in a directory, innermost first, and then the directory itself.
pub(crate) fn sync_tree(dir: &Path) -> Result<()> {
    for (path, kind) in entries(dir)? {
        if kind.is_dir() {
            sync_tree(&path)?;
        } else {
            sync_file(&path)?;
        }
    }
    sync_dir(dir)
}

pub(crate) fn entries(dir: &Path) -> Result<Vec<(PathBuf, fs::FileType)>> {
    let read = || -> io::Result<Vec<_>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            found.push((entry.path(), entry.file_type()?));
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(found)
    };
    read().map_err(|cause| Error::io("read directory", dir, &cause))
}

pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    make_dir(dir).map_err(|cause| Error::io("create directory", dir, &cause))?;
    // Files created in it inherit this flag on btrfs. Without it, overwriting a file allocates new blocks, which fails
    // on a full disk. The checksums of btrfs that are lost by this are not needed: all files here have their own.
    set_flag(dir, IFlags::NOCOW);
    Ok(())
}

/// Creates a directory for its owner only, whatever the umask.
fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().mode(DIR_MODE).create(dir)?;
    give_to_owner_of_parent(dir)?;
    if fs::metadata(dir)?.mode() & 0o777 == DIR_MODE {
        return Ok(());
    }
    fs::set_permissions(dir, Permissions::from_mode(DIR_MODE))
}

/// Creates a directory and its missing parents, durably. Each is durable before anything is created in it, so after a
/// kill at most the innermost directory is not durable.
pub(crate) fn create_dirs(dir: &Path) -> Result<()> {
    let mut missing = Vec::new();
    for dir in dir.ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
        if exists(dir)? {
            break;
        }
        missing.push(dir);
    }
    for missing in missing.into_iter().rev() {
        if let Some(above) = missing.parent().filter(|above| !above.as_os_str().is_empty()) {
            sync_entry(above)?;
        }
        match make_dir(missing) {
            // Another process has created it at the same time.
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists && is_dir(missing)? => {}
            made => made.map_err(|cause| Error::io("create directory", missing, &cause))?,
        }
        sync_parent(missing)?;
    }
    Ok(())
}

/// Makes the directory entry of `dir` durable, because the process that created it may have been killed before.
/// Ignores a parent that cannot be read, and a file system that is read-only or cannot sync a directory.
pub(crate) fn sync_entry(dir: &Path) -> Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem};
    let above = parent(dir);
    match File::open(above).and_then(|above| above.sync_all()) {
        Err(cause) if matches!(cause.kind(), PermissionDenied | ReadOnlyFilesystem | InvalidInput) => Ok(()),
        synced => synced.map_err(|cause| Error::io("sync directory", above, &cause)),
    }
}

/// Returns true if there is a directory, and false if there is another file or none. An error of the system is returned:
/// it does not prove that there is none.
pub(crate) fn is_dir(path: &Path) -> Result<bool> {
    Ok(metadata(path)?.is_some_and(|found| found.is_dir()))
}

/// Returns true if there is a file or directory. An error of the system is returned.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    Ok(metadata(path)?.is_some())
}

fn metadata(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(cause) => Err(Error::io("look at", path, &cause)),
    }
}

/// Returns the directory that a new directory will be in, or an error that names it if it is missing.
pub(crate) fn check_parent(new: &Path) -> Result<PathBuf> {
    let parent = parent(new);
    parent.canonicalize().map_err(|cause| Error::io("open the parent directory", parent, &cause))
}

/// An exclusive lock on a file or a directory, held until it is dropped. The kernel releases it when the process ends
/// in any way.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    pid: u32,
    /// The path of the file, if it was created for this lock. The drop then removes the file, unless it is kept.
    made: Option<PathBuf>,
}

/// The locks of an open store: its lock file, and the directory with all its data. Without the second, deleting the
/// lock file of a running owner would let a second owner in.
#[derive(Debug)]
pub(crate) struct StoreLock {
    /// `None` for a reader of a store without a lock file.
    file: Option<Lock>,
    _dir: Lock,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child between its fork and its exec has it open too. A child of `fork` must
        // not unlock the file, because the lock belongs to its parent.
        if std::process::id() == self.pid {
            // Remove the file before unlocking: a process that has opened it then notices that the path has changed.
            if let Some(path) = self.made.as_ref().filter(|path| self.is_at(path).is_ok_and(|is_at| is_at)) {
                let _ = fs::remove_file(path);
            }
            unlock(&self.file);
        }
    }
}

impl StoreLock {
    pub(crate) fn new(file: Lock, dir: Lock) -> Self {
        Self { file: Some(file), _dir: dir }
    }

    /// Takes shared locks, which exclude writers and admit readers. Creates nothing.
    pub(crate) fn shared(store: &Path) -> Result<Self> {
        let path = store.join("LOCK");
        let file = match File::open(&path) {
            Ok(file) => Some(Lock::of(file, &path, store, true)?),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(Error::io("open lock file", &path, &cause)),
        };
        let path = store.join("store");
        let dir = File::open(&path).map_err(|cause| Error::io("open directory", &path, &cause))?;
        Ok(Self { file, _dir: Lock::of(dir, &path, store, true)? })
    }

    /// Keeps a lock file that was created for this lock, because the store is now open.
    pub(crate) fn keep(&mut self) {
        if let Some(file) = &mut self.file {
            file.keep();
        }
    }
}

impl Lock {
    #[cfg(test)]
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Locks a file, and creates it if it is missing. `store` is the path for messages.
    pub(crate) fn take(path: &Path, store: &Path) -> Result<Self> {
        let open = |is_new: bool| File::options().read(true).write(true).create_new(is_new).mode(FILE_MODE).open(path);
        let new = open(true).and_then(|file| {
            set_mode(&file, FILE_MODE)?;
            give_to(&fs::metadata(parent(path))?, &file)?;
            Ok(file)
        });
        let (opened, made) = match new {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => (open(false), None),
            new => (new, Some(path.to_owned())),
        };
        let file = opened.map_err(|cause| Error::io("open lock file", path, &cause))?;
        let mut lock = Self::of(file, path, store, false)?;
        lock.made = made;
        Ok(lock)
    }

    /// Locks an existing directory.
    pub(crate) fn take_dir(path: &Path, store: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|cause| Error::io("open directory", path, &cause))?;
        Self::of(file, path, store, false)
    }

    fn of(file: File, path: &Path, store: &Path, is_shared: bool) -> Result<Self> {
        let in_use = |what: &str| {
            let message = format!("the store {} {what}", store.display());
            Error::new(ErrorKind::StoreInUse, message)
        };
        let locked = if is_shared { try_lock_shared(&file) } else { try_lock(&file) };
        if !locked.map_err(|cause| Error::io("lock", path, &cause))? {
            return Err(in_use("is open already, in this process or another"));
        }
        let lock = Self { file, pid: std::process::id(), made: None };
        // The path may have been deleted or moved since the open. Then another process would lock another file.
        if lock.is_at(path).map_err(|cause| Error::io("look at", path, &cause))? {
            Ok(lock)
        } else {
            Err(in_use(&format!("was replaced while it was opened: {}", path.display())))
        }
    }

    /// Keeps a file that was created for the lock.
    pub(crate) fn keep(&mut self) {
        self.made = None;
    }

    pub(crate) fn is_at(&self, path: &Path) -> io::Result<bool> {
        let open = self.file.metadata()?;
        match fs::metadata(path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (open.dev(), open.ino())),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(cause) => Err(cause),
        }
    }
}

/// Locks an open file, without waiting. Returns `false` if it is already locked.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    lock_with(file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
}

/// Takes a shared lock without waiting. Returns `false` if another process has an exclusive lock.
fn try_lock_shared(file: &File) -> io::Result<bool> {
    lock_with(file, rustix::fs::FlockOperation::NonBlockingLockShared)
}

fn lock_with(file: &File, operation: rustix::fs::FlockOperation) -> io::Result<bool> {
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(cause) => Err(cause.into()),
    }
}

pub(crate) fn unlock(file: &File) {
    // Unlocking an open file cannot fail.
    let _ = rustix::fs::flock(file, rustix::fs::FlockOperation::Unlock);
}

/// Refuses file systems on which locks and syncs are unreliable.
#[cfg(target_os = "linux")]
pub(crate) fn check_file_system(dir: &Path) -> Result<()> {
    // From linux/magic.h, and from fs/smb and fs/9p of the kernel.
    const REFUSED: [(u32, &str); 5] =
        [(0x6969, "NFS"), (0x0102_1997, "9p"), (0x6573_5546, "FUSE"), (0xFF53_4D42, "SMB"), (0xFE53_4D42, "SMB")];
    let found = rustix::fs::statfs(dir).map_err(|cause| Error::io("look at file system of", dir, &cause.into()))?;
    match REFUSED.iter().find(|(refused, _)| *refused == magic(&found)) {
        None => Ok(()),
        Some((_, name)) => {
            let cause = io::Error::new(
                io::ErrorKind::Unsupported,
                format!("it is on {name}, where locks and syncs may not work; any_file_system(true) opens it anyway"),
            );
            Err(Error::io("open store", dir, &cause))
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn check_file_system(_dir: &Path) -> Result<()> {
    Ok(())
}

/// Allocates blocks for this range, also after the end of the file. The length and content stay as they are.
#[cfg(target_os = "linux")]
pub(crate) fn allocate(file: &File, start: u64, len: u64) -> io::Result<()> {
    Ok(rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, start, len)?)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn allocate(_file: &File, _start: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Asks the file system to sync every write to this file or directory. Returns true if it will.
pub(crate) fn set_sync_flag(path: &Path) -> bool {
    set_flag(path, IFlags::SYNC)
}

/// True if files created in a directory with that flag inherit it. On btrfs they do not; other file systems are not
/// known.
#[cfg(target_os = "linux")]
pub(crate) fn inherits_sync_flag(dir: &Path) -> bool {
    // From linux/magic.h: ext4, XFS.
    const INHERIT: [u32; 2] = [0xEF53, 0x5846_5342];
    rustix::fs::statfs(dir).is_ok_and(|found| INHERIT.contains(&magic(&found)))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn inherits_sync_flag(_dir: &Path) -> bool {
    false
}

/// Returns the magic number. The type of the field differs between platforms, but magic numbers have 32 bits.
#[cfg(target_os = "linux")]
#[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "only the low bits count")]
fn magic(found: &rustix::fs::StatFs) -> u32 {
    found.f_type as u32
}

#[cfg(target_os = "linux")]
fn set_flag(path: &Path, flag: IFlags) -> bool {
    use rustix::fs::{ioctl_getflags, ioctl_setflags};
    let set = || -> io::Result<bool> {
        let file = File::open(path)?;
        let flags = ioctl_getflags(&file)?;
        if !flags.contains(flag) {
            ioctl_setflags(&file, flags | flag)?;
        }
        Ok(ioctl_getflags(&file)?.contains(flag))
    };
    set().unwrap_or(false)
}

#[cfg(not(target_os = "linux"))]
enum IFlags {
    NOCOW,
    SYNC,
}

#[cfg(not(target_os = "linux"))]
fn set_flag(_path: &Path, _flag: IFlags) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_with_one_name_are_made_private_and_nothing_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
        fs::create_dir(&inside).unwrap();
        let open_to_all = |path: &Path| {
            fs::write(path, "x").unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        };
        open_to_all(&outside);
        open_to_all(&inside.join("own"));
        std::os::unix::fs::symlink(&outside, inside.join("symbolic")).unwrap();
        fs::hard_link(&outside, inside.join("hard")).unwrap();
        // An open of a pipe waits for the other end.
        assert!(std::process::Command::new("mkfifo").arg(inside.join("pipe")).status().unwrap().success());
        make_private(&inside).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&outside), mode(&inside.join("own"))), (0o644, FILE_MODE));
    }
}
