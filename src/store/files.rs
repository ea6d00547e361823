//! Files and directories: what std leaves out, and errors that name the path.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|cause| Error::io("sync directory", dir, &cause))
}

/// Syncs every file and directory below, innermost first, and the directory itself.
pub(crate) fn sync_tree(dir: &Path) -> Result<()> {
    for (path, kind) in entries(dir)? {
        if kind.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|cause| Error::io("sync file", &path, &cause))?;
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

/// Makes a directory and what is missing above it, durably.
pub(crate) fn create_dirs(dir: &Path) -> Result<()> {
    let missing: Vec<_> = dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    fs::create_dir_all(dir).map_err(|cause| Error::io("create directory", dir, &cause))?;
    for made in missing {
        let above = made.parent().filter(|above| !above.as_os_str().is_empty());
        sync_dir(above.unwrap_or_else(|| Path::new(".")))?;
    }
    Ok(())
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
