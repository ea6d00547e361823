//! The socket: a file in the store's directory, created by the owner of the store's lock.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, renameat, unlinkat};

use crate::types::error::{Error, ErrorKind, Result};

/// The name of the socket in the directory of the store.
pub(crate) const NAME: &str = "SOCKET";
/// The name of the socket until its mode is set.
const NEW: &str = "SOCKET.new";

/// The open directory of a store. The address of a socket is limited to about a hundred bytes, which a path may exceed.
/// So the directory is addressed by its descriptor where the system supports that.
#[derive(Debug)]
pub(crate) struct SocketDir {
    dir: File,
    path: PathBuf,
}

impl SocketDir {
    pub(crate) fn new(store: &Path) -> Result<Self> {
        let dir = File::open(store).map_err(|cause| Error::io("open directory", store, &cause))?;
        Ok(Self { dir, path: store.to_owned() })
    }

    /// Returns the path of the socket, for messages.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.join(NAME)
    }

    /// Calls `f` with an address of the file `name`.
    fn with<R>(&self, name: &str, f: impl Fn(&Path) -> io::Result<R>) -> io::Result<R> {
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::AsRawFd;
            let short = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
            // Without `/proc`, use the path itself.
            if short.exists() {
                return f(&short.join(name));
            }
        }
        f(&self.path.join(name))
    }

    /// Creates the socket with permissions for its owner only. Replaces a socket of an earlier owner, but no other
    /// file. Called while the store is locked.
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

    /// Removes the socket. Called while the store is locked.
    pub(crate) fn remove(&self) {
        // If this fails, no process answers at the socket, and the next owner replaces it.
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

    /// Connects to the process that has the store open. Returns `None` if there is no socket, or no process serves it.
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

/// Without peer credentials, only the mode of the socket keeps other users out.
#[cfg(not(target_os = "linux"))]
pub(crate) fn check_peer(_stream: &UnixStream) -> Result<()> {
    Ok(())
}
