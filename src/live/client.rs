//! The client: sends requests to the process that has a store open.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::live::frame::{self, Greeting, Kind, Timed};
use crate::live::socket_dir::SocketDir;
use crate::types::clock::deadline;
use crate::types::codec;
use crate::types::error::{Error, ErrorKind, Result};

/// The longest time for the server's greeting, and for sending the request.
const TO_ANSWER: Duration = Duration::from_secs(10);

/// The socket of a store that a process has open.
#[derive(Debug)]
pub(crate) struct Client {
    dir: SocketDir,
}

/// An iterator over the replies to a request. Its drop closes the connection.
#[derive(Debug)]
pub(crate) struct Replies {
    path: PathBuf,
    /// The versions of the server.
    server: Greeting,
    /// `None` after the last reply.
    stream: Option<UnixStream>,
}

impl Client {
    /// Finds the socket of the store in this directory.
    ///
    /// # Errors
    ///
    /// `StoreInUse` if no process serves the socket.
    pub(crate) fn new(store: &Path) -> Result<Self> {
        let client = Self { dir: SocketDir::new(store)? };
        drop(client.connect()?);
        Ok(client)
    }

    fn connect(&self) -> Result<(UnixStream, Greeting)> {
        let path = self.dir.path();
        let stream = self.dir.connect()?.ok_or_else(|| {
            let message = format!("no process answers at {}", path.display());
            Error::new(ErrorKind::StoreInUse, message)
        })?;
        let failed = |cause: io::Error| Error::io("ask the owner of the store at", &path, &cause);
        stream.set_nonblocking(true).map_err(failed)?;
        let server = Greeting::read(&mut Timed::new(&stream, deadline(TO_ANSWER))).map_err(failed)?;
        if server.is_same() { Ok((stream, server)) } else { Err(other_version(&server)) }
    }

    pub(crate) fn ask(&self, request: &[u8]) -> Result<Replies> {
        let (stream, server) = self.connect()?;
        let mut to = Timed::new(&stream, deadline(TO_ANSWER));
        let asked = Greeting::own().write(&mut to).and_then(|()| frame::write(&mut to, Kind::Message, request));
        // A server that refuses a client has sent the reason, and does not read the request.
        if let Err(cause) = asked.as_ref().map_err(io::Error::kind) {
            if !matches!(cause, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
                asked.map_err(|cause| Error::io("ask the owner of the store at", &self.dir.path(), &cause))?;
            }
        }
        Ok(Replies { path: self.dir.path(), server, stream: Some(stream) })
    }
}

/// Returns the error for a server that this build does not understand.
fn other_version(server: &Greeting) -> Error {
    let message = format!(
        "the process that has the store open is {server}, and this is {}: use the program of the same build",
        Greeting::own()
    );
    Error::new(ErrorKind::UnsupportedFormat, message)
}

impl Replies {
    /// Returns the error for a reply that this build does not understand.
    pub(crate) fn not_understood(&self) -> Error {
        other_version(&self.server)
    }

    /// Waits for the next reply. Returns `None` after the last one.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>> {
        while let Some(stream) = &self.stream {
            // Wait without a deadline: a reply may take long, and the system closes the socket of a process that ends.
            let read = frame::read(&mut Timed::new(stream, None));
            match read.map_err(|cause| self.failed(&cause)) {
                Ok((Kind::Alive, _)) => {}
                Ok((Kind::Message, reply)) => return Ok(Some(reply)),
                Ok((Kind::Last, _)) => self.stream = None,
                Ok((Kind::Failed, error)) => {
                    self.stream = None;
                    let (kind, message): (ErrorKind, String) =
                        codec::decode_plain("error", &error).map_err(|_| self.not_understood())?;
                    return Err(Error::new(kind, message));
                }
                Err(error) => {
                    self.stream = None;
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    fn failed(&self, cause: &io::Error) -> Error {
        let hung_up = matches!(cause.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
        let why = if hung_up {
            "read the rest of the answer (the process has closed the store or ended, or this client was too slow) at"
        } else {
            "read the answer at"
        };
        Error::io(why, &self.path, cause)
    }
}
