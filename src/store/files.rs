//! Files and directories: what std leaves out, and errors that name the path.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|cause| Error::io("sync directory", dir, &cause))
}

/// Makes the entry of a file or directory durable where it is.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    sync_dir(parent(path))
}

/// Makes what is in a file durable.
pub(crate) fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|cause| Error::io("sync file", path, &cause))
}

/// Syncs every file and directory below, innermost first, and the directory itself.
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
    fs::create_dir(dir).map_err(|cause| Error::io("create directory", dir, &cause))
}

/// Makes a directory and what is missing above it, durably: each before anything is in it, so that a process that is killed
/// here leaves at most one that is not, the innermost.
pub(crate) fn create_dirs(dir: &Path) -> Result<()> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let missing: Vec<_> = dir.ancestors().take_while(is_missing).collect();
    for missing in missing.into_iter().rev() {
        if let Some(above) = missing.parent().filter(|above| !above.as_os_str().is_empty()) {
            sync_entry(above)?;
        }
        // Another process may make it at the same time.
        fs::create_dir_all(missing).map_err(|cause| Error::io("create directory", missing, &cause))?;
        sync_parent(missing)?;
    }
    Ok(())
}

/// Makes a directory's own entry durable, which whoever made it may not have lived to do. Where this process may not read, or
/// nothing can be written, it has made nothing.
pub(crate) fn sync_entry(dir: &Path) -> Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem};
    let above = parent(dir);
    match File::open(above).and_then(|above| above.sync_all()) {
        Err(cause) if matches!(cause.kind(), PermissionDenied | ReadOnlyFilesystem | InvalidInput) => Ok(()),
        synced => synced.map_err(|cause| Error::io("sync directory", above, &cause)),
    }
}

/// What is above the root is the root.
fn parent(dir: &Path) -> &Path {
    match dir.parent() {
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
        None => dir,
    }
}

pub(crate) fn is_dir(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// An exclusive lock on a file, held until it is dropped. The kernel frees it when the process ends, however it does.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    pid: u32,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child that is between its fork and its exec has it open too. A child that is
        // not has no right to unlock what is its parent's.
        if std::process::id() == self.pid {
            let _ = rustix::fs::flock(&self.file, rustix::fs::FlockOperation::Unlock);
        }
    }
}

impl Lock {
    #[cfg(test)]
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Creates the file if it is missing. `store` is what the caller asked for.
    pub(crate) fn take(path: &Path, store: &Path) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|cause| Error::io("open lock file", path, &cause))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { file, pid: std::process::id() }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let message = format!("the store {} is open already, in this process or another", store.display());
                Err(Error::new(ErrorKind::StoreInUse, message))
            }
            Err(cause) => Err(Error::io("lock", path, &cause.into())),
        }
    }
}

/// Refuses file systems on which a lock or a sync may not do what it says.
#[cfg(target_os = "linux")]
pub(crate) fn check_file_system(dir: &Path) -> Result<()> {
    // From linux/magic.h, and fs/smb and fs/9p of the kernel.
    const REFUSED: [(u32, &str); 5] =
        [(0x6969, "NFS"), (0x0102_1997, "9p"), (0x6573_5546, "FUSE"), (0xFF53_4D42, "SMB"), (0xFE53_4D42, "SMB")];
    let found = rustix::fs::statfs(dir).map_err(|cause| Error::io("look at file system of", dir, &cause.into()))?;
    // The field's type differs between platforms; magic numbers have 32 bits.
    #[allow(clippy::cast_sign_loss, reason = "only the bits count")]
    let magic = found.f_type as u64 & u64::from(u32::MAX);
    match REFUSED.iter().find(|(refused, _)| u64::from(*refused) == magic) {
        None => Ok(()),
        Some((_, name)) => {
            let cause = io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "it is on {name}, where locks and syncs may not hold; any_file_system(true) opens it all the same"
                ),
            );
            Err(Error::io("open store", dir, &cause))
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn check_file_system(_dir: &Path) -> Result<()> {
    Ok(())
}

/// Bytes that may still be written to the file system that this directory is on; `u64::MAX` if it does not say.
pub(crate) fn free_bytes(dir: &Path) -> Result<u64> {
    let found = rustix::fs::statvfs(dir).map_err(|cause| Error::io("look at file system of", dir, &cause.into()))?;
    let is_known = found.f_blocks > 0;
    Ok(if is_known { found.f_bavail.saturating_mul(found.f_frsize) } else { u64::MAX })
}

/// Gives the file blocks for this range, behind its end too, and leaves its length and bytes as they are.
#[cfg(target_os = "linux")]
pub(crate) fn allocate(file: &File, start: u64, len: u64) -> io::Result<()> {
    Ok(rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, start, len)?)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn allocate(_file: &File, _start: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Asks the file system to sync every write to this file or directory at once; says whether it will.
#[cfg(target_os = "linux")]
pub(crate) fn set_sync_flag(path: &Path) -> bool {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let set = || -> io::Result<bool> {
        let file = File::open(path)?;
        let flags = ioctl_getflags(&file)?;
        if !flags.contains(IFlags::SYNC) {
            ioctl_setflags(&file, flags | IFlags::SYNC)?;
        }
        Ok(ioctl_getflags(&file)?.contains(IFlags::SYNC))
    };
    set().unwrap_or(false)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn set_sync_flag(_path: &Path) -> bool {
    false
}
