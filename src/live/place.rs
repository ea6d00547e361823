//! Where the socket is: a file in the store's directory, made by the owner of the store's lock.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, renameat, unlinkat};

use crate::types::error::{Error, ErrorKind, Result};

/// The socket's name in the directory of the store.
pub(crate) const NAME: &str = "SOCKET";
/// Its name until it has its mode.
const NEW: &str = "SOCKET.new";

/// The directory of a store, open. The address of a socket may have about a hundred bytes, and the path of a store more, so
/// the directory is named by its descriptor where the system has names for these.
#[derive(Debug)]
pub(crate) struct Place {
    dir: File,
    path: PathBuf,
}

impl Place {
    pub(crate) fn new(store: &Path) -> Result<Self> {
        let dir = File::open(store).map_err(|cause| Error::io("open directory", store, &cause))?;
        Ok(Self { dir, path: store.to_owned() })
    }

    /// Where the socket is, for messages.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.join(NAME)
    }

    /// Calls `f` with an address of the file `name`.
    fn with<R>(&self, name: &str, f: impl Fn(&Path) -> io::Result<R>) -> io::Result<R> {
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::AsRawFd;
            let short = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
            // Without `/proc` only the path itself is left.
            if short.exists() {
                return f(&short.join(name));
            }
        }
        f(&self.path.join(name))
    }

    /// Makes the socket, for its owner only. Replaces one that an earlier owner of the store has left, and nothing else. To be
    /// called with the store locked.
    pub(crate) fn bind(&self) -> Result<UnixListener> {
        self.remove_socket(NEW)?;
        let failed = |cause: io::Error| Error::io("make socket", &self.path(), &cause);
        let listener = self.with(NEW, |path| UnixListener::bind(path)).map_err(failed)?;
        let set_mode = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o600));
        let made = self
            .with(NEW, set_mode)
            .map_err(failed)
            .and_then(|()| self.remove_socket(NAME))
            .and_then(|()| renameat(&self.dir, NEW, &self.dir, NAME).map_err(|cause| failed(cause.into())));
        if let Err(error) = made {
            let _ = unlinkat(&self.dir, NEW, AtFlags::empty());
            return Err(error);
        }
        Ok(listener)
    }

    /// Removes the socket. To be called with the store locked.
    pub(crate) fn remove(&self) {
        // Where it stays, nobody answers, and the next owner replaces it.
        let _ = self.remove_socket(NAME);
    }

    fn remove_socket(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        let failed = |cause: io::Error| Error::io("remove old socket", &path, &cause);
        let found = match rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(cause) => return Err(failed(cause.into())),
        };
        if rustix::fs::FileType::from_raw_mode(found.st_mode) != rustix::fs::FileType::Socket {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        unlinkat(&self.dir, name, AtFlags::empty()).map_err(|cause| failed(cause.into()))
    }

    /// Connects to the process that has the store open. `None` if no socket is there, or no process behind it.
    pub(crate) fn connect(&self) -> Result<Option<UnixStream>> {
        match self.with(NAME, |path| UnixStream::connect(path)) {
            Ok(stream) => Ok(Some(stream)),
            Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(cause) => Err(Error::io("connect to", &self.path(), &cause)),
        }
    }
}

/// Refuses a client of another user.
#[cfg(target_os = "linux")]
pub(crate) fn check_peer(stream: &UnixStream) -> Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|cause| Error::io("look at the client of", Path::new(NAME), &cause.into()))?;
    if peer.uid.is_root() || peer.uid == rustix::process::geteuid() {
        return Ok(());
    }
    let message = format!("the store belongs to another user than {}", peer.uid.as_raw());
    Err(Error::new(ErrorKind::StoreInUse, message))
}

/// Only the mode of the socket keeps other users out.
#[cfg(not(target_os = "linux"))]
pub(crate) fn check_peer(_stream: &UnixStream) -> Result<()> {
    Ok(())
}
